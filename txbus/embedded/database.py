"""The SQLite file of a bus: who may write when, what a failure means, and who is told of a commit."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from txbus.embedded import bus_file
from txbus.embedded.hub import Hub, enter_hub
from txbus.embedded.options import Options
from txbus.errors import (
    BackendError,
    BackendUnavailable,
    BrokerFileError,
    MessageRefused,
    NotOpen,
    SendUnknown,
)
from txbus.spi import Lock, Ports

__all__ = ["Database", "Reader", "Row", "WriterBusy", "translate"]

T = TypeVar("T")
Row = tuple[Any, ...]

_SQLITE_BUSY = 5
_SQLITE_LOCKED = 6
_SQLITE_TOOBIG = 18
_DAMAGED = {11, 26, 1}  # CORRUPT, NOTADB, and ERROR: a statement that the schema should allow
_UNSYNCED = {1034, 1290}  # IOERR_FSYNC, IOERR_DIR_FSYNC
_RETRY_S = 0.0004
_POLITE_FOR_S = 0.1
_GAP_S = 0.0005
_WRITES_PER_GAP = 8
_FORKED: list[object] = []
"""Connections that a forked child inherited. Closing one would touch the parent's locks."""


def translate(error: sqlite3.Error, path: str) -> BackendError | NotOpen:
    """What a SQLite error means to the caller. The statement's transaction is rolled back."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return NotOpen(f"{path}: {error}; the backend was closed")
    name = getattr(error, "sqlite_errorname", code)
    primary = code & 0xFF
    if primary == _SQLITE_TOOBIG:
        return MessageRefused(f"{path}: a message is larger than SQLite takes: {error}")
    if primary in _DAMAGED:
        return BrokerFileError(
            f"{path} is damaged or was changed by another program ({name}: {error}); stop what uses it, keep a "
            "copy, and try: sqlite3 FILE '.recover'"
        )
    if code in _UNSYNCED:
        return SendUnknown(f"{path}: the disk did not confirm a write ({name}: {error}); check the disk")
    hint = {
        13: "the disk is full; free some space, then it works again",
        10: "writing or reading failed; the disk may be full, over a quota or a file size limit",
        8: "the file or its file system is read-only",
        14: "the file cannot be opened; see its directory's permissions and the limit of open files",
    }.get(primary, "nothing was written; try again")
    return BackendUnavailable(f"{path}: {name}: {error}: {hint}")


def _busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (_SQLITE_BUSY, _SQLITE_LOCKED)


class WriterBusy(BackendUnavailable):
    """Others were writing all the time that this one could wait; nothing was tried."""


class Reader:
    """A connection that reads. Each call is one read transaction unless inside `snapshot`.

    A file's reader belongs to one receiver or log and blocks nobody. A bus in memory has one
    connection for all, so that its readers take turns with its writers.
    """

    def __init__(self, database: Database, connection: sqlite3.Connection, lock: Lock, shared: bool) -> None:
        self._database = database
        self._connection = connection
        self._lock = lock
        self._shared = shared

    def rows(self, sql: str, arguments: Sequence[object] | Mapping[str, object] = ()) -> list[Row]:
        """All rows of a query."""
        with self.snapshot() as connection:
            return connection.execute(sql, arguments).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """The connection, held alone; SQLite's errors come out translated."""
        self._database.check_process()
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as exc:
                raise translate(exc, self._database.label) from exc

    def version(self) -> int:
        """Changes with every write that this reader can see, of any process."""
        if self._shared:
            return self._database.hub.version
        version = self.rows("PRAGMA data_version")[0][0]
        assert isinstance(version, int)
        return version

    def close(self) -> None:
        if self._shared:
            return
        with self._lock:
            self._database.discard(self._connection)


