"""A small broker in memory for the tests of the consuming side, and the proof that it is one.

It keeps what `txbus.spi.Receiver` promises of a log with one group: an unacknowledged record comes
again, a former owner's ack is `Fenced`. The tests at the end hold it to that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from txbus._message import Envelope, Position, TopicPartition
from txbus._system import system_ports
from txbus._telemetry import Event
from txbus.errors import Fenced
from txbus.spi import Batch, Committed, Membership, Received

PORTS = system_ports()
PATIENCE_S = 20.0


def cloud_event(payload: bytes, key: str | None = None, message_id: str | None = None, **headers: str) -> Envelope:
    attributes = {"ce_specversion": "1.0", "ce_id": message_id, "ce_source": "test"} if message_id else {}
    return Envelope("orders", payload, key, {**attributes, **headers})


class Broker:
    """One topic, some partitions, one group. Records stay until they are acknowledged."""

    def __init__(self, partitions: int = 1) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.logs: list[list[Envelope]] = [[] for _ in range(partitions)]
        self.done: list[set[int]] = [set() for _ in range(partitions)]
        self.attempts: dict[tuple[int, int], int] = {}
        self.due: dict[tuple[int, int], float] = {}
        self.owner: list[FakeReceiver | None] = [None] * partitions
        self.members: list[FakeReceiver] = []
        self.acked: list[Position] = []
        self.failures: list[Exception] = []
        self.ack_failures: list[Exception] = []
        self.polls = 0

    def publish(self, envelope: Envelope, partition: int = 0) -> Position:
        with self.changed:
            self.logs[partition].append(envelope)
            self.changed.notify_all()
            return Position("orders", partition, len(self.logs[partition]) - 1)

    def receiver(self) -> FakeReceiver:
        with self.changed:
            member = FakeReceiver(self)
            self.members.append(member)
            self.rebalance()
            return member

    def rebalance(self, shift: int = 0) -> None:
        """Deal the partitions out anew; with a shift to others than before."""
        with self.changed:
            for partition in range(len(self.logs)):
                new = self.members[(partition + shift) % len(self.members)] if self.members else None
                old = self.owner[partition]
                if new is old:
                    continue
                self.owner[partition] = new
                if old is not None:
                    old.taken_away(partition)
                if new is not None:
                    new.given(partition)
            self.changed.notify_all()

    def kill(self, member: FakeReceiver) -> None:
        """Its process is gone: whatever it received and did not acknowledge comes again."""
        with self.changed:
            if member in self.members:
                self.members.remove(member)
            member.dead = True
            self.rebalance()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds; the patience is only there to end a broken test."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S), "waited in vain"

    def all_acked(self) -> bool:
        return all(len(done) == len(log) for done, log in zip(self.done, self.logs, strict=True))


class FakeReceiver:
    """A member of the broker's one group."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.dead = False
        self.closed = False
        self.owned: set[int] = set()
        self.out: set[tuple[int, int]] = set()
        self.gained: set[int] = set()
        self.lost: set[int] = set()
        self.paused: set[int] = set()
        self.woken = False
        self.users: set[int] = set()

    def taken_away(self, partition: int) -> None:
        self.out = {place for place in self.out if place[0] != partition}
        if partition in self.gained:
            self.gained.discard(partition)
        else:
            self.owned.discard(partition)
            self.lost.add(partition)

    def given(self, partition: int) -> None:
        self.out = {place for place in self.out if place[0] != partition}
        self.gained.add(partition)

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        self.users.add(threading.get_ident())
        assert max_messages >= 1
        broker = self.broker
        with broker.changed:
            broker.polls += 1
            broker.changed.notify_all()
            if broker.failures:
                raise broker.failures.pop(0)
            broker.changed.wait_for(
                lambda: bool(self.woken or self.gained or self.lost or self._next()), self._sleep_s(timeout_s)
            )
            self.woken = False
            gained, lost = self.gained, self.lost
            self.gained, self.lost = set(), set()
            self.owned = (self.owned - lost) | gained
            received: list[Received] = []
            while len(received) < max_messages and not self.dead:
                place = self._next()
                if place is None:
                    break
                self.out.add(place)
                received.append(self._received(place))
            broker.changed.notify_all()
            return Batch(tuple(received), Membership(_where(self.owned)), _where(gained), _where(lost))

    def _sleep_s(self, timeout_s: float) -> float:
        """Until something given back is due; waiting longer would delay it."""
        due = [at for at in self.broker.due.values() if at > PORTS.clock.monotonic_s()]
        return min([timeout_s, *(at - PORTS.clock.monotonic_s() for at in due)])

    def _next(self) -> tuple[int, int] | None:
        now_s = PORTS.clock.monotonic_s()
        for partition in sorted((self.owned | self.gained) - self.lost - self.paused):
            for offset in range(len(self.broker.logs[partition])):
                place = (partition, offset)
                if offset in self.broker.done[partition] or place in self.out:
                    continue
                if self.broker.due.get(place, 0.0) <= now_s:
                    return place
        return None

    def _received(self, place: tuple[int, int]) -> Received:
        partition, offset = place
        return Received(
            self.broker.logs[partition][offset],
            Position("orders", partition, offset),
            self.broker.attempts.get(place, 1),
            0.0,
        )

    def _check(self, received: Received) -> int:
        partition = received.position.partition
        if self.dead or self.broker.owner[partition] is not self:
            raise Fenced(f"partition {partition} has another owner")
        return partition

    def wake(self) -> None:
        with self.broker.changed:
            self.woken = True
            self.broker.changed.notify_all()

    def ack(self, received: Sequence[Received]) -> None:
        self.users.add(threading.get_ident())
        with self.broker.changed:
            if self.broker.ack_failures:
                raise self.broker.ack_failures.pop(0)
            for one in received:
                self._check(one)
            for one in received:
                self.broker.done[one.position.partition].add(one.position.offset)
                self.broker.acked.append(one.position)
            self.broker.changed.notify_all()

    def redeliver(self, received: Received, after_s: float) -> None:
        self.users.add(threading.get_ident())
        with self.broker.changed:
            place = (self._check(received), received.position.offset)
            self.broker.attempts[place] = received.attempt + 1
            self.broker.due[place] = PORTS.clock.monotonic_s() + after_s
            self.out.discard(place)

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self.users.add(threading.get_ident())
        with self.broker.changed:
            self.paused |= {where.partition for where in partitions}
            self.broker.changed.notify_all()

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        with self.broker.changed:
            self.paused -= {where.partition for where in partitions}
            self.broker.changed.notify_all()

    def committed(self, where: TopicPartition) -> Committed | None:
        raise AssertionError("consuming does not ask for positions")

    def seek(self, where: TopicPartition, offset: int) -> None:
        raise AssertionError("consuming does not seek")

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        raise AssertionError("consuming does not seek")

    def close(self) -> None:
        self.users.add(threading.get_ident())
        with self.broker.changed:
            self.closed = True
        self.broker.kill(self)


