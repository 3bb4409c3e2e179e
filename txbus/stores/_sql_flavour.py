"""Where databases differ: conflicts, lock waits, time limits, autocommit, a failed COMMIT.

Measured on SQLite 3.40, PostgreSQL 15 (psycopg 3) and MariaDB 10.11 (PyMySQL). A session variable
leaks into the next user of a pooled connection, so every limit is transaction-local or restored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Table, bindparam, insert
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.elements import ClauseElement

from txbus.errors import ConfigurationError
from txbus.stores._sql_errors import Fault, commit_refused, fault_of, shown
from txbus.stores.contract import CommitResult

__all__ = ["Flavour", "Statement", "flavour_of", "value"]

_PREFIX = "p_"


class Statement:
    """A statement compiled once for a dialect and run at the driver's level: half the cost.

    Its parameters are named by `value`; the values are given by the same names.
    """

    __slots__ = ("_named", "_order", "sql")

    def __init__(self, clause: ClauseElement, dialect: Dialect) -> None:
        compiled: Any = clause.compile(dialect=dialect)
        self.sql: str = compiled.string
        bound: list[str] = compiled.positiontup or list(compiled.bind_names.values())
        self._named = None if compiled.positiontup else [(n, n.removeprefix(_PREFIX)) for n in bound]
        self._order = [n.removeprefix(_PREFIX) for n in bound]

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Execute and return how many rows it touched."""
        return connection.exec_driver_sql(self.sql, self.parameters(values)).rowcount

    def row(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """Execute and return the first row, or None."""
        return connection.exec_driver_sql(self.sql, self.parameters(values)).first()

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """The values as the driver takes them."""
        if self._named is None:
            return tuple([values[name] for name in self._order])
        return {bound: values[name] for bound, name in self._named}


def value(name: str) -> Any:
    """A parameter of a `Statement`. Its bound name differs from the column's, which UPDATE reserves."""
    return bindparam(_PREFIX + name)


class Flavour:
    """What the store asks of a kind of database. Stateless; thread-safe."""

    fence_together = False
    """May one short transaction insert many fences? Not where rows are locked one by one: holding
    one fence while waiting for the next can close a circle with two applications."""
    identity_sql = ""
    """An expression that makes a fresh id in the database, for DDL run by hand."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def insert_ignore(self, table: Table) -> Statement:
        """INSERT that does nothing when the key exists; it says so by its row count."""
        return self.compile(self._ignoring(table).values({c.name: value(c.name) for c in table.columns}))

    def insert(self, table: Table) -> Statement:
        """INSERT that fails when the key exists."""
        return self.compile(insert(table).values({c.name: value(c.name) for c in table.columns}))

    def compile(self, clause: Executable) -> Statement:
        assert isinstance(clause, ClauseElement)
        return Statement(clause, self.dialect)

    def isolate(self, connection: Connection) -> None:
        """Give the store's own short transaction the isolation it is written for; begun just now."""

    def begin_write(self, connection: Connection) -> None:
        """Take now what the first write would have to wait for."""

    def before_savepoint(self, connection: Connection) -> None:
        """Make sure that a savepoint is inside of a transaction of the database."""

    @contextmanager
    def waiting(self, connection: Connection, wait_s: float) -> Iterator[None]:
        """Lock waits of the statements inside end after ``wait_s``. In a begun transaction."""
        raise NotImplementedError
        yield

    def insert_waiting(
        self, connection: Connection, statement: Statement, values: Mapping[str, Any], wait_s: float
    ) -> int:
        """One statement under `waiting`, in the application's transaction."""
        with self.waiting(connection, wait_s):
            return statement.run(connection, values)

    def limit(self, connection: Connection, timeout_s: float) -> object:
        """Let the database end what lasts longer than ``timeout_s``; what `unlimit` needs."""
        return None

    def unlimit(self, connection: Connection, limits: object) -> None:
        """Put a pooled connection back as it was."""

    def schema_lock(self, connection: Connection) -> None:
        """Let one process at a time create tables, until the transaction ends."""

    def schema_unlock(self, connection: Connection) -> None:
        """For locks that outlive the transaction."""

    def autocommits(self, connection: Connection) -> bool:
        """Would a begun transaction of this connection commit each statement on its own?"""
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return True
        detect = getattr(self.dialect, "detect_autocommit_setting", None)  # SQLAlchemy 2.0.43
        return bool(detect and detect(connection.connection.dbapi_connection))

    def unshareable(self, engine: Engine) -> str | None:
        """Why this engine cannot give a second connection to the same data; None if it can."""
        return None

    def after_failed_commit(self, connection: Connection, error: BaseException) -> CommitResult:
        """Classify what COMMIT raised, and leave no transaction open on the connection.

        SQLAlchemy itself sends no ROLLBACK after a COMMIT that raised and may return the
        connection to its pool with the transaction still open; so it is ended here.
        """
        if isinstance(error, Exception) and not connection.invalidated and self._refused(connection, error):
            return CommitResult.REFUSED
        # A later settle on another connection must not wait for this one.
        try:
            connection.invalidate()
        except (sa_exc.SQLAlchemyError, self._driver_error()):
            pass
        return CommitResult.UNKNOWN

    def _refused(self, connection: Connection, error: Exception) -> bool:
        if not commit_refused(error, self.dialect):
            return False
        try:
            self.dialect.do_rollback(connection.connection)
        except Exception:
            return False
        return True

    def _driver_error(self) -> type[Exception]:
        driver: Any = self.dialect.dbapi
        return driver.Error if driver is not None else sa_exc.DBAPIError

    def _ignoring(self, table: Table) -> Any:
        raise NotImplementedError


_OWN_BUSY_TIMEOUT = "txbus_busy_timeout_ms"
"""In a pooled connection's ``info``: the limit it came with, so that it is asked for once."""


class Sqlite(Flavour):
    """One writer for the file: whoever writes waits for the write lock, not for a row."""

    fence_together = True
    identity_sql = "lower(hex(randomblob(16)))"

    def begin_write(self, connection: Connection) -> None:
        # An engine that begins by its own event, or a driver that is always in a transaction, has
        # begun already; then the first INSERT takes the lock.
        if not _in_transaction(connection):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def before_savepoint(self, connection: Connection) -> None:
        # pysqlite begins at the first INSERT. A savepoint before that would be the outermost
        # transaction, and its RELEASE a COMMIT.
        if not _in_transaction(connection):
            connection.exec_driver_sql("BEGIN")

    @contextmanager
    def waiting(self, connection: Connection, wait_s: float) -> Iterator[None]:
        driver_connection: Any = connection.connection.dbapi_connection
        before = _busy_timeout(driver_connection, wait_s)
        try:
            yield
        finally:
            self._restore(driver_connection, before)

    def insert_waiting(
        self, connection: Connection, statement: Statement, values: Mapping[str, Any], wait_s: float
    ) -> int:
        # Every handler's first statement: asking the driver's connection costs a third of going
        # through the Connection.
        pooled = connection.connection
        driver_connection: Any = pooled.dbapi_connection
        own = pooled.info.get(_OWN_BUSY_TIMEOUT)
        if own is None:
            own = pooled.info[_OWN_BUSY_TIMEOUT] = driver_connection.execute("PRAGMA busy_timeout").fetchone()[0]
        wanted = _whole_milliseconds(wait_s)
        if wanted != own:
            driver_connection.execute(f"PRAGMA busy_timeout={wanted}").close()
        try:
            cursor = driver_connection.execute(statement.sql, statement.parameters(values))
            inserted = int(cursor.rowcount)
            cursor.close()
            return inserted
        finally:
            if wanted != own:
                driver_connection.execute(f"PRAGMA busy_timeout={own}").close()

    def autocommits(self, connection: Connection) -> bool:
        if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
            return True
        # isolation_level=None alone is no autocommit: engines that emit their own BEGIN set it.
        driver_connection: Any = connection.connection.dbapi_connection
        always = getattr(driver_connection, "autocommit", None) is True  # Python 3.12
        return (always or driver_connection.isolation_level is None) and not driver_connection.in_transaction

    def schema_lock(self, connection: Connection) -> None:
        self.begin_write(connection)

    def unshareable(self, engine: Engine) -> str | None:
        pool = type(engine.pool).__name__
        url = engine.url
        memory = not url.database or url.database == ":memory:" or url.query.get("mode") == "memory"
        shared = url.query.get("cache") == "shared"
        if pool in ("StaticPool", "SingletonThreadPool"):
            why = f"its {pool} gives the same connection twice"
        elif memory and not shared:
            why = "each of its connections has an in-memory database of its own"
        else:
            return None
        return (
            f"SQLite engine {shown(engine)!r} cannot be used: {why}, and the ledger must be asked on a second "
            "connection; use a file (sqlite:///shop.db), or create_engine('sqlite:///file:shop?mode=memory"
            "&cache=shared&uri=true', poolclass=QueuePool)"
        )

    def _refused(self, connection: Connection, error: Exception) -> bool:
        # COMMIT is a call into the library, so its answer is never lost. It leaves the transaction
        # open when it could not get its lock (a reader in rollback-journal mode) or a deferred
        # constraint fails: then nothing is committed, and a ROLLBACK that ends it is certain. With
        # any other error, or a transaction that is gone already, the ledger is asked.
        try:
            open_before = _in_transaction(connection)
            self.dialect.do_rollback(connection.connection)
            always = getattr(connection.connection.dbapi_connection, "autocommit", None) is False
            ended = always or not _in_transaction(connection)
        except Exception:
            return False
        fault = fault_of(error, self.dialect)
        return open_before and ended and fault in (Fault.BUSY, Fault.REFUSED, Fault.FULL)

    def _restore(self, driver_connection: Any, milliseconds: int) -> None:
        try:
            _set_busy_timeout(driver_connection, milliseconds)
        except self._driver_error():
            pass  # closed in the meantime: there is nothing to restore

    def _ignoring(self, table: Table) -> Any:
        return sqlite.insert(table).on_conflict_do_nothing()


class PostgreSQL(Flavour):
    """Row locks; a failed statement aborts the transaction, so inserts do not fail on conflict.

    Limits are set by SET and read by SHOW: a SELECT would take the snapshot of a REPEATABLE READ
    transaction before the application's first statement.
    """

    identity_sql = "replace(gen_random_uuid()::text, '-', '')"
    _SCHEMA_KEY = 8_602_318_450_071_264_577  # any constant of our own

    def isolate(self, connection: Connection) -> None:
        # Above READ COMMITTED a fence that meets a row which its snapshot does not show fails as a
        # serialization error instead of doing nothing, and would be taken for an open row.
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    @contextmanager
    def waiting(self, connection: Connection, wait_s: float) -> Iterator[None]:
        before = connection.exec_driver_sql(
            f"SHOW lock_timeout; SET LOCAL lock_timeout = {_milliseconds(wait_s)}"
        ).scalar_one()
        yield
        # Not in a ``finally``: after an error the transaction is aborted, and its end restores it.
        if connection.in_transaction():
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{before}'")

    def limit(self, connection: Connection, timeout_s: float) -> object:
        names = ["statement_timeout", "idle_in_transaction_session_timeout"]
        version = getattr(self.dialect, "server_version_info", None) or (0,)
        if version >= (17,):
            names.append("transaction_timeout")
        milliseconds = _milliseconds(timeout_s)
        connection.exec_driver_sql("; ".join(f"SET LOCAL {name} = {milliseconds}" for name in names))
        return None

    def schema_lock(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self._SCHEMA_KEY})")

    def _ignoring(self, table: Table) -> Any:
        return postgresql.insert(table).on_conflict_do_nothing()


