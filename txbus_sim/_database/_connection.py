"""A connection of a simulated process to a SQLite file: statements are points, lock waits are virtual."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from greenlet import getcurrent

from txbus_sim._database import _functions, _rows
from txbus_sim._database._failures import dropped, full, locked, refuse, unreachable
from txbus_sim._database._file import SimFile
from txbus_sim._database._guard import in_connect_event
from txbus_sim._database._statements import Statement, Verb, split
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, Strand, World
from txbus_sim.errors import ProcessIsDead, SimulationError
from txbus_sim.faults import COMMIT, CRASHES, STATEMENT, Fault, Faults
from txbus_sim.history import LocalCommitted, LocalRolledBack, RowChange

__all__ = ["SimConnection", "SimCursor", "open_connection"]

_STATEMENT_NS = 100_000
_COMMIT_NS = 500_000
_CONNECT_NS = 500_000
_BUSY = 5
_BUSY_SNAPSHOT = 517
_STOPPED_NS = 50_000_000
"""How long a try takes that does not wait for a lock whose holder is paused. Nothing can change before
the holder goes on, and the embedded broker tries again every 0.3 ms: most of a run's steps."""
_CONNECT: Faults = (*CRASHES, Fault.FAIL)
_ROLLBACK: Faults = (*CRASHES, Fault.DROP)
_BROKER: Faults = (*CRASHES, Fault.FAIL)
_WRITES = (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.DDL)
_UNCHANGED = ("synchronous",)
_MEMORY = "database connections"

_Execute = Callable[[sqlite3.Cursor, str, Any], Any]
_execute: _Execute = sqlite3.Cursor.execute
_executemany: _Execute = sqlite3.Cursor.executemany
_commit = sqlite3.Connection.commit


def open_connection(file: SimFile, process: Process, timeout_s: float = 5.0, **arguments: Any) -> SimConnection:
    """A connection of a process. It waits for locks at most ``timeout_s`` of virtual time.

    Point ``sql.connect:DATABASE``; refused, it raises what the driver raises for a file that cannot
    be opened. ``arguments`` as `sqlite3.connect` takes them.
    """
    world = process.world
    quiet = not file.kind.every_statement or in_connect_event()
    fault = None if quiet else world.enter(file.connect_label, _CONNECT)
    if fault is Fault.FAIL:
        raise unreachable()
    if not quiet:
        world.sleep_ns(_CONNECT_NS)
    arguments["check_same_thread"] = False
    file.connections += 1
    connection = SimConnection(file.path, timeout=0, **arguments)
    connection._begin_life(file, process, round(timeout_s * 1000))
    world.leave(fault)
    return connection


class _Local:
    """What a connection has done since its last local transaction ended."""

    __slots__ = ("by_savepoint", "ddl", "marks", "read", "tables", "wrote")

    def __init__(self) -> None:
        self.wrote = False
        """It has, or had to ask for, the write lock."""
        self.read = False
        """It has a snapshot: SQLite refuses it the lock at once if another one has it."""
        self.ddl = False
        self.by_savepoint = False
        self.tables: dict[str, int] = {}
        """Rows changed, by the table that the statements name."""
        self.marks: list[tuple[str, int]] = []
        """Savepoints, each with the number of notes before it."""


