"""What a cluster tells about itself while it works: for histories, and for clients that wait."""

from __future__ import annotations

from typing import Protocol

from txbus.spi import TopicPartition
from txbus_sim.dialects.kafka.partition import Entry

__all__ = ["Silent", "Watcher"]


class Watcher(Protocol):
    """Told of each durable change, at once and in order. Must not call the cluster back."""

    def stored(self, where: TopicPartition, entry: Entry) -> None:
        """A record is on all in-sync replicas: it is acknowledged, and no failover loses it."""
        ...

    def visible(self, where: TopicPartition, entry: Entry) -> None:
        """The last stable offset passed a record: read_committed readers get it. In offset order."""
        ...

    def ended(self, transactional_id: str, epoch: int, committed: bool, by: str) -> None:
        """A broker transaction's outcome is decided; ``by`` "broker": a time-out, or fencing."""
        ...

    def moved(self, group: str, where: TopicPartition, offset: int, by: str) -> None:
        """A group's position changed."""
        ...

    def rebalanced(self, group: str) -> None:
        """A group has a new generation: each member can learn its assignment."""
        ...

    def unblocked(self, group: str) -> None:
        """Positions of a broker transaction are no longer pending in this group."""
        ...


class Silent:
    """A watcher that takes no note."""

    def stored(self, where: TopicPartition, entry: Entry) -> None: ...
    def visible(self, where: TopicPartition, entry: Entry) -> None: ...
    def ended(self, transactional_id: str, epoch: int, committed: bool, by: str) -> None: ...
    def moved(self, group: str, where: TopicPartition, offset: int, by: str) -> None: ...
    def rebalanced(self, group: str) -> None: ...
    def unblocked(self, group: str) -> None: ...
