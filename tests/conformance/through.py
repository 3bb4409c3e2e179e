"""A backend that hands every call on to another one, in parts that a broken backend replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from txbus.spi import (
    Admin,
    Backend,
    Batch,
    BrokerTransaction,
    BrokerTransactions,
    Capabilities,
    Check,
    Committed,
    Envelope,
    GroupStatus,
    HalfMessages,
    Log,
    Membership,
    Outcome,
    PendingAppend,
    Position,
    Receipt,
    Received,
    Receiver,
    Sender,
    Subscription,
    TopicDescription,
    TopicKind,
    TopicPartition,
    TopicSpec,
)


@dataclass
class World:
    """What all clients of one broken broker share."""

    lost: set[Position] = field(default_factory=set)
    newest: dict[str, Membership] = field(default_factory=dict)
    ids: int = 0


class ThroughSender:
    def __init__(self, inner: Sender, client: ThroughBackend) -> None:
        self.inner = inner
        self.client = client

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        return self.inner.send(envelopes, timeout_s)

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        return self.inner.append(envelope, partition)

    def close(self) -> None:
        self.inner.close()


class ThroughReceiver:
    def __init__(self, inner: Receiver, client: ThroughBackend, subscription: Subscription) -> None:
        self.inner = inner
        self.client = client
        self.subscription = subscription

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        return self.inner.receive(max_messages, timeout_s)

    def wake(self) -> None:
        self.inner.wake()

    def ack(self, received: Sequence[Received]) -> None:
        self.inner.ack(received)

    def redeliver(self, received: Received, after_s: float) -> None:
        self.inner.redeliver(received, after_s)

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        self.inner.pause(partitions)

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self.inner.resume(partitions)

    def committed(self, where: TopicPartition) -> Committed | None:
        return self.inner.committed(where)

    def seek(self, where: TopicPartition, offset: int) -> None:
        self.inner.seek(where, offset)

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        self.inner.seek_time(where, wall_s)

    def close(self) -> None:
        self.inner.close()


class ThroughTransaction:
    def __init__(self, inner: BrokerTransaction, client: ThroughBackend) -> None:
        self.inner = inner
        self.client = client

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        self.inner.send(envelope, partition)

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        self.inner.positions(group, membership, positions)

    def commit(self) -> None:
        self.inner.commit()

    def abort(self) -> None:
        self.inner.abort()


class ThroughTransactions:
    def __init__(self, inner: BrokerTransactions, client: ThroughBackend) -> None:
        self.inner = inner
        self.client = client

    def begin(self) -> BrokerTransaction:
        return self.client.parts.transaction(self.inner.begin(), self.client)

    def close(self) -> None:
        self.inner.close()

    def abandon(self) -> None:
        self.inner.abandon()


class ThroughLog:
    def __init__(self, inner: Log, client: ThroughBackend) -> None:
        self.inner = inner
        self.client = client

    def start(self, partition: int) -> int:
        return self.inner.start(partition)

    def end(self, partition: int) -> int:
        return self.inner.end(partition)

    def read(self, partition: int, offset: int, max_records: int, timeout_s: float) -> tuple[tuple[Received, ...], int]:
        return self.inner.read(partition, offset, max_records, timeout_s)

    def truncate(self, partition: int, before: int) -> None:
        self.inner.truncate(partition, before)

    def close(self) -> None:
        self.inner.close()


class ThroughHalves:
    def __init__(self, inner: HalfMessages, client: ThroughBackend) -> None:
        self.inner = inner
        self.client = client

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        return self.inner.prepare(envelope, timeout_s)

    def finish(self, handle: object, outcome: Outcome) -> None:
        self.inner.finish(handle, outcome)

    def checks(self, timeout_s: float) -> Sequence[Check]:
        return self.inner.checks(timeout_s)

    def answer(self, check: Check, outcome: Outcome) -> None:
        self.inner.answer(check, outcome)

    def close(self) -> None:
        self.inner.close()


class ThroughAdmin:
    def __init__(self, inner: Admin, client: ThroughBackend) -> None:
        self.inner = inner
        self.client = client

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        return self.inner.describe(topics)

    def create(self, specs: Sequence[TopicSpec]) -> None:
        self.inner.create(specs)

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        return self.inner.verify(spec)

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        return self.inner.group_status(group, topics)

    def close(self) -> None:
        self.inner.close()


@dataclass(frozen=True)
class Parts:
    """Which class stands in for each part; the broken one is the one that differs."""

    sender: type[ThroughSender] = ThroughSender
    receiver: type[ThroughReceiver] = ThroughReceiver
    transactions: type[ThroughTransactions] = ThroughTransactions
    transaction: type[ThroughTransaction] = ThroughTransaction
    log: type[ThroughLog] = ThroughLog
    halves: type[ThroughHalves] = ThroughHalves
    admin: type[ThroughAdmin] = ThroughAdmin


class ThroughBackend:
    """One client of a broker, seen through the parts."""

    def __init__(self, inner: Backend, world: World, parts: Parts) -> None:
        self.inner = inner
        self.world = world
        self.parts = parts
        self.sent: set[Position] = set()

    @property
    def name(self) -> str:
        return self.inner.name

    def open(self) -> None:
        self.inner.open()

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return self.inner.capabilities(kind)

    def admin(self) -> Admin:
        return self.parts.admin(self.inner.admin(), self)

    def subscription(self, subscription: Subscription) -> Subscription:
        """What the broker is asked for instead of this."""
        return subscription

    def transactional_id(self, transactional_id: str) -> str:
        """What the broker is asked for instead of this."""
        return transactional_id

    def sender(self, group: str) -> Sender:
        return self.parts.sender(self.inner.sender(group), self)

    def receiver(self, subscription: Subscription) -> Receiver:
        inner = self.inner.receiver(self.subscription(subscription))
        return self.parts.receiver(inner, self, subscription)

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        inner = self.inner.broker_transactions(self.transactional_id(transactional_id), timeout_s)
        return self.parts.transactions(inner, self)

    def log(self, topic: str) -> Log:
        return self.parts.log(self.inner.log(topic), self)

    def half_messages(self, group: str, topics: Sequence[str]) -> HalfMessages:
        return self.parts.halves(self.inner.half_messages(group, topics), self)

    def killed(self) -> None:
        """The process of this client is dead."""

    def close(self) -> None:
        self.inner.close()