def _where(partitions: set[int]) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition("orders", partition) for partition in partitions)


E = TypeVar("E", bound=Event)


class Log:
    """The events, as a subscriber sees them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in list(self.events) if isinstance(event, kind)]


# the proof that the fake is a broker


def offsets(batch: Batch) -> list[int]:
    return [received.position.offset for received in batch.received]


def test_what_was_not_acknowledged_comes_again_to_the_next_owner() -> None:
    """The fake broker hands unacknowledged records to whoever owns their partition next."""
    broker = Broker()
    for n in range(3):
        broker.publish(cloud_event(b"%d" % n))
    first = broker.receiver()
    batch = first.receive(10, 0.0)
    assert (offsets(batch), batch.gained) == ([0, 1, 2], frozenset({TopicPartition("orders", 0)}))
    assert offsets(first.receive(10, 0.0)) == []
    first.ack(batch.received[1:2])
    broker.kill(first)
    assert offsets(broker.receiver().receive(10, 0.0)) == [0, 2]


def test_a_former_owner_is_fenced() -> None:
    """The fake broker refuses ack and redelivery of a partition that went to another member."""
    broker = Broker()
    broker.publish(cloud_event(b"0"))
    first, second = broker.receiver(), broker.receiver()
    batch = first.receive(10, 0.0)
    broker.rebalance(shift=1)
    with pytest.raises(Fenced):
        first.ack(batch.received)
    with pytest.raises(Fenced):
        first.redeliver(batch.received[0], 0.0)
    assert first.receive(10, 0.0).lost == {TopicPartition("orders", 0)}
    assert offsets(second.receive(10, 0.0)) == [0]


def test_redelivery_counts_and_a_paused_partition_delivers_nothing() -> None:
    """The fake broker raises the attempt of what is given back, and keeps to pause and resume."""
    broker = Broker()
    broker.publish(cloud_event(b"0"))
    receiver = broker.receiver()
    (received,) = receiver.receive(10, 0.0).received
    receiver.redeliver(received, 0.0)
    receiver.pause(frozenset({received.position.where}))
    assert offsets(receiver.receive(10, 0.0)) == []
    receiver.resume(frozenset({received.position.where}))
    assert [again.attempt for again in receiver.receive(10, 0.0).received] == [2]


def test_a_wake_ends_a_waiting_poll() -> None:
    """The fake broker's poll returns when it is woken, before its time is over."""
    receiver = Broker().receiver()
    receiver.receive(1, 0.0)
    receiver.wake()
    assert offsets(receiver.receive(1, PATIENCE_S)) == []
