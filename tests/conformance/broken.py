"""Deliberately broken backends: each keeps every promise but the one that its docstring names."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from tests.conformance.through import (
    Parts,
    ThroughAdmin,
    ThroughBackend,
    ThroughHalves,
    ThroughLog,
    ThroughReceiver,
    ThroughSender,
    ThroughTransaction,
)
from txbus.errors import Fenced, MessageRefused, TxbusError
from txbus.spi import (
    Batch,
    Capabilities,
    Capability,
    Check,
    Committed,
    Envelope,
    Membership,
    Outcome,
    PendingAppend,
    Position,
    Receipt,
    Received,
    Subscription,
    TopicKind,
    TopicPartition,
    TopicSpec,
)

# sending


class LosesWhatItSentWhenKilled(ThroughBackend):
    """Acknowledges on enqueue: what its process had not written yet dies with it."""

    def killed(self) -> None:
        self.world.lost |= self.sent


class SendsBehind(ThroughSender):
    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        receipts = self.inner.send(envelopes, timeout_s)
        self.client.sent |= {Position(one.topic, one.partition, one.offset or 0) for one in receipts}
        return receipts

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        return Behind(self, self.inner.append(envelope, partition))


class Behind:
    """An append whose result is given before the record is safe."""

    def __init__(self, sender: SendsBehind, pending: PendingAppend) -> None:
        self._sender = sender
        self._pending = pending

    def result(self, timeout_s: float) -> Receipt:
        receipt = self._pending.result(timeout_s)
        self._sender.client.sent.add(Position(receipt.topic, receipt.partition, receipt.offset or 0))
        return receipt


class LosesTheLost(ThroughReceiver):
    """Shows a broker from which some records are missing."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        missing = [one for one in batch.received if one.position in self.client.world.lost]
        self.inner.ack(missing)
        return replace(batch, received=tuple(one for one in batch.received if one not in missing))


class SendsInParts(ThroughSender):
    """A batch is sent one by one: what comes before a refused message stays."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        receipts = list[Receipt]()
        for one in envelopes:
            receipts.extend(self.inner.send([one], timeout_s))
            time.sleep(0.001)  # so that a reader beside it gets its turn
        return tuple(receipts)


class CutsPayloads(ThroughSender):
    """Only the beginning of a payload arrives."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        return self.inner.send([replace(one, payload=one.payload[:1000]) for one in envelopes], timeout_s)


class DropsTheRefused(ThroughSender):
    """A message that is too large is dropped without a word."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        try:
            return self.inner.send(envelopes, timeout_s)
        except MessageRefused:
            return tuple(Receipt(one.id or "", one.topic, 0, None) for one in envelopes)


class GuessesReceipts(ThroughSender):
    """The offsets of a receipt are not the broker's."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        receipts = self.inner.send(envelopes, timeout_s)
        return tuple(replace(one, offset=number) for number, one in enumerate(receipts))


class WandersKeys(ThroughSender):
    """Where a key goes depends on the client that sends it."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        salted = [one if one.key is None else replace(one, key=f"{one.key}{id(self.client)}") for one in envelopes]
        return self.inner.send(salted, timeout_s)


class DropsDelay(ThroughSender):
    """The time of delivery is forgotten."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        return self.inner.send([replace(one, deliver_at_s=None) for one in envelopes], timeout_s)


class SendsLatin(ThroughSender):
    """Headers go through an encoding that does not know all of Unicode."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        return self.inner.send([replace(one, headers=_latin(one.headers)) for one in envelopes], timeout_s)


def _latin(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name.encode("latin-1", "replace").decode("latin-1"): value.encode("latin-1", "replace").decode("latin-1")
        for name, value in headers.items()
    }


class Lazy:
    """An append that starts when its result is asked for."""

    def __init__(self, sender: SendsWhenAsked, envelope: Envelope, partition: int) -> None:
        self._sender = sender
        self._message = envelope, partition
        self._pending: PendingAppend | None = None

    def result(self, timeout_s: float) -> Receipt:
        if self._pending is None:
            self._pending = self._sender.inner.append(*self._message)
        return self._pending.result(timeout_s)


class SendsWhenAsked(ThroughSender):
    """An append whose result nobody asks for is never sent."""

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        return Lazy(self, envelope, partition)


class IgnoresPartition(ThroughSender):
    """An append goes where its key says, whatever partition was named."""

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        return self.inner.append(envelope, 0)


class MakesTopics(ThroughSender):
    """A topic that does not exist is made by the first message to it."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        admin = self.client.admin()
        admin.create([TopicSpec(one.topic, 1) for one in envelopes])
        admin.close()
        return self.inner.send(envelopes, timeout_s)


