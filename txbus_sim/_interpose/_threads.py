"""Threads of simulated processes: strands behind `threading.Thread`.

`Thread` stays the class it is, so that subclasses made at import time work; what it does within a
process is another thing. The thread's name is counted per process.
"""

from __future__ import annotations

import _thread
import concurrent.futures.thread as pools
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent

from txbus_sim._interpose._locks import REAL_LOCKS, SimLock
from txbus_sim._interpose._patches import Patches
from txbus_sim._interpose._place import refuse
from txbus_sim._interpose._switch import switch
from txbus_sim._world import Process, Strand, Wait, current_process, current_strand, nanoseconds
from txbus_sim.errors import ProcessIsDead
from txbus_sim.faults import CRASHES
from txbus_sim.history import Logged

__all__ = ["end_threads", "executors", "forget_excepthook", "patch_threads"]

_S = 1_000_000_000
_THREAD = "thread"
_NUMBER = "thread-number"
_POOLS = "executors"
_POOL_NUMBER = "executor-number"
_STRAND = "_txbus_strand"


_hook: Callable[[Any], object] = threading.excepthook


def patch_threads(patches: Patches) -> None:
    global _hook
    thread = threading.Thread
    patches.method(thread, "start", _start)
    patches.method(thread, "join", _join)
    patches.method(thread, "is_alive", _is_alive)
    patches.code(threading.current_thread, _current_thread)
    patches.code(threading.main_thread, _main_thread)
    patches.code(threading.active_count, _active_count)
    patches.code(threading.enumerate, _enumerate)
    patches.code(threading._newname, _newname)  # type: ignore[attr-defined]
    before = threading.excepthook
    patches.undo_with(lambda: setattr(threading, "excepthook", before))
    threading.excepthook = _hook = _excepthook(before)
    patches.function(_thread.get_ident, _get_ident)
    patches.function(_thread.get_native_id, _get_ident)
    for name in ("start_new_thread", "start_new"):
        patches.function(getattr(_thread, name), _start_new_thread)
    if sys.version_info >= (3, 13):
        patches.function(_thread.start_joinable_thread, _start_joinable_thread)
    pool = pools.ThreadPoolExecutor
    patches.method(pool, "__init__", _pool)
    patches.attribute(pool, "_counter", _PoolCounter(pool._counter))  # type: ignore[attr-defined]
    queues: Any = pools._threads_queues
    patches.attribute(pools, "_threads_queues", _OutsideOnly(queues))
    lock: Any = pools._global_shutdown_lock
    patches.attribute(pools, "_global_shutdown_lock", SimLock(None, (None, 0), lock))


# who is who


def _thread_of(strand: Strand) -> threading.Thread:
    """The `Thread` of a strand; made now if nobody needed it before."""
    found: threading.Thread | None = strand.values.get(_THREAD)
    if found is None:
        main = strand is _main_strand(strand.process)
        found = threading.Thread(name=strand.name, daemon=strand.daemon)
        found.__class__ = threading._MainThread if main else threading._DummyThread  # type: ignore[attr-defined]
        _bind(found, strand)
    return found


def _bind(thread: Any, strand: Strand) -> None:
    setattr(thread, _STRAND, strand)
    thread._ident = thread._native_id = strand.ident
    thread._started.set()
    strand.values[_THREAD] = thread


def _current_thread(original: Callable[[], threading.Thread]) -> threading.Thread:
    strand = getcurrent()
    return _thread_of(strand) if type(strand) is Strand else original()


def _main_thread(original: Callable[[], threading.Thread]) -> threading.Thread:
    process = current_process()
    return original() if process is None else _thread_of(_main_strand(process))


def _main_strand(process: Process) -> Strand:
    found: Strand | None = process.memory.get("main-strand")
    return found or process.strands[0]


def _enumerate(original: Callable[[], list[threading.Thread]]) -> list[threading.Thread]:
    process = current_process()
    if process is None:
        return original()
    return [_thread_of(strand) for strand in process.strands if not strand.ended]


def _active_count(original: Callable[[], int]) -> int:
    process = current_process()
    return original() if process is None else len(_enumerate(list))


def _get_ident(original: Callable[[], int]) -> int:
    strand = getcurrent()
    return strand.ident if type(strand) is Strand else original()


def _newname(original: Callable[[str], str], template: str = "Thread-%d") -> str:
    process = current_process()
    return original(template) if process is None else template % _next_number(process)


def _next_number(process: Process) -> int:
    number: int = process.memory.get(_NUMBER, 0) + 1
    process.memory[_NUMBER] = number
    return number


# lives


def _start(original: Callable[[Any], None], self: Any) -> None:
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(self)
    if not self._initialized:
        raise RuntimeError("thread.__init__() not called")
    if isinstance(self._started._cond._lock, REAL_LOCKS):
        refuse(f"starting {self.name}, a Thread made outside of the process,", "make the Thread in the process")
    if self._started.is_set():
        raise RuntimeError("threads can only be started once")
    process = strand.process
    fault = process.world.enter("thread.start", CRASHES)
    child = process.spawn(lambda: _live(self), self._name, bool(self._daemonic))
    _bind(self, child)
    process.world.leave(fault)
    return None


