"""A history as rows that a person reads: a column for each process, for each database, for the broker."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from txbus_sim import history as h
from txbus_sim._casualties import Casualty, casualties, rows
from txbus_sim.history import History

__all__ = [
    "BROKER",
    "Cell",
    "Kind",
    "Row",
    "Timeline",
    "columns",
    "focus",
    "process_name",
    "seconds",
    "short_id",
    "timeline",
]

BROKER = "broker"
_POINTS_BEFORE_FAULT = 2
_NEIGHBOURS = 3
_LAST_ROWS = 10
_GAP_MIN = 10
_ID_SHOWN = 8
_LONG_ID = re.compile(r"[0-9a-fA-F-]{24,}")
_INCARNATION = re.compile(r"(?<=\S)\+[0-9]+$")


class Kind(Enum):
    """What sort of thing happened; the value is its class in the HTML report."""

    STEP = "step"
    """An operation or a call, nothing durable by itself."""
    DURABLE = "durable"
    SEEN = "seen"
    """A message or a question arrived somewhere."""
    FAULT = "fault"
    LOST = "lost"
    LIFE = "life"
    """A process started or ended."""


@dataclass(frozen=True, slots=True)
class Cell:
    column: str
    text: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Row:
    """What happened at one virtual time; or, with ``cell`` None, how much is not shown here:
    ``operations`` that tell nothing new and ``others`` that have rows when everything is shown.

    ``up``: for each column, whether it is alive after this row."""

    at_ns: int
    cell: Cell | None
    up: tuple[bool, ...]
    operations: int = 0
    others: int = 0

    @property
    def tells(self) -> bool:
        """Whether to show it: a few operations that tell nothing are passed over without a word."""
        return self.cell is not None or self.others > 0 or self.operations >= _GAP_MIN


@dataclass(frozen=True, slots=True)
class Timeline:
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def seconds(at_ns: int) -> str:
    """Virtual time as it is shown everywhere."""
    return f"{at_ns / 1e9:.4f} s"


def process_name(key: str) -> str:
    """The process of an incarnation: ``orders`` of ``orders+1``."""
    return key.partition("+")[0]


def short_id(message_id: str) -> str:
    """A message's id as it is shown in a row: of a long hexadecimal one, or a UUID, the beginning."""
    return f"{message_id[:_ID_SHOWN]}…" if _LONG_ID.fullmatch(message_id) else message_id


def columns(history: History) -> tuple[str, ...]:
    """The processes by name in the order of their first start, then the servers that did something."""
    processes: dict[str, None] = {}
    databases: dict[str, None] = {}
    broker = False
    for record in history:
        match record:
            case h.ProcessStarted():
                processes.setdefault(process_name(record.process))
            case h.LocalCommitted() | h.LocalRolledBack():
                databases.setdefault(_database(record))
            case h.Stored() | h.Visible() | h.HalfStored() | h.Checked() | h.Settled():
                broker = True
            case h.BrokerTransactionEnded() | h.PositionCommitted():
                broker = True
            case _:
                pass
    return (*processes, *databases, *((BROKER,) if broker else ()))


def timeline(history: History, *, every_point: bool = False) -> Timeline:
    """What was durable, seen and lost, with the operations right before each fault.

    ``every_point``: all operations, which are many for a service that polls.
    """
    named = columns(history)
    processes = {process_name(one.process) for one in history if isinstance(one, h.ProcessStarted)}
    alive = {name: name not in processes for name in named}
    hidden = set() if every_point else _hidden(history)
    lost = casualties(history)
    made: list[Row] = []
    passed_over = 0
    for number, record in enumerate(history):
        if number in hidden:
            passed_over += isinstance(record, h.Point)
            continue
        cells = [cell for cell in _cells(record, lost.get(number)) if cell.column in alive]
        if number + 1 in hidden and _visible_at_once(history, number):
            cells = [replace(cell, text=f"{cell.text}, visible") for cell in cells]
        if isinstance(record, h.ProcessStarted | h.ProcessEnded):
            alive[process_name(record.process)] = isinstance(record, h.ProcessStarted)
        if cells and passed_over:
            made.append(Row(record.at_ns, None, made[-1].up if made else tuple(alive.values()), passed_over))
            passed_over = 0
        made.extend(Row(record.at_ns, cell, tuple(alive.values())) for cell in cells)
    if passed_over:
        made.append(Row(made[-1].at_ns if made else 0, None, tuple(alive.values()), passed_over))
    return Timeline(named, tuple(made))


