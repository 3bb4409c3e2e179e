"""SQL functions whose result depends on time or chance, answered by the simulation.

CURRENT_TIMESTAMP, CURRENT_DATE and CURRENT_TIME are functions to SQLite's parser (``CTIME_KW`` in
parse.y), also in a DEFAULT, so that they are overridden like the others.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

__all__ = ["override"]

Value = str | int | float | bytes | None

_INT64 = 1 << 63
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (SQLite's times have no zone)
_TIMES: dict[str, int] = {"datetime": 0, "date": 0, "time": 0, "julianday": 0, "strftime": 1}
if sqlite3.sqlite_version_info >= (3, 38):
    _TIMES["unixepoch"] = 0
_KEYWORDS = {"current_timestamp": "%Y-%m-%d %H:%M:%S", "current_date": "%Y-%m-%d", "current_time": "%H:%M:%S"}


def override(connection: sqlite3.Connection, wall_ns: Callable[[], int], chance: random.Random) -> None:
    """Replace SQLite's functions on one connection. ``wall_ns`` is asked whenever a statement asks."""
    make = partial(sqlite3.Connection.create_function, connection)
    make("random", 0, lambda: chance.getrandbits(64) - _INT64)
    make("randomblob", 1, lambda size: chance.randbytes(max(1, int(size or 0))))
    for name, pattern in _KEYWORDS.items():
        make(name, 0, lambda pattern=pattern: _moment(wall_ns()).strftime(pattern), deterministic=True)
    for name, place in _TIMES.items():
        # Deterministic, as SQLite's own are within a statement: indexes and checks may use them.
        make(name, -1, partial(_call, name, place, wall_ns), deterministic=True)
    if sqlite3.sqlite_version_info >= (3, 43):
        make("timediff", 2, partial(_difference, wall_ns), deterministic=True)


def _moment(wall_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=wall_ns // 1000)


def _now(wall_ns: Callable[[], int]) -> str:
    return _moment(wall_ns()).isoformat(" ", "milliseconds")


def _is_now(value: Value) -> bool:
    return isinstance(value, str) and value.lower() == "now"


def _call(name: str, place: int, wall_ns: Callable[[], int], *given: Value) -> Value:
    """SQLite's own function, with ``now`` replaced by virtual time."""
    if len(given) == place:
        given = (*given, _now(wall_ns))
    elif len(given) > place and _is_now(given[place]):
        given = (*given[:place], _now(wall_ns), *given[place + 1 :])
    return _compute(name, given)


def _difference(wall_ns: Callable[[], int], *given: Value) -> Value:
    return _compute("timediff", tuple([_now(wall_ns) if _is_now(one) else one for one in given]))


_calculator: list[sqlite3.Connection] = []


def _compute(name: str, given: tuple[Value, ...]) -> Value:
    if not _calculator:
        # Of no process and without data: it only computes.
        _calculator.append(sqlite3.Connection(":memory:", check_same_thread=False))
    marks = ", ".join("?" * len(given))
    answer: Value = sqlite3.Cursor(_calculator[0]).execute(f"SELECT {name}({marks})", given).fetchone()[0]
    return answer
