"""The SQLAlchemy dialect ``sqlite+sim``: pysqlite as it is, on connections of the simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool, Pool, QueuePool
from sqlalchemy.util import LRUCache

from txbus_sim._database._failures import ConnectionDropped, refuse
from txbus_sim._world import current_process
from txbus_sim.errors import SimulationError

if TYPE_CHECKING:
    from txbus_sim._database._databases import Databases

__all__ = ["SERVICE", "Active", "SimDialect", "active", "register"]

SERVICE = "databases"
"""Under which a world's services have the `Databases` of its run."""
_DEFAULT_CACHE_SIZE = 500


class Active:
    """The databases whose run is going on in this interpreter, for checks outside of processes."""

    def __init__(self) -> None:
        self._runs: list[Databases] = []

    def begin(self, databases: Databases) -> None:
        self.end(databases)
        self._runs.append(databases)

    def end(self, databases: Databases) -> None:
        self._runs = [one for one in self._runs if one is not databases]

    def having(self, name: str) -> Databases:
        for databases in reversed(self._runs):
            if name in databases.names():
                return databases
        raise SimulationError(
            f"sqlite+sim:///{name}: no simulation with a database of this name is running: declare it with "
            "sim.database, and connect from its processes and checks"
        )


active = Active()


class SimDialect(SQLiteDialect_pysqlite):
    """``sqlite+sim:///NAME`` is the database of that name in the present run.

    Within a simulated process its connections are the simulation's; outside of them, in checks, they
    read what is committed. Dialects made with the same arguments are equal, so that what an engine of
    one run has compiled is found by the next one's.
    """

    driver = "sim"
    supports_statement_cache = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._made_with = arguments
        self._hash = hash((SimDialect, *sorted(arguments)))

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is SimDialect and self._made_with == other._made_with)

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:
        # An engine made outside of processes may be used by all of them: each then opens its own.
        return QueuePool if current_process() is not None else NullPool

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        cache = getattr(engine, "_compiled_cache", None)
        process = current_process()
        if process is not None and isinstance(cache, LRUCache) and cache.capacity == _DEFAULT_CACHE_SIZE:
            engine._compiled_cache = process.world.services[SERVICE].compiled

    def create_connect_args(self, url: URL) -> Any:
        if url.username or url.password or url.host or url.port or not url.database or "/" in url.database:
            raise ArgumentError(f"{url} is no simulated database: sqlite+sim:///NAME, as sim.database(NAME).url gives")
        _, options = super().create_connect_args(url)
        return [url.database], options

    def connect(self, *arguments: Any, **options: Any) -> Any:
        (name,) = arguments
        process = current_process()
        if process is None:
            return active.having(name).connect_outside(name, **options)
        databases: Databases | None = process.world.services.get(SERVICE)
        if databases is None:
            raise refuse(f"sqlite+sim:///{name} in a run without databases", "declare it with sim.database")
        return databases.connect(name, process, **options)

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return isinstance(e, ConnectionDropped) or super().is_disconnect(e, connection, cursor)


def register() -> None:
    """Make ``create_engine("sqlite+sim:///…")`` find the dialect. Idempotent."""
    registry.register("sqlite.sim", __name__, "SimDialect")
