"""`sqlite3.connect` within a simulated process opens files of the simulation only."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from txbus_sim._database._dialect import SERVICE
from txbus_sim._database._failures import refuse
from txbus_sim._interpose._patches import Patches
from txbus_sim._world import current_process

__all__ = ["interposed"]

_NAMES = (
    *("database", "timeout", "detect_types", "isolation_level", "check_same_thread", "factory"),
    *("cached_statements", "uri"),
)


@contextmanager
def interposed() -> Iterator[None]:
    """Within it, `sqlite3.connect` of a simulated process opens a file of the run's folder, a database
    of the run by its name, or memory of its own; anything else is `NotModelled`."""
    patches = Patches()
    patches.function(sqlite3.connect, _connect)
    patches.swap_references()
    try:
        yield
    finally:
        patches.undo()


def _connect(original: Callable[..., sqlite3.Connection], *arguments: Any, **keywords: Any) -> sqlite3.Connection:
    process = current_process()
    if process is None:
        return original(*arguments, **keywords)
    given = {**dict(zip(_NAMES, arguments, strict=False)), **keywords}
    databases = process.world.services.get(SERVICE)
    if databases is None:
        raise refuse("sqlite3.connect in a run without databases", "declare one with sim.database")
    connection: sqlite3.Connection = databases.connect_by_path(original, process, **given)
    return connection