class SimConnection(sqlite3.Connection):
    """Made by `open_connection`. Used by the strands of one simulated process; inert once it is dead."""

    _file: SimFile
    _process: Process
    _world: World

    def _begin_life(self, file: SimFile, process: Process, timeout_ms: int) -> None:
        self._file, self._process, self._world = file, process, process.world
        self._number = file.connections
        self._timeout_ms = timeout_ms
        self._local = _Local()
        self._closed = False
        self._settled = not file.kind.every_statement
        notes: list[_rows.Note] = []
        self._notes = notes
        wall = process.world
        _functions.override(self, lambda: BEGAN_AT_WALL_NS + wall.now_ns + process.wall_skew_ns, process.entropy)
        run = sqlite3.Cursor(self)
        run.execute("PRAGMA synchronous = OFF")
        if file.shapes is not None:
            self.create_function(_rows.FUNCTION, -1, lambda *note: notes.append(note))
            # The rows that REPLACE deletes are told, too.
            run.execute("PRAGMA recursive_triggers = ON")
        run.close()
        _open_ones(process)[self._number, file.name] = weakref.ref(self)

    # what the driver's own class does

    def cursor(self, factory: Any = None) -> Any:
        """A cursor; ``factory`` may be a class derived from `sqlite3.Cursor`."""
        if factory is None:
            return super().cursor(SimCursor)
        if not isinstance(factory, type) or not issubclass(factory, sqlite3.Cursor):
            raise refuse("a cursor factory that is no class", "derive a class from sqlite3.Cursor")
        if not issubclass(factory, SimCursor):
            factory = type(factory.__name__, (factory, SimCursor), {})
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> Any:
        return self.cursor().executescript(script)

    def commit(self) -> None:
        self._check_alive()
        if self._closed or not self.in_transaction:
            super().commit()
        else:
            self._commit(_commit, self)

    def rollback(self) -> None:
        if self._is_dead():
            return
        if self._closed or not self.in_transaction:
            super().rollback()
        else:
            self._roll_back(super().rollback)

    def close(self) -> None:
        """Rolls back, and is no point. A dead process closes nothing: the server has done it."""
        if self._closed or self._is_dead():
            return
        self._end_life("asked")

    def __enter__(self) -> SimConnection:
        self._check_alive()
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any, /) -> Any:
        # The driver's own calls its COMMIT and ROLLBACK past the methods.
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
        # As the driver does with a connection that was dropped without being closed.
        if not getattr(self, "_closed", True) and not self._is_dead():
            self._end_life("asked")

    def backup(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise refuse("Connection.backup", "copy the rows by statements")

    def deserialize(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise refuse("Connection.deserialize", "make the schema in sim.database(name, schema=...)")

    def blobopen(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise refuse("Connection.blobopen", "read and write the column by statements")

    def enable_load_extension(self, *arguments: Any, **keywords: Any) -> NoReturn:
        raise refuse("a SQLite extension", "register a function with create_function")

    # life and death

    def _is_dead(self) -> bool:
        return not self._process.alive or self._world.closed

    def _check_alive(self) -> None:
        """Unwinds the frames of a dead process; a living one learns that the connection is gone."""
        strand = getcurrent()
        process = self._process
        if type(strand) is Strand and strand.process is process:
            if not process.alive or self._world.closed:
                self._world.inert(strand)
        elif not process.alive or self._world.closed:
            if type(strand) is Strand and strand.process.alive and not strand.process.world.closed:
                raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
            raise ProcessIsDead
        else:
            raise SimulationError(
                f"a connection of process {process.key} to database {self._file.name!r} is used outside of it: make "
                "the engine, or connect, within the process function, so that each process has its own"
            )

    def _end_life(self, why: str) -> None:
        """Roll back and close for good."""
        self._closed = True
        _open_ones(self._process).pop((self._number, self._file.name), None)
        if self.in_transaction:
            super().rollback()
        self._rolled_back(why)
        super().close()

    def _die(self) -> None:
        """The process is gone: its server rolls back what it had not committed."""
        if not self._closed:
            self._end_life("crash")

    def _drop(self) -> None:
        self._end_life("dropped")

    # statements

    def _perform(self, call: _Execute, cursor: sqlite3.Cursor, sql: str, parameters: Any) -> None:
        self._check_alive()
        statement, label = self._file.read(sql)
        verb = statement.verb
        if verb is Verb.SELECT:
            self._select(statement, label, call, cursor, sql, parameters)
            return
        if verb in _WRITES:
            self._write(statement, label, call, cursor, sql, parameters)
            return
        match verb:
            case Verb.PRAGMA:
                self._pragma(statement, call, cursor, sql)
            case Verb.BEGIN:
                self._begin(statement, label, call, cursor, sql)
            case Verb.COMMIT if self.in_transaction:
                self._commit(call, cursor, sql)
            case Verb.ROLLBACK if self.in_transaction:
                self._roll_back(lambda: call(cursor, sql, parameters))
            case Verb.SAVEPOINT | Verb.RELEASE | Verb.ROLLBACK_TO:
                self._savepoint(statement, call, cursor, sql, parameters)
            case Verb.ATTACH:
                raise refuse("ATTACH", "declare a database of its own and open a second connection")
            case _:
                call(cursor, sql, parameters)

    def _select(
        self, statement: Statement, label: str, call: _Execute, cursor: sqlite3.Cursor, sql: str, parameters: Any
    ) -> None:
        fault = None
        if not statement.name.startswith("sqlite_") and self._is_point():
            fault = self._enter(label, STATEMENT)
        self._patiently(call, cursor, sql, parameters)
        if self.in_transaction:
            self._local.read = True
        if fault is not None:
            self._world.leave(fault)

    def _write(
        self, statement: Statement, label: str, call: _Execute, cursor: sqlite3.Cursor, sql: str, parameters: Any
    ) -> None:
        local, notes = self._local, self._notes
        if call is _executemany and not isinstance(parameters, (list, tuple)):
            parameters = list(parameters)  # it may have to be tried again
        alone = not self.in_transaction and (self.isolation_level is None or not statement.begun_by_driver)
        fault = None
        if self._is_point():
            fault = self._enter(label, COMMIT if alone else STATEMENT)
        elif alone and not self._file.kind.every_statement:
            fault = self._enter(self._file.label_of_commit({statement.name: 1}), _BROKER)
        before, changed = len(notes), self.total_changes
        try:
            self._patiently(call, cursor, sql, parameters)
        except BaseException:
            if not statement.keeps_rows and call is not _executemany:
                # SQLite undoes what the statement had done. Of many, each is a statement.
                del notes[before:]
            self._after_failure()
            raise
        local.wrote = True
        # Not the cursor's `rowcount`, which is 0 for a statement that returns rows.
        changed = self.total_changes - changed
        if changed:
            local.tables[statement.name] = local.tables.get(statement.name, 0) + changed
        if statement.verb is Verb.DDL:
            local.ddl = True
            if self._file.shapes is not None:
                self._file.shapes.follow(self)
        if self.in_transaction:
            self._file.hold(self._number)
            if fault is not None:
                self._world.leave(fault)
        else:
            self._durable(fault)

    def _after_failure(self) -> None:
        """A statement failed: SQLite keeps the local transaction, with its lock, or has ended it."""
        if self._closed:
            return
        if self.in_transaction:
            if self._local.wrote:
                self._file.hold(self._number)
        else:
            self._rolled_back("refused")

    def _begin(self, statement: Statement, label: str, call: _Execute, cursor: sqlite3.Cursor, sql: str) -> None:
        fault = self._enter(label, STATEMENT) if self._is_point() else None
        self._patiently(call, cursor, sql, ())
        if statement.takes_lock:
            self._local.wrote = True
            self._file.hold(self._number)
        if fault is not None:
            self._world.leave(fault)

    def _savepoint(
        self, statement: Statement, call: _Execute, cursor: sqlite3.Cursor, sql: str, parameters: Any
    ) -> None:
        """No point: nobody else sees one. The release of an outermost one is a COMMIT."""
        local = self._local
        names = [name for name, _ in local.marks]
        if statement.verb is Verb.SAVEPOINT:
            begins = not self.in_transaction
            call(cursor, sql, parameters)
            local.by_savepoint = local.by_savepoint or begins
            local.marks.append((statement.name, len(self._notes)))
            return
        place = len(names) - 1 - names[::-1].index(statement.name) if statement.name in names else None
        if statement.verb is Verb.RELEASE:
            if place == 0 and local.by_savepoint:
                self._commit(call, cursor, sql)
                return
            call(cursor, sql, parameters)
            del local.marks[place:]
            return
        call(cursor, sql, parameters)
        if place is not None:
            del self._notes[local.marks[place][1] :]
            del local.marks[place + 1 :]

    def _pragma(self, statement: Statement, call: _Execute, cursor: sqlite3.Cursor, sql: str) -> None:
        """No point. How long to wait for locks is kept here, because it is virtual."""
        match statement.name, statement.value:
            case "busy_timeout", value:
                if value is not None:
                    self._timeout_ms = max(0, int(value))
                call(cursor, "SELECT ? AS timeout", (self._timeout_ms,))
            case name, str() if name in _UNCHANGED:
                # A simulated crash is the process's, not the machine's: nothing needs to be synced.
                call(cursor, "SELECT 0 WHERE 0", ())
            case "journal_mode", str(value) if value.upper() != "WAL" and self._file.shapes is not None:
                raise refuse(f"PRAGMA journal_mode = {value}", "leave it at WAL, which is the nearest to a server")
            case "locking_mode", str(value) if value.upper() != "NORMAL":
                raise refuse(f"PRAGMA locking_mode = {value}", "leave it at NORMAL")
            case _:
                self._patiently(call, cursor, sql, ())

    # ends of local transactions

    def _commit(self, call: Callable[..., object], *arguments: object) -> None:
        local, file = self._local, self._file
        if not local.wrote or not (file.kind.every_statement or local.tables or local.ddl):
            # Nothing becomes durable, so that a crash before and one after are the same.
            call(*arguments)
            self._over()
            return
        fault = None
        if not file.kind.every_statement:
            fault = self._enter(file.label_of_commit(local.tables), _BROKER)
        elif self._is_point():
            fault = self._enter(file.commit_label, COMMIT)
        self._patiently(call, *arguments)
        self._durable(fault)

    def _durable(self, fault: Fault | None) -> None:
        """What was written is durable: note it, and go on as the fault says."""
        world, file, local = self._world, self._file, self._local
        told = file.shapes is not None
        counts: dict[str, int] = {}
        rows: tuple[RowChange, ...] = ()
        if file.shapes is not None:
            counts, rows = _rows.changes(file.shapes, self._notes)
            counts |= {table: count for table, count in local.tables.items() if not file.shapes.tell(table)}
        progress = local.ddl or bool(counts)
        if not told:
            progress = progress or any(table not in file.kind.quiet_tables for table in local.tables)
        ddl = local.ddl
        self._over()
        if file.observer is not None:
            file.observer(self, self._process.key, local.tables)
        if told and (counts or ddl):
            answered = fault is None or fault is Fault.PAUSE_AFTER
            world.history.add(
                LocalCommitted(world.now_ns, self._process.key, file.name, self._number, counts, answered, rows)
            )
        if progress:
            world.progress()
        if fault is Fault.ANSWER_LOST:
            self._drop()
            raise dropped("before the answer to the commit arrived")
        world.leave(fault)

    def _roll_back(self, perform: Callable[[], object]) -> None:
        fault = None
        if self._local.wrote and self._is_point():
            fault = self._enter(self._file.rollback_label, _ROLLBACK)
        perform()
        self._rolled_back("asked")
        if fault is not None:
            self._world.leave(fault)

    def _rolled_back(self, why: str) -> None:
        """Note that what was written is gone."""
        file, world = self._file, self._world
        if self._local.wrote and file.shapes is not None:
            world.history.add(LocalRolledBack(world.now_ns, self._process.key, file.name, self._number, why))
        self._over()

    def _over(self) -> None:
        self._notes.clear()
        self._local = _Local()
        self._file.release(self._number)

    # points

    def _is_point(self) -> bool:
        """Whether the calling statement is one: not while SQLAlchemy holds a lock around it."""
        if not self._settled:
            if in_connect_event():
                return False
            self._settled = True
        return self._file.kind.every_statement

    def _enter(self, label: str, faults: Faults) -> Fault | None:
        world = self._world
        fault = world.enter(label, faults)
        if fault is Fault.FAIL:
            raise locked() if self._file.kind.every_statement else full()
        if fault is Fault.DROP:
            self._drop()
            raise dropped(f"before {label.partition(':')[0].removeprefix('sql.')} arrived")
        world.sleep_ns(_COMMIT_NS if faults is COMMIT or faults is _BROKER else _STATEMENT_NS)
        return fault

    def _patiently(self, call: Callable[..., object], *arguments: object) -> None:
        """Run it; while another connection is in the way, wait in virtual time as the limit says."""
        deadline_ns: int | None = None
        while True:
            try:
                call(*arguments)
                return
            except sqlite3.OperationalError as exc:
                code = getattr(exc, "sqlite_errorcode", 0)
                # Waiting would not make a snapshot newer; SQLite itself does not wait with one, since
                # whoever has the lock may be waiting for this one to end.
                if code & 0xFF != _BUSY or code == _BUSY_SNAPSHOT or self._local.read or not self._timeout_ms:
                    if code & 0xFF == _BUSY and self._file.is_held_by_stopped:
                        self._world.sleep_ns(_STOPPED_NS)
                    raise
                if deadline_ns is None:
                    deadline_ns = self._world.now_ns + self._timeout_ms * 1_000_000
                if not self._file.wait(deadline_ns):
                    raise


class SimCursor(sqlite3.Cursor):
    """A cursor of a `SimConnection`. Rows are fetched without a point, as drivers fetch them ahead."""

    connection: SimConnection

    def execute(self, sql: str, parameters: Any = (), /) -> SimCursor:
        self.connection._perform(_execute, self, sql, parameters)
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> SimCursor:
        self.connection._perform(_executemany, self, sql, parameters)
        return self

    def executescript(self, script: str, /) -> SimCursor:
        """As the driver does: what is open is committed first, then statement by statement."""
        connection = self.connection
        connection.commit()
        level, connection.isolation_level = connection.isolation_level, None
        try:
            for statement in split(script):
                self.execute(statement)
        finally:
            connection.isolation_level = level
        return self


def _open_ones(process: Process) -> dict[tuple[int, str], weakref.ref[SimConnection]]:
    """The connections of a process, which die with it."""
    found: dict[tuple[int, str], weakref.ref[SimConnection]] | None = process.memory.get(_MEMORY)
    if found is None:
        found = process.memory[_MEMORY] = {}
        opened = found

        def die() -> None:
            for reference in list(opened.values()):
                connection = reference()
                if connection is not None:
                    connection._die()

        process.at_death.append(die)
    return found
