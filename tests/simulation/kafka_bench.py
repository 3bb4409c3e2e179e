"""A Kafka cluster driven by hand, and which tests show which of its behaviours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from txbus.spi import Committed, TopicPartition
from txbus_sim.dialects.kafka import Cluster, ClusterOptions, Code, Entry, Membership, Message, Owner, Producer, Refusal
from txbus_sim.dialects.kafka.watching import Silent

__all__ = ["MS", "NOBODY", "SHOWN", "Bench", "P", "Q", "S", "refused", "shows"]

S = 1_000_000_000
MS = 1_000_000
P, Q = TopicPartition("t", 0), TopicPartition("t", 1)
NOBODY = Membership("", -1)
SHOWN: dict[str, list[str]] = {}
F = TypeVar("F", bound=Callable[..., object])


def shows(*behaviours: str) -> Callable[[F], F]:
    """This test fails if the dialect does not behave so."""

    def note(test: F) -> F:
        for id in behaviours:
            SHOWN.setdefault(id, []).append(test.__name__)
        return test

    return note


def refused(call: Callable[[], object]) -> Code | None:
    """The code that a request is refused with; None if it is not."""
    try:
        call()
    except Refusal as exc:
        return exc.code
    return None


class Bench(Silent):
    """A cluster with topic ``t`` of two partitions, its clock, and what it told."""

    def __init__(self, options: ClusterOptions | None = None) -> None:
        self.now_ns = 0
        self.told: list[tuple[str, object]] = []
        self.outcomes: list[tuple[str, bool, str]] = []
        self.cluster = Cluster(self, options)
        self.cluster.create_topic("t", 2)
        self._sequences: dict[tuple[int, int, TopicPartition], int] = {}
        self._plain = self.cluster.new_producer_id()

    def stored(self, where: TopicPartition, entry: Entry) -> None:
        self.told.append(("stored", entry.offset))

    def visible(self, where: TopicPartition, entry: Entry) -> None:
        assert entry.message is not None
        self.told.append(("visible", entry.message.body))

    def ended(self, transactional_id: str, epoch: int, committed: bool, by: str) -> None:
        self.outcomes.append((transactional_id, committed, by))

    def pass_ns(self, for_ns: int) -> None:
        """Time goes by, deadline after deadline."""
        end_ns = self.now_ns + for_ns
        while (due_ns := self.cluster.next_deadline_ns()) is not None and due_ns <= end_ns:
            self.now_ns = max(self.now_ns, due_ns)
            self.cluster.advance(self.now_ns)
        self.now_ns = end_ns
        self.cluster.advance(end_ns)

    # producing

    def produce(self, *bodies: str, where: TopicPartition = P, owner: Owner | None = None) -> int:
        """The next batch of a producer: of ``owner``, or of the one outside of broker transactions."""
        producer = self.producer(where, owner)
        offset = self.cluster.produce(where, [Message(body, 10) for body in bodies], producer, "p", self.now_ns)
        self._sequences[producer.id, producer.epoch, where] = producer.sequence + len(bodies)
        return offset

    def producer(self, where: TopicPartition = P, owner: Owner | None = None) -> Producer:
        id, epoch = (owner.producer_id, owner.epoch) if owner is not None else (self._plain, 0)
        sequence = self._sequences.get((id, epoch, where), 0)
        return Producer(id, epoch, sequence, owner.transactional_id if owner is not None else "")

    def send(self, *bodies: str, where: TopicPartition = P) -> None:
        """Produced and acknowledged."""
        self.produce(*bodies, where=where)
        self.pass_ns(MS)

    # broker transactions

    def init(self, id: str = "x", timeout_ns: int = 60 * S) -> Owner:
        """Asked again, as the client does, until the predecessor's broker transaction has ended."""
        while True:
            try:
                return self.cluster.transactions.init(id, timeout_ns, self.now_ns)
            except Refusal as exc:
                if exc.code is not Code.CONCURRENT_TRANSACTIONS:
                    raise
            self.pass_ns(500 * MS)

    def add(self, owner: Owner, *bodies: str, where: TopicPartition = P) -> None:
        """Send in the owner's broker transaction."""
        self.cluster.transactions.add_partition(owner, where, self.now_ns)
        self.produce(*bodies, where=where, owner=owner)
        self.pass_ns(MS)

    def offsets(self, owner: Owner, who: Membership, offset: int, where: TopicPartition = P, group: str = "g") -> None:
        self.cluster.send_offsets(owner, group, who, {where: Committed(offset)}, self.now_ns)

    def end(self, owner: Owner, commit: bool = True) -> None:
        """EndTxn, and the markers."""
        self.cluster.transactions.end(owner, commit, "p", self.now_ns)
        self.pass_ns(MS)

    # reading

    def read(self, where: TopicPartition = P) -> list[str]:
        """What a reader from the start gets."""
        entries, _ = self.cluster.fetch(where, self.cluster.log(where).start, 1_000, self.now_ns)
        return [entry.message.body for entry in entries if entry.message is not None]

    # groups

    def join(self, member: str = "", *owned: TopicPartition, client: str = "c", group: str = "g") -> str:
        lease_ns = 10 * S
        return self.cluster.groups.join(
            group, member, client, ("t",), frozenset(owned), lease_ns, lease_ns, self.now_ns
        )

    def assigned(self, member: str, group: str = "g") -> list[int] | None:
        """The partitions' numbers; None while the rebalance waits."""
        found = self.cluster.groups.assignment(group, member)
        return None if found is None else sorted(where.partition for where in found.partitions)

    def membership(self, member: str, group: str = "g") -> Membership:
        return Membership(member, self.cluster.groups.generation(group))

    def beat(self, member: str, group: str = "g") -> Code | None:
        who = self.membership(member, group)
        return refused(lambda: self.cluster.groups.heartbeat(group, who, self.now_ns))
