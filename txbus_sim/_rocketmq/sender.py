"""Sending to the simulated RocketMQ: normal, ordered and delayed messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from txbus.errors import BackendError, CapabilityMissing, DestinationRefused, SendUnknown
from txbus.spi import Envelope, PendingAppend, Receipt
from txbus_sim._rocketmq import wire
from txbus_sim._rocketmq.server import SERVER, RocketmqServer, label, translated
from txbus_sim._world import BEGAN_AT_WALL_NS, Process
from txbus_sim.dialects.rocketmq import Message, MessageType, ServerStatus, Stored
from txbus_sim.dialects.rocketmq_messages import Topic, queue_of_group
from txbus_sim.faults import REQUEST, Fault, Faults

__all__ = ["SEND", "SimSender", "patience_ns"]

T = TypeVar("T")
_S = 1_000_000_000
SEND: Faults = (*REQUEST, Fault.DUPLICATE, *SERVER)


def patience_ns(timeout_s: float) -> int:
    return max(0, round(timeout_s * _S))


@dataclass(frozen=True, slots=True)
class _Sent:
    """An append that has its result already."""

    receipt: Receipt | None
    error: BackendError | None

    def result(self, timeout_s: float) -> Receipt:
        if self.error is not None:
            raise type(self.error)(*self.error.args) from self.error
        assert self.receipt is not None
        return self.receipt


class SimSender:
    """A producer without half messages (`Sender`)."""

    def __init__(self, server: RocketmqServer, process: Process, forget: Callable[[object], None]) -> None:
        self._server = server
        self._process = process
        self._forget = forget

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        """One request each, in order: all before the one that failed are durable.

        A receipt's partition is -1 where the proxy does not tell it: on topics of several queues,
        unless the message is ordered.
        """
        return tuple(self._send(envelope, timeout_s) for envelope in envelopes)

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        """`CapabilityMissing` for a partition that the proxy would not select by itself."""
        topic = self._topic(envelope.topic)
        if partition != self._partition(topic, envelope):
            raise CapabilityMissing(
                f"topic {envelope.topic!r}, partition {partition}: the proxy of RocketMQ selects the queue; use "
                "send(), with a key on an ORDERED topic for messages that belong together"
            )
        try:
            return _Sent(self._send(envelope, 10.0), None)
        except BackendError as exc:
            return _Sent(None, exc)

    def close(self) -> None:
        self._forget(self)

    def _topic(self, name: str) -> Topic:
        """The route of a topic, as the client has it cached."""
        try:
            return self._server.broker.topic(name)
        except ServerStatus as exc:
            raise translated(exc, f"topic {name!r}") from exc

    def _partition(self, topic: Topic, envelope: Envelope) -> int:
        if topic.type is MessageType.FIFO and envelope.key is not None:
            return queue_of_group(wire.message_group(envelope.key), len(topic.queues))
        return 0 if len(topic.queues) == 1 else -1

    def _send(self, envelope: Envelope, timeout_s: float) -> Receipt:
        topic = self._topic(envelope.topic)
        message = self._message(topic, envelope)
        server = self._server

        def perform() -> Stored | None:
            return server.broker.send(message, self._process.key, server.world.now_ns)

        try:
            stored = server.request(
                label("broker.send", envelope.topic),
                perform,
                patience_ns=patience_ns(timeout_s),
                faults=SEND,
                unanswered=SendUnknown,
            )
        except ServerStatus as exc:
            raise translated(exc, f"send to {envelope.topic!r}") from exc
        offset = None if stored is None else stored.offset
        return Receipt(envelope.id or "", envelope.topic, self._partition(topic, envelope), offset)

    def _message(self, topic: Topic, envelope: Envelope) -> Message:
        """As the topic takes it."""
        now_ns = self._server.world.now_ns
        message = wire.message_of(envelope, self._server.next_id(), now_ns)
        if envelope.deliver_at_s is not None:
            # The client takes whole seconds; a message is not early.
            seconds = -int(-(envelope.deliver_at_s) // 1)
            return replace(message, deliver_at_ns=seconds * _S - BEGAN_AT_WALL_NS)
        match topic.type:
            case MessageType.TRANSACTION:
                raise DestinationRefused(
                    f"topic {topic.name!r} is of type TRANSACTION: only half messages go there; send inside of "
                    "bus.transaction(...), or use another topic"
                )
            case MessageType.FIFO:
                group = message.id if envelope.key is None else wire.message_group(envelope.key)
                return replace(message, group=group)
            case MessageType.DELAY:
                return replace(message, deliver_at_ns=now_ns)
            case _:
                return message
