"""Looks at the bus from outside, through the SPI, without taking part in anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from txbus import Bus, Capability, Topic
from txbus.examples.shop.payment import SCOPE as CHARGE
from txbus.examples.shop.place import Place
from txbus.examples.shop.stock import SCOPE as RESERVE
from txbus.spi import Backend

__all__ = ["BrokerTraits", "BrokerView", "looking", "traits_of"]

_BATCH = 1_000
_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class BrokerTraits:
    """``half_messages_native``: it has them itself, so there is no relay. ``publishes_once``: a relay
    publishes and notes its position in one step, so that no message is visible twice."""

    half_messages_native: bool
    publishes_once: bool


class BrokerView:
    """What is visible on the bus of one run. Used by one thread."""

    def __init__(self, place: Place, backend: Backend) -> None:
        self._place = place
        self._backend = backend
        self._read: dict[str, tuple[dict[int, int], list[Any]]] = {}

    def payloads(self, topic: Topic[Any]) -> list[Any]:
        """Every payload visible in a topic; what was read before is not read again."""
        admin = self._backend.admin()
        try:
            described = admin.describe([topic.name])[topic.name]
        finally:
            admin.close()
        if described is None:
            return []
        offsets, found = self._read.setdefault(topic.name, ({}, []))
        log = self._backend.log(topic.name)
        try:
            for partition in range(described.partitions):
                offset = offsets.get(partition, log.start(partition))
                end = log.end(partition)
                while offset < end:
                    records, offset = log.read(partition, offset, _BATCH, _WAIT_S)
                    found.extend(topic.decode(record.envelope.payload) for record in records)
                offsets[partition] = offset
        finally:
            log.close()
        return found

    def lag(self) -> int:
        """Messages that a consumer group of the shop has not acknowledged yet."""
        topics = self._place.topics
        groups: Mapping[str, Topic[Any]] = {
            f"{self._place.service('stock')}.{RESERVE}": topics.orders,
            f"{self._place.service('payment')}.{CHARGE}": topics.reserved,
        }
        admin = self._backend.admin()
        try:
            return sum(
                row.end - (row.committed or 0)
                for group, topic in groups.items()
                for row in admin.group_status(group, [topic.name])
            )
        finally:
            admin.close()


def traits_of(place: Place) -> BrokerTraits:
    """What matters here of the broker that a run is to use. Does no I/O."""
    backend = Bus(place.url, service=place.service("books")).make_backend()
    try:
        native = backend.capabilities().native
    finally:
        backend.close()
    return BrokerTraits(Capability.HALF_MESSAGE in native, Capability.BROKER_TRANSACTION in native)


@contextmanager
def looking(place: Place) -> Iterator[BrokerView]:
    """A view of a run's bus, while the block lasts."""
    backend = Bus(place.url, service=place.service("books")).make_backend()
    try:
        backend.open()
        yield BrokerView(place, backend)
    finally:
        backend.close()
