"""Receiving from the simulated RocketMQ: one client of the consumer for each topic, none owns a queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from txbus.errors import BackendError, CapabilityMissing, Fenced
from txbus.spi import (
    Batch,
    Committed,
    Membership,
    Position,
    Received,
    Subscription,
    TopicPartition,
)
from txbus_sim._rocketmq import wire
from txbus_sim._rocketmq.server import SERVER, RocketmqServer, label, translated
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, nanoseconds
from txbus_sim.dialects.rocketmq import MessageType, Popped, ServerStatus
from txbus_sim.dialects.rocketmq_groups import Group
from txbus_sim.dialects.rocketmq_messages import INTERNAL, INVALID_RECEIPT
from txbus_sim.faults import CRASHES, REQUEST, Fault, Faults
from txbus_sim.history import Acknowledged, Delivered

__all__ = ["SimReceiver"]

_S = 1_000_000_000
_NONE: frozenset[TopicPartition] = frozenset()
_PATIENCE_NS = 3 * _S
"""The client's request timeout."""
RECEIVE: Faults = (*CRASHES, Fault.FAIL, Fault.ANSWER_LOST, Fault.SESSION_LOST, *SERVER)
ACK: Faults = (*REQUEST, *SERVER)


@dataclass(slots=True, eq=False)
class _Out:
    """A delivery that is not finished, with its newest receipt."""

    where: TopicPartition
    receipt: int
    until_ns: int


