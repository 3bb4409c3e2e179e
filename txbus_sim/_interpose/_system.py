"""What a process has of the interpreter and the system: its log, its exit functions, its signals."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import traceback
import weakref
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent

from txbus_sim._interpose._patches import Patches
from txbus_sim._interpose._threads import end_threads, forget_excepthook
from txbus_sim._world import Process, Strand, current_process, current_strand
from txbus_sim.errors import ProcessIsDead
from txbus_sim.history import Logged

__all__ = ["patch_system", "run_main"]

_AT_EXIT = "atexit"
_HANDLERS = "signal-handlers"
_LEVELS = "log-levels"


def run_main(process: Process, main: Callable[[], object]) -> None:
    """A process's life as the interpreter runs it: main, its threads' end, its exit functions.

    To be called in the process's first strand. What ``main`` raised comes out at the end; an
    AssertionError at once, because it ends the run.
    """
    process.memory["main-strand"] = current_strand()
    process.at_death.append(forget_excepthook)
    error: BaseException | None = None
    try:
        main()
    except (ProcessIsDead, AssertionError):
        raise
    except BaseException as exc:
        error = exc
    end_threads(process)
    functions = process.memory.get(_AT_EXIT, [])
    while functions:
        function, args, kwargs = functions.pop()
        try:
            function(*args, **kwargs)
        except (ProcessIsDead, AssertionError):
            raise
        except BaseException:
            _log(process, "ERROR", "atexit", f"Exception in an exit function: {traceback.format_exc().rstrip()}")
    if error is not None:
        raise error


def patch_system(patches: Patches) -> None:
    # The first finalizer registers with atexit for all: it must not be a process's.
    weakref.finalize(patches, int)
    patches.function(atexit.register, _register)
    patches.function(atexit.unregister, _unregister)
    patches.code(signal.signal, _signal)
    patches.code(signal.getsignal, _getsignal)
    patches.function(os._exit, _exit_now)
    patches.function(os.abort, _abort)
    patches.method(logging.Logger, "callHandlers", _call_handlers)
    patches.method(logging.Logger, "setLevel", _set_level)
    for name in ("addHandler", "removeHandler"):
        patches.method(logging.Logger, name, _change_handlers)


def _log(process: Process, level: str, logger: str, text: str) -> None:
    if process.alive and not process.world.closed:
        process.world.history.add(Logged(process.world.now_ns, process.key, level, logger, text))


# logging


def _call_handlers(original: Callable[..., None], self: logging.Logger, record: logging.LogRecord) -> None:
    """Every record goes to the history; handlers, which write somewhere, are not called."""
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(self, record)
    try:
        text = record.getMessage()
    except Exception as exc:
        text = f"{record.msg!r} % {record.args!r}: {type(exc).__name__}: {exc}"
    if record.exc_info and record.exc_info[0] is not None:
        text = f"{text}\n{''.join(traceback.format_exception(*record.exc_info)).rstrip()}"
    _log(strand.process, record.levelname, record.name, text)
    return None


def _set_level(original: Callable[..., None], self: logging.Logger, level: int | str) -> None:
    """Loggers are shared by all processes of a run: the level is put back when the process is gone."""
    process = current_process()
    if process is not None:
        if not process.alive or process.world.closed:
            return
        before: dict[logging.Logger, int] = process.memory.setdefault(_LEVELS, {})
        if not before:
            process.at_death.append(lambda: _restore_levels(original, before))
        before.setdefault(self, self.level)
    original(self, level)


def _restore_levels(set_level: Callable[..., None], before: dict[logging.Logger, int]) -> None:
    for logger, level in before.items():
        set_level(logger, level)


def _change_handlers(original: Callable[..., None], self: logging.Logger, handler: logging.Handler) -> None:
    if current_process() is None:
        original(self, handler)


# exit and signals


def _register(original: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    process = current_process()
    if process is None:
        return original(function, *args, **kwargs)
    process.memory.setdefault(_AT_EXIT, []).append((function, args, kwargs))
    return function


def _unregister(original: Any, function: Any, /) -> None:
    process = current_process()
    if process is None:
        original(function)
    elif _AT_EXIT in process.memory:
        process.memory[_AT_EXIT][:] = [one for one in process.memory[_AT_EXIT] if one[0] != function]


def _signal(original: Any, number: Any, handler: Any) -> Any:
    """Noted, and nothing else: nobody sends signals to a simulated process."""
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(number, handler)
    if strand is not strand.process.memory.get("main-strand", strand):
        raise ValueError("signal only works in main thread of the main interpreter")
    before = _getsignal(None, number)
    strand.process.memory.setdefault(_HANDLERS, {})[int(number)] = handler
    return before


def _getsignal(original: Any, number: Any) -> Any:
    process = current_process()
    if process is None:
        return original(number)
    default = signal.default_int_handler if int(number) == signal.SIGINT else signal.SIG_DFL
    return process.memory.get(_HANDLERS, {}).get(int(number), default)


def _exit_now(original: Any, status: int) -> None:
    """`os._exit`: no exit function, no ``finally``; the supervisor starts the process anew."""
    process = current_process()
    if process is None:
        original(status)
        return
    process.world.crash(process, lost=f"os._exit({status})")


def _abort(original: Any) -> None:
    process = current_process()
    if process is None:
        original()
        return
    process.world.crash(process, lost="os.abort()")
