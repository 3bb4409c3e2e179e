"""Backends that send, create or declare otherwise than they promise. Each docstring names the defect."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tests.conformance.through import (
    Parts,
    ThroughAdmin,
    ThroughBackend,
    ThroughReceiver,
    ThroughSender,
)
from txbus.errors import MessageRefused
from txbus.spi import (
    Batch,
    Capabilities,
    Capability,
    Envelope,
    PendingAppend,
    Position,
    Receipt,
    TopicKind,
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
        self._lock = threading.Lock()

    def result(self, timeout_s: float) -> Receipt:
        with self._lock:
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
