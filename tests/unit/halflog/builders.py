"""Halves, records and partitions for tests, over the world's broker without faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.unit.halflog.broker import Broker, Connection, State
from tests.unit.halflog.world import WALL_S, Chances, Process, World
from txbus._halflog.partition import HalfPartition, PartitionBudget, Phase
from txbus._halflog.records import DecisionEntry, Entry, HalfEntry, Settled, StepEntry, decode, encode, half_topic
from txbus._halves import Half, HalfId
from txbus._message import Envelope, TopicPartition
from txbus._outcome import Outcome
from txbus._telemetry import Event
from txbus.spi import Membership, Subscription

__all__ = ["COMMITTED", "NEVER", "ROLLED_BACK", "WHERE", "Bench", "d", "h", "half", "id_of", "s"]

COMMITTED, ROLLED_BACK = Outcome.COMMITTED, Outcome.ROLLED_BACK
NEVER = Chances(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
TOPIC = half_topic("shop")
WHERE = TopicPartition(TOPIC, 0)


def id_of(tx_id: str) -> HalfId:
    return HalfId(tx_id, 1)


def half(tx_id: str, *keys: str | None, topic: str = "a", database: str = "one", size: int = 10) -> Half:
    """A half with a message ``<tx_id>.<n>`` for each key."""
    envelopes = tuple(
        Envelope(topic, b"x" * size, key, {"ce_id": f"{tx_id}.{n}"}) for n, key in enumerate(keys or ("k",))
    )
    return Half(id_of(tx_id), f"ledger-{database}", database, WALL_S, envelopes)


def h(tx_id: str, *keys: str | None, topic: str = "a") -> HalfEntry:
    return HalfEntry(half(tx_id, *keys, topic=topic))


def d(tx_id: str, outcome: Outcome = COMMITTED, operator: bool = False) -> DecisionEntry:
    return DecisionEntry(id_of(tx_id), outcome, operator)


def s(step: int, *tx_ids: str, outcome: Outcome = COMMITTED) -> StepEntry:
    return StepEntry(step, tuple(Settled(id_of(tx_id), outcome, "one") for tx_id in tx_ids))


@dataclass(slots=True)
class Bench:
    """One half partition on a broker of its own, with an owner that is driven by hand."""

    budget: PartitionBudget = field(default_factory=PartitionBudget)
    world: World = field(default_factory=lambda: World(1, NEVER))
    broker: Broker = field(init=False)
    events: list[Event] = field(default_factory=list)
    settled: list[tuple[int, tuple[Settled, ...]]] = field(default_factory=list)
    owners: int = 0

    def __post_init__(self) -> None:
        self.broker = Broker(self.world)
        self.broker.create(TOPIC, 1)
        self.broker.create("a", 2)
        self.broker.create("b", 2)

    def append(self, *entries: Entry, together: bool = False) -> None:
        """Write entries, one record each or all in one."""
        for group in [entries] if together else [(entry,) for entry in entries]:
            self.broker.at(WHERE).append(Envelope(TOPIC, encode(group)), None, State.READABLE)

    def log(self) -> list[tuple[int, Sequence[Entry]]]:
        """The readable records with their offsets."""
        return [
            (offset, decode(record.envelope.payload))
            for offset, record in enumerate(self.broker.at(WHERE).records)
            if record.state is State.READABLE and record.envelope is not None
        ]

    def steps(self) -> list[StepEntry]:
        return [entry for _, entries in self.log() for entry in entries if isinstance(entry, StepEntry)]

    def again(self) -> list[HalfEntry]:
        """The H′ in the log."""
        entries = [entry for _, entries in self.log() for entry in entries]
        return [entry for entry in entries if isinstance(entry, HalfEntry) and entry.first is not None]

    def published(self, topic: str = "a") -> list[str]:
        ids = [e.id for partition in self.broker.readable(topic) for e in partition]
        return [id for id in ids if id is not None]

    def owner(self) -> Owner:
        self.owners += 1
        return Owner(self, Process(f"relay{self.owners}"))


class Owner:
    """A member of the group that owns the partition, or still believes so."""

    def __init__(self, bench: Bench, process: Process) -> None:
        self.bench = bench
        self.process = process
        self.connection = Connection(bench.broker, process)
        self.receiver = self.connection.receiver(Subscription("group", (TOPIC,), manual=True))
        bench.broker.rebalance([process.name], [WHERE])
        self.partition = HalfPartition(
            "shop",
            "group",
            WHERE,
            self.connection,
            self.receiver,
            self.connection.log(TOPIC),
            bench.world.ports(process),
            bench.events.append,
            bench.budget,
            lambda where, step, settled: bench.settled.append((step, tuple(settled))),
        )
        self.membership: Membership = self.receiver.receive(1, 0.0).membership

    def read(self) -> int:
        """Poll until nothing is left; how many records came."""
        count = empty = 0
        while empty < 2:
            batch = self.receiver.receive(1_000, 0.0)
            self.membership = batch.membership
            for received in batch.received:
                if self.partition.phase is not Phase.DOWN:
                    self.partition.feed(received, self.bench.world.now_s)
            count += len(batch.received)
            empty = 0 if batch.received else empty + 1
        return count

    def take_over(self) -> Owner:
        """Take over and read to the end, without a step."""
        self.partition.take_over(self.membership)
        self.read()
        if self.partition.phase is Phase.READING:
            self.partition._look_for_end()
        return self

    def work(self) -> None:
        """Step and read until nothing changes."""
        while self.partition.work(self.membership):
            pass
        self.read()
        while self.partition.work(self.membership):
            self.read()
