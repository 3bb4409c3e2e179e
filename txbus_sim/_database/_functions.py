"""SQL functions whose result depends on time or chance, answered by the simulation."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["override"]

_BY_TIME = ("datetime", "date", "time", "julianday", "unixepoch", "strftime")
_INT64 = 1 << 63
_plain: list[sqlite3.Connection] = []


def override(connection: sqlite3.Connection, wall_ns: Callable[[], int], chance: random.Random) -> None:
    """Replace SQLite's functions on one connection; ``wall_ns`` is asked at each call."""
    make = sqlite3.Connection.create_function
    make(connection, "random", 0, lambda: chance.randrange(-_INT64, _INT64))
    make(connection, "randomblob", 1, lambda size: chance.randbytes(max(1, int(size))))
    for name in _BY_TIME:
        make(connection, name, -1, _at(name, wall_ns))


def _at(name: str, wall_ns: Callable[[], int]) -> Callable[..., str | int | float | None]:
    """SQLite's own function, with ``now`` replaced by virtual time."""
    place = 1 if name == "strftime" else 0

    def call(*arguments: str | int | float | None) -> str | int | float | None:
        given = list(arguments)
        if len(given) == place:
            given.append("now")
        if str(given[place]).lower() == "now":
            given[place] = datetime.fromtimestamp(wall_ns() / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        if not _plain:
            # Outside of the run: it only computes.
            _plain.append(sqlite3.Connection(":memory:", check_same_thread=False))
        marks = ", ".join("?" * len(given))
        answer: str | int | float | None = (
            sqlite3.Cursor(_plain[0]).execute(f"SELECT {name}({marks})", given).fetchone()[0]
        )
        return answer

    return call
