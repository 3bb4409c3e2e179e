"""The broker's state: a fold over the journal's events, the same in every client."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from txbus.spi import Envelope, Position, Received, TopicPartition

__all__ = ["Group", "Half", "Partition", "State", "Topic", "envelope_from", "envelope_to"]


def envelope_to(envelope: Envelope) -> dict[str, Any]:
    """An envelope as JSON; headers with foreign bytes keep them as lone surrogates."""
    return {
        "topic": envelope.topic,
        "payload": base64.b64encode(envelope.payload).decode(),
        "key": envelope.key,
        "headers": dict(envelope.headers),
        "tag": envelope.tag,
    }


def envelope_from(data: dict[str, Any]) -> Envelope:
    return Envelope(data["topic"], base64.b64decode(data["payload"]), data["key"], data["headers"], data["tag"])


@dataclass(slots=True)
class Topic:
    """Records by partition: (envelope, wall time)."""

    partitions: list[list[tuple[Envelope, float]]]


@dataclass(slots=True)
class Member:
    topics: tuple[str, ...]
    expires_s: float


@dataclass(slots=True)
class Partition:
    """A group's view of one partition. ``low`` is its position, ``done`` what is finished above it."""

    owner: str | None = None
    epoch: int = 0
    low: int | None = None
    acked: bool = False
    done: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    due_s: dict[int, float] = field(default_factory=dict)
    in_hand: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Group:
    members: dict[str, Member] = field(default_factory=dict)
    partitions: defaultdict[TopicPartition, Partition] = field(default_factory=lambda: defaultdict(Partition))


@dataclass(slots=True)
class Half:
    """``asked_s``: when it was prepared or last asked about. ``open`` until it has an outcome."""

    group: str
    envelope: Envelope
    asked_s: float
    checks: int = 0
    open: bool = True


class State:
    """Topics, groups and half messages. Not thread-safe; the journal's lock guards it."""

    def __init__(self, attempts_max: int) -> None:
        self.attempts_max = attempts_max
        self.topics: dict[str, Topic] = {}
        self.groups: defaultdict[str, Group] = defaultdict(Group)
        self.halves: dict[str, Half] = {}

    def apply(self, event: dict[str, Any] | Any) -> Any:
        """Apply one event; the same events in the same order give the same state."""
        return getattr(self, f"_{event['op']}")(event)

    def overdue(self, now_s: float) -> Iterator[dict[str, Any]]:
        """Events that end the members whose leases are over."""
        for name, group in list(self.groups.items()):
            for member, one in list(group.members.items()):
                if one.expires_s <= now_s:
                    yield {"op": "leave", "group": name, "member": member}

    def received(self, group: Group, where: TopicPartition, offset: int) -> Received:
        envelope, stored_at_s = self.topics[where.topic].partitions[where.partition][offset]
        known = group.partitions[where]
        position = Position(where.topic, where.partition, offset)
        return Received(envelope, position, known.attempts.get(offset, 1), stored_at_s, known.epoch)

    # events

    def _topic(self, event: Any) -> None:
        self.topics.setdefault(event["name"], Topic([[] for _ in range(event["partitions"])]))

    def _send(self, event: Any) -> list[int]:
        offsets = []
        for data, number in event["records"]:
            records = self.topics[data["topic"]].partitions[number]
            offsets.append(len(records))
            records.append((envelope_from(data), event["wall_s"]))
        return offsets

    def _join(self, event: Any) -> None:
        group = self.groups[event["group"]]
        joined = event["member"] not in group.members
        group.members[event["member"]] = Member(tuple(event["topics"]), event["expires_s"])
        if joined:
            self._share(group)

    def _leave(self, event: Any) -> None:
        group = self.groups[event["group"]]
        if group.members.pop(event["member"], None) is not None:
            self._share(group)

    def _share(self, group: Group) -> None:
        """Fair shares for each topic's members; whoever has some keeps as much of it as is fair."""
        for topic in sorted({topic for member in group.members.values() for topic in member.topics}):
            count = len(self.topics[topic].partitions)
            owners = [group.partitions[TopicPartition(topic, number)].owner for number in range(count)]
            members = [name for name, member in group.members.items() if topic in member.topics]
            members.sort(key=lambda name: (-owners.count(name), name))
            spots = {name: count // len(members) + (at < count % len(members)) for at, name in enumerate(members)}
            free = list[TopicPartition]()
            for number in range(count):
                where = TopicPartition(topic, number)
                owner = group.partitions[where].owner
                if owner is not None and spots.get(owner, 0) > 0:
                    spots[owner] -= 1
                else:
                    free.append(where)
            takers = [name for name in members for _ in range(spots[name])]
            for where, taker in zip(free, takers, strict=True):
                self._own(group.partitions[where], taker)
        for where, partition in group.partitions.items():
            owner = partition.owner
            if owner is not None and where.topic not in getattr(group.members.get(owner), "topics", ()):
                self._own(partition, None)

    def _own(self, partition: Partition, owner: str | None) -> None:
        partition.owner = owner
        partition.epoch += 1
        partition.in_hand.clear()

    def _start(self, event: Any) -> None:
        partition = self._partition(event)
        if partition.low is None:
            partition.low = event["offset"]

    def _hand(self, event: Any) -> None:
        partition = self._partition(event)
        for offset in event["offsets"]:
            partition.attempts[offset] = partition.attempts.get(offset, 0) + 1
            partition.in_hand.add(offset)
            partition.due_s.pop(offset, None)

    def _finish(self, event: Any) -> None:
        partition = self._partition(event)
        partition.acked = True
        for offset in event["offsets"]:
            if partition.low is not None and offset >= partition.low:
                partition.done.add(offset)
                partition.due_s.pop(offset, None)
        while partition.low in partition.done:
            partition.done.remove(partition.low)
            partition.attempts.pop(partition.low, None)
            partition.low += 1

    def _again(self, event: Any) -> None:
        partition = self._partition(event)
        partition.in_hand.discard(event["offset"])
        partition.due_s[event["offset"]] = event["due_s"]

    def _dead(self, event: Any) -> None:
        self._topic({"name": f"dead.{event['group']}", "partitions": 1})
        where = TopicPartition(event["topic"], event["partition"])
        envelope, stored_at_s = self.topics[where.topic].partitions[where.partition][event["offset"]]
        self.topics[f"dead.{event['group']}"].partitions[0].append((envelope, stored_at_s))
        self._finish({**event, "offsets": [event["offset"]]})

    def _half(self, event: Any) -> None:
        self.halves[event["id"]] = Half(event["group"], envelope_from(event["envelope"]), event["now_s"])

    def _asked(self, event: Any) -> None:
        half = self.halves[event["id"]]
        half.checks += 1
        half.asked_s = event["now_s"]

    def _outcome(self, event: Any) -> None:
        self.halves[event["id"]].open = False
        self._send(event)

    def _partition(self, event: Any) -> Partition:
        return self.groups[event["group"]].partitions[TopicPartition(event["topic"], event["partition"])]
