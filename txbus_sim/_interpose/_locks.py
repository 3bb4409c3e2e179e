"""Locks of simulated processes: who waits first is served first, and who waits for whom is known.

Only the primitives are replaced (`Lock`, `RLock`, `SimpleQueue`): the standard library's conditions,
events, semaphores, barriers, queues and futures are its own code on top of them. Taking a free lock is
no point of a schedule: nobody else sees it.
"""

from __future__ import annotations

import _thread
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any

from greenlet import getcurrent

from txbus_sim._interpose._patches import Patches, stand_in_class
from txbus_sim._world import Process, Strand, Wait, nanoseconds

__all__ = ["REAL_LOCKS", "SimLock", "SimRLock", "patch_locks"]

_S = 1_000_000_000
_FOREVER_S = threading.TIMEOUT_MAX
_REAL_LOCK = _thread.allocate_lock
_REAL_RLOCK = _thread.RLock
REAL_LOCKS: tuple[type, ...] = (type(_thread.allocate_lock()), _thread.RLock)


class _SimLock:
    """One lock for each incarnation of a process, and a real one outside of processes.

    A lock made in a process belongs to it (its *home*) and is only that. One that is reached by other
    processes as well (made at import time, or kept in an object that a library shares) is one lock
    in each, as memory is not shared between processes.
    """

    __slots__ = ("__weakref__", "_depth", "_home", "_line", "_made", "_queue", "_real", "owner")

    again = False

    def __init__(self, home: Process | None, made: tuple[CodeType | None, int], real: Any = None) -> None:
        self._home = home
        self._made, self._line = made
        self._real = real
        self._queue: deque[Strand] = deque()
        self._depth = 0
        self.owner: Strand | None = None

    def __repr__(self) -> str:
        state = "unlocked" if self.owner is None else f"held by {self.owner.process.key}:{self.owner.name}"
        return f"<{self.what}, {state}>"

    @property
    def what(self) -> str:
        made = self._made
        return f"a lock made at {made.co_filename}:{self._line}" if made is not None else "a lock"

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        strand = getcurrent()
        if type(strand) is Strand and strand.process is self._home:
            if self.owner is None:
                self.owner = strand
                self._depth = 1
                return True
            return self._acquire_held(strand, blocking, timeout)
        taken: bool = self._elsewhere(strand).acquire(blocking, timeout)
        return taken

    def _acquire_held(self, strand: Strand, blocking: bool, timeout: float) -> bool:
        if self.again and self.owner is strand:
            self._depth += 1
            return True
        deadline_ns = _deadline_ns(strand, blocking, timeout)
        if deadline_ns == 0:
            return False
        self._queue.append(strand)
        strand.process.world.park(self._wait_of(strand), deadline_ns)
        if self.owner is strand and strand not in self._queue:
            # Whoever released it has handed it over, so that nobody overtakes; even if the deadline
            # came at that very moment.
            return True
        self._queue.remove(strand)
        return False

    def _wait_of(self, strand: Strand) -> Wait:
        if self.owner is strand:
            # Another thread may release it: as a signal, which is no deadlock yet.
            return Wait("lock", f"{self.what} (taken by itself before)")
        return Wait("lock", self.what, self.owner)

    def release(self) -> None:
        strand = getcurrent()
        if type(strand) is not Strand or strand.process is not self._home:
            self._release_elsewhere(strand)
            return
        if self.owner is None or (self.again and self.owner is not strand):
            if strand.process.alive:
                raise RuntimeError("release of a lock that is not held" + (" by this thread" if self.again else ""))
            return
        self._depth -= 1
        if self._depth == 0:
            self._hand_over(strand.process)

    def _release_elsewhere(self, strand: object) -> None:
        there = self._elsewhere(strand)
        if type(strand) is not Strand and self._home is not None and not self._home.alive:
            # A generator of a dead process is being collected: it holds what is long forgotten.
            try:
                there.release()
            except RuntimeError:
                pass
        else:
            there.release()

    def _hand_over(self, process: Process) -> None:
        waiting = self._queue
        if not waiting:
            self.owner = None
            return
        strand = waiting.popleft()
        self.owner, self._depth = strand, 1
        for other in waiting:
            if other.wait is not None:
                other.wait = self._wait_of(other)
        process.world.unpark(strand)

    def locked(self) -> bool:
        strand = getcurrent()
        if type(strand) is Strand and strand.process is self._home:
            return self.owner is not None
        locked: bool = self._elsewhere(strand).locked()
        return locked

    def _elsewhere(self, strand: object) -> Any:
        """The lock that stands for this one where it is used now."""
        if type(strand) is not Strand:
            if self._real is None:
                self._real = _REAL_RLOCK() if self.again else _REAL_LOCK()
            return self._real
        process = strand.process
        if not process.alive or process.world.closed:
            return _INERT
        twins: dict[_SimLock, _SimLock] = process.memory.setdefault("locks", {})
        if self not in twins:
            if self._home is None or not self._home.alive:
                # Its home is gone: that it was held there is forgotten, as memory is.
                self._home, self.owner, self._depth = process, None, 0
                self._queue = deque()
                return self
            twins[self] = type(self)(process, (self._made, self._line))
        return twins[self]

    __enter__ = acquire

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.release()

    def _at_fork_reinit(self) -> None:
        self.owner, self._depth = None, 0
        self._queue.clear()


