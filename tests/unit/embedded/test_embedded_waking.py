"""Waking a waiting receiver, and what is left when everything is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.embedded.station import message, texts
from txbus._system import system_ports
from txbus.embedded import hub
from txbus.embedded.plugin import plugin
from txbus.errors import NotOpen
from txbus.spi import Backend, BackendURL, Batch, Receiver, Subscription, TopicSpec

_LONG_S = 60.0


@pytest.fixture(params=["embedded", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """On the system's clock: these are about threads."""
    made = plugin.create(BackendURL(request.param, str(tmp_path / "bus.db"), {}), system_ports())
    made.open()
    made.admin().create([TopicSpec("t", 1)])
    yield made
    made.close()


class Waiting:
    """A receiver that waits in a thread of its own."""

    def __init__(self, receiver: Receiver, call: Callable[[], Batch]) -> None:
        self.result: Batch | BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as exc:
            self.result = exc

    def end(self) -> Batch | BaseException | None:
        self._thread.join(30.0)
        assert not self._thread.is_alive(), "still waiting"
        return self.result


def waiting(backend: Backend) -> tuple[Receiver, Waiting]:
    receiver = backend.receiver(Subscription("g", ("t",), lease_s=_LONG_S * 10))
    receiver.receive(1, 0.0)
    return receiver, Waiting(receiver, lambda: receiver.receive(10, _LONG_S))


def test_a_send_of_the_same_process_wakes(backend: Backend) -> None:
    """A receive of a minute returns with the message."""
    _, wait = waiting(backend)
    backend.sender("s").send([message("a")], 5.0)
    result = wait.end()
    assert isinstance(result, Batch) and texts(result.received) == ["a"]


def test_wake_ends_a_waiting_receive(backend: Backend) -> None:
    """With an empty batch; one that comes before is not lost; and only one receive is ended by it."""
    receiver, wait = waiting(backend)
    receiver.wake()
    result = wait.end()
    assert isinstance(result, Batch) and not result.received
    receiver.wake()
    early = Waiting(receiver, lambda: receiver.receive(10, _LONG_S)).end()
    assert isinstance(early, Batch) and not early.received
    again = Waiting(receiver, lambda: receiver.receive(10, _LONG_S))
    backend.sender("s").send([message("a")], 5.0)
    last = again.end()
    assert isinstance(last, Batch) and texts(last.received) == ["a"]


def test_a_joining_member_wakes_the_others(backend: Backend) -> None:
    """The owner notices the newcomer while it waits, and gives up what is too much."""
    backend.admin().create([TopicSpec("two", 2)])
    first = backend.receiver(Subscription("h", ("two",), lease_s=_LONG_S * 10))
    assert len(first.receive(1, 0.0).gained) == 2
    wait = Waiting(first, lambda: first.receive(1, _LONG_S))
    second = backend.receiver(Subscription("h", ("two",), lease_s=_LONG_S * 10))
    second.receive(1, 0.0)
    result = wait.end()
    assert isinstance(result, Batch) and len(result.lost) == 1
    assert second.receive(1, _LONG_S).gained == result.lost


def test_closing_the_backend_ends_a_waiting_receive(backend: Backend) -> None:
    """It raises NotOpen instead of waiting on a closed file."""
    _, wait = waiting(backend)
    backend.close()
    assert isinstance(wait.end(), NotOpen)


def test_nothing_is_left_after_close(backend: Backend, tmp_path: Path) -> None:
    """No thread, no entry in the registry, and the -wal file is folded in."""
    before = set(threading.enumerate())
    sender = backend.sender("s")
    for index in range(10):
        sender.append(message(str(index)), 0)
    receiver, wait = waiting(backend)
    receiver.wake()
    wait.end()
    assert len(hub._HUBS) == 1
    backend.close()
    backend.close()
    assert not {thread for thread in set(threading.enumerate()) - before if "txbus" in thread.name}
    assert not hub._HUBS
    assert {path.name for path in tmp_path.iterdir()} <= {"bus.db"}


def test_backends_of_one_process_share_the_wake_up(tmp_path: Path) -> None:
    """A second backend of the same file, by another spelling of its path, wakes the first."""
    first = plugin.create(BackendURL("embedded", str(tmp_path / "bus.db"), {"wake_poll_s": "1"}), system_ports())
    first.open()
    first.admin().create([TopicSpec("t", 1)])
    (tmp_path / "link.db").symlink_to(tmp_path / "bus.db")
    second = plugin.create(BackendURL("embedded", str(tmp_path / "link.db"), {}), system_ports())
    second.open()
    assert len(hub._HUBS) == 1
    _, wait = waiting(first)
    second.sender("s").send([message("a")], 5.0)
    result = wait.end()
    assert isinstance(result, Batch) and texts(result.received) == ["a"]
    second.close()
    first.close()


def test_back_pressure_writes_instead_of_queueing_for_ever(backend: Backend) -> None:
    """Above 2,000 queued appends the caller writes them itself."""
    sender, log = backend.sender("s"), backend.log("t")
    for index in range(4001):
        sender.append(message(str(index)), 0)
    assert log.end(0) >= 2000
    sender.close()
    assert log.end(0) == 4001


def test_a_bus_in_memory_may_be_opened_while_its_last_backend_closes(tmp_path: Path) -> None:
    """Whoever opens it gets one that works, never one that was just ended."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(150):
                made = plugin.create(BackendURL("memory", str(tmp_path), {}), system_ports())
                made.open()
                made.admin().describe(["t"])
                made.close()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert not errors
    assert not hub._HUBS
