"""What became of each row in a local transaction, told by triggers as SQLite changes it.

Triggers see what cascades, what REPLACE deletes and what the application's own triggers do. They
belong to the file, so that every connection of every process has them; their names say whose they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from txbus_sim.history import RowChange, SqlValue

__all__ = ["FUNCTION", "Note", "Shapes", "changes"]

FUNCTION = "txbus_sim_row"
"""What triggers call with a shape's number, an event and values, on every connection of a process."""
Note = tuple[Any, ...]

_INSERTED, _UPDATED, _DELETED = 0, 1, 2
_EVENTS = (("INSERT", _INSERTED, ("NEW",)), ("UPDATE", _UPDATED, ("OLD", "NEW")), ("DELETE", _DELETED, ("OLD",)))
_MORE = -1
"""In place of a shape's number: values that belong to the next note. A function takes 127 of them."""
_ARGUMENTS_MAX = 100


@dataclass(frozen=True, slots=True)
class _Shape:
    """A table as it was when its triggers were made. ``key``: places of the columns that tell its rows
    apart; empty: the hidden row id does, which stands before the columns in a note."""

    table: str
    columns: tuple[str, ...]
    key: tuple[int, ...]


class Shapes:
    """The tables of one file that tell their changes. Only grows: a trigger names its shape for ever."""

    def __init__(self, known: Sequence[_Shape] = ()) -> None:
        self._known: list[_Shape] = []
        self._names: set[str] = set()
        for shape in known:
            self._add(shape)

    def _add(self, shape: _Shape) -> None:
        self._known.append(shape)
        self._names.add(shape.table.lower())

    def copy(self) -> Shapes:
        return Shapes(self._known)

    def __getitem__(self, number: int) -> _Shape:
        return self._known[number]

    def tell(self, table: str) -> bool:
        """Whether changes of a table are told: not those of virtual tables."""
        return table.lower() in self._names

    def follow(self, connection: sqlite3.Connection) -> None:
        """Have every table tell its changes, after statements that changed the schema.

        Runs past the connection's own points; joins the transaction that is open.
        """
        run = sqlite3.Cursor(connection)
        run.row_factory = None
        listed = run.execute(
            "SELECT name, sql LIKE 'CREATE VIRTUAL%' FROM main.sqlite_master "
            "WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY name"
        ).fetchall()
        # A virtual table keeps its content in tables of its own, which do not bear triggers.
        virtual = tuple(f"{name}_" for name, is_virtual in listed if is_virtual)
        tables = [name for name, is_virtual in listed if not is_virtual and not name.startswith(virtual)]
        triggers = run.execute(
            "SELECT tbl_name, name, sql FROM main.sqlite_master "
            "WHERE type = 'trigger' AND name LIKE 'txbus^_sim^_%' ESCAPE '^'"
        ).fetchall()
        shapes = {table: self._look(run, table) for table in tables}
        told = set()
        for table, name, sql in triggers:
            if self._known[_number(sql)] == shapes.get(table):
                told.add(table)
            else:  # the table has other columns now, or another name
                run.execute(f"DROP TRIGGER main.{_quoted(name)}")
        for table, shape in shapes.items():
            if table in told:
                continue
            self._add(shape)
            for event, kind, sides in _EVENTS:
                name = _quoted(f"txbus_sim_{event.lower()}_{table}")
                calls = _told(shape, len(self._known) - 1, kind, sides)
                run.execute(f"CREATE TRIGGER main.{name} AFTER {event} ON {_quoted(table)} BEGIN SELECT {calls}; END")
        run.close()

    def _look(self, run: sqlite3.Cursor, table: str) -> _Shape:
        found = [row for row in run.execute(f"PRAGMA main.table_xinfo({_quoted(table)})").fetchall() if row[6] != 1]
        keyed = sorted((row[5], place) for place, row in enumerate(found) if row[5])
        return _Shape(table, tuple(row[1] for row in found), tuple(place for _, place in keyed))


def changes(shapes: Shapes, notes: Sequence[Note]) -> tuple[dict[str, int], tuple[RowChange, ...]]:
    """How many rows of each table were changed, and what became of each in the end, by all its notes."""
    counts: dict[str, int] = {}
    rows: list[list[Any]] = []
    latest: dict[tuple[str, tuple[Any, ...]], list[Any]] = {}
    more: Note = ()
    for number, *rest in notes:
        if number == _MORE:
            more += tuple(rest)
            continue
        kind, values, more = rest[0], (*more, *rest[1:]), ()
        shape = shapes[number]
        counts[shape.table] = counts.get(shape.table, 0) + 1
        width = len(shape.columns) + (not shape.key)
        old = values[:width] if kind != _INSERTED else None
        new = values[-width:] if kind != _DELETED else None
        before = _key(shape, old) if old is not None else None
        row = latest.pop(before, None) if before is not None else None
        after = _key(shape, new) if new is not None else before
        assert after is not None
        if row is None:
            # A row under the key of one that was deleted is that row, anew.
            row = latest.get(after) if old is None else None
            if row is None or row[2] is not None:
                row = [shape, old, None]
                rows.append(row)
        row[2] = new
        latest[after] = row
    told = [
        RowChange(shape.table, _row(shape, before), _row(shape, after))
        for shape, before, after in rows
        if before != after
    ]
    return counts, tuple(told)


def _key(shape: _Shape, values: Note) -> tuple[str, tuple[Any, ...]]:
    return (shape.table, tuple([values[place] for place in shape.key]) if shape.key else values[:1])


def _row(shape: _Shape, values: Note | None) -> Mapping[str, SqlValue] | None:
    if values is None:
        return None
    return dict(zip(shape.columns, values if shape.key else values[1:], strict=True))


def _told(shape: _Shape, number: int, kind: int, sides: Sequence[str]) -> str:
    """The calls of a trigger, all values in order."""
    columns = [*([] if shape.key else ["_rowid_"]), *map(_quoted, shape.columns)]
    values = [f"{side}.{column}" for side in sides for column in columns]
    calls = []
    while len(values) > _ARGUMENTS_MAX:
        calls.append(f"{FUNCTION}({_MORE}, {', '.join(values[:_ARGUMENTS_MAX])})")
        values = values[_ARGUMENTS_MAX:]
    calls.append(f"{FUNCTION}({number}, {', '.join([str(kind), *values])})")
    return ", ".join(calls)


def _number(trigger: str) -> int:
    """The shape that a trigger names: the first argument of its last call."""
    return int(trigger[trigger.rindex(f"{FUNCTION}(") + len(FUNCTION) + 1 :].partition(",")[0])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
