"""What checkers speak about: stored records, messages, rows, dead letters, deliveries."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from txbus_sim.checkers._vocabulary import Books
from txbus_sim.history import Acknowledged, Delivered, LocalCommitted, PositionCommitted, RowChange, Stored, Visible

__all__ = [
    "DeadLetter",
    "Delivery",
    "Done",
    "Kept",
    "Ledgered",
    "Message",
    "Place",
    "Places",
    "RowBook",
    "RowEvent",
    "Where",
    "base",
    "columns_of",
    "normal",
    "quoted",
    "seconds",
]


def base(process: str) -> str:
    """The declared name of a process: without its incarnation and its replica's number."""
    name = process.partition("+")[0]
    head, _, tail = name.rpartition(".")
    return head if head and tail.isdigit() else name


def seconds(at_ns: int) -> str:
    """A virtual time for people."""
    return f"{at_ns / 1_000_000_000:.6f} s"


def normal(value: object) -> str | None:
    """A value in the form in which rows and payloads can be compared; None if it identifies nothing.

    Integers are their digits, and UUIDs have no dashes, because columns and JSON differ in both.
    """
    kind = type(value)
    if kind is str:
        text: str = value  # type: ignore[assignment]
        if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
            return text.replace("-", "").lower()
        return text or None
    if kind is int:
        return str(value)
    if kind is bytes and len(value) == 16:  # type: ignore[arg-type]
        return value.hex()  # type: ignore[attr-defined, no-any-return]
    return None


def quoted(name: str) -> str:
    """A name for a statement."""
    return '"' + name.replace('"', '""') + '"'


def columns_of(books: Books, database: str, table: str) -> list[str]:
    """The columns of a table in the order of ``SELECT *``."""
    literal = table.replace("'", "''")
    return [str(name) for (name,) in books.rows(database, f"SELECT name FROM pragma_table_info('{literal}')")]


class Where(NamedTuple):
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Place(NamedTuple):
    """A partition as one group sees it."""

    group: str
    topic: str
    partition: int


@dataclass(slots=True)
class Kept:
    """A stored record; ``state`` of its broker transaction: plain, open, committed or aborted, since
    the record ``ended`` of the history."""

    record: Stored
    seq: int
    state: str
    ended: int = -1


@dataclass(slots=True)
class Message:
    """A message that became visible."""

    record: Visible
    seq: int
    _fields: dict[str, str] | None = None

    @property
    def id(self) -> str:
        return self.record.message_id

    def __str__(self) -> str:
        record = self.record
        name = f"message {record.message_id}" if record.message_id else "a message without an id"
        return f"{name} ({record.topic}/{record.partition}@{record.offset})"

    def line(self) -> str:
        return f"{seconds(self.record.at_ns)}  {self} became visible"

    def fields(self) -> Mapping[str, str]:
        """Its id and the scalars of its JSON payload, by path; the payload's one level deep."""
        if self._fields is None:
            self._fields = _fields_of(self.record.payload)
            if self.record.message_id:
                self._fields["ce_id"] = normal(self.record.message_id) or ""
        return self._fields


def _fields_of(payload: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        document: Any = json.loads(payload)
    except ValueError:
        return found
    if not isinstance(document, dict):
        return found
    for name, value in document.items():
        inner = value.items() if isinstance(value, dict) else None
        for path, scalar in ((f"{name}.{n}", v) for n, v in inner) if inner is not None else ((name, value),):
            text = normal(scalar)
            if text is not None:
                found[path] = text
    return found


@dataclass(slots=True)
class RowEvent:
    """One row changed by one commit."""

    change: RowChange
    commit: LocalCommitted
    seq: int

    def line(self) -> str:
        before, after = self.change.before, self.change.after
        what = "inserted" if before is None else "deleted" if after is None else "changed"
        row = ", ".join(f"{name}={value!r}" for name, value in (after or before or {}).items())
        where = f"{self.commit.database}.{self.change.table}"
        unseen = "" if self.commit.answered else " (it never saw the answer)"
        return f"{seconds(self.commit.at_ns)}  {self.commit.process} committed in {where}: {what} {row:.200}{unseen}"


@dataclass(slots=True)
class RowBook:
    """The values of one column over time. ``first``: when each value was first committed; ``ever``:
    rows inserted with it; ``live``: rows that have it at the end; ``most``: the most at one time."""

    first: dict[str, RowEvent] = field(default_factory=dict)
    inserts: dict[str, list[RowEvent]] = field(default_factory=lambda: defaultdict(list))
    live: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    most: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def enter(self, events: list[RowEvent], column: str) -> None:
        """One commit's rows: what is gone first, because all of it happened at once."""
        came: list[str] = []
        for event in events:
            before, after = event.change.before, event.change.after
            old = normal(before.get(column)) if before is not None else None
            new = normal(after.get(column)) if after is not None else None
            if old == new:
                continue
            if old is not None:
                self.live[old] -= 1
            if new is None:
                continue
            came.append(new)
            self.first.setdefault(new, event)
            if before is None:
                self.inserts[new].append(event)
        for value in came:
            self.live[value] += 1
        for value in came:
            if self.live[value] > self.most[value]:
                self.most[value] = self.live[value]


@dataclass(slots=True)
class Ledgered:
    """A ledger row that a commit made durable."""

    event: RowEvent
    attempt: int
    committed: bool
    messages: int


@dataclass(slots=True)
class DeadLetter:
    """A dead letter as it became durable: a row, or a message of a dead-letter topic."""

    seq: int
    at_ns: int
    process: str
    scope: str
    message_id: str
    attempts: int
    error: str
    line: str


class Delivery(NamedTuple):
    record: Delivered
    seq: int


class Done(NamedTuple):
    """A group's word that something is done: ``record`` is an ack or a position."""

    record: Acknowledged | PositionCommitted
    seq: int

    def line(self) -> str:
        record = self.record
        where = f"{record.topic}/{record.partition}@{record.offset}"
        word = "committed the position" if type(record) is PositionCommitted else "acknowledged"
        return f"{seconds(record.at_ns)}  {record.process} {word} {where} in group {record.group}"


@dataclass(slots=True)
class Places:
    """What one group did in one partition, in order."""

    deliveries: list[Delivery] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    _first_done: dict[int, Done] | None = None

    def first_done(self) -> Mapping[int, Done]:
        """Of each offset that was handed over and is done: who said so first."""
        if self._first_done is None:
            self._first_done = {}
            waiting = sorted({one.record.offset for one in self.deliveries}, reverse=True)
            for done in self.done:
                if type(done.record) is Acknowledged:
                    self._first_done.setdefault(done.record.offset, done)
                    continue
                while waiting and waiting[-1] < done.record.offset:
                    self._first_done.setdefault(waiting.pop(), done)
        return self._first_done
