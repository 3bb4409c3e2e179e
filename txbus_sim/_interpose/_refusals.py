"""What is not simulated raises `NotModelled`: each function by name, with what to do instead."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import os
import select
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from txbus_sim._interpose._patches import Patches, stand_in_class
from txbus_sim._interpose._place import refuse
from txbus_sim._world import current_process

__all__ = ["patch_refusals"]

_NETWORK = "talk to other processes through the bus or a simulated database; give the code under test a client to call"
_PROCESS = "declare another process of the simulation (sim.process)"
_WAITING = "wait with threading, queue or time.sleep; there is nothing outside to wait for"
_ASYNC = "the simulator runs blocking code; call the blocking form of the code under test"
_SIGNAL = "a crash or a pause is a fault of the schedule; end a process by returning or raising"
_DIRECTORY = "all simulated processes share the real one; use absolute paths"

_SOCKET = ("create_connection", "create_server", "getaddrinfo", "fromfd", "socketpair", "getfqdn")
_SOCKET_C = ("gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")
_OS: dict[str, tuple[str, ...]] = {
    _PROCESS: (
        "fork",
        "forkpty",
        "posix_spawn",
        "posix_spawnp",
        "execv",
        "execve",
        "spawnv",
        "spawnve",
        "spawnvp",
        "spawnvpe",
        "system",
        "popen",
        "wait",
        "wait3",
        "wait4",
        "waitid",
        "waitpid",
    ),
    _SIGNAL: ("kill", "killpg"),
    _WAITING: ("pipe", "pipe2", "eventfd", "openpty"),
    _DIRECTORY: ("chdir", "fchdir", "chroot"),
}
_SIGNALS = (
    *("alarm", "setitimer", "pause", "raise_signal", "pthread_kill", "pthread_sigmask", "set_wakeup_fd"),
    *("sigwait", "sigwaitinfo", "sigtimedwait"),
)
_MULTIPROCESSING: tuple[tuple[str, str], ...] = (
    ("multiprocessing.process", "BaseProcess"),
    ("multiprocessing.pool", "Pool"),
    ("multiprocessing.managers", "BaseManager"),
    ("multiprocessing.synchronize", "SemLock"),
    ("multiprocessing.queues", "Queue"),
    ("multiprocessing.queues", "SimpleQueue"),
    ("multiprocessing.shared_memory", "SharedMemory"),
)


def patch_refusals(patches: Patches) -> None:
    _patch_network(patches)
    _patch_processes(patches)
    _patch_waiting(patches)
    _patch_asyncio(patches)


def _patch_network(patches: Patches) -> None:
    patches.method(socket.socket, "__init__", _refusing("a socket", _NETWORK))
    _functions(patches, socket, (*_SOCKET, *_SOCKET_C), _NETWORK)
    try:
        ssl = importlib.import_module("ssl")
    except ImportError:  # an interpreter built without it
        return
    new = ssl.SSLContext.__dict__["__new__"]

    def context(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if current_process() is not None:
            refuse("ssl", _NETWORK)
        return new.__func__(cls, *args, **kwargs)

    patches.attribute(ssl.SSLContext, "__new__", staticmethod(context))


def _patch_processes(patches: Patches) -> None:
    patches.method(subprocess.Popen, "__init__", _refusing("subprocess", _PROCESS))
    for instead, names in _OS.items():
        _functions(patches, os, names, instead)
    _functions(patches, signal, _SIGNALS, _SIGNAL)
    patches.method(concurrent.futures.ProcessPoolExecutor, "__init__", _refusing("ProcessPoolExecutor", _PROCESS))
    for module, name in _MULTIPROCESSING:
        try:
            owner = getattr(importlib.import_module(module), name)
        except ImportError:  # no semaphores, or no shared memory, on this system
            continue
        state = {"_state": "INIT"} if name == "Pool" else {}
        patches.method(owner, "__init__", _refusing_to_make(f"multiprocessing ({name})", _PROCESS, **state))
    _functions(patches, importlib.import_module("multiprocessing.connection"), ("Pipe", "wait", "Client"), _PROCESS)


def _patch_waiting(patches: Patches) -> None:
    _functions(patches, select, ("select", "poll", "devpoll"), _WAITING)
    for name in ("epoll", "kqueue"):
        original = getattr(select, name, None)
        if original is not None:
            made = stand_in_class(original, lambda *_, name=name, **__: refuse(f"select.{name}", _WAITING), ())
            patches.replace(original, made)
    patches.method(selectors._BaseSelectorImpl, "__init__", _refusing("selectors", _WAITING))


def _patch_asyncio(patches: Patches) -> None:
    _functions(patches, asyncio, ("run", "new_event_loop"), _ASYNC)
    patches.method(asyncio.Runner, "__init__", _refusing("asyncio", _ASYNC))

    loop = _refusing_to_make("an asyncio event loop", _ASYNC, _closed=True)
    patches.method(asyncio.BaseEventLoop, "__init__", loop)


def _functions(patches: Patches, module: Any, names: Iterable[str], instead: str) -> None:
    for name in names:
        original = getattr(module, name, None)
        if original is None:
            continue  # not on this system
        call = _refusing(f"{module.__name__}.{name}", instead)
        if isinstance(original, FunctionType):
            patches.code(original, call)
        else:
            patches.function(original, call)


def _refusing(what: str, instead: str) -> Callable[..., Any]:
    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if current_process() is not None:
            refuse(what, instead)
        return original(*args, **kwargs)

    return call


def _refusing_to_make(what: str, instead: str, **attributes: Any) -> Callable[..., Any]:
    """For ``__init__``; the attributes are what ``__del__`` of the object that is never made looks at."""

    def init(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
        if current_process() is not None:
            for name, value in attributes.items():
                setattr(self, name, value)
            refuse(what, instead)
        original(self, *args, **kwargs)

    return init