class SimLock(_SimLock):
    """As `threading.Lock`."""

    __slots__ = ()

    acquire_lock = _SimLock.acquire
    release_lock = _SimLock.release
    locked_lock = _SimLock.locked


class SimRLock(_SimLock):
    """As `threading.RLock`, with what `threading.Condition` asks of it."""

    __slots__ = ()
    again = True

    def _is_owned(self) -> bool:
        strand = getcurrent()
        if type(strand) is Strand and strand.process is self._home:
            return self.owner is strand
        owned: bool = self._elsewhere(strand)._is_owned()
        return owned

    def _release_save(self) -> Any:
        strand = getcurrent()
        if type(strand) is not Strand or strand.process is not self._home:
            return self._elsewhere(strand)._release_save()
        if self.owner is not strand:
            raise RuntimeError("cannot release un-acquired lock")
        depth, self._depth = self._depth, 0
        self._hand_over(strand.process)
        return depth

    def _acquire_restore(self, state: Any) -> None:
        strand = getcurrent()
        if type(strand) is not Strand or strand.process is not self._home:
            self._elsewhere(strand)._acquire_restore(state)
            return
        self.acquire()
        self._depth = state

    def _recursion_count(self) -> int:
        return self._depth if self.owner is getcurrent() else 0


class _Inert:
    """The lock of a process that is dead: nobody is kept out, and nothing happens."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        strand = getcurrent()
        if type(strand) is Strand:
            strand.process.world.inert(strand)
        return True

    def release(self) -> None: ...

    def locked(self) -> bool:
        return False

    def _is_owned(self) -> bool:
        return True

    def _release_save(self) -> Any:
        return None

    def _acquire_restore(self, state: Any) -> None: ...


_INERT = _Inert()


def _deadline_ns(strand: Strand, blocking: bool, timeout: float) -> int | None:
    """When a wait that begins now ends; 0: it does not begin. Errors as `threading.Lock`'s."""
    if not blocking:
        if timeout != -1:
            raise ValueError("can't specify a timeout for a non-blocking call")
        return 0
    if timeout == -1:
        return None
    if timeout < 0:
        raise ValueError("timeout value must be a non-negative number")
    if timeout > _FOREVER_S:
        raise OverflowError("timeout value is too large")
    return strand.process.world.now_ns + nanoseconds(timeout) if timeout else 0


# making them


def _made_by(depth: int) -> tuple[CodeType, int]:
    frame = sys._getframe(depth)
    return frame.f_code, frame.f_lineno


