"""Which rows and messages belong together, read off a run without faults.

Conservative, because what is learned accuses: a row or message too few is found by another pair or
by the user's own assertion, a right application accused is a lie. So values must match one to one,
without an exception; small integers only under like names; and of several columns the one that looks
most like an identity is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from txbus_sim.checkers._duplicate import without
from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Message, RowEvent, base, normal
from txbus_sim.checkers._vocabulary import MESSAGE_ID, Books, Effect, Expectation, Pair, Repeat
from txbus_sim.history import History

__all__ = ["learn"]

_LEAST = 2
_WEAK_CHARS = 9
_LOGS = re.compile(r"attempt|audit|histor|journal|trace|(^|_)logs?($|_)")
"""Tables that keep one row a try, by their names: their second row is no second effect."""
_IDENTITY = re.compile(r"(^|_)(id|uuid|guid|key|ref|reference|number|no|code)$")
_FROM = "learned from the run without faults: "


@dataclass(frozen=True, slots=True)
class _Column:
    """A column whose values tell the inserted rows of a table apart, in groups of equal size."""

    table: str
    name: str
    values: Mapping[str, Sequence[RowEvent]]
    rows: int
    """How many rows each value has."""
    numbered: bool
    """The database may have numbered the rows itself."""


@dataclass(frozen=True, slots=True)
class _Field:
    topic: str
    path: str
    values: Mapping[str, Message]


@dataclass(frozen=True, slots=True)
class _Match:
    """A column and a field with the same values, and how much that says (the greater the better)."""

    column: _Column
    field: _Field
    worth: tuple[int, ...]


def learn(history: History, books: Books) -> tuple[Expectation, ...]:
    """What to expect of every run, from one without faults that came to its end.

    Pairs of the sending side, effects of the receiving side, and how often each topic says the same.
    Nothing is learned where commits do not tell their rows (`LocalCommitted.rows`).
    """
    evidence = Evidence(history)
    if not evidence.rows_noted:
        return ()
    columns = {
        table: found
        for table in evidence.rows
        if _of_the_application(table) and (found := _columns(evidence, books, table))
    }
    pairs: list[Pair] = []
    effects: list[Effect] = []
    repeats: list[Repeat] = []
    for topic, messages in evidence.messages.items():
        if topic.startswith("txbus.") or ".dead." in topic or len(messages) < _LEAST:
            continue
        fields = _fields(topic, messages)
        matches = [m for table in columns.values() if (m := _best(table, fields)) is not None]
        pair = _pair(evidence, topic, matches)
        if pair is not None:
            pairs.append(pair)
        effects += [effect for match in matches if (effect := _effect(evidence, match)) is not None]
        repeats.append(_repeat(topic, messages, pair))
    return (*pairs, *effects, *repeats)


def _of_the_application(table: str) -> bool:
    name = table.partition(".")[2].lower()
    return not name.startswith(("txbus_", "sqlite_")) and _LOGS.search(name) is None


def _columns(evidence: Evidence, books: Books, table: str) -> list[_Column]:
    inserted = [event for event in evidence.rows[table] if event.change.before is None and event.change.after]
    if len(inserted) < _LEAST:
        return []
    rowid = _rowid(books, table)
    found: list[_Column] = []
    for name in inserted[0].change.after or ():
        values: dict[str, list[RowEvent]] = {}
        for event in inserted:
            value = normal((event.change.after or {}).get(name))
            if value is None:
                break
            values.setdefault(value, []).append(event)
        else:
            sizes = {len(events) for events in values.values()}
            if len(values) >= _LEAST and len(sizes) == 1:
                found.append(_Column(table, name, values, sizes.pop(), name == rowid and _counts_up(values)))
    return found


def _rowid(books: Books, table: str) -> str:
    """The column that SQLite itself would number, "" if there is none."""
    database, _, name = table.partition(".")
    literal = name.replace("'", "''")
    keys = [
        (str(column), str(kind).upper())
        for column, kind, place in books.rows(database, f"SELECT name, type, pk FROM pragma_table_info('{literal}')")
        if place
    ]
    return keys[0][0] if len(keys) == 1 and keys[0][1] == "INTEGER" else ""


def _counts_up(values: Mapping[str, object]) -> bool:
    """Whether the values, in the order of their rows, are numbers each one more than the last."""
    if not all(value.isdecimal() for value in values):
        return False
    numbers = [int(value) for value in values]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _fields(topic: str, messages: Sequence[Message]) -> list[_Field]:
    """The fields that every message has, each time with another value."""
    found: list[_Field] = []
    for path in messages[0].fields():
        values: dict[str, Message] = {}
        for message in messages:
            value = message.fields().get(path)
            if value is None or value in values:
                break
            values[value] = message
        else:
            found.append(_Field(topic, path, values))
    return found


def _best(columns: Sequence[_Column], fields: Sequence[_Field]) -> _Match | None:
    """Of one table and one topic: the column and the field that match best, if any do."""
    matches = [
        _Match(column, one, worth)
        for column in columns
        for one in fields
        if column.values.keys() == one.values.keys() and (worth := _worth(column, one)) is not None
    ]
    return max(matches, key=lambda match: match.worth, default=None)


def _worth(column: _Column, one: _Field) -> tuple[int, ...] | None:
    """How much a match says; None if it may be a coincidence."""
    leaf = one.path.rpartition(".")[2]
    alike = _alike(column, one.topic, leaf)
    weak = all(value.isdecimal() and len(value) < _WEAK_CHARS for value in column.values)
    if weak and not alike:
        return None
    identity = int(_IDENTITY.search(column.name.lower()) is not None)
    length = min(len(value) for value in column.values)
    return (int(not weak), identity + int(alike), int(one.path != MESSAGE_ID), int(column.name == leaf), length)


def _alike(column: _Column, topic: str, leaf: str) -> bool:
    """Whether a column and a payload's field are named alike: equal, or the one is ``id`` and the
    other says of what (``orders.id`` and ``order_id``)."""
    name, leaf = column.name.lower(), leaf.lower()
    table = _one(column.table.rpartition(".")[2].lower())
    if name == leaf:
        # A row that the database numbers is not the message's number because both say "id".
        return not column.numbered or name != "id" or _one(topic.lower()) == table
    return (name == "id" and leaf == f"{table}_id") or (leaf == "id" and name == f"{_one(topic.lower())}_id")


def _one(name: str) -> str:
    """A plural's singular, as far as names of tables go."""
    if name.endswith("ies"):
        return f"{name[:-3]}y"
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name


