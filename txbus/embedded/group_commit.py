"""Durable writes of concurrent callers share one commit: one of them writes for all that wait."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

from txbus.embedded.database import Database, WriterBusy
from txbus.embedded.records import RecordWriter
from txbus.embedded.topics import Topics
from txbus.errors import BackendError, BackendUnavailable, CommitUnknown, NotOpen, SendUnknown, TxbusError
from txbus.spi import Lock, Task

__all__ = ["GroupCommit", "Pending"]

T = TypeVar("T")

_QUEUE_MAX = 2000
_QUEUE_BYTES_MAX = 32 * 1024 * 1024
_IDLE_ROUNDS = 25
_GATHER_S = 0.00002
_GATHER_ROUNDS = 5


class Pending(Generic[T]):
    """One caller's write: waiting, being written, or done.

    ``work`` refuses with a `BackendError` before it changes anything, or does not fail: its
    neighbours are in the same SQLite transaction.
    """

    __slots__ = ("_commits", "_error", "_result", "done", "gates", "queued_s", "size", "work")

    def __init__(self, commits: GroupCommit, work: Callable[[RecordWriter], T], size: int) -> None:
        self._commits = commits
        self.work = work
        self.size = size
        self.done = False
        self.queued_s = 0.0
        self.gates: list[Lock] = []
        """One held lock for each thread that waits for it; releasing it wakes that thread alone."""
        self._result: T | None = None
        self._error: BaseException | None = None

    def succeed(self, result: T) -> None:
        self._result = result
        self.done = True

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.done = True

    def outcome(self) -> T:
        """What became of it. Each call raises an error of its own: callers are different threads."""
        if self._error is not None:
            if isinstance(self._error, TxbusError):
                raise type(self._error)(*self._error.args) from self._error
            raise self._error
        return cast(T, self._result)

    def result(self, timeout_s: float) -> T:
        """Wait until it is durable; `SendUnknown` when the time is over, it may still be written."""
        if not self._commits.drive(self, timeout_s):
            raise SendUnknown(
                f"{self._commits.label}: not written within {timeout_s} s (other writers are busy); it may still be"
            )
        return self.outcome()


class GroupCommit:
    """The queue of a backend's durable writes, in the order of their submission. Thread-safe.

    Whoever waits first becomes the writer of everything queued, in one SQLite transaction; those
    who come meanwhile wait for the next. A thread writes what nobody waits for, about
    ``append_flush_s`` after it was queued; it starts with the first such write.
    """

    def __init__(self, database: Database, topics: Topics) -> None:
        self._database = database
        self._topics = topics
        self._ports = database.ports
        self.label = database.label
        self._mutex = self._ports.runtime.lock()
        self._flusher_wakes = self._ports.runtime.condition()
        self._queue: list[Pending[object]] = []
        self._queue_bytes = 0
        self._writing = False
        self._joined = 0
        self._closed = False
        self._flusher: Task | None = None
        self._flusher_idle = False
        self._turn = int(self._ports.entropy.uniform() * 1024)

    def submit(self, work: Callable[[RecordWriter], T], size: int) -> Pending[T]:
        """Queue a write. Returns at once, but for back pressure above 2,000 writes or 32 MiB."""
        self._database.check_process()
        pending = Pending(self, work, size)
        with self._mutex:
            if self._closed:
                raise NotOpen(f"{self.label}: the backend is closed")
            pending.queued_s = self._ports.clock.monotonic_s()
            self._queue.append(cast(Pending[object], pending))
            self._queue_bytes += size
            full = len(self._queue) >= _QUEUE_MAX or self._queue_bytes >= _QUEUE_BYTES_MAX
        if full:
            self.drive(pending, self._database.options.busy_timeout_s)
        return pending

    def flush_soon(self) -> None:
        """Somebody will not wait for what was submitted: see to it that it is written."""
        if self._flusher is not None and not self._flusher_idle:
            return
        with self._flusher_wakes:
            if self._flusher is None and not self._closed:
                self._flusher = self._ports.runtime.spawn(self._flush_forever, "txbus-embedded-flush")
            self._flusher_idle = False
            self._flusher_wakes.notify_all()

    def drive(self, pending: Pending[T], timeout_s: float) -> bool:
        """Wait until it is done, writing if nobody does; False when the time is over."""
        self._database.check_process()
        deadline_s: float | None = None
        while True:
            gate: Lock | None = None
            with self._mutex:
                if pending.done:
                    return True
                now_s = self._ports.clock.monotonic_s()
                if deadline_s is None:
                    deadline_s = now_s + timeout_s
                elif now_s >= deadline_s:
                    # It may have been woken to write: then another one has to.
                    self._wake_writer()
                    return False
                if self._writing:
                    gate = self._ports.runtime.lock()
                    gate.acquire()
                    pending.gates.append(gate)
                else:
                    self._writing = True
            if gate is None:
                self._write(deadline_s - now_s)
            elif not gate.acquire(timeout=deadline_s - now_s):
                with self._mutex:
                    if gate in pending.gates:
                        pending.gates.remove(gate)

    def withdraw(self, pending: Pending[T]) -> bool:
        """Take it out of the queue; False if it is being written or done."""
        with self._mutex:
            for index, queued in enumerate(self._queue):
                if queued is pending:
                    del self._queue[index]
                    self._queue_bytes -= pending.size
                    return True
            return False

    def flush(self, timeout_s: float) -> None:
        """Write what is queued now, at most for so long. What fails is told by `Pending.result`."""
        with self._mutex:
            last = self._queue[-1] if self._queue else None
        if last is not None:
            self.drive(last, timeout_s)

    def _gather(self) -> list[Pending[object]]:
        """Everything queued. Where callers came together before, they are given a moment to do so
        again: those of the last commit are just coming back, and one commit for all is cheaper
        than two in turn. It ends as soon as nobody comes."""
        sleep_s = self._ports.clock.sleep_s
        if self._joined:
            for _ in range(_GATHER_ROUNDS):
                before = len(self._queue)
                sleep_s(_GATHER_S)
                if len(self._queue) == before:
                    break
        with self._mutex:
            batch, self._queue, self._queue_bytes = self._queue, [], 0
        return batch

    def _write(self, wait_s: float) -> None:
        """Write a batch; those that found the file busy and are not too old go back to the queue."""
        batch: list[Pending[object]] = []
        returned: list[Pending[object]] = []
        try:
            try:
                batch = self._gather()
                self._commit(batch, wait_s)
            except BackendUnavailable as exc:
                old_s = self._ports.clock.monotonic_s() - self._database.options.busy_timeout_s
                for pending in batch:
                    if pending.queued_s <= old_s or not isinstance(exc, WriterBusy):
                        pending.fail(exc)
                    else:
                        returned.append(pending)
            except Exception as exc:
                self._commit_singly(batch, wait_s, exc)
            except BaseException as exc:
                # An interrupt in the midst of it: rolled back, or committed without anybody told.
                for pending in batch:
                    if not pending.done:
                        pending.fail(SendUnknown(f"{self.label}: interrupted while writing: {exc!r}"))
                raise
        finally:
            with self._mutex:
                self._queue[:0] = returned
                self._queue_bytes += sum(pending.size for pending in returned)
                self._writing = False
                # Only other threads count: one that appends twice and then waits gains nothing.
                self._joined = sum(len(pending.gates) for pending in batch)
                for pending in batch:
                    if pending.done:
                        _wake(pending)
                self._wake_writer()

    def _wake_writer(self) -> None:
        """Wake one that waits with something queued: it finds nobody writing and writes."""
        if not self._writing:
            for pending in self._queue:
                if pending.gates:
                    pending.gates.pop().release()
                    return

    def _commit_singly(self, batch: Sequence[Pending[object]], wait_s: float, error: Exception) -> None:
        """Something that no `Work` refuses by itself: find out whose fault it is."""
        if len(batch) == 1 or isinstance(error, (SendUnknown, CommitUnknown)):
            for pending in batch:
                pending.fail(error)
            return
        for pending in batch:
            try:
                self._commit([pending], wait_s)
            except Exception as exc:
                pending.fail(exc)

    def _commit(self, batch: Sequence[Pending[object]], wait_s: float) -> None:
        def work(connection: sqlite3.Connection) -> list[tuple[object, BackendError | None]]:
            writer = RecordWriter(connection, self._topics, self._ports.clock.wall_s(), self._spread)
            outcomes: list[tuple[object, BackendError | None]] = []
            for pending in batch:
                try:
                    outcomes.append((pending.work(writer), None))
                except BackendError as exc:
                    outcomes.append((None, exc))
            writer.flush()
            return outcomes

        outcomes = self._database.write(work, wait_s=wait_s)
        for pending, (result, error) in zip(batch, outcomes, strict=True):
            if error is None:
                pending.succeed(result)
            else:
                pending.fail(error)

    def _spread(self, partitions: int) -> int:
        self._turn += 1
        return self._turn % partitions

    def _flush_forever(self) -> None:
        linger_s = self._database.options.append_flush_s
        empty = 0
        seen: Pending[object] | None = None
        while True:
            with self._flusher_wakes:
                if empty >= _IDLE_ROUNDS:
                    # Idle is told before the queue is looked at, and a caller queues before it looks
                    # whether we are idle: one of the two sees the other.
                    self._flusher_idle = not self._queue
                    while self._flusher_idle and not self._closed:
                        self._flusher_wakes.wait()
                    empty = 0
                if self._closed:
                    return
                self._flusher_wakes.wait(linger_s)
            with self._mutex:
                oldest = self._queue[0] if self._queue and not self._writing else None
            empty = 0 if oldest is not None else empty + 1
            waited = oldest is seen or (
                oldest is not None and self._ports.clock.monotonic_s() - oldest.queued_s >= linger_s / 2
            )
            seen = oldest
            if oldest is not None and waited:
                try:
                    self.drive(oldest, self._database.options.busy_timeout_s)
                except NotOpen:
                    return

    def close(self) -> None:
        """Take nothing more, end the thread. Senders wrote what was theirs when they were closed; who
        still waits is told that it was not written. Idempotent; bounded by ``busy_timeout_s``."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
        busy_s = self._database.options.busy_timeout_s
        with self._flusher_wakes:
            self._flusher_wakes.notify_all()
        if self._flusher is not None:
            self._flusher.join(busy_s)
        with self._mutex:
            left, self._queue = self._queue, []
            for pending in left:
                pending.fail(BackendUnavailable(f"{self.label}: closed before it could be written"))
                _wake(pending)


def _wake(pending: Pending[object]) -> None:
    for gate in pending.gates:
        gate.release()
    pending.gates.clear()