class MySQL(Flavour):
    """MariaDB and MySQL. INSERT IGNORE also cuts values that are too long: keys are fitted before."""

    identity_sql = "replace(uuid(), '-', '')"
    _MARIADB_LIMITS = ("innodb_lock_wait_timeout", "max_statement_time", "idle_transaction_timeout")
    _MYSQL_LIMITS = ("innodb_lock_wait_timeout",)

    @contextmanager
    def waiting(self, connection: Connection, wait_s: float) -> Iterator[None]:
        limits = self._set(connection, ("innodb_lock_wait_timeout",), wait_s)
        try:
            yield
        finally:
            self.unlimit(connection, limits)

    def limit(self, connection: Connection, timeout_s: float) -> object:
        mariadb = bool(getattr(self.dialect, "is_mariadb", False))
        return self._set(connection, self._MARIADB_LIMITS if mariadb else self._MYSQL_LIMITS, timeout_s)

    def unlimit(self, connection: Connection, limits: object) -> None:
        if limits is None or connection.closed or connection.invalidated:
            return
        assert isinstance(limits, dict)
        try:
            cursor = connection.connection.cursor()
            cursor.execute("SET SESSION " + ", ".join(f"{name} = {value}" for name, value in limits.items()))
            cursor.close()
        except Exception:
            connection.invalidate()  # never give a connection back with limits that are not its own

    def schema_lock(self, connection: Connection) -> None:
        connection.exec_driver_sql("SELECT GET_LOCK('txbus_schema', 60)")

    def schema_unlock(self, connection: Connection) -> None:
        connection.exec_driver_sql("SELECT RELEASE_LOCK('txbus_schema')")

    def _set(self, connection: Connection, names: tuple[str, ...], seconds: float) -> dict[str, Any]:
        # Whole seconds, and at least one: zero would mean no limit for some of them.
        whole = max(1, math.ceil(seconds))
        row = connection.exec_driver_sql("SELECT " + ", ".join(f"@@SESSION.{name}" for name in names)).one()
        connection.exec_driver_sql("SET SESSION " + ", ".join(f"{name} = {whole}" for name in names))
        return dict(zip(names, row, strict=True))

    def _ignoring(self, table: Table) -> Any:
        return mysql.insert(table).prefix_with("IGNORE")


