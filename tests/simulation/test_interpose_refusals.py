"""What is not simulated raises `NotModelled` in a process, naming what, where, and what to do."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import multiprocessing.connection
import multiprocessing.shared_memory
import os
import select
import selectors
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from select import select as select_by_name
from socket import create_connection
from typing import Any

import pytest

from tests.simulation.interpose_runs import error, result
from txbus_sim import _interpose
from txbus_sim._interpose._references import Kept
from txbus_sim.errors import NotModelled


async def coroutine() -> None: ...


def asyncio_run() -> None:
    made = coroutine()
    try:
        asyncio.run(made)
    finally:
        made.close()


NETWORK: dict[str, Callable[[], Any]] = {
    "a socket": lambda: socket.socket(),
    "socket.create_connection": lambda: create_connection(("127.0.0.1", 9)),
    "socket.create_server": lambda: socket.create_server(("127.0.0.1", 0)),
    "socket.socketpair": lambda: socket.socketpair(),
    "socket.fromfd": lambda: socket.fromfd(0, socket.AF_INET, socket.SOCK_STREAM),
    "socket.getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "socket.getfqdn": lambda: socket.getfqdn(),
    "socket.gethostbyname": lambda: socket.gethostbyname("localhost"),
    "ssl": lambda: ssl.create_default_context(),
}
PROCESSES: dict[str, Callable[[], Any]] = {
    "subprocess": lambda: subprocess.run([sys.executable, "-V"], check=True),
    "os.fork": lambda: os.fork(),
    "os.forkpty": lambda: os.forkpty(),
    "os.posix_spawn": lambda: os.posix_spawn(sys.executable, [sys.executable, "-V"], {}),
    "os.posix_spawnp": lambda: os.posix_spawnp(sys.executable, [sys.executable, "-V"], {}),
    "os.execv": lambda: os.execv(sys.executable, [sys.executable, "-V"]),
    "os.execve": lambda: os.execve(sys.executable, [sys.executable, "-V"], {}),
    "os.spawnv": lambda: os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-V"]),
    "os.system": lambda: os.system("true"),
    "os.popen": lambda: os.popen("true"),
    "os.waitpid": lambda: os.waitpid(-1, os.WNOHANG),
    "ProcessPoolExecutor": lambda: concurrent.futures.ProcessPoolExecutor(),
    "multiprocessing (BaseProcess)": lambda: multiprocessing.Process(target=print),
    "multiprocessing (SemLock)": lambda: multiprocessing.Lock(),
    "multiprocessing (Queue)": lambda: multiprocessing.Queue(),
    "multiprocessing (Pool)": lambda: multiprocessing.Pool(1),
    "multiprocessing (BaseManager)": lambda: multiprocessing.Manager(),
    "multiprocessing (SharedMemory)": lambda: multiprocessing.shared_memory.SharedMemory(create=True, size=1),
    "multiprocessing.connection.Pipe": lambda: multiprocessing.connection.Pipe(),
}
WAITING: dict[str, Callable[[], Any]] = {
    "select.select": lambda: select_by_name([], [], [], 0),
    "select.poll": lambda: select.poll(),
    "select.epoll": lambda: select.epoll(),
    "selectors": lambda: selectors.SelectSelector(),
    "os.pipe": lambda: os.pipe(),
    "asyncio.run": asyncio_run,
    "asyncio.new_event_loop": lambda: asyncio.new_event_loop(),
    "asyncio": lambda: asyncio.Runner(),
    "an asyncio event loop": lambda: asyncio.SelectorEventLoop(),
}
SYSTEM: dict[str, Callable[[], Any]] = {
    "os.kill": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "os.killpg": lambda: os.killpg(0, signal.SIGTERM),
    "signal.alarm": lambda: signal.alarm(1),
    "signal.setitimer": lambda: signal.setitimer(signal.ITIMER_REAL, 1),
    "signal.pause": lambda: signal.pause(),
    "signal.raise_signal": lambda: signal.raise_signal(signal.SIGTERM),
    "signal.pthread_kill": lambda: signal.pthread_kill(0, signal.SIGTERM),
    "signal.sigwait": lambda: signal.sigwait([signal.SIGTERM]),
    "os.chdir": lambda: os.chdir("/"),
}
ALL = {**NETWORK, **PROCESSES, **WAITING, **SYSTEM}


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


@pytest.mark.parametrize("what", ALL)
def test_refused_in_a_process(what: str) -> None:
    """By every name it goes by; the message has the line of this file, and what to do."""
    found = error(ALL[what])
    assert isinstance(found, NotModelled)
    text = str(found)
    name, _, rest = text.partition(" is not simulated (process main, at ")
    # A function that is written in Python may be refused by what it calls.
    assert name == what or what in {"socket.create_server", "os.popen", "asyncio.run", "socket.fromfd"}
    place, _, advice = rest.partition("): ")
    assert place.rpartition(":")[0] == __file__ and len(advice) > 20
    assert NotModelled.raised == [found]


def test_refused_even_if_swallowed() -> None:
    """The run knows, although the code under test caught it."""

    def main() -> str:
        try:
            socket.socket()
        except Exception:
            return "swallowed"
        return "not refused"

    assert result(main) == "swallowed"
    assert "a socket" in str(NotModelled.raised[0])


def test_outside_of_processes_they_work() -> None:
    """While the simulation is installed: a pipe, a selector, a socket pair, an event loop, a subprocess."""
    one, other = socket.socketpair()
    with one, other, selectors.DefaultSelector() as selector:
        selector.register(other, selectors.EVENT_READ)
        one.send(b"x")
        assert len(selector.select(5)) == 1
        assert select_by_name([other], [], [], 5)[0] == [other]
    assert isinstance(other, socket.socket) and isinstance(POLL.value, type(select.poll()))
    with select.epoll() as epoll:
        assert epoll.fileno() > 0 and isinstance(epoll, select.epoll)
    asyncio.run(coroutine())
    assert ssl.create_default_context().check_hostname
    assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True).stdout == b"1\n"
    assert multiprocessing.Lock().acquire()


POLL = Kept(select.poll())


def test_a_dead_process_is_refused_nothing() -> None:
    """What its frames ask for when they are unwound is not held against the run."""
    import time

    from tests.simulation.interpose_runs import Run

    def main() -> None:
        try:
            time.sleep(1)
        finally:
            socket.socket()

    made = Run("main/clock.sleep#1 kill-after")
    made(main=main)
    assert NotModelled.raised == []
