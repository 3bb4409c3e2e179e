"""Backends that receive, share or redeliver otherwise than they promise. Each docstring names the defect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from tests.conformance.through import (
    ThroughBackend,
    ThroughReceiver,
)
from txbus.errors import Fenced
from txbus.spi import (
    Batch,
    Received,
    Subscription,
    TopicPartition,
)

# receiving


class ReordersKeys(ThroughReceiver):
    """Messages of one key that come in one batch change places."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        of_key = defaultdict[str, list[Received]](list)
        for one in batch.received:
            of_key[one.envelope.key or ""].append(one)
        keyed = [one if one.envelope.key is None else of_key[one.envelope.key].pop() for one in batch.received]
        return replace(batch, received=tuple(keyed))


class ForgetsPositions(ThroughReceiver):
    """Acks are accepted and not kept."""

    def ack(self, received: Sequence[Received]) -> None:
        for one in received:
            if one.position.where not in self.client.world.newest[self._who].partitions:
                raise Fenced(f"{one.position.where} is not owned")

    @property
    def _who(self) -> str:
        return f"{id(self)}"

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        self.client.world.newest[self._who] = batch.membership
        return batch


class AcksWhenClosed(ThroughReceiver):
    """Acks are collected and written when the receiver closes: a crash loses them."""

    def ack(self, received: Sequence[Received]) -> None:
        self._kept = [*getattr(self, "_kept", ()), *received]

    def close(self) -> None:
        self.inner.ack(getattr(self, "_kept", ()))
        self._kept = []
        self.inner.close()


class PassesTheUnfinished(ThroughReceiver):
    """The position jumps to the newest ack: what was received before it counts as done."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._seen: list[Received] = []

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        self._seen = [one for one in self._seen if one.position.where in batch.membership.partitions - batch.gained]
        self._seen.extend(batch.received)
        return batch

    def ack(self, received: Sequence[Received]) -> None:
        highest = {one.position.where: one.position.offset for one in received}
        passed = [one for one in self._seen if one.position.offset <= highest.get(one.position.where, -1)]
        self.inner.ack([*passed, *received])


class IgnoresMaximum(ThroughReceiver):
    """A batch is as large as there are messages."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        return self.inner.receive(1000, timeout_s)


class CannotBeWoken(ThroughReceiver):
    """Wake does nothing."""

    def wake(self) -> None:
        pass


class IgnoresPause(ThroughReceiver):
    """Pause is accepted and without effect."""

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        pass


class IgnoresStart(ThroughBackend):
    """Every new group starts at the earliest message."""

    def subscription(self, subscription: Subscription) -> Subscription:
        return replace(subscription, start="earliest")


class IgnoresSeek(ThroughReceiver):
    """Seek is accepted, and the group goes on where it was."""

    def seek(self, where: TopicPartition, offset: int) -> None:
        if self.subscription.manual:
            self.inner.seek(where, 0)


class FiltersNothing(ThroughBackend):
    """Tags of a subscription are accepted and ignored."""

    def subscription(self, subscription: Subscription) -> Subscription:
        return replace(subscription, tags=None)


# ownership


class NeverEndsLeases(ThroughBackend):
    """A silent or dead member keeps its partitions for ever."""

    def subscription(self, subscription: Subscription) -> Subscription:
        return replace(subscription, lease_s=1e9)


class DoesNotFence(ThroughReceiver):
    """The former owner's ack is accepted, and without effect."""

    def ack(self, received: Sequence[Received]) -> None:
        try:
            self.inner.ack(received)
        except Fenced:
            return


class AcceptsFormerOwners(ThroughReceiver):
    """Ignores leases at the ack: a former owner acknowledges in the name of the new one."""

    owners: ClassVar[dict[tuple[str, TopicPartition], AcceptsFormerOwners]] = {}

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        for where in batch.gained:
            self.owners[self.subscription.group, where] = self
        self._seen = [*getattr(self, "_seen", ()), *batch.received]
        return batch

    def ack(self, received: Sequence[Received]) -> None:
        try:
            self.inner.ack(received)
        except Fenced:
            for one in received:
                owner = self.owners[self.subscription.group, one.position.where]
                owner.inner.receive(100, 0.0)
                owner.inner.ack([other for other in owner._seen if other.position == one.position])


class HidesLoss(ThroughReceiver):
    """Two owners: a member that lost a partition is not told and goes on believing in it."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        self._believed = frozenset(getattr(self, "_believed", frozenset())) | batch.membership.partitions
        membership = replace(batch.membership, partitions=self._believed)
        return replace(batch, membership=membership, lost=frozenset())


class GainsSilently(ThroughReceiver):
    """Gained partitions are not reported."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        return replace(self.inner.receive(max_messages, timeout_s), gained=frozenset())


class MixesGroups(ThroughBackend):
    """All groups are one."""

    def subscription(self, subscription: Subscription) -> Subscription:
        return replace(subscription, group="all")


# redelivery


class RedeliversEarly(ThroughReceiver):
    """The delay of a redelivery is ignored."""

    def redeliver(self, received: Received, after_s: float) -> None:
        self.inner.redeliver(received, 0.0)


class ForgetsAttempts(ThroughReceiver):
    """Every delivery is the first attempt."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        return replace(batch, received=tuple(replace(one, attempt=1) for one in batch.received))


class RedeliversInMemory(ThroughReceiver):
    """A redelivery is forgotten by the broker: the message counts as done."""

    def redeliver(self, received: Received, after_s: float) -> None:
        self.inner.ack([received])
