"""The cluster of one run in its world: deadlines, who waits for what, and the history it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from txbus.spi import Capabilities, Envelope, TopicKind, TopicPartition
from txbus_sim._kafka.capabilities import CAPABILITIES
from txbus_sim._world import Process, World
from txbus_sim.dialects.kafka import Cluster, ClusterOptions, Entry
from txbus_sim.errors import NotModelled
from txbus_sim.history import BrokerTransactionEnded, PositionCommitted, Stored, Visible

__all__ = ["SERVICE", "KafkaServer", "here", "later", "server_of"]

T = TypeVar("T")
SERVICE = "kafka"
_LATENCY_NS = 500_000


class Follower(Protocol):
    """A client that the server tells what happens to it."""

    def appended(self, where: TopicPartition, offset: int) -> None:
        """A record is acknowledged by all in-sync replicas."""
        ...

    def leaderless(self, where: TopicPartition) -> None:
        """A partition's leader died: what it had not acknowledged is lost and has to be sent again."""
        ...

    def readable(self, where: TopicPartition) -> None:
        """More can be read."""
        ...

    def rebalanced(self, group: str) -> None:
        """A group has a new generation, or positions in it are no longer pending."""
        ...


class KafkaServer:
    """A cluster of three brokers; make one for each run, it puts itself in the world's services.

    ``url`` is for the processes of the run. Before the run `begin`; in calm weather `heal`.
    """

    url = "sim+kafka://cluster"

    def __init__(self, world: World, options: ClusterOptions | None = None) -> None:
        self.world = world
        self.cluster = Cluster(self, options)
        self.followers: list[Follower] = []
        self._acknowledged: list[tuple[TopicPartition, int]] = []
        self._readable: dict[TopicPartition, None] = {}
        self._regrouped: dict[str, None] = {}
        self._durable = False
        self._armed_ns: int | None = None
        self._owing = False
        world.services[SERVICE] = self

    def capabilities_of(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return CAPABILITIES

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str] | None = None) -> None:
        """As an administrator would, before anybody starts. Refused if it exists."""
        self.ask(lambda cluster: cluster.create_topic(name, partitions, settings))

    def begin(self, topics: Mapping[str, int]) -> None:
        """The topics, with their partitions, that exist before the first process starts."""
        for name, partitions in topics.items():
            self.create_topic(name, partitions)

    def heal(self) -> None:
        """Faults are over: every partition has its leader back at once."""
        self.ask(lambda cluster: cluster.heal(self.world.now_ns))

    # asking

    def ask(self, request: Callable[[Cluster], T]) -> T:
        """Carry out a request at the present time, and let everybody know what follows from it."""
        if self.world.closed:
            return request(self.cluster)
        self.cluster.advance(self.world.now_ns)
        try:
            return request(self.cluster)
        finally:
            self._tell()

    def _tick(self) -> None:
        self._armed_ns = None
        self._advance()

    def _advance(self) -> None:
        if not self.world.closed:
            self.cluster.advance(self.world.now_ns)
            self._tell()

    def _tell(self) -> None:
        while self._acknowledged or self._readable or self._regrouped:
            acknowledged, self._acknowledged = self._acknowledged, []
            readable, self._readable = self._readable, {}
            regrouped, self._regrouped = self._regrouped, {}
            for follower in tuple(self.followers):
                for where, offset in acknowledged:
                    follower.appended(where, offset)
                for where in readable:
                    follower.readable(where)
                for group in regrouped:
                    follower.rebalanced(group)
        self._arm()
        if self._durable:
            self._durable = False
            self.world.progress()

    def _arm(self) -> None:
        due_ns = self.cluster.next_deadline_ns()
        if due_ns is None:
            return
        if self.cluster.owes and not self._owing:
            # The run is not over before the brokers have finished what they have decided.
            self._owing = True
            self.world.pending_at(due_ns, self._pay)
        elif self._armed_ns is None or due_ns < self._armed_ns:
            self._armed_ns = due_ns
            self.world.at(due_ns, self._tick)

    def _pay(self) -> None:
        self._owing = False
        self._advance()

    # faults

    def fail_over(self, where: TopicPartition) -> None:
        """The partition's leader dies; what was at it alone is sent again by its living senders."""
        self.ask(lambda cluster: cluster.fail_over(where, self.world.now_ns))
        for follower in tuple(self.followers):
            follower.leaderless(where)

    # what the cluster tells (`Watcher`)

    def stored(self, where: TopicPartition, entry: Entry) -> None:
        envelope = _envelope(entry)
        self.world.history.add(
            Stored(
                self.world.now_ns,
                entry.by,
                where.topic,
                where.partition,
                entry.offset,
                envelope.id or "",
                envelope.key,
                entry.transactional_id,
            )
        )
        self._acknowledged.append((where, entry.offset))
        self._durable = True

    def visible(self, where: TopicPartition, entry: Entry) -> None:
        envelope = _envelope(entry)
        self.world.history.add(
            Visible(
                self.world.now_ns,
                where.topic,
                where.partition,
                entry.offset,
                envelope.id or "",
                envelope.key,
                envelope.payload,
                envelope.headers,
            )
        )
        self._readable[where] = None
        self._durable = True

    def ended(self, transactional_id: str, epoch: int, committed: bool, by: str) -> None:
        self.world.history.add(BrokerTransactionEnded(self.world.now_ns, transactional_id, epoch, committed, by))
        self._durable = True

    def moved(self, group: str, where: TopicPartition, offset: int, by: str) -> None:
        self.world.history.add(PositionCommitted(self.world.now_ns, by, group, where.topic, where.partition, offset))
        self._durable = True

    def rebalanced(self, group: str) -> None:
        self._regrouped[group] = None
        self._durable = True

    def unblocked(self, group: str) -> None:
        self._regrouped[group] = None


def _envelope(entry: Entry) -> Envelope:
    assert entry.message is not None
    envelope = entry.message.body
    assert isinstance(envelope, Envelope)
    return envelope


def server_of(process: Process) -> KafkaServer:
    """The run's cluster. NotModelled if the run has none."""
    server = process.world.services.get(SERVICE)
    if not isinstance(server, KafkaServer):
        raise NotModelled("sim+kafka:// in a run without a Kafka cluster: choose broker='kafka' for the simulation")
    return server


def here(process: Process) -> bool:
    """Whether a process lives and its threads run: what it does in the background goes on."""
    return process.alive and not process.world.closed and process.thaws_at_ns <= process.world.now_ns


def later(process: Process, after_ns: int, call: Callable[[], None]) -> None:
    """Something that a client library of a process does in the background: not while the process is
    paused, and never once it is dead."""
    world = process.world

    def come() -> None:
        if not process.alive or world.closed:
            return
        if process.thaws_at_ns > world.now_ns:
            world.at(process.thaws_at_ns + _LATENCY_NS, come)
        else:
            call()

    world.at(world.now_ns + after_ns, come)