class SimReceiver:
    """A member of a consumer group (`Receiver`).

    Every member has every queue of its topics. Polling renews the invisible time of what it has not
    finished; a delivery whose time ran out comes again, to anybody, and its ack is `Fenced`.
    """

    def __init__(
        self,
        server: RocketmqServer,
        process: Process,
        subscription: Subscription,
        forget: Callable[[object], None],
    ) -> None:
        """`CapabilityMissing` for a start at a time, and for a manual one."""
        if isinstance(subscription.start, float | int):
            raise _missing("a start at a time", "REPLAY_BY_TIME")
        if subscription.manual:
            raise _missing("a manual subscription", "REPLAY_BY_POSITION")
        self._server = server
        self._world = server.world
        self._process = process
        self._subscription = subscription
        self._forget = forget
        self._lease_ns = max(round(subscription.lease_s * _S), server.rules.invisible_ns_min)
        self._group: Group | None = None
        self._partitions: frozenset[TopicPartition] = _NONE
        self._paused: set[TopicPartition] = set()
        self._fenced: set[TopicPartition] = set()
        self._announced = False
        self._out: list[_Out] = []
        self._turn = 0
        self._woken = False
        self._closed = False
        self._receive_label = label("broker.receive", subscription.group)
        self._ack_label = label("broker.ack", subscription.group)
        self._redeliver_label = label("broker.redeliver", subscription.group)
        process.at_death.append(self.sever)

    # polling

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        """Up to 32 messages. A redelivery wakes nobody: it is found by the next poll."""
        deadline_ns = self._world.now_ns + max(0, nanoseconds(timeout_s))
        group = self._begin()
        self._renew(group)
        gained, lost = self._changes()
        most = max(1, min(max_messages, self._server.rules.receive_max))
        found = self._pop(group, most)
        if not found and not gained and not lost:
            self._server.wait("a message", self._may_return(group), deadline_ns)
            if not self._woken and self._world.now_ns < deadline_ns:
                found = self._pop(group, most)
        self._woken = False
        received = tuple(self._received(group, one) for one in found)
        return Batch(received, Membership(self._partitions), gained, lost)

    def wake(self) -> None:
        self._woken = True
        self._server.changed()

    def _begin(self) -> Group:
        """The group and its clients, on the first poll, and anew after a restart of the proxy."""
        broker, subscription = self._server.broker, self._subscription
        if self._group is None:
            try:
                topics = [broker.topic(name) for name in subscription.topics]
            except ServerStatus as exc:
                raise translated(exc, f"subscription of {subscription.group!r}") from exc
            ordered = any(topic.type is MessageType.FIFO for topic in topics)
            self._group = broker.group(subscription.group, ordered=ordered)
            for topic in topics:
                if not self._group.knows(topic.name) and subscription.start == "latest":
                    self._group.reset(topic)
            self._partitions = frozenset(
                TopicPartition(topic.name, number) for topic in topics for number in range(len(topic.queues))
            )
            self._start_clients()
        return self._group

    def _start_clients(self) -> None:
        self._server.check_alive(self._process)
        try:
            self._server.broker.begin_consumer(self, self._world.now_ns)
        except ServerStatus as exc:
            raise translated(exc, f"consumer of {self._subscription.group!r}") from exc

    def _changes(self) -> tuple[frozenset[TopicPartition], frozenset[TopicPartition]]:
        """Everything is gained once; what was fenced is lost and gained anew."""
        if not self._announced:
            self._announced = True
            return self._partitions, _NONE
        fenced = frozenset(self._fenced)
        self._fenced.clear()
        return fenced, fenced

    def _topics(self) -> list[str]:
        """Those to ask now, in turn. A topic with a paused queue is not asked at all: the proxy cannot
        be told to leave out a queue."""
        paused = {where.topic for where in self._paused}
        topics = [name for name in self._subscription.topics if name not in paused]
        self._turn += 1
        at = self._turn % len(topics) if topics else 0
        return topics[at:] + topics[:at]

    def _may_return(self, group: Group) -> Callable[[], bool]:
        """Something new is in a queue, as far as the broker would tell a waiting poll."""
        broker, topics = self._server.broker, self._topics()

        def ready() -> bool:
            return self._woken or any(group.has_new(broker.topic(name)) for name in topics)

        return ready

    def _pop(self, group: Group, most: int) -> list[tuple[str, Popped]]:
        found: list[tuple[str, Popped]] = []
        for name in self._topics():
            if len(found) < most and group.may_pop(self._server.broker.topic(name), self._world.now_ns):
                found += [(name, one) for one in self._pop_topic(group, name, most - len(found))]
        if not found:
            self._world.sleep_ns(2 * 500_000)
        return found

    def _pop_topic(self, group: Group, topic: str, most: int) -> list[Popped]:
        broker, world = self._server.broker, self._world

        def perform() -> list[Popped]:
            return broker.receive(self, group, topic, self._subscription.tags, most, self._lease_ns, world.now_ns)

        try:
            return self._server.request(
                self._receive_label,
                perform,
                patience_ns=_PATIENCE_NS,
                faults=RECEIVE,
                suffer=self._suffer,
                durable=False,
            )
        except ServerStatus as exc:
            if exc.code == INTERNAL:
                # An old client stays dead after a restart of the proxy: build it anew.
                broker.end_consumer(self)
                self._start_clients()
                return []
            raise translated(exc, f"receive from {topic!r}") from exc

    def _suffer(self, fault: Fault) -> None:
        if fault is Fault.SESSION_LOST:
            # The proxy does not know this consumer's settings (yet, or any more).
            self._server.broker.end_consumer(self)
        else:
            self._server.suffer(fault)

    def _received(self, group: Group, found: tuple[str, Popped]) -> Received:
        topic, popped = found
        stored = popped.stored
        out = _Out(TopicPartition(topic, stored.queue), popped.receipt, popped.until_ns)
        self._out.append(out)
        envelope = wire.envelope_of(stored.message)
        self._world.history.add(
            Delivered(
                self._world.now_ns,
                self._process.key,
                group.name,
                topic,
                stored.queue,
                stored.offset,
                envelope.id or "",
                popped.attempt,
            )
        )
        stored_at_s = (BEGAN_AT_WALL_NS + stored.stored_ns) / _S
        return Received(envelope, Position(topic, stored.queue, stored.offset), popped.attempt, stored_at_s, out)

    # what is out

    def _renew(self, group: Group) -> None:
        """Keep what is not finished invisible, if half of its time is over."""
        soon_ns = self._world.now_ns + self._lease_ns // 2
        for out in [one for one in self._out if one.until_ns <= soon_ns]:
            try:
                self._change(group, out, self._lease_ns)
            except ServerStatus as exc:
                if exc.code != INVALID_RECEIPT:
                    raise translated(exc, f"renewal in {out.where}") from exc
                # It ran out, and comes again by itself.
                self._out.remove(out)

    def _change(self, group: Group, out: _Out, after_ns: int) -> None:
        def perform() -> Popped:
            return self._server.broker.change_invisible(group, out.receipt, after_ns, self._world.now_ns)

        popped = self._server.request(self._redeliver_label, perform, patience_ns=_PATIENCE_NS, faults=ACK)
        out.receipt, out.until_ns = popped.receipt, popped.until_ns

    def ack(self, received: Sequence[Received]) -> None:
        """One request each. `Fenced` for the partitions of those whose time ran out; the others are done."""
        late: dict[TopicPartition, ServerStatus] = {}
        for one in received:
            out = one.handle
            assert isinstance(out, _Out)
            try:
                self._ack(out, one)
            except ServerStatus as exc:
                if exc.code != INVALID_RECEIPT:
                    raise translated(exc, f"ack in {out.where}") from exc
                late[out.where] = exc
            if out in self._out:
                self._out.remove(out)
        if late:
            self._fence(late)

    def _ack(self, out: _Out, received: Received) -> None:
        group, world = self._group, self._world
        assert group is not None
        where, offset, id = out.where, received.position.offset, received.envelope.id or ""

        def perform() -> None:
            if self._server.broker.ack(group, out.receipt, world.now_ns) is not None:
                key = self._process.key
                world.history.add(Acknowledged(world.now_ns, key, group.name, where.topic, where.partition, offset, id))

        self._server.request(self._ack_label, perform, patience_ns=_PATIENCE_NS, faults=ACK)

    def _fence(self, late: dict[TopicPartition, ServerStatus]) -> None:
        """Whoever hears of it drops what it holds of these partitions, so nothing of them is renewed."""
        self._fenced |= set(late)
        self._out = [out for out in self._out if out.where not in late]
        first = next(iter(late.values()))
        names = ", ".join(map(str, sorted(late)))
        raise Fenced(f"{names}: the invisible time ran out, the message comes again: {first}") from first

    def redeliver(self, received: Received, after_s: float) -> None:
        """3 to 4 s later than asked for, as the broker does it."""
        out, group = received.handle, self._group
        assert isinstance(out, _Out) and group is not None
        if group.ordered:
            raise _missing("redeliver() on an ORDERED topic, where it would hold up others,", "NATIVE_REDELIVERY")
        try:
            self._change(group, out, round(after_s * _S))
        except ServerStatus as exc:
            if exc.code == INVALID_RECEIPT:
                self._fence({out.where: exc})
            raise translated(exc, f"redelivery in {out.where}") from exc
        if out in self._out:
            self._out.remove(out)

    # the rest

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """The whole topic of each is not asked any more."""
        self._paused |= partitions

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused -= partitions

    def committed(self, where: TopicPartition) -> Committed | None:
        raise _missing("committed()", "LOG")

    def seek(self, where: TopicPartition, offset: int) -> None:
        raise _missing("seek()", "REPLAY_BY_POSITION")

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        raise _missing("seek_time()", "REPLAY_BY_TIME")

    def close(self) -> None:
        """Give back what is not finished, at once; errors leave it to its invisible time."""
        if self._closed:
            return
        self._closed = True
        if self._group is not None:
            for out in list(self._out):
                try:
                    self._change(self._group, out, 0)
                except (ServerStatus, BackendError):
                    break
        self._out.clear()
        self.sever()
        self._forget(self)

    def sever(self) -> None:
        """The connection is gone; what is out comes again when its time is over."""
        self._server.broker.end_consumer(self)


def _missing(what: str, capability: str) -> CapabilityMissing:
    return CapabilityMissing(f"{what} needs {capability}, which RocketMQ's gRPC clients do not have")