def focus(whole: Timeline, about: Collection[str], rows_max: int) -> Timeline:
    """At most ``rows_max`` rows of things that happened: lives and faults first, then what names one
    of ``about``, then what stands near the faults, then the end."""
    told = [number for number, row in enumerate(whole.rows) if row.cell is not None]
    if len(told) <= rows_max:
        return whole
    telling = {Kind.FAULT, Kind.LOST, Kind.LIFE}
    repeated = _repeated(whole, told)
    named = [short_id(one) for one in about]
    near: set[int] = set()
    for place, number in enumerate(told):
        cell = whole.rows[number].cell
        if cell is not None and cell.kind is Kind.FAULT:
            near.update(told[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS + 1])

    end = told[max(0, len(told) - _LAST_ROWS)]

    def rank(number: int) -> int:
        cell = whole.rows[number].cell
        assert cell is not None
        if cell.kind in telling and number not in repeated:
            return 0
        if any(one in cell.text for one in named):
            return 1
        if number in near:
            return 2
        return 3 if number >= end else 4

    kept = set(sorted(told, key=lambda number: (rank(number), number))[:rows_max])
    return Timeline(whole.columns, tuple(_with_gaps(whole, kept)))


def _repeated(whole: Timeline, told: Collection[int]) -> set[int]:
    """Rows that say once more what others do, but for the incarnation: of a process that is started and
    raises, again and again, all but the first and the last."""
    same: dict[tuple[str, str], list[int]] = {}
    for number in told:
        cell = whole.rows[number].cell
        if cell is not None and cell.kind is Kind.LIFE:
            same.setdefault((cell.column, _INCARNATION.sub("", cell.text)), []).append(number)
    return {number for numbers in same.values() for number in numbers[1:-1]}


def _with_gaps(whole: Timeline, kept: Collection[int]) -> Iterator[Row]:
    """The rows kept, and one row for everything between two of them."""
    gap: Row | None = None
    for number, row in enumerate(whole.rows):
        if number in kept:
            if gap is not None:
                yield gap
            gap = None
            yield row
            continue
        others = 1 if row.cell is not None else row.others
        if gap is None:
            gap = Row(row.at_ns, None, row.up, row.operations, others)
        else:
            gap = replace(gap, up=row.up, operations=gap.operations + row.operations, others=gap.others + others)
    if gap is not None:
        yield gap


def _hidden(history: History) -> set[int]:
    """The numbers of the records that need no row: operations but those that a fault hit and those right
    before it; records of nobody's message that their own process took back (a relay that fences its
    predecessor); and that a record is visible, where it was so when it was stored."""
    hidden: set[int] = set()
    recent: dict[str, list[int]] = {}
    held: dict[str, list[int]] = {}
    for number, record in enumerate(history):
        match record:
            case h.Point():
                hidden.add(number)
                mine = recent.setdefault(record.process, [])
                mine.append(number)
                del mine[: -1 - _POINTS_BEFORE_FAULT]
            case h.FaultHappened():
                hidden.difference_update(recent.get(record.address.process, []))
            case h.Stored() if record.producer:
                held.setdefault(record.producer, []).append(-1 if record.message_id else number)
            case h.BrokerTransactionEnded():
                numbers = held.pop(record.producer, [-1])
                if not record.committed and record.by != BROKER and -1 not in numbers:
                    hidden.update((*numbers, number))
            case h.Visible() if number and _visible_at_once(history, number - 1):
                hidden.add(number)
            case _:
                pass
    return hidden


def _visible_at_once(history: History, number: int) -> bool:
    """Whether a stored record is readable by the very next thing that happened."""
    stored, then = history.records[number], history.records[number + 1]
    if not isinstance(stored, h.Stored) or not isinstance(then, h.Visible) or stored.producer:
        return False
    return _at(stored) == _at(then)