_FLAVOURS: dict[str, type[Flavour]] = {
    "sqlite": Sqlite,
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
}


def flavour_of(engine: Engine) -> Flavour:
    """The flavour of an engine; ConfigurationError for a database that the store does not know."""
    name = engine.dialect.name
    if name not in _FLAVOURS:
        raise ConfigurationError(
            f"engine {shown(engine)!r}: the SQL store does not know {name!r}; it knows " + ", ".join(sorted(_FLAVOURS))
        )
    if engine.dialect.is_async:
        raise ConfigurationError(
            f"engine {shown(engine)!r} uses the asyncio driver {engine.dialect.driver!r}; give txbus an engine "
            "with a blocking driver for the same database"
        )
    return _FLAVOURS[name](engine.dialect)


def _milliseconds(seconds: float) -> int:
    return max(1, _whole_milliseconds(seconds))


def _whole_milliseconds(seconds: float) -> int:
    return max(0, math.ceil(seconds * 1000))


def _in_transaction(connection: Connection) -> bool:
    driver_connection: Any = connection.connection.dbapi_connection
    return bool(driver_connection.in_transaction)


def _busy_timeout(driver_connection: Any, wait_s: float) -> int:
    """Set how long SQLite waits for a lock; the milliseconds it waited before."""
    cursor = driver_connection.cursor()
    try:
        before = int(cursor.execute("PRAGMA busy_timeout").fetchone()[0])
        cursor.execute(f"PRAGMA busy_timeout={_whole_milliseconds(wait_s)}")
    finally:
        cursor.close()
    return before


def _set_busy_timeout(driver_connection: Any, milliseconds: int) -> None:
    cursor = driver_connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout={milliseconds}")
    finally:
        cursor.close()
