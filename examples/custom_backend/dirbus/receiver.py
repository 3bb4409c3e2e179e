"""A group member: leases partitions, takes records in hand, gives them back or finishes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dirbus.journal import Journal
from dirbus.state import Group, Partition, State
from txbus.errors import CapabilityMissing, DestinationRefused, Fenced
from txbus.spi import Batch, Committed, Membership, Ports, Received, Subscription, TopicPartition

__all__ = ["DirReceiver"]

# Between processes there is no bell: a waiting member looks at the journal this often.
LOOK_EVERY_S = 0.005


class DirReceiver:
    def __init__(self, journal: Journal, subscription: Subscription, ports: Ports) -> None:
        self._journal = journal
        self._subscription = subscription
        self._clock = ports.clock
        self._member = ports.entropy.unique_id()
        self._bell = ports.runtime.condition()
        self._rung = False
        self._closed = False
        self._paused: frozenset[TopicPartition] = frozenset()
        self._epochs: dict[TopicPartition, int] = {}
        self._renew_at_s = 0.0
        with journal.locked() as state:
            for topic in subscription.topics:
                if topic not in state.topics:
                    raise DestinationRefused(f"topic {topic!r} does not exist; create it with the admin")

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            batch = self._poll(max_messages)
            left_s = deadline_s - self._clock.monotonic_s()
            if batch.received or batch.gained or batch.lost or left_s <= 0 or self._wait(left_s):
                return batch

    def _wait(self, left_s: float) -> bool:
        with self._bell:
            if not self._rung:
                self._bell.wait(min(left_s, LOOK_EVERY_S))
            rung, self._rung = self._rung, False
            return rung

    def wake(self) -> None:
        with self._bell:
            self._rung = True
            self._bell.notify_all()

    def _poll(self, max_messages: int) -> Batch:
        with self._journal.locked() as state:
            group = state.groups[self._subscription.group]
            now_s, lease_s = self._clock.monotonic_s(), self._subscription.lease_s
            if self._member not in group.members or now_s >= self._renew_at_s:
                topics = list(self._subscription.topics)
                self._write("join", member=self._member, topics=topics, expires_s=now_s + lease_s)
                self._renew_at_s = now_s + lease_s / 8
            now = {where: one.epoch for where, one in group.partitions.items() if one.owner == self._member}
            lost = {where for where, epoch in self._epochs.items() if now.get(where) != epoch}
            gained = {where for where, epoch in now.items() if self._epochs.get(where) != epoch}
            self._epochs = now
            received = list[Received]()
            for where in sorted(now):
                room = max_messages - len(received)
                if where not in self._paused and room > 0:
                    received += self._take(state, group, where, room)
            return Batch(
                tuple(received),
                Membership(frozenset(now), tuple(now.items())),
                frozenset(gained),
                frozenset(lost),
            )

    def _take(self, state: State, group: Group, where: TopicPartition, room: int) -> list[Received]:
        """Take what is due in hand; what the tags leave out, or has had its attempts, is finished."""
        known, records = group.partitions[where], state.topics[where.topic].partitions[where.partition]
        if known.low is None:
            earliest = self._subscription.start == "earliest"
            self._write("start", where, offset=0 if earliest else len(records))
        assert known.low is not None
        tags, now_s = self._subscription.tags, self._clock.monotonic_s()
        taken, left_out = list[int](), list[int]()
        for offset in range(known.low, len(records)):
            waiting = offset in known.done or offset in known.in_hand or known.due_s.get(offset, 0.0) > now_s
            if waiting:
                continue
            if tags is not None and records[offset][0].tag not in tags:
                left_out.append(offset)
            elif known.attempts.get(offset, 0) >= state.attempts_max:
                self._write("dead", where, offset=offset)
            elif len(taken) < room:
                taken.append(offset)
        if left_out:
            self._write("finish", where, offsets=left_out)
        if taken:
            self._write("hand", where, offsets=taken)
        return [state.received(group, where, offset) for offset in taken]

    def ack(self, received: Sequence[Received]) -> None:
        by_partition = defaultdict[TopicPartition, list[Received]](list)
        for one in received:
            by_partition[one.position.where].append(one)
        fenced = list[Fenced]()
        with self._journal.locked() as state:
            for where, ones in by_partition.items():
                try:
                    self._owned(state, ones)
                except Fenced as exc:
                    fenced.append(exc)
                else:
                    self._write("finish", where, offsets=[one.position.offset for one in ones])
        if fenced:
            raise fenced[0]

    def redeliver(self, received: Received, after_s: float) -> None:
        where, offset = received.position.where, received.position.offset
        with self._journal.locked() as state:
            known = self._owned(state, [received])
            if known.attempts.get(offset, 0) >= state.attempts_max:
                self._write("dead", where, offset=offset)
            else:
                self._write("again", where, offset=offset, due_s=self._clock.monotonic_s() + after_s)

    def _owned(self, state: State, ones: Sequence[Received]) -> Partition:
        where = ones[0].position.where
        known = state.groups[self._subscription.group].partitions[where]
        if known.owner != self._member or any(one.handle != known.epoch for one in ones):
            raise Fenced(f"{where} of group {self._subscription.group!r} has another owner: {known.owner}")
        return known

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused |= partitions

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused -= partitions

    def committed(self, where: TopicPartition) -> Committed | None:
        with self._journal.locked() as state:
            known = state.groups[self._subscription.group].partitions[where]
            return Committed(known.low) if known.acked and known.low is not None else None

    def seek(self, where: TopicPartition, offset: int) -> None:
        raise CapabilityMissing("dirbus has no replay; embedded:// has")

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        raise CapabilityMissing("dirbus has no replay; embedded:// has")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._journal.locked():
                self._write("leave", member=self._member)

    def _write(self, op: str, where: TopicPartition | None = None, **values: Any) -> None:
        place = {} if where is None else {"topic": where.topic, "partition": where.partition}
        self._journal.append({"op": op, "group": self._subscription.group, **place, **values})
