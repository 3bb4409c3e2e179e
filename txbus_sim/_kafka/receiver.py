"""A receiver: polls, positions and acknowledgements of one group member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from txbus.errors import BackendUnavailable, CapabilityMissing, DestinationRefused, Fenced, NotOpen, SettingsError
from txbus.spi import Batch, Committed, Membership, Position, Received, Subscription, TopicPartition
from txbus_sim._kafka.labels import stable
from txbus_sim._kafka.member import GroupMember
from txbus_sim._kafka.server import KafkaServer
from txbus_sim._kafka.window import Owned
from txbus_sim._network import LATENCY_NS, request
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, Strand, Wait, current_strand, nanoseconds
from txbus_sim.dialects.kafka import Code, Entry, Refusal
from txbus_sim.errors import NotModelled
from txbus_sim.faults import BROKER, CRASHES, RECEIVE, REQUEST, Fault, Faults
from txbus_sim.history import Acknowledged, Delivered

__all__ = ["SimReceiver", "received_of", "wall_ms"]

_S = 1_000_000_000
_MS = 1_000_000
_PATIENCE_NS = 5 * _S
_NO_LEADER_NS = _S // 10
_RECEIVE: Faults = (*RECEIVE, *BROKER)
_ACK: Faults = (*REQUEST, Fault.COORDINATOR_FAILOVER, Fault.REBALANCE, Fault.SESSION_LOST)
_LEASE_S_MIN, _LEASE_S_MAX = 6.0, 1_800.0


@dataclass(frozen=True, slots=True)
class _Handle:
    """Which hold of the partition a delivery belongs to."""

    part: Owned
    run: int


class SimReceiver:
    """See `txbus.spi.Receiver`. Points: ``broker.receive:GROUP``, ``broker.ack:GROUP``,
    ``broker.committed:GROUP``, ``broker.seek-time:TOPIC``, ``broker.leave:GROUP``."""

    def __init__(
        self, server: KafkaServer, process: Process, subscription: Subscription, forget: Callable[[object], None]
    ) -> None:
        _check(subscription)
        self._server = server
        self._world = server.world
        self._process = process
        self._subscription = subscription
        self._group = subscription.group
        self._label = stable(subscription.group)
        self._forget = forget
        self._member = GroupMember(server, process, subscription, self._wake)
        self._parts: dict[TopicPartition, Owned] = {}
        self._waiting: list[Strand] = []
        self._woken = False
        self._closed = False
        self._turn = 0
        server.followers.append(self)

    # receiving

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        """Waits in virtual time until there is something; one point, however long it waits."""
        self._check_open()
        assert max_messages >= 1
        fault = self._world.enter(f"broker.receive:{self._label}", _RECEIVE)
        if fault is Fault.FAIL:
            raise BackendUnavailable(f"group {self._group!r}: the broker refused to answer")
        self._suffer(fault)
        deadline_ns = self._world.now_ns + nanoseconds(timeout_s)
        self._member.polling = True
        try:
            batch = self._poll(max_messages, deadline_ns)
        finally:
            self._member.polling = False
            self._member.polled_ns = self._world.now_ns
        self._world.leave(fault)
        for one in batch.received:
            where = one.position
            self._world.history.add(
                Delivered(
                    self._world.now_ns,
                    self._process.key,
                    self._group,
                    where.topic,
                    where.partition,
                    where.offset,
                    one.envelope.id or "",
                    one.attempt,
                )
            )
        return batch

    def _suffer(self, fault: Fault | None) -> None:
        """Faults of the broker, at the moment of a request."""
        groups, now_ns = self._server.cluster.groups, self._world.now_ns
        match fault:
            case Fault.REBALANCE:
                self._server.ask(lambda cluster: groups.rebalance(self._group, now_ns))
            case Fault.SESSION_LOST:
                member = self._member.identity.member
                self._server.ask(lambda cluster: groups.expire(self._group, member, now_ns))
            case Fault.COORDINATOR_FAILOVER:
                self._server.ask(lambda cluster: groups.move(self._group, now_ns))
            case Fault.FAILOVER:
                for where in sorted(self._parts)[:1]:
                    self._server.fail_over(where)
            case _:
                pass

    def _poll(self, most: int, deadline_ns: int) -> Batch:
        self._check_topics()
        self._world.sleep_ns(LATENCY_NS)
        while True:
            self._check_open()
            gained, lost = self._member.serve()
            for where in sorted(lost):
                self._parts.pop(where, None)
            for where in sorted(gained):
                self._parts[where] = Owned()
            received, again_ns = self._deliver(most)
            woken, self._woken = self._woken, False
            if received or gained or lost or woken or self._world.now_ns >= deadline_ns:
                return Batch(received, Membership(self._member.owned, self._member.identity), gained, lost)
            self._wait(min(deadline_ns, again_ns or deadline_ns))

    def _wait(self, until_ns: int) -> None:
        strand = current_strand()
        self._waiting.append(strand)
        self._world.park(Wait("broker", f"records of group {self._group}"), until_ns)
        if strand in self._waiting:
            self._waiting.remove(strand)

    def _check_topics(self) -> None:
        for topic in self._subscription.topics:
            if self._server.cluster.topic(topic) is None:
                raise DestinationRefused(f"group {self._group!r}: topic {topic!r} does not exist")

    def _deliver(self, most: int) -> tuple[tuple[Received, ...], int | None]:
        """What can be read now, a different partition first each time; and when to look again if a
        partition has no leader."""
        received: list[Received] = []
        again_ns: int | None = None
        places = sorted(self._parts)
        self._turn += 1
        for number in range(len(places)):
            where = places[(number + self._turn) % len(places)]
            part = self._parts[where]
            if part.paused or len(received) == most:
                continue
            try:
                if part.position is None and not self._find_position(where, part):
                    continue
                received.extend(self._fetch(where, part, most - len(received)))
            except Refusal as exc:
                if exc.code is not Code.NOT_LEADER_OR_FOLLOWER:
                    raise AssertionError(f"unexpected {exc}") from exc
                again_ns = self._world.now_ns + _NO_LEADER_NS
        return tuple(received), again_ns

    def _fetch(self, where: TopicPartition, part: Owned, most: int) -> list[Received]:
        assert part.position is not None
        log = self._server.cluster.log(where)
        part.position = max(part.position, log.start)
        if not log.readable_from(part.position):
            return []
        entries, part.position = self._server.cluster.fetch(where, part.position, most, self._world.now_ns)
        handle = _Handle(part, part.run)
        for entry in entries:
            part.deliver(entry.offset)
        return [received_of(where, entry, handle) for entry in entries]

    def _find_position(self, where: TopicPartition, part: Owned) -> bool:
        """The group's position, else where the subscription starts. False while that cannot be known."""
        if self._subscription.manual:
            return False
        try:
            committed = self._server.cluster.groups.committed(self._group, where)
        except Refusal:
            return False  # an open broker transaction may be about to move it
        log = self._server.cluster.log(where)
        start = self._subscription.start
        if committed is not None:
            part.start(committed.offset)
        elif start == "earliest":
            part.start(log.start)
        elif start == "latest":
            part.start(log.stable)
        else:
            assert not isinstance(start, str)
            part.start(log.offset_at(wall_ms(start)))
        return True

    def wake(self) -> None:
        self._woken = True
        self._wake()

    def _wake(self) -> None:
        for strand in self._waiting:
            self._world.unpark(strand)

    # what the server tells (`Follower`)

    def readable(self, where: TopicPartition) -> None:
        part = self._parts.get(where)
        if part is not None and not part.paused and part.position is not None:
            self._wake()

    def rebalanced(self, group: str) -> None:
        if group == self._group and self._process.alive:
            self._member.coordinator_told()
            self._wake()

    def appended(self, where: TopicPartition, offset: int) -> None: ...

    def leaderless(self, where: TopicPartition) -> None: ...

    # acknowledging

    def ack(self, received: Sequence[Received]) -> None:
        """Commits the positions that move. The broker checks the membership, this client whether it
        still owns the partition. What lies behind an unfinished delivery is remembered here only."""
        self._check_open()
        done: dict[TopicPartition, set[int]] = {}
        lost: set[TopicPartition] = set()
        for one in received:
            where, handle = one.position.where, one.handle
            assert isinstance(handle, _Handle), f"{one.position} is of another broker"
            if self._member.kicked or self._parts.get(where) is not handle.part:
                lost.add(where)
            elif handle.run == handle.part.run:
                done.setdefault(where, set()).add(one.position.offset)
        for where in lost:
            done.pop(where, None)
        moves = {where: Committed(self._parts[where].low_after(offsets)) for where, offsets in done.items()}
        moves = {where: move for where, move in moves.items() if move.offset != self._parts[where].low}
        if moves:
            self._commit(moves)
        for where, offsets in done.items():
            self._parts[where].finish(offsets)
        for one in received:
            if one.position.where in done:
                self._note(one)
        if lost:
            raise self._fenced(min(lost))

    def _commit(self, moves: dict[TopicPartition, Committed]) -> None:
        def perform() -> None:
            who = self._member.identity
            if not who.member:
                raise self._fenced(min(moves))
            try:
                self._server.ask(lambda cluster: cluster.groups.commit(self._group, who, moves, self._process.key))
            except Refusal as exc:
                raise self._fenced(min(moves)) from exc

        request(
            self._world,
            f"broker.ack:{self._label}",
            perform,
            patience_ns=_PATIENCE_NS,
            unanswered=BackendUnavailable,
            refused=BackendUnavailable,
            faults=_ACK,
            suffer=self._suffer,
        )

    def _note(self, one: Received) -> None:
        where = one.position
        self._world.history.add(
            Acknowledged(
                self._world.now_ns,
                self._process.key,
                self._group,
                where.topic,
                where.partition,
                where.offset,
                one.envelope.id or "",
            )
        )

    def _fenced(self, where: TopicPartition) -> Fenced:
        return Fenced(
            f"group {self._group!r}: {where} is not owned any more, or lease_s={self._subscription.lease_s:g} passed "
            "without a receive; receive() again rejoins"
        )

    def redeliver(self, received: Received, after_s: float) -> None:
        raise CapabilityMissing(
            "sim+kafka:// gives nothing back (NATIVE_REDELIVERY); retry in the consumer, or send it to a retry topic"
        )

    # positions

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self._set_paused(partitions, True)

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._set_paused(partitions, False)

    def _set_paused(self, partitions: frozenset[TopicPartition], paused: bool) -> None:
        for where in partitions:
            part = self._parts.get(where)
            if part is not None:
                part.paused = paused

    def committed(self, where: TopicPartition) -> Committed | None:
        """Waits 5 s at most for a broker transaction that may be moving it."""
        self._check_open()

        def perform() -> Committed | None:
            deadline_ns = self._world.now_ns + _PATIENCE_NS
            while True:
                try:
                    return self._server.ask(lambda cluster: cluster.groups.committed(self._group, where))
                except Refusal as exc:
                    if self._world.now_ns >= deadline_ns:
                        raise BackendUnavailable(f"group {self._group!r}: {exc}") from exc
                self._wait(deadline_ns)

        return request(
            self._world,
            f"broker.committed:{self._label}",
            perform,
            patience_ns=_PATIENCE_NS,
            unanswered=BackendUnavailable,
            refused=BackendUnavailable,
            suffer=self._suffer,
        )

    def seek(self, where: TopicPartition, offset: int) -> None:
        """No request; no point."""
        self._check_open()
        self._owned(where).seek(max(0, offset))

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        self._check_open()
        self._owned(where)
        offset = request(
            self._world,
            f"broker.seek-time:{stable(where.topic)}",
            lambda: self._server.ask(lambda cluster: cluster.log(where).offset_at(wall_ms(wall_s))),
            patience_ns=_PATIENCE_NS,
            unanswered=BackendUnavailable,
            refused=BackendUnavailable,
        )
        self._owned(where).seek(offset)

    def _owned(self, where: TopicPartition) -> Owned:
        part = self._parts.get(where)
        if part is None:
            raise self._fenced(where)
        return part

    # the end

    def _check_open(self) -> None:
        if self._closed:
            raise NotOpen(f"sim+kafka://: the receiver of {self._group!r} is closed")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        fault = self._world.enter(f"broker.leave:{self._label}", CRASHES)
        self._member.end(leave=True)
        self._world.leave(fault)
        self._let_go()

    def vanish(self) -> None:
        """The process is gone: the broker finds out when the session's time is over."""
        self._closed = True
        self._member.end(leave=False)
        self._let_go()

    def _let_go(self) -> None:
        if self in self._server.followers:
            self._server.followers.remove(self)
        self._forget(self)


