"""Looks from a real thread whether the simulation goes on.

Everything simulated runs in one thread: a step that computes for long holds up all, and a real lock
or socket would hold it for ever.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType

from txbus_sim._interpose._switch import switch
from txbus_sim._world import StopReason, Strand
from txbus_sim.errors import NotModelled

__all__ = ["Watchdog"]

_LOOKS_PER_STEP = 4
_DEBUGGERS = ("bdb", "pdb", "pydevd", "_pydevd_bundle", "IPython")
_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)


class Watchdog:
    """Tells of each step that takes more than ``slow_s`` real seconds, and ends the run after ``give_up_s``.

    ``report`` is called in the watchdog's thread with the process's key and the stack as text, once
    for a step. Giving up: the run ends and `World.run` raises `NotModelled` with the stack. Where the
    run is in the interpreter's main thread, SIGUSR2 interrupts even a blocked lock; in another thread
    a loop is interrupted, a blocked call of C is not. A step under a debugger may take its time.
    Use as a context around an exploration.
    """

    def __init__(self, report: Callable[[str, str], None], *, slow_s: float = 1.0, give_up_s: float = 20.0) -> None:
        self._report = report
        self._slow_s = slow_s
        self._give_up_s = give_up_s
        self._over = threading.Event()
        self._watched = threading.get_ident()
        self._in_main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="txbus-watchdog", daemon=True)
        self._handler: object = None
        self._stack = ""

    def __enter__(self) -> Watchdog:
        if self._in_main and _SIGNAL is not None:
            self._handler = signal.signal(_SIGNAL, self._interrupted)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._in_main and _SIGNAL is not None:
            signal.signal(_SIGNAL, self._handler)  # type: ignore[arg-type]

    def _watch(self) -> None:
        seen: tuple[object, ...] = ()
        since_s = time.monotonic()
        told = False
        while not self._over.wait(self._slow_s / _LOOKS_PER_STEP):
            strand = switch.current
            now_s = time.monotonic()
            step = () if strand is None else _step(strand)
            if step != seen or strand is None:
                seen, since_s, told = step, now_s, False
                continue
            for_s = now_s - since_s
            if for_s > self._slow_s and not told:
                told = self._tell(strand)
            if told and for_s > self._give_up_s:
                since_s, told = now_s, False
                self._give_up()

    def _tell(self, strand: Strand) -> bool:
        frame = sys._current_frames().get(self._watched)
        if frame is None or _under_debugger(frame):
            return False
        self._stack = "".join(traceback.format_stack(frame))
        del frame
        self._report(strand.process.key, self._stack)
        return True

    def _give_up(self) -> None:
        if self._in_main and _SIGNAL is not None:
            signal.pthread_kill(self._watched, _SIGNAL)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._watched), ctypes.py_object(_Hanging))

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        """In the thread that is watched, wherever it stands; it is left there for ever."""
        strand = switch.current
        if strand is None:
            return
        error = NotModelled(
            f"process {strand.process.key} has not gone on for {self._give_up_s:.0f} s of real time: it blocks on "
            f"something real, or computes for ever; it stands at\n{self._stack}"
        )
        strand.process.world.stop(StopReason.STOPPED, error)


class _Hanging(NotModelled):
    """Raised where a step that never ends was found, outside of the main thread."""

    def __init__(self) -> None:
        super().__init__("a step of the simulation took too much real time; its stack was reported")


def _step(strand: Strand) -> tuple[object, ...]:
    world = strand.process.world
    return (id(strand), world.steps, world.now_ns, world._number, len(world.history))


def _under_debugger(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False
