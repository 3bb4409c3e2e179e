"""How each undeclared capability is asked for: the call must answer CapabilityMissing."""

from __future__ import annotations

from collections.abc import Callable

from txbus.conformance._stage import Stage, envelope
from txbus.spi import Capability, Committed, TopicKind, TopicPartition

__all__ = ["PROBES"]


def _tags(stage: Stage, kind: TopicKind) -> None:
    stage.member(stage.group(), stage.topic(kind=kind), tags=frozenset({"red"}))


def _delay(stage: Stage, kind: TopicKind) -> None:
    due_s = stage.harness.ports.clock.wall_s() + 60.0
    stage.send(envelope(stage.topic(kind=kind), "later", deliver_at_s=due_s))


def _half(stage: Stage, kind: TopicKind) -> None:
    stage.harness.half_messages(stage.first, stage.group(), [stage.topic(kind=kind)])


def _transactions(stage: Stage, kind: TopicKind) -> None:
    stage.transactions(stage.harness.unique("id"))


def _positions(stage: Stage, kind: TopicKind) -> None:
    if not stage.declares(Capability.BROKER_TRANSACTION, kind):
        _transactions(stage, kind)
    topic, group = stage.topic(kind=kind), stage.group()
    stage.send_texts(topic, "one")
    member = stage.member(group, topic)
    stage.until_seen(1, member)
    transaction = stage.transactions(stage.harness.unique("id")).begin()
    transaction.positions(group, member.batches[-1].membership, {TopicPartition(topic, 0): Committed(0)})


def _log(stage: Stage, kind: TopicKind) -> None:
    stage.log(stage.topic(kind=kind))


def _redeliver(stage: Stage, kind: TopicKind) -> None:
    topic = stage.topic(kind=kind)
    stage.send_texts(topic, "one")
    member = stage.member(stage.group(), topic)
    stage.until_seen(1, member)
    member.receiver.redeliver(member.seen[0], 0.0)


def _seek(stage: Stage, kind: TopicKind) -> None:
    topic = stage.topic(kind=kind)
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)
    member.receiver.seek(TopicPartition(topic, 0), 0)


def _seek_time(stage: Stage, kind: TopicKind) -> None:
    topic = stage.topic(kind=kind)
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)
    member.receiver.seek_time(TopicPartition(topic, 0), 0.0)


# The other capabilities are qualities of calls that everybody has: nothing can be refused there.
PROBES: dict[Capability, Callable[[Stage, TopicKind], None]] = {
    Capability.TAG_FILTER: _tags,
    Capability.DELAYED_DELIVERY: _delay,
    Capability.HALF_MESSAGE: _half,
    Capability.BROKER_TRANSACTION: _transactions,
    Capability.POSITIONS_IN_BROKER_TRANSACTION: _positions,
    Capability.LOG: _log,
    Capability.NATIVE_REDELIVERY: _redeliver,
    Capability.REPLAY_BY_POSITION: _seek,
    Capability.REPLAY_BY_TIME: _seek_time,
}