def _cells(record: h.Record, casualty: Casualty | None) -> Iterator[Cell]:
    match record:
        case h.Point():
            yield Cell(process_name(record.process), f"{record.label}#{record.number}", Kind.STEP)
        case h.FaultHappened():
            detail = f" ({record.detail})" if record.detail else ""
            what = f"✗ {record.fault.value} at {record.address.label}#{record.address.number}{detail}"
            yield Cell(process_name(record.address.process), what, Kind.FAULT)
        case h.ProcessStarted():
            again = "" if "+" not in record.process else f" anew as {record.process}"
            yield Cell(process_name(record.process), f"● starts{again}", Kind.LIFE)
        case h.ProcessEnded(how="over"):
            return
        case h.ProcessEnded():
            detail = f": {record.detail}" if record.detail and record.how != "crashed" else ""
            name = process_name(record.process)
            yield Cell(name, f"■ {record.how}{detail}", Kind.LIFE)
            if casualty is not None:
                yield Cell(name, f"durable: {'; '.join(casualty.durable) or 'nothing'}", Kind.DURABLE)
                yield Cell(name, f"LOST: {'; '.join(('its memory', *casualty.lost))}", Kind.LOST)
        case h.Delivered():
            text = f"← {_id(record)} ({_at(record)}, attempt {record.attempt})"
            yield Cell(process_name(record.process), text, Kind.SEEN)
        case h.Acknowledged():
            yield Cell(process_name(record.process), f"✓ {_id(record)} acknowledged", Kind.DURABLE)
        case h.Intended():
            yield Cell(process_name(record.process), f"→ {_id(record)} for {record.topic}", Kind.STEP)
        case h.Read() | h.Logged():
            return
        case h.LocalCommitted() | h.LocalRolledBack():
            yield from _database_cells(record)
        case _:
            yield _broker_cell(record)


def _database_cells(record: h.LocalCommitted | h.LocalRolledBack) -> Iterator[Cell]:
    who = process_name(record.process)
    if isinstance(record, h.LocalCommitted):
        unseen = "" if record.answered else ", the answer is lost"
        yield Cell(_database(record), f"{who} committed {_counts(record.changed)}{unseen}", Kind.DURABLE)
    elif record.why != "asked":
        yield Cell(_database(record), f"LOST what {who} had not committed ({record.why})", Kind.LOST)


def _broker_cell(
    record: h.Stored
    | h.Visible
    | h.BrokerTransactionEnded
    | h.HalfStored
    | h.Checked
    | h.Settled
    | h.PositionCommitted,
) -> Cell:
    match record:
        case h.Stored():
            within = ", not visible yet" if record.producer else ""
            return Cell(BROKER, f"{_at(record)} stored {_id(record)}{within}", Kind.DURABLE)
        case h.Visible():
            return Cell(BROKER, f"{_at(record)} visible {_id(record)}", Kind.DURABLE)
        case h.BrokerTransactionEnded():
            how, kind = ("committed", Kind.DURABLE) if record.committed else ("ABORTED", Kind.SEEN)
            # What a process takes back is its own doing; what the broker takes from it, by a time-out
            # or because somebody took its place, is lost.
            lost = not record.committed and record.by == BROKER
            return Cell(BROKER, f"{record.producer} {how} by {record.by}", Kind.LOST if lost else kind)
        case h.HalfStored():
            return Cell(BROKER, f"half {_id(record)} for {record.topic} stored", Kind.DURABLE)
        case h.Checked():
            answer = record.answer.name if record.answer is not None else "no answer"
            return Cell(BROKER, f"check {record.round} of {_id(record)}: {answer}", Kind.SEEN)
        case h.Settled():
            how = "given up" if record.discarded else record.outcome.name
            return Cell(BROKER, f"half {_id(record)} settled {how}", Kind.DURABLE)
        case h.PositionCommitted():
            return Cell(BROKER, f"{record.group} is at {_at(record)}", Kind.DURABLE)


def _counts(changed: Mapping[str, int]) -> str:
    return ", ".join(f"{rows(count)} of {table}" for table, count in changed.items()) or "nothing"


def _database(record: h.LocalCommitted | h.LocalRolledBack) -> str:
    return f"database {record.database}"


_Identified: TypeAlias = (
    h.Stored | h.Visible | h.HalfStored | h.Checked | h.Settled | h.Delivered | h.Acknowledged | h.Intended
)


def _id(record: _Identified) -> str:
    return short_id(record.message_id) if record.message_id else "a record"


def _at(record: h.Stored | h.Visible | h.Delivered | h.PositionCommitted) -> str:
    return f"{record.topic}/{record.partition}@{record.offset}"