class VerifiesNothing(ThroughAdmin):
    """Every topic is as it should be."""

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        return ()


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


# broker transactions


class ShowsAborted(ThroughTransaction):
    """Abort makes visible what was added."""

    def abort(self) -> None:
        try:
            self.inner.commit()
        except (TxbusError, AssertionError):
            self.inner.abort()


class ShowsOpen(ThroughTransaction):
    """What is added is visible at once."""

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        owner = self.client.inner.broker_transactions(f"at-once-{envelope.id}-{id(self)}", 60.0)
        transaction = owner.begin()
        transaction.send(envelope, partition)
        transaction.commit()
        owner.close()


class FencesNobody(ThroughBackend):
    """A newer owner of an id does not end the older one."""

    def transactional_id(self, transactional_id: str) -> str:
        self.world.ids += 1
        return f"{transactional_id}-{self.world.ids}"


class SharesIds(ThroughBackend):
    """All transactional ids are one: whoever opens one fences everybody."""

    def transactional_id(self, transactional_id: str) -> str:
        return "all"


class LosesCommits(ThroughTransaction):
    """Commit returns, and nothing is visible."""

    def commit(self) -> None:
        self.inner.abort()


class LosesNotes(ThroughTransaction):
    """The note beside a position is not stored."""

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        bare = {where: Committed(committed.offset) for where, committed in positions.items()}
        self.inner.positions(group, membership, bare)


class PositionsAtOnce(ThroughTransaction):
    """Positions are committed apart from the messages, before them."""

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        self.client.world.ids += 1
        owner = self.client.inner.broker_transactions(f"positions-{self.client.world.ids}", 60.0)
        transaction = owner.begin()
        transaction.positions(group, membership, positions)
        transaction.commit()
        owner.close()


class RemembersMemberships(ThroughReceiver):
    """Lets `AcceptsOutdated` know each group's newest snapshots."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        for where in batch.membership.partitions:
            self.client.world.newest[f"{self.subscription.group}/{where}"] = batch.membership
        return batch


class AcceptsOutdated(ThroughTransaction):
    """The snapshot is ignored: positions count for whoever owns the partition now."""

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        where = next(iter(positions))
        newest = self.client.world.newest.get(f"{group}/{where}", membership)
        self.inner.positions(group, newest, positions)


# the log


class EndsTooEarly(ThroughLog):
    """The readable end leaves out the last record."""

    def end(self, partition: int) -> int:
        return max(self.inner.start(partition), self.inner.end(partition) - 1)


class EndsTooLate(ThroughLog):
    """The readable end lies one above the truth."""

    def end(self, partition: int) -> int:
        return self.inner.end(partition) + 1


class TruncatesTooMuch(ThroughLog):
    """Truncation takes the record at its offset too."""

    def truncate(self, partition: int, before: int) -> None:
        self.inner.truncate(partition, min(before + 1, self.inner.end(partition)))


class TruncatesNothing(ThroughLog):
    """Truncation is accepted and without effect."""

    def truncate(self, partition: int, before: int) -> None:
        pass


# half messages


class ShowsHalves(ThroughHalves):
    """A half message is visible as soon as it is prepared."""

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        handle = self.inner.prepare(envelope, timeout_s)
        self.inner.finish(handle, Outcome.COMMITTED)
        return handle


class NeverAsks(ThroughHalves):
    """Nobody is ever asked about a half message."""

    def checks(self, timeout_s: float) -> Sequence[Check]:
        return ()


class TakesUnknownForNo(ThroughHalves):
    """The answer UNKNOWN rolls the half message back."""

    def answer(self, check: Check, outcome: Outcome) -> None:
        self.inner.answer(check, Outcome.ROLLED_BACK if outcome is Outcome.UNKNOWN else outcome)


# declarations


class DeclaresTags(ThroughBackend):
    """Declares a capability that it refuses when asked."""

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        declared = self.inner.capabilities(kind)
        return replace(declared, native=declared.native | {Capability.TAG_FILTER})


class HidesReplayByTime(ThroughBackend):
    """Accepts a call for a capability that it does not declare."""

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        declared = self.inner.capabilities(kind)
        return replace(declared, native=declared.native - {Capability.REPLAY_BY_TIME})


BEHIND = Parts(sender=SendsBehind, receiver=LosesTheLost)