def _make_lock() -> SimLock:
    strand = getcurrent()
    assert type(strand) is Strand
    return SimLock(strand.process, _made_by(3))


def _make_rlock() -> SimRLock:
    strand = getcurrent()
    assert type(strand) is Strand
    frame = sys._getframe(2)
    if frame.f_code.co_filename == threading.__file__ and frame.f_back is not None:
        frame = frame.f_back
    return SimRLock(strand.process, (frame.f_code, frame.f_lineno))


def _allocate_lock(original: Callable[[], Any]) -> Any:
    strand = getcurrent()
    if type(strand) is Strand:
        return SimLock(strand.process, _made_by(2))
    return original()


def patch_locks(patches: Patches) -> None:
    lock_type = REAL_LOCKS[0]
    patches.function(_thread.allocate_lock, _allocate_lock)
    if _thread.allocate is not _thread.allocate_lock:
        patches.function(_thread.allocate, _allocate_lock)
    if threading.Lock is lock_type:
        # Since Python 3.13 it is the class itself.
        patches.replace(lock_type, stand_in_class(lock_type, _make_lock, (SimLock,)))
    patches.replace(_thread.RLock, stand_in_class(_thread.RLock, _make_rlock, (SimRLock,)))
    simple: Any = queue.SimpleQueue
    in_python: Any = queue._PySimpleQueue  # type: ignore[attr-defined]
    patches.replace(simple, stand_in_class(simple, in_python, (in_python,), base=in_python))
    patches.attribute(threading.Condition, "wait", _waiting(threading.Condition.wait))


# conditions


class _Waiter:
    """Stands in a condition's queue for a strand; ``release`` is how `Condition.notify` wakes it."""

    __slots__ = ("notified", "strand")

    def __init__(self, strand: Strand) -> None:
        self.strand = strand
        self.notified = False

    def release(self) -> None:
        if self.notified:
            raise RuntimeError("notified already")
        self.notified = True
        self.strand.process.world.unpark(self.strand)


_WAITS: dict[tuple[str, str], str] = {
    ("Event", "wait"): "an event to be set",
    ("Barrier", "_wait"): "the others at a barrier",
    ("Barrier", "_enter"): "a barrier to be free",
    ("Semaphore", "acquire"): "a semaphore",
    ("Queue", "get"): "an item of a queue",
    ("Queue", "put"): "room in a queue",
    ("Queue", "join"): "the tasks of a queue",
    ("Future", "result"): "the result of a future",
    ("Future", "exception"): "the result of a future",
}


def _waiting(original: Callable[..., bool]) -> Callable[..., bool]:
    """`Condition.wait` without a lock of its own to wait at, which would look like a deadlock."""

    def wait(self: Any, timeout: float | None = None) -> bool:
        strand = getcurrent()
        if type(strand) is not Strand:
            return original(self, timeout)
        if not self._is_owned():
            raise RuntimeError("cannot wait on un-acquired lock")
        world = strand.process.world
        deadline_ns = None if timeout is None else world.now_ns + max(0, nanoseconds(timeout))
        waiter = _Waiter(strand)
        self._waiters.append(waiter)
        state = self._release_save()
        try:
            if deadline_ns is None or deadline_ns > world.now_ns:
                world.park(Wait("condition", _what_waits()), deadline_ns)
        finally:
            self._acquire_restore(state)
            if not waiter.notified and waiter in self._waiters:
                self._waiters.remove(waiter)
        return waiter.notified

    return wait


def _what_waits() -> str:
    """What people call that for which the caller of `Condition.wait` waits."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename == threading.__file__ and frame.f_code.co_name == "wait_for":
        frame = frame.f_back
    owner = frame.f_locals.get("self") if frame is not None else None
    for base in type(owner).__mro__:
        found = _WAITS.get((base.__name__, frame.f_code.co_name))
        if found is not None:
            return found
    return "a condition to be notified"
