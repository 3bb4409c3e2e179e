"""The SQLAlchemy dialect ``sqlite+sim``: pysqlite as it is, on connections of the simulation."""

from __future__ import annotations

import sqlite3
from types import SimpleNamespace
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import Pool, QueuePool

from txbus_sim._database._connection import is_dropped
from txbus_sim._world import current_process
from txbus_sim.errors import SimulationError

__all__ = ["SERVICE", "SimDialect", "register"]

SERVICE = "databases"


def _connect(name: str, **arguments: Any) -> sqlite3.Connection:
    process = current_process()
    if process is None:
        raise SimulationError(f"sqlite+sim:///{name} is for simulated processes; in a check use the database's `rows`")
    connection: sqlite3.Connection = process.world.services[SERVICE].file(name).connect(process, **arguments)
    return connection


_DRIVER = SimpleNamespace(**{name: getattr(sqlite3, name) for name in dir(sqlite3) if not name.startswith("__")})
_DRIVER.connect = _connect


class SimDialect(SQLiteDialect_pysqlite):
    """``sqlite+sim:///NAME`` is the database of that name in the present run."""

    driver = "sim"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        return _DRIVER

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        return QueuePool

    def create_connect_args(self, url: URL) -> Any:
        query = dict(url.query)
        return [[url.database or ""], {"timeout": float(str(query["timeout"]))} if "timeout" in query else {}]

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return is_dropped(e) or super().is_disconnect(e, connection, cursor)


def register() -> None:
    """Make ``create_engine("sqlite+sim:///…")`` find the dialect. Idempotent."""
    registry.register("sqlite.sim", __name__, "SimDialect")