def _check(subscription: Subscription) -> None:
    if not subscription.group or not subscription.topics:
        raise SettingsError(f"{subscription} needs a group and a topic")
    if isinstance(subscription.start, str) and subscription.start not in ("earliest", "latest"):
        raise SettingsError(f"start={subscription.start!r}: 'earliest', 'latest' or seconds since the epoch")
    if not _LEASE_S_MIN <= subscription.lease_s <= _LEASE_S_MAX:
        raise SettingsError(
            f"lease_s={subscription.lease_s:g}: the broker allows 6 to 1800 (group.min.session.timeout.ms)"
        )
    for topic in subscription.topics:
        if topic.startswith("^"):
            raise NotModelled(f"subscription to the pattern {topic!r}: name the topics")


def wall_ms(wall_s: float) -> int:
    """A wall-clock time as the cluster's milliseconds."""
    return round(wall_s * 1000) - BEGAN_AT_WALL_NS // _MS


def received_of(where: TopicPartition, entry: Entry, handle: object) -> Received:
    """An entry as it is handed over."""
    assert entry.message is not None
    stored_at_s = (BEGAN_AT_WALL_NS // _MS + entry.at_ms) / 1000
    return Received(entry.message.body, Position(where.topic, where.partition, entry.offset), 1, stored_at_s, handle)
