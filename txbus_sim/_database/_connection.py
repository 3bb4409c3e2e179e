"""A database connection of a simulated process: every statement is a point, every lock wait virtual."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from txbus_sim._database._functions import override
from txbus_sim._database._statements import Statement, Verb, read
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, Strand, Wait, World, current_strand
from txbus_sim.errors import ProcessIsDead
from txbus_sim.faults import COMMIT, CRASHES, STATEMENT, Fault
from txbus_sim.history import LocalCommitted, LocalRolledBack, RowChange

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Journal", "SimConnection", "SimCursor", "SimFile", "is_dropped"]

_STATEMENT_NS = 100_000
_COMMIT_NS = 400_000
_BUSY_SNAPSHOT = 517
_BUSY, _IOERR = 5, 10


class Journal(Protocol):
    """Who looks at what a commit changed."""

    def before_commit(self, connection: sqlite3.Connection, tables: Sequence[str]) -> tuple[RowChange, ...] | None:
        """Called right before, on the connection that commits; None if rows are not noted."""
        ...

    def after_commit(self, process: Process, changes: tuple[RowChange, ...] | None) -> None:
        """It is durable."""
        ...


class SimFile:
    """One SQLite file of a run: who writes, and who waits for it."""

    def __init__(self, name: str, path: str, world: World, journal: Journal) -> None:
        self.name = name
        self.path = path
        self.world = world
        self.journal = journal
        self.writer: SimConnection | None = None
        self.waiting: list[Strand] = []
        self.connections = 0

    def free(self, connection: SimConnection) -> None:
        """A connection ended its local transaction: whoever waits tries again, the first one first."""
        if self.writer is connection:
            self.writer = None
            waiting, self.waiting = self.waiting, []
            for strand in waiting:
                self.world.unpark(strand)

    def connect(self, process: Process, **arguments: Any) -> SimConnection:
        """A connection of a process. Its ``timeout`` (seconds) is how long it waits for locks."""
        timeout_s = float(arguments.pop("timeout", 5.0))
        self.connections += 1
        arguments["check_same_thread"] = False
        connection = SimConnection(self.path, timeout=0, **arguments)
        connection.file, connection.process, connection.world = self, process, self.world
        connection.number, connection.timeout_ms = self.connections, round(timeout_s * 1000)
        connection.tables, connection.dropped, connection.owner = {}, False, None
        sqlite3.Connection.execute(connection, "PRAGMA synchronous = OFF").close()
        override(connection, lambda: BEGAN_AT_WALL_NS + self.world.now_ns + process.wall_skew_ns, process.entropy)
        process.at_death.append(connection.die)
        return connection


class SimConnection(sqlite3.Connection):
    """Made by `SimFile.connect` only. Belongs to one simulated process."""

    file: SimFile
    process: Process
    world: World
    number: int
    timeout_ms: int
    tables: dict[str, int]
    """Rows changed since the last end of a local transaction, by table."""
    dropped: bool
    owner: Strand | None

    @property
    def _gone(self) -> bool:
        return self.world.closed or not self.process.alive

    def cursor(self, factory: Any = None) -> Any:
        if self._gone:
            raise ProcessIsDead
        return super().cursor(factory or SimCursor)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> Any:
        return self.cursor().executescript(script)

    # ends of local transactions

    def commit(self) -> None:
        if self._gone:
            return
        if not self.in_transaction:
            super().commit()
            return
        world = self.world
        fault = world.enter(f"sql.commit:{self.file.name}", COMMIT)
        if fault is Fault.FAIL:
            raise _error("simulated: the commit was refused, database is locked", _BUSY)
        if fault is Fault.DROP:
            self.drop("dropped")
            raise _dropped("simulated: the connection broke before the commit arrived")
        self.commit_now(answered=fault is not Fault.ANSWER_LOST)
        if fault is Fault.ANSWER_LOST:
            self.drop("dropped")
            raise _dropped("simulated: the connection broke after the commit arrived")
        world.leave(fault)
        world.sleep_ns(_COMMIT_NS)

    def commit_now(self, *, answered: bool) -> None:
        """Make it durable, and note what became so."""
        file, tables = self.file, self.tables
        changes = file.journal.before_commit(self, tuple(tables)) if tables else ()
        super().commit()
        self.tables = {}
        file.free(self)
        self.world.history.add(
            LocalCommitted(
                self.world.now_ns, self.process.key, file.name, self.number, _named(tables), answered, changes
            )
        )
        file.journal.after_commit(self.process, changes)
        if tables:
            self.world.progress()

    def rollback(self) -> None:
        if self._gone:
            return
        if not self.in_transaction:
            super().rollback()
            return
        fault = self.world.enter(f"sql.rollback:{self.file.name}", CRASHES)
        self._roll_back("asked")
        self.world.leave(fault)

    def _roll_back(self, why: str) -> None:
        if self.tables:
            self.world.history.add(
                LocalRolledBack(self.world.now_ns, self.process.key, self.file.name, self.number, why)
            )
        super().rollback()
        self.tables = {}
        self.file.free(self)

    def drop(self, why: str) -> None:
        """The connection breaks: what it has not committed is rolled back."""
        self.dropped = True
        try:
            if self.in_transaction:
                self._roll_back(why)
            super().close()
        except sqlite3.ProgrammingError:
            pass  # closed already

    def die(self) -> None:
        """The process is gone: the server rolls back."""
        self.drop("crash")
        self.file.free(self)

    def close(self) -> None:
        if self._gone:
            return
        if not self.dropped and self.in_transaction:
            self._roll_back("asked")
        super().close()

    def __exit__(self, kind: Any, value: Any, trace: Any, /) -> Any:
        # The module's own calls its COMMIT directly, past `commit`.
        if kind is not None:
            self.rollback()
            return False
        try:
            self.commit()
        except sqlite3.Error:
            self.rollback()
            raise
        return False

    def __del__(self) -> None:
        """Nothing: whoever dropped it last may be another process."""


class SimCursor(sqlite3.Cursor):
    """Statements are points; see `SimConnection`."""

    connection: SimConnection

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        statement = read(sql)
        connection = self.connection
        if connection._gone:
            raise ProcessIsDead
        match statement.verb:
            case Verb.PRAGMA:
                return self._pragma(statement.sql)
            case Verb.COMMIT:
                connection.commit()
                return self
            case Verb.ROLLBACK:
                connection.rollback()
                return self
            case _:
                self._operate(statement, lambda: super(SimCursor, self).execute(statement.sql, parameters))
                return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        statement = read(sql)
        if self.connection._gone:
            raise ProcessIsDead
        rows = list(parameters)
        self._operate(statement, lambda: super(SimCursor, self).executemany(statement.sql, rows))
        return self

    def executescript(self, script: str, /) -> Self:
        """As the module does: what is open is committed first; then statement by statement."""
        self.connection.commit()
        text = ""
        for piece in script.split(";"):
            text += piece + ";"
            if sqlite3.complete_statement(text):
                if text.strip(" \t\r\n;"):
                    self.execute(text)
                text = ""
        return self

    def _pragma(self, sql: str) -> Self:
        """No point; the time to wait for locks is kept here, because it is virtual."""
        name, _, value = sql.partition("=")
        if name.split()[-1].lower().rstrip(";") == "busy_timeout":
            if value:
                self.connection.timeout_ms = int(value.strip(" ;'\""))
            return super().execute("SELECT ?", (self.connection.timeout_ms,))
        return super().execute(sql)

    def _operate(self, statement: Statement, perform: Any) -> None:
        connection = self.connection
        world, file = connection.world, connection.file
        fault = world.enter(statement.label(file.name), STATEMENT)
        if fault is Fault.FAIL:
            raise _error("simulated: the statement failed, database is locked", _BUSY)
        if fault is Fault.DROP:
            connection.drop("dropped")
            raise _dropped("simulated: the connection broke")
        changed_before = connection.total_changes
        self._perform(statement, perform)
        if statement.verb.writes:
            # Not `rowcount`: it is 0 for a statement that returns rows.
            counted = connection.total_changes - changed_before
            connection.tables[statement.table] = connection.tables.get(statement.table, 0) + counted
        if statement.verb.writes or statement.begins_writing:
            if connection.in_transaction:
                file.writer, connection.owner = connection, current_strand()
            else:
                self._committed_itself()
        world.leave(fault)
        world.sleep_ns(_STATEMENT_NS)

    def _committed_itself(self) -> None:
        """Autocommit: the statement was a local transaction of its own."""
        connection = self.connection
        tables, connection.tables = connection.tables, {}
        if not any(tables.values()):
            return
        file, world = connection.file, connection.world
        changes = file.journal.before_commit(connection, tuple(tables))
        world.history.add(
            LocalCommitted(
                world.now_ns, connection.process.key, file.name, connection.number, _named(tables), True, changes
            )
        )
        file.journal.after_commit(connection.process, changes)
        world.progress()

    def _perform(self, statement: Statement, perform: Any) -> None:
        """Run it; while another connection has the lock, wait in virtual time."""
        connection = self.connection
        world, file = connection.world, connection.file
        deadline_ns: int | None = None
        while True:
            try:
                perform()
                return
            except sqlite3.OperationalError as exc:
                code = getattr(exc, "sqlite_errorcode", 0)
                if code & 0xFF != _BUSY or code == _BUSY_SNAPSHOT or not connection.timeout_ms:
                    raise
                if deadline_ns is None:
                    deadline_ns = world.now_ns + connection.timeout_ms * 1_000_000
                holder = file.writer
                if holder is None or world.now_ns >= deadline_ns or holder is connection:
                    raise
                strand = current_strand()
                file.waiting.append(strand)
                wait = Wait("database lock", f"the write lock of database {file.name}", holder.owner)
                if not world.park(wait, deadline_ns):
                    if strand in file.waiting:
                        file.waiting.remove(strand)
                    raise


def _named(tables: Mapping[str, int]) -> dict[str, int]:
    return {table: count for table, count in tables.items() if table}


def is_dropped(error: BaseException) -> bool:
    """Whether an error says that the connection is gone."""
    return bool(getattr(error, "txbus_sim_dropped", False))


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    names: Mapping[int, str] = {_BUSY: "SQLITE_BUSY", _IOERR: "SQLITE_IOERR"}
    error.sqlite_errorcode, error.sqlite_errorname = code, names[code]
    return error


def _dropped(text: str) -> sqlite3.OperationalError:
    error = _error(text, _IOERR)
    error.txbus_sim_dropped = True  # type: ignore[attr-defined]
    return error
