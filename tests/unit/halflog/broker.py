"""A broker with broker transactions in memory, as the SPI describes one, faults included.

Records of a broker transaction stand in the log at once and hold back the readable end until a
marker ends them. An owner that is fenced leaves an aborted transaction whose marker may be lost in
some partitions: there its records hang until the next marker of the same transactional id, which
decides them, too (rule 14).
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.unit.halflog.world import Process, World
from txbus._capability import Capabilities, Limits, TopicKind
from txbus._message import Envelope, Position, Receipt, TopicPartition
from txbus.errors import BackendUnavailable, CommitUnknown, DestinationRefused, Fenced, MessageRefused, SendUnknown
from txbus.spi import (
    Admin,
    Backend,
    Batch,
    BrokerTransaction,
    BrokerTransactions,
    Committed,
    GroupStatus,
    HalfMessages,
    Log,
    Membership,
    PendingAppend,
    Received,
    Receiver,
    Sender,
    Subscription,
    TopicDescription,
    TopicSpec,
)

__all__ = ["Broker", "Connection"]


class State(enum.Enum):
    OPEN = "open"
    READABLE = "readable"
    GONE = "gone"


@dataclass(slots=True)
class Record:
    envelope: Envelope | None
    owner: str | None
    state: State


@dataclass(slots=True)
class Partition:
    records: list[Record] = field(default_factory=list)
    start: int = 0
    open: list[int] = field(default_factory=list)
    """The offsets of records that no marker has decided yet."""

    def append(self, envelope: Envelope | None, owner: str | None, state: State) -> int:
        self.records.append(Record(envelope, owner, state))
        if state is State.OPEN:
            self.open.append(len(self.records) - 1)
        return len(self.records) - 1

    def mark(self, owner: str, state: State) -> None:
        """A marker decides every record of this transactional id that is open here."""
        for offset in self.open:
            if self.records[offset].owner == owner:
                self.records[offset].state = state
        self.open = [offset for offset in self.open if self.records[offset].state is State.OPEN]
        self.append(None, None, State.GONE)

    def end(self) -> int:
        return self.open[0] if self.open else len(self.records)


@dataclass(slots=True)
class Ownership:
    """A transactional id: its epoch, and the partitions that its open transaction touched."""

    epoch: int = 0
    touched: set[TopicPartition] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Broker:
    """The broker itself; a process reaches it by a `Connection`."""

    world: World
    topics: dict[str, list[Partition]] = field(default_factory=dict)
    positions: dict[TopicPartition, Committed] = field(default_factory=dict)
    owners: dict[str, Ownership] = field(default_factory=dict)
    late: list[tuple[TopicPartition, Envelope]] = field(default_factory=list)
    generation: int = 0
    members: dict[str, frozenset[TopicPartition]] = field(default_factory=dict)
    refused: dict[str, type[MessageRefused] | type[DestinationRefused]] = field(default_factory=dict)
    """Topics that refuse, for tests: whatever is sent there, or what their payload says."""

    def create(self, name: str, partitions: int) -> None:
        self.topics[name] = [Partition() for _ in range(partitions)]

    def at(self, where: TopicPartition) -> Partition:
        return self.topics[where.topic][where.partition]

    def home(self, envelope: Envelope) -> TopicPartition:
        count = len(self.topics[envelope.topic])
        if envelope.key is None:
            return TopicPartition(envelope.topic, self.world.chance.randrange(count))
        return TopicPartition(envelope.topic, zlib.crc32(envelope.key.encode()) % count)

    def readable(self, topic: str) -> list[list[Envelope]]:
        """What readers of committed records see, by partition."""
        return [
            [r.envelope for r in p.records[: p.end()] if r.state is State.READABLE and r.envelope is not None]
            for p in self.topics[topic]
        ]

    def unread(self, where: TopicPartition, offset: int) -> bool:
        return bool(_read(self.at(where), where, offset, 1)[0])

    def deliver_late(self) -> None:
        if self.late:
            where, envelope = self.late.pop(self.world.chance.randrange(len(self.late)))
            self.at(where).append(envelope, None, State.READABLE)

    def rebalance(self, members: Sequence[str], where: Sequence[TopicPartition]) -> None:
        """Everybody's generation ends; a partition may well stay with its owner."""
        self.generation += 1
        shares: dict[str, set[TopicPartition]] = {member: set() for member in members}
        for partition in where:
            if members:
                shares[self.world.chance.choice(members)].add(partition)
        self.members = {member: frozenset(share) for member, share in shares.items()}

    def check_member(self, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        if membership.token != self.generation:
            raise Fenced(f"generation {membership.token} is over, it is {self.generation}")
        assert set(positions) <= membership.partitions, "positions of a partition that is not in the snapshot"


class Connection:
    """A process's `Backend` on the broker."""

    name = "model"

    def __init__(self, broker: Broker, process: Process) -> None:
        self.broker = broker
        self.world = broker.world
        self.process = process

    def reach(self) -> None:
        """One request: the process may die or sleep here, the request may fail without effect."""
        self.world.point(self.process)
        if self.world.happens(self.world.chances.unavailable):
            raise BackendUnavailable("the broker is busy")

    def open(self) -> None: ...

    def close(self) -> None: ...

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return Capabilities(frozenset(), Limits(None, None, None, None))

    def admin(self) -> Admin:
        return _Admin(self)

    def sender(self, group: str) -> Sender:
        return _Sender(self)

    def receiver(self, subscription: Subscription) -> Receiver:
        return _Receiver(self)

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        self.reach()
        owner = self.broker.owners.setdefault(transactional_id, Ownership())
        owner.epoch += 1
        for where in sorted(owner.touched):
            if not self.world.happens(self.world.chances.marker_lost):
                self.broker.at(where).mark(transactional_id, State.GONE)
        owner.touched.clear()
        return _Transactions(self, transactional_id, owner.epoch)

    def log(self, topic: str) -> Log:
        return _Log(self, topic)

    def half_messages(self, group: str, topics: Sequence[str]) -> HalfMessages:
        raise NotImplementedError("this broker has none of its own")


class _Pending:
    def __init__(self, receipt: Receipt | None) -> None:
        self._receipt = receipt

    def result(self, timeout_s: float) -> Receipt:
        if self._receipt is None:
            raise SendUnknown("no answer")
        return self._receipt


class _Sender:
    def __init__(self, connection: Connection) -> None:
        self._c = connection

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        return tuple(
            self.append(envelope, self._c.broker.home(envelope).partition).result(timeout_s) for envelope in envelopes
        )

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        self._c.reach()
        where = TopicPartition(envelope.topic, partition)
        world = self._c.world
        if world.happens(world.chances.append_lost):
            return _Pending(None)
        if world.happens(world.chances.append_late):
            self._c.broker.late.append((where, envelope))
            return _Pending(None)
        offset = self._c.broker.at(where).append(envelope, None, State.READABLE)
        world.point(self._c.process)
        return _Pending(Receipt(envelope.id or "", where.topic, partition, offset))

    def close(self) -> None: ...


class _Receiver:
    """A member of the one consumer group."""

    def __init__(self, connection: Connection) -> None:
        self._c = connection
        self._seen: frozenset[TopicPartition] = frozenset()
        self._next: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        self._c.reach()
        broker = self._c.broker
        assigned = broker.members.get(self._c.process.name, frozenset())
        gained, lost = assigned - self._seen, self._seen - assigned
        self._seen = assigned
        for where in lost:
            self._next.pop(where, None)
        received: list[Received] = []
        for where in sorted(assigned - self._paused):
            if where in self._next:
                records, upto = _read(broker.at(where), where, self._next[where], self._c.world.chance.randint(1, 3))
                received += records
                self._next[where] = upto
        return Batch(tuple(received), Membership(assigned, broker.generation), gained, lost)

    def wake(self) -> None: ...

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused |= partitions

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._paused -= partitions

    def committed(self, where: TopicPartition) -> Committed | None:
        self._c.reach()
        return self._c.broker.positions.get(where)

    def seek(self, where: TopicPartition, offset: int) -> None:
        self._c.reach()
        self._next[where] = offset

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        raise NotImplementedError("no half log reads by time")

    def ack(self, received: Sequence[Received]) -> None:
        raise NotImplementedError("a relay acknowledges by positions")

    def redeliver(self, received: Received, after_s: float) -> None:
        raise NotImplementedError("a relay redelivers nothing")

    def close(self) -> None: ...


def _read(partition: Partition, where: TopicPartition, offset: int, count: int) -> tuple[list[Received], int]:
    found: list[Received] = []
    end = partition.end()
    at = max(offset, partition.start)
    while at < end and len(found) < count:
        record = partition.records[at]
        if record.state is State.READABLE and record.envelope is not None:
            found.append(Received(record.envelope, Position(where.topic, where.partition, at), 1, 0.0))
        at += 1
    return found, at


class _Log:
    def __init__(self, connection: Connection, topic: str) -> None:
        self._c = connection
        self._topic = topic

    def _at(self, partition: int) -> Partition:
        self._c.reach()
        return self._c.broker.topics[self._topic][partition]

    def start(self, partition: int) -> int:
        return self._at(partition).start

    def end(self, partition: int) -> int:
        return self._at(partition).end()

    def read(self, partition: int, offset: int, max_records: int, timeout_s: float) -> tuple[tuple[Received, ...], int]:
        records, upto = _read(self._at(partition), TopicPartition(self._topic, partition), offset, max_records)
        return tuple(records), upto

    def truncate(self, partition: int, before: int) -> None:
        at = self._at(partition)
        at.start = max(at.start, before)

    def close(self) -> None: ...


class _Transactions:
    def __init__(self, connection: Connection, transactional_id: str, epoch: int) -> None:
        self._c = connection
        self.id = transactional_id
        self._epoch = epoch

    def owner(self) -> Ownership:
        self._c.reach()
        owner = self._c.broker.owners[self.id]
        if owner.epoch != self._epoch:
            raise Fenced(f"{self.id} is of epoch {owner.epoch}, not {self._epoch}")
        return owner

    def begin(self) -> BrokerTransaction:
        assert not self.owner().touched, "the transaction before has not ended"
        return _Transaction(self._c, self)

    def close(self) -> None: ...

    def abandon(self) -> None: ...


class _Transaction:
    def __init__(self, connection: Connection, transactions: _Transactions) -> None:
        self._c = connection
        self._of = transactions
        self._positions: dict[TopicPartition, Committed] = {}
        self._membership: Membership | None = None

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        owner = self._of.owner()
        refused = self._c.broker.refused.get(envelope.topic) or self._c.broker.refused.get(envelope.id or "")
        if refused is not None:
            raise refused(f"{envelope.topic!r} takes no {envelope.id}")
        home = self._c.broker.home(envelope) if partition is None else TopicPartition(envelope.topic, partition)
        owner.touched.add(home)
        self._c.broker.at(home).append(envelope, self._of.id, State.OPEN)

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        self._of.owner()
        self._c.broker.check_member(membership, positions)
        self._membership = membership
        self._positions.update(positions)

    def commit(self) -> None:
        world = self._c.world
        owner = self._of.owner()
        if self._membership is not None:
            self._c.broker.check_member(self._membership, self._positions)
        unknown = world.happens(world.chances.commit_unknown)
        if unknown and world.chance.random() < 0.5:
            raise CommitUnknown("the request was lost")
        self._end(owner, State.READABLE)
        self._c.broker.positions.update(self._positions)
        world.point(self._c.process)
        if unknown:
            raise CommitUnknown("the answer was lost")

    def abort(self) -> None:
        self._end(self._of.owner(), State.GONE)

    def _end(self, owner: Ownership, state: State) -> None:
        for where in sorted(owner.touched):
            self._c.broker.at(where).mark(self._of.id, state)
        owner.touched.clear()


class _Admin:
    def __init__(self, connection: Connection) -> None:
        self._c = connection

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        self._c.reach()
        known = self._c.broker.topics
        return {t: TopicDescription(t, len(known[t]), {}) if t in known else None for t in topics}

    def create(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            self._c.broker.create(spec.name, spec.partitions)

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        return ()

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        status: list[GroupStatus] = []
        for topic in topics:
            for number, partition in enumerate(self._c.broker.topics[topic]):
                where = TopicPartition(topic, number)
                position = self._c.broker.positions.get(where)
                status.append(GroupStatus(where, position.offset if position else None, partition.end(), None))
        return status

    def close(self) -> None: ...


def _is_a_backend(connection: Connection) -> Backend:
    return connection
