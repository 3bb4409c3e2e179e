"""Stopping a relay wakes each of its threads from wherever it rests.

All waits are ten minutes or longer, and a thread is known to rest before the stop: what does not wake
it keeps it beyond the time that `Relay.stop` is given, which is an alarm and a task that goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from sqlalchemy import create_engine

from tests.conformance.through import Parts, ThroughBackend, World
from txbus import Bus
from txbus._halflog.records import half_topic
from txbus._halflog.relay import Relay, RelayBudget
from txbus._ports import Condition, Local, Lock, Ports, Task
from txbus._system import system_ports
from txbus._telemetry import Alarm, Event
from txbus.errors import BackendUnavailable
from txbus.spi import Backend, Receiver, Subscription

REST_S = 600.0
STOP_S = 20.0
POLLING, DESK = "txbus-relay-shop", "txbus-ledger-shop"


class Watched:
    """The system's threads, of which it is known which ones rest where nothing but a wake-up comes soon."""

    def __init__(self) -> None:
        self._runtime = system_ports().runtime
        self._changed = threading.Condition()
        self._resting: set[str] = set()
        self.tasks: dict[str, Task] = {}

    def spawn(self, function: Callable[[], None], name: str) -> Task:
        task = self.tasks[name] = self._runtime.spawn(function, name)
        return task

    def condition(self) -> Condition:
        return _Watched(self._runtime.condition(), self)

    def lock(self) -> Lock:
        return self._runtime.lock()

    def local(self) -> Local:
        return self._runtime.local()

    def process_id(self) -> int:
        return self._runtime.process_id()

    def note(self, resting: bool) -> None:
        with self._changed:
            change = self._resting.add if resting else self._resting.discard
            change(threading.current_thread().name)
            self._changed.notify_all()

    def until_resting(self, *names: str) -> None:
        """Return when all these threads rest; whoever takes the lock of one's condition finds it waiting."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._resting.issuperset(names), 60.0), self._resting


class _Watched:
    def __init__(self, inner: Condition, watched: Watched) -> None:
        self._inner = inner
        self._watched = watched

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None and timeout < REST_S / 10:
            return self._inner.wait(timeout)
        # The lock of the condition is held here, and let go by waiting only.
        self._watched.note(True)
        try:
            return self._inner.wait(timeout)
        finally:
            self._watched.note(False)

    def notify(self, n: int = 1) -> None:
        self._inner.notify(n)

    def notify_all(self) -> None:
        self._inner.notify_all()

    def __enter__(self) -> bool:
        return self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._inner.__exit__(kind, value, trace)


class Away(ThroughBackend):
    """A broker that lets nobody join."""

    def receiver(self, subscription: Subscription) -> Receiver:
        raise BackendUnavailable("away")


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def bus(tmp_path: Path, request: pytest.FixtureRequest, watched: Watched) -> Iterator[Bus]:
    """A bus whose relay waits long for everything."""
    system = system_ports()
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    bus = Bus(
        f"memory://{request.node.name}",
        service="shop",
        databases={"shop": engine},
        create_schema=True,
        relay="outside",
        ports=Ports(system.clock, system.entropy, watched),
        poll_s=REST_S,
        lease_s=6 * REST_S,
        stop_timeout_s=2 * REST_S,
    )
    with bus:
        yield bus
    engine.dispose()


@contextmanager
def relay_at(bus: Bus, backend: Backend, budget: RelayBudget) -> Iterator[tuple[Relay, list[Event]]]:
    """A relay of this bus's half log on a backend, started."""
    opened, events = bus.opened, list[Event]()
    relay = Relay(
        bus.service,
        half_topic(bus.service),
        bus.settings.half_partitions,
        backend,
        opened.databases,
        {},
        bus.ports,
        events.append,
        budget,
        lambda partition, held: None,
    )
    relay.start()
    yield relay, events
    relay.stop(STOP_S)


def ended(watched: Watched) -> dict[str, bool]:
    return {name: watched.tasks[name].join(0.0) for name in (POLLING, DESK)}


LONG: dict[str, Any] = {"poll_s": REST_S, "lease_s": 6 * REST_S, "reconnect_s": (2 * REST_S, 2 * REST_S)}


def test_stop_wakes_the_poll_and_the_ledger_desk(bus: Bus, watched: Watched) -> None:
    """The polling thread waits in receive() for ten minutes, the desk for ever; both have ended when stop()
    returns, and stopping again does nothing."""
    with relay_at(bus, bus.opened.backend, RelayBudget(**LONG)) as (relay, events):
        watched.until_resting(POLLING, DESK)
        relay.stop(STOP_S)
        assert ended(watched) == {POLLING: True, DESK: True}
        relay.stop(STOP_S)
    assert not relay.health().running and relay.wait_quiet(0.0) is False
    assert not any(isinstance(event, Alarm) for event in events)


def test_stop_wakes_a_relay_that_waits_before_it_connects_again(bus: Bus, watched: Watched) -> None:
    """It rests after a failure of the broker, for twenty minutes less a random share."""
    with relay_at(bus, Away(bus.opened.backend, World(), Parts()), RelayBudget(**LONG)) as (relay, events):
        watched.until_resting(POLLING)
        relay.stop(STOP_S)
        assert ended(watched) == {POLLING: True, DESK: True}
    assert not any(isinstance(event, Alarm) for event in events)


def test_asking_for_quiet_wakes_the_poll(bus: Bus, watched: Watched) -> None:
    """Whoever waits for the relay to have nothing left to do does not wait for its next poll."""
    with relay_at(bus, bus.opened.backend, RelayBudget(**LONG)) as (relay, _):
        watched.until_resting(POLLING)
        assert relay.wait_quiet(STOP_S)