# the sending side


def _pair(evidence: Evidence, topic: str, matches: Sequence[_Match]) -> Pair | None:
    """Of the tables that a topic's sender writes, the one whose rows it tells of."""
    ranked: list[tuple[tuple[int, ...], Pair]] = []
    for match in matches:
        column, values = match.column, match.field.values
        if column.rows != 1 or _is_handed(evidence, match) or not _is_sent(evidence, match):
            continue
        events = {value: found[0] for value, found in column.values.items()}
        before = [events[value].seq < message.seq for value, message in values.items()]
        if any(before) and not all(before):
            continue
        emptied = all(evidence.book(column.table, column.name).live[value] == 0 for value in values)
        named = _one(topic.lower().rpartition(".")[2]) in column.table.rpartition(".")[2].lower()
        last = max(event.seq for event in events.values())
        first = "first published, then committed, " if not all(before) else ""
        pair = Pair(
            column.table,
            column.name,
            topic,
            match.field.path,
            emptied,
            not all(before),
            f"{_FROM}{first}every row of {column.table} ({column.name}) has one message in topic {topic} "
            f"({_named(match.field.path)}): {len(values)} of {len(values)}",
        )
        ranked.append(((int(all(before)), int(not emptied), int(named), *match.worth, last), pair))
    return max(ranked, key=lambda one: one[0])[1] if ranked else None


def _named(path: str) -> str:
    return path if path == MESSAGE_ID else f"payload.{path}"


def _is_sent(evidence: Evidence, match: _Match) -> bool:
    """Whether the process that committed each row is the one that sent its message."""
    return all(
        base(evidence.sender_of(message)) == base(match.column.values[value][0].commit.process)
        for value, message in match.field.values.items()
    )


def _is_handed(evidence: Evidence, match: _Match) -> bool:
    """Whether some row was committed by a process that had been handed its message before."""
    return any(
        one.seq < event.seq and base(one.process) == base(event.commit.process)
        for value, message in match.field.values.items()
        for one in _handings(evidence, message)
        for event in match.column.values[value]
    )


# the receiving side


@dataclass(frozen=True, slots=True)
class _Handing:
    seq: int
    process: str
    group: str


def _handings(evidence: Evidence, message: Message) -> list[_Handing]:
    record = message.record
    return [
        _Handing(one.seq, one.record.process, place.group)
        for place, seen in evidence.places.items()
        if place.topic == record.topic and place.partition == record.partition
        for one in seen.deliveries
        if one.record.offset == record.offset
    ]


def _effect(evidence: Evidence, match: _Match) -> Effect | None:
    """A table whose rows come from a topic's messages: committed by whom they were handed to, after it."""
    column, values = match.column, match.field.values
    if column.numbered:
        return None
    groups: dict[str, None] | None = None
    for value, message in values.items():
        mine = {
            one.group: None
            for one in _handings(evidence, message)
            if all(
                one.seq < event.seq and base(one.process) == base(event.commit.process)
                for event in column.values[value]
            )
        }
        groups = mine if groups is None else {group: None for group in groups if group in mine}
    book = evidence.book(column.table, column.name)
    # Rows that come and go cannot show a second effect, and a lost one may be only done with.
    if not groups or any(book.live[value] != column.rows for value in values):
        return None
    count = "one row" if column.rows == 1 else f"{column.rows} rows"
    return Effect(
        match.field.topic,
        match.field.path,
        column.table,
        column.name,
        column.rows,
        next(iter(groups)) if len(groups) == 1 else "",
        False,
        f"{_FROM}every message of topic {match.field.topic} ({_named(match.field.path)}) has {count} in "
        f"{column.table} ({column.name}): {len(values)} of {len(values)}",
    )


def _repeat(topic: str, messages: Sequence[Message], pair: Pair | None) -> Repeat:
    identity = pair.field if pair is not None else MESSAGE_ID
    said = Counter(rest for message in messages if (rest := without(message, identity)) is not None)
    return Repeat(topic, identity, dict(said))
