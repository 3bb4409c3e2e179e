"""For the application's own tests: a bus in memory, run until nothing is left to do.

::

    def test_order_reserves_stock(txbus_url):                     # a pytest fixture: memory://…
        bus = make_bus(txbus_url)
        with bus, TestBus(bus) as test:
            place(Order(...))
            test.run_until_idle()
            assert test.sent(reserved) == [Reserved(...)]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from txbus._bus import Bus
from txbus._message import Receipt, Topic
from txbus._system import system_ports
from txbus.errors import TxbusError
from txbus.spi import Received

__all__ = ["BusNotIdle", "TestBus", "memory_url", "running"]

T = TypeVar("T")


class BusNotIdle(TxbusError):
    """Something was left to do when the time was over; the message says what."""


def memory_url() -> str:
    """A fresh ``memory://`` URL: buses that are given the same one share a broker."""
    return f"memory://test-{system_ports().entropy.unique_id()}"


class TestBus:
    """Drives one or several open buses of a test. Not thread-safe.

    Entering it starts the handlers of every bus (each must be open), leaving it stops them.
    """

    __test__ = False  # pytest: this is no test class

    def __init__(self, bus: Bus, *others: Bus) -> None:
        self._buses = (bus, *others)
        self._counted = 0

    def __enter__(self) -> TestBus:
        self._counted = self._handled()
        try:
            for bus in self._buses:
                bus.start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for bus in self._buses:
            bus.stop()

    def publish(self, topic: Topic[T], *payloads: T, **options: Any) -> tuple[Receipt, ...]:
        """Send messages as a foreign service would, without a database; options as `Bus.send`."""
        return tuple(self._buses[0].send(topic, payload, **options) for payload in payloads)

    def run_until_idle(self, timeout_s: float = 10.0) -> int:
        """Run until every half is settled and every message handled, on all buses.

        Returns the number of deliveries handled since it returned last, because handlers also run
        between the calls. `BusNotIdle` after ``timeout_s`` seconds:
        a handler that keeps failing waits for its retries.
        """
        clock = self._buses[0].opened.ports.clock
        deadline_s = clock.monotonic_s() + timeout_s
        while True:
            # What one bus publishes may be work for another that was idle before: all must be
            # idle twice, with nothing handled in between.
            handled = self._handled()
            left_s = max(0.01, deadline_s - clock.monotonic_s())
            if all(bus.opened.idle(left_s) for bus in self._buses * 2) and handled == self._handled():
                new, self._counted = handled - self._counted, handled
                return new
            if clock.monotonic_s() >= deadline_s:
                raise BusNotIdle(f"not idle after timeout_s={timeout_s:g}: {self._left()}")
            clock.sleep_s(0.002)

    def sent(self, topic: Topic[T]) -> list[T]:
        """The payloads visible in a topic, partition by partition, in the order of each."""
        return [topic.decode(received.envelope.payload) for received in self.received(topic)]

    def received(self, topic: Topic[Any]) -> Sequence[Received]:
        """The records visible in a topic, with envelope and position."""
        backend = self._buses[0].opened.backend
        admin, log = backend.admin(), backend.log(topic.name)
        try:
            described = admin.describe([topic.name])[topic.name]
            if described is None:
                return []
            records: list[Received] = []
            for partition in range(described.partitions):
                offset, end = log.start(partition), log.end(partition)
                while offset < end:
                    read, offset = log.read(partition, offset, 1_000, 1.0)
                    records.extend(read)
            return records
        finally:
            log.close()
            admin.close()

    def _handled(self) -> int:
        return sum(bus.opened.consuming.handled for bus in self._buses)

    def _left(self) -> str:
        parts = []
        for bus in self._buses:
            health = bus.health()
            handlers = [handler for handler in health.handlers if handler.in_flight]
            busy = [f"scope {h.scope}: {h.in_flight} in flight {h.error}".rstrip() for h in handlers]
            relay = health.relay
            if relay is not None and (relay.undecided or relay.parked):
                busy.append(f"relay: {relay.undecided} undecided, {relay.parked} parked {relay.last_error}".rstrip())
            parts.append(f"{bus.service}: {'; '.join(busy) or 'messages not read yet'}")
        return " | ".join(parts)


@contextmanager
def running(bus: Bus, *others: Bus) -> Iterator[TestBus]:
    """Open the buses, start their handlers, and close all of it at the end."""
    opened: list[Bus] = []
    try:
        for one in (bus, *others):
            one.open()
            opened.append(one)
        with TestBus(bus, *others) as test:
            yield test
    finally:
        for one in reversed(opened):
            one.close()
