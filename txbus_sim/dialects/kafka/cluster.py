"""The cluster as its clients reach it: topics, producing, reading, broker transactions, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from txbus.spi import Committed, TopicPartition
from txbus_sim.dialects.kafka.codes import Code, Refusal
from txbus_sim.dialects.kafka.deadlines import Deadlines
from txbus_sim.dialects.kafka.groups import GroupCoordinator, Membership
from txbus_sim.dialects.kafka.partition import Entry, Message, PartitionLog, Producer
from txbus_sim.dialects.kafka.transactions import Owner, TransactionCoordinator
from txbus_sim.dialects.kafka.watching import Silent, Watcher
from txbus_sim.errors import NotModelled

__all__ = ["BROKERS", "Cluster", "ClusterOptions", "Topic"]

_MS = 1_000_000
BROKERS = 3
_DEFAULTS: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "LogAppendTime",
    "min.insync.replicas": "2",
    "replication.factor": str(BROKERS),
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "unclean.leader.election.enable": "false",
}


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Of the brokers, in nanoseconds. ``scan_ns``: transaction.abort.timed.out.transaction.cleanup
    .interval.ms; ``replication_ns``: from the leader's log to all in-sync replicas; ``election_ns``:
    how long a partition has no leader after a failover."""

    scan_ns: int = 10_000 * _MS
    replication_ns: int = 500_000
    election_ns: int = 3_000 * _MS


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    partitions: int
    settings: Mapping[str, str]

    @property
    def bytes_max(self) -> int:
        return int(self.settings["max.message.bytes"])