def _live(thread: threading.Thread) -> None:
    """A thread that raises ends alone."""
    try:
        thread.run()
    except (ProcessIsDead, SystemExit):
        pass
    except BaseException:
        _unhandled(thread)
    switch.drop_locals()


def _unhandled(thread: threading.Thread | None) -> None:
    """`threading.excepthook`: the application's own if it has set one, else a line of the log."""
    process = current_strand().process
    if not process.alive or process.world.closed:
        return
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), thread)))


def forget_excepthook() -> None:
    """The process that may have set it is gone."""
    threading.excepthook = _hook


def _excepthook(original: Callable[[Any], object]) -> Callable[[Any], None]:
    def excepthook(args: Any) -> None:
        process = current_process()
        if process is None:
            original(args)
            return
        name = args.thread.name if args.thread is not None else "?"
        trace = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        text = f"Exception in thread {name}: {trace.rstrip()}"
        process.world.history.add(Logged(process.world.now_ns, process.key, "ERROR", "threading", text))

    return excepthook


def _join(original: Callable[..., None], self: Any, timeout: float | None = None) -> None:
    theirs: Strand | None = self.__dict__.get(_STRAND)
    mine = getcurrent()
    if type(mine) is not Strand:
        if theirs is None:
            original(self, timeout)
        return
    if theirs is None:
        if not self._initialized:
            raise RuntimeError("Thread.__init__() not called")
        raise RuntimeError("cannot join thread before it is started")
    if theirs is mine:
        raise RuntimeError("cannot join current thread")
    _await(theirs, mine, timeout)


def _await(theirs: Strand, mine: Strand, timeout: float | None) -> bool:
    world = mine.process.world
    deadline_ns = None if timeout is None else world.now_ns + max(0, nanoseconds(timeout))
    while not theirs.ended and (deadline_ns is None or world.now_ns < deadline_ns):
        theirs.joiners.append(mine)
        world.park(Wait("thread", f"the end of thread {theirs.name}", theirs), deadline_ns)
        if mine in theirs.joiners:
            theirs.joiners.remove(mine)
    return theirs.ended


def _is_alive(original: Callable[[Any], bool], self: Any) -> bool:
    strand: Strand | None = self.__dict__.get(_STRAND)
    if strand is not None:
        return not strand.ended and strand.process.alive
    return original(self) if current_process() is None else False


def _start_new_thread(original: Any, function: Any, args: Any, kwargs: Any = None, /) -> int:
    strand = getcurrent()
    if type(strand) is not Strand:
        started: int = original(function, args, kwargs) if kwargs is not None else original(function, args)
        return started
    return _spawn_raw(strand.process, lambda: function(*args, **(kwargs or {}))).ident


def _spawn_raw(process: Process, call: Callable[[], object]) -> Strand:
    def live() -> None:
        try:
            call()
        except (ProcessIsDead, SystemExit):
            pass
        except BaseException:
            _unhandled(None)
        switch.drop_locals()

    fault = process.world.enter("thread.start", CRASHES)
    child = process.spawn(live, f"Dummy-{_next_number(process)}")
    process.world.leave(fault)
    return child


def _start_joinable_thread(original: Any, function: Any, handle: Any = None, daemon: bool = True) -> Any:
    if current_process() is not None:
        refuse("_thread.start_joinable_thread", "start threads with threading.Thread")
    return original(function, handle=handle, daemon=daemon)


# pools of threads


class _PoolCounter:
    """Numbers the pools of a process from 0."""

    def __init__(self, outside: Callable[[], int]) -> None:
        self._outside = outside

    def __call__(self) -> int:
        process = current_process()
        if process is None:
            return self._outside()
        number: int = process.memory.get(_POOL_NUMBER, 0)
        process.memory[_POOL_NUMBER] = number + 1
        return number


class _OutsideOnly:
    """The workers for which the interpreter's exit waits: those of simulated processes are not real."""

    def __init__(self, outside: Any) -> None:
        self._outside = outside

    def __setitem__(self, thread: Any, work: Any) -> None:
        if current_process() is None:
            self._outside[thread] = work

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outside, name)


def _pool(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    process = current_process()
    if process is not None:
        executors(process).append(weakref.ref(self))


def executors(process: Process) -> list[Callable[[], Any]]:
    found: list[Callable[[], Any]] = process.memory.setdefault(_POOLS, [])
    return found


def end_threads(process: Process) -> None:
    """As an interpreter's end: pools finish their work, then every thread that is no daemon is awaited."""
    mine = current_strand()
    for made in list(executors(process)):
        pool = made()
        if pool is not None:
            pool.shutdown(wait=True)
    while others := [one for one in process.strands if one is not mine and not one.daemon]:
        _await(others[0], mine, None)