class Database:
    """One backend's way into the bus: two writing connections behind the process's write lock.

    Writes wait for each other by short sleeps, at most ``busy_timeout_s``; SQLite's own busy
    handler sleeps up to 100 ms at a time. Thread-safe.
    """

    def __init__(self, options: Options, ports: Ports) -> None:
        self.options = options
        self.ports = ports
        self.label = options.path or f"memory://{options.name}"
        self.process_id = ports.runtime.process_id()
        self.polls = options.path is not None
        self.hub: Hub
        self._durable: sqlite3.Connection
        self._relaxed: sqlite3.Connection
        self._reader: Reader
        self._closed = False
        self._contended_until_s = 0.0
        self._writes_since_gap = 0
        if options.path is None:
            self._open_memory()
        else:
            self._open_file(options.path)

    def _open_memory(self) -> None:
        bus_file.check_sqlite()

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            bus_file.create_schema(connection)
            return connection

        self.hub = enter_hub(self.label, self.ports.runtime, connect)
        assert self.hub.shared is not None
        self._durable = self._relaxed = self.hub.shared
        self._reader = self.reader()

    def _open_file(self, name: str) -> None:
        path = os.path.realpath(name)
        bus_file.check_sqlite()
        bus_file.check_place(path, self.options.network_fs_allowed)
        self.label = path
        connections: list[sqlite3.Connection] = []
        self.hub = enter_hub(path, self.ports.runtime)
        try:
            connections.append(self._connect(path))
            self._prepare(connections[0], path)
            connections.append(self._connect(path))
            if self.options.sync_full:
                connections[0].execute("PRAGMA synchronous = FULL")
            self._durable, self._relaxed = connections
            self._reader = self.reader()
        except BaseException as exc:
            for connection in connections:
                connection.close()
            self.hub.leave()
            if isinstance(exc, sqlite3.Error):
                raise translate(exc, path) from exc
            raise

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            # Even these look into the file, which another process may be creating at this moment.
            for pragma in ("synchronous = NORMAL", "cache_size = -8192", "wal_autocheckpoint = 2000"):
                self._patiently(partial(connection.execute, f"PRAGMA {pragma}"))
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, path: str) -> None:
        """Several processes may come here at once; each step is repeated while another one has it."""
        if not self._patiently(lambda: bus_file.needs_schema(connection, path)):
            return
        self._patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone())
        connection.execute("PRAGMA synchronous = FULL")
        self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            if bus_file.needs_schema(connection, path):
                bus_file.create_schema(connection)
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        connection.execute("PRAGMA synchronous = NORMAL")

    def _patiently(self, step: Callable[[], T], wait_s: float | None = None) -> T:
        """Repeat a step while another connection is in its way."""
        clock, entropy = self.ports.clock, self.ports.entropy
        deadline_s: float | None = None
        while True:
            try:
                return step()
            except sqlite3.OperationalError as exc:
                if not _busy(exc):
                    raise
                now_s = clock.monotonic_s()
                if deadline_s is None:
                    deadline_s = now_s + (self.options.busy_timeout_s if wait_s is None else wait_s)
                if now_s >= deadline_s:
                    raise WriterBusy(
                        f"{self.label}: another process has been writing for {self.options.busy_timeout_s} s "
                        "(busy_timeout_s); nothing was done, try again. See which process is stopped or stuck: "
                        f"fuser -v {self.label}"
                    ) from exc
                self._contended_until_s = now_s + _POLITE_FOR_S
                clock.sleep_s(_RETRY_S * (0.25 + entropy.uniform()))

    def _make_way(self) -> None:
        """Leave a gap now and then if other processes write too: their retries would hardly ever
        meet one between the writes of a process that never pauses."""
        self._writes_since_gap += 1
        if self._writes_since_gap >= _WRITES_PER_GAP:
            self._writes_since_gap = 0
            if self.ports.clock.monotonic_s() < self._contended_until_s:
                self.ports.clock.sleep_s(_GAP_S)

    def check_process(self) -> None:
        """`NotOpen` in a forked child: SQLite's connections do not survive a fork."""
        if self.ports.runtime.process_id() != self.process_id:
            raise NotOpen(
                f"{self.label}: this backend was opened in process {self.process_id} and the process forked; "
                "open a bus of its own in the child"
            )

    def reader(self) -> Reader:
        """A connection for one receiver or log; to be closed by its owner."""
        self.check_process()
        if self._closed:
            raise NotOpen(f"{self.label}: the backend is closed")
        if self.hub.shared is not None:
            return Reader(self, self.hub.shared, self.hub.lock, True)
        try:
            connection = self._connect(self.label)
            connection.execute("PRAGMA query_only = ON")
            # A reader waits only while another process repairs the -wal file after a crash.
            connection.execute(f"PRAGMA busy_timeout = {int(self.options.busy_timeout_s * 1000)}")
        except sqlite3.Error as exc:
            raise translate(exc, self.label) from exc
        return Reader(self, connection, self.ports.runtime.lock(), False)

    def rows(self, sql: str, arguments: Sequence[object] | Mapping[str, object] = ()) -> list[Row]:
        """All rows of a query, through the backend's own reader."""
        return self._reader.rows(sql, arguments)

    def write(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = True,
        announce: bool = True,
        wait_s: float | None = None,
    ) -> T:
        """Run ``work`` in one write transaction and commit it; what it raises rolls back.

        ``durable``: on the disk on return (unless ``sync=normal``), else safe from the death of
        processes only. ``announce``: receivers of this process look for it. Waits for other
        writers up to ``wait_s``, ``busy_timeout_s`` at most; `BackendUnavailable` then.
        """
        self.check_process()
        busy_s = self.options.busy_timeout_s
        wait_s = busy_s if wait_s is None else max(0.0, min(wait_s, busy_s))
        started_s = self.ports.clock.monotonic_s()
        if not self.hub.lock.acquire(timeout=wait_s):
            raise WriterBusy(
                f"{self.label}: other threads of this process have been writing for {wait_s:.3g} s; try again"
            )
        try:
            if self._closed:
                raise NotOpen(f"{self.label}: the backend is closed")
            connection = self._durable if durable else self._relaxed
            left_s = wait_s - (self.ports.clock.monotonic_s() - started_s)
            try:
                self._make_way()
                self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"), max(0.0, left_s))
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
        except sqlite3.Error as exc:
            raise translate(exc, self.label) from exc
        finally:
            self.hub.lock.release()
        if announce:
            self.hub.announce()
        return result

    def discard(self, connection: sqlite3.Connection) -> None:
        """Close a connection, or keep it for ever when it is the parent's of a fork."""
        if self.ports.runtime.process_id() != self.process_id:
            _FORKED.append(connection)
            return
        try:
            connection.close()
        except sqlite3.Error:
            # A checkpoint at the last close may fail on a full disk; the -wal file keeps everything.
            pass

    def close(self) -> None:
        """Close its connections; the last backend of a bus in memory ends it. Idempotent."""
        if self.ports.runtime.process_id() != self.process_id:
            _FORKED.append(self)
            return
        with self.hub.lock:
            if self._closed:
                return
            self._closed = True
            if self.hub.shared is None:
                self.discard(self._durable)
                self.discard(self._relaxed)
        self._reader.close()
        self.hub.leave()


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # SQLite rolls back by itself on the errors that make ROLLBACK fail.
            pass