class Cluster:
    """Three brokers, every topic on all of them. A pure state machine: no I/O, and time comes with
    each call. Call `advance` with the present time first, and no later than `next_deadline_ns`.

    A request that is refused raises `Refusal` with the broker's code, and nothing of it was done.
    """

    def __init__(self, watcher: Watcher | None = None, options: ClusterOptions | None = None) -> None:
        self.options = options or ClusterOptions()
        self._watcher: Watcher = watcher or Silent()
        self._deadlines = Deadlines()
        self._topics: dict[str, Topic] = {}
        self._logs: dict[TopicPartition, PartitionLog] = {}
        self._producer_ids = 0
        self._now_ms = 0
        self.groups = GroupCoordinator(
            self._deadlines,
            lambda topic: self._topics[topic].partitions if topic in self._topics else 0,
            self._watcher.rebalanced,
            self._watcher.moved,
            self._watcher.unblocked,
        )
        self.transactions = TransactionCoordinator(
            self._deadlines, self, self._watcher.ended, self.new_producer_id, self.options.scan_ns
        )

    # time

    def next_deadline_ns(self) -> int | None:
        """When it may do something by itself; None: never."""
        return self._deadlines.next_ns()

    @property
    def owes(self) -> bool:
        """Whether replicas have to catch up, or markers to be written: that comes by itself."""
        return self._deadlines.owed > 0

    def advance(self, now_ns: int) -> None:
        """Time has come so far: sessions and broker transactions time out, replicas catch up, markers
        are written."""
        self._now_ms = now_ns // _MS
        self._deadlines.advance(now_ns)

    # topics

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> Topic:
        """Refused with TOPIC_ALREADY_EXISTS; what exists stays as it is."""
        if name in self._topics:
            raise Refusal(Code.TOPIC_ALREADY_EXISTS, name)
        if partitions < 1:
            raise Refusal(Code.INVALID_PARTITIONS, f"{name}: {partitions}")
        unknown = sorted(set(settings or {}) - set(_DEFAULTS))
        if unknown:
            raise NotModelled(f"topic {name}: the setting {unknown[0]} is not modelled; leave it out")
        for setting, only in (("cleanup.policy", "delete"), ("message.timestamp.type", "LogAppendTime")):
            if (settings or {}).get(setting, only) != only:
                raise NotModelled(f"topic {name}: {setting} other than {only} is not modelled")
        topic = self._topics[name] = Topic(name, partitions, {**_DEFAULTS, **(settings or {})})
        for number in range(partitions):
            where = TopicPartition(name, number)
            self._logs[where] = PartitionLog(
                partial(self._watcher.stored, where), partial(self._watcher.visible, where)
            )
        return topic

    def topic(self, name: str) -> Topic | None:
        return self._topics.get(name)

    def log(self, where: TopicPartition) -> PartitionLog:
        """A partition's log. Refused with UNKNOWN_TOPIC_OR_PARTITION."""
        log = self._logs.get(where)
        if log is None:
            raise Refusal(Code.UNKNOWN_TOPIC_OR_PARTITION, str(where))
        return log

    def _led(self, where: TopicPartition, now_ns: int) -> PartitionLog:
        log = self.log(where)
        if now_ns < log.unavailable_until_ns:
            raise Refusal(Code.NOT_LEADER_OR_FOLLOWER, f"{where} has no leader yet")
        return log

    # producing

    def new_producer_id(self) -> int:
        """InitProducerId outside of broker transactions: an id of its own, its epoch is 0."""
        self._producer_ids += 1
        return self._producer_ids

    def produce(
        self, where: TopicPartition, messages: Sequence[Message], producer: Producer, by: str, now_ns: int
    ) -> int:
        """Produce with acks=all: the offset of the first record. It is at the leader now, and
        acknowledged when `is_replicated` says so."""
        log = self._led(where, now_ns)
        limit = self._topics[where.topic].bytes_max
        for message in messages:
            if message.size > limit:
                raise Refusal(Code.MESSAGE_TOO_LARGE, f"{message.size} bytes to {where}, at most {limit}")
        if producer.transactional_id:
            self.transactions.verify(Owner(producer.transactional_id, producer.id, producer.epoch), where)
        offset = log.append(messages, producer, now_ns // _MS, by)
        self._deadlines.owe(now_ns + self.options.replication_ns, lambda now: self._catch_up(log, now))
        return offset

    def _catch_up(self, log: PartitionLog, now_ns: int) -> None:
        if now_ns >= log.unavailable_until_ns:
            log.replicate()

    def is_replicated(self, where: TopicPartition, offset: int) -> bool:
        return offset < self.log(where).replicated

    def mark(self, where: TopicPartition, producer_id: int, epoch: int, commit: bool) -> None:
        """WriteTxnMarkers, by the transaction coordinator."""
        self.log(where).mark(producer_id, epoch, commit, self._now_ms)

    def resolve(self, group: str, producer_id: int, commit: bool, by: str) -> None:
        self.groups.resolve(group, producer_id, commit, by)

    def send_offsets(
        self, owner: Owner, group: str, who: Membership, positions: Mapping[TopicPartition, Committed], now_ns: int
    ) -> None:
        """AddOffsetsToTxn and TxnOffsetCommit."""
        self.transactions.add_offsets(owner, group, now_ns)
        self.transactions.verify(owner, group=group)
        for where in positions:
            self.log(where)
        self.groups.commit_in_transaction(group, who, positions, owner.producer_id)

    # reading

    def fetch(self, where: TopicPartition, offset: int, most: int, now_ns: int) -> tuple[list[Entry], int]:
        """Fetch, read_committed; see `PartitionLog.fetch`."""
        return self._led(where, now_ns).fetch(offset, most)

    def delete_records(self, where: TopicPartition, before: int, now_ns: int) -> None:
        self._led(where, now_ns).delete_below(before)

    # faults

    def fail_over(self, where: TopicPartition, now_ns: int) -> None:
        """A partition's leader dies: what it alone had is lost, and there is no leader for a while."""
        log = self.log(where)
        log.fail_over()
        log.unavailable_until_ns = now_ns + self.options.election_ns

    def heal(self, now_ns: int) -> None:
        """Every partition has a leader again."""
        for log in self._logs.values():
            log.unavailable_until_ns = min(log.unavailable_until_ns, now_ns)
