"""A producer as the client library keeps one: queues, sequences, sending again in the background."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from txbus.errors import (
    BackendUnavailable,
    CapabilityMissing,
    DestinationRefused,
    Fenced,
    MessageRefused,
    SendUnknown,
    StepAborted,
    TxbusError,
)
from txbus.spi import Envelope, Receipt, TopicPartition
from txbus_sim._kafka.capabilities import CAPABILITIES
from txbus_sim._kafka.server import KafkaServer, here, later
from txbus_sim._world import Process, Strand, Wait, current_strand
from txbus_sim.dialects.kafka import Cluster, Code, Message, Owner, Producer, Refusal
from txbus_sim.faults import Fault

__all__ = ["FENCING", "Pending", "ProducerClient", "check_envelope"]

_S = 1_000_000_000
_RETRY_NS = 20_000_000
_OVERHEAD_BYTES = 70
FENCING = (Code.PRODUCER_FENCED, Code.INVALID_PRODUCER_EPOCH, Code.INVALID_PRODUCER_ID_MAPPING)


@dataclass(slots=True, eq=False)
class Pending:
    """A batch on its way to one partition. ``silent``: whatever becomes of it, nobody is told."""

    where: TopicPartition
    envelopes: tuple[Envelope, ...]
    messages: tuple[Message, ...]
    sequence: int = -1
    offset: int = -1
    acked: bool = False
    silent: bool = False
    error: TxbusError | None = None
    waiting: list[Strand] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.acked or self.error is not None

    def receipts(self) -> tuple[Receipt, ...]:
        assert self.acked
        return tuple(
            Receipt(envelope.id or "", self.where.topic, self.where.partition, self.offset + number)
            for number, envelope in enumerate(self.envelopes)
        )

    def raise_error(self) -> None:
        if self.error is not None:
            # One error object is not raised in several threads at once.
            raise type(self.error)(*self.error.args) from self.error


class ProducerClient:
    """One producer; ``owner`` if it has a transactional id. Each partition's batches go in order."""

    def __init__(self, server: KafkaServer, process: Process, owner: Owner | None = None) -> None:
        self.server = server
        self.process = process
        self.owner = owner
        self.fatal: Fenced | None = None
        self.closed = False
        self.added: set[TopicPartition] = set()
        """Partitions that belong to the open broker transaction."""
        self._id = owner.producer_id if owner is not None else -1
        self._sequences: dict[TopicPartition, int] = {}
        self._queues: dict[TopicPartition, deque[Pending]] = {}
        self._in_flight: dict[TopicPartition, deque[Pending]] = {}
        server.followers.append(self)

    # where

    def place(self, envelope: Envelope, partition: int | None) -> TopicPartition:
        """Where an envelope goes; DestinationRefused if that does not exist."""
        topic = self.server.cluster.topic(envelope.topic)
        if topic is None:
            raise DestinationRefused(
                f"topic {envelope.topic!r} does not exist; declare it in Bus(topics=...) so that it is created at open"
            )
        if partition is None:
            if envelope.key is None:
                partition = self.process.entropy.randrange(topic.partitions)
            else:
                partition = zlib.crc32(envelope.key.encode("utf-8", "surrogatepass")) % topic.partitions
        elif not 0 <= partition < topic.partitions:
            raise DestinationRefused(
                f"topic {envelope.topic!r} has partitions 0 to {topic.partitions - 1}: {partition}"
            )
        return TopicPartition(envelope.topic, partition)

    # sending

    def submit(self, where: TopicPartition, envelopes: Sequence[Envelope], fault: Fault | None) -> Pending:
        """Hand a batch over, which suffers a fault on its way. Does not wait."""
        messages = tuple(Message(one, one.size + _OVERHEAD_BYTES) for one in envelopes)
        pending = Pending(where, tuple(envelopes), messages)
        if self.fatal is not None:
            self._fail(pending, self.fatal)
        elif fault is Fault.FAIL:
            self._fail(pending, BackendUnavailable(f"the broker refused a record for {where}; nothing was stored"))
        elif fault is not Fault.REQUEST_LOST:
            pending.silent = fault is Fault.ANSWER_LOST
            self._queues.setdefault(where, deque()).append(pending)
            self._pump(where)
            if fault is Fault.DUPLICATE and pending.offset >= 0:
                again = self.server.ask(lambda cluster: self._produce(cluster, pending))
                assert again == pending.offset, f"{where}: a retried batch was stored twice"
            elif fault is Fault.FAILOVER:
                self.server.fail_over(where)
        return pending

    def _pump(self, where: TopicPartition) -> None:
        """Send what is queued for a partition, as far as the broker takes it now."""
        queue = self._queues[where]
        while queue and not self.closed and here(self.process):
            pending = queue[0]
            if self._id < 0:
                self._id = self.server.cluster.new_producer_id()
            if pending.sequence < 0:
                pending.sequence = self._sequences.get(where, 0)
                self._sequences[where] = pending.sequence + len(pending.messages)
            # Known before it is asked: replicas may answer at once.
            flying = self._in_flight.setdefault(where, deque())
            try:
                pending.offset = self.server.ask(lambda cluster, one=pending: self._produce(cluster, one))  # type: ignore[misc]
            except Refusal as exc:
                if exc.code in (Code.NOT_LEADER_OR_FOLLOWER, Code.CONCURRENT_TRANSACTIONS):
                    later(self.process, _RETRY_NS, lambda: self._pump(where))
                    return
                queue.popleft()
                self._sequences[where] = pending.sequence
                self._refused(pending, exc)
                continue
            queue.popleft()
            flying.append(pending)
            if self.server.cluster.is_replicated(where, pending.offset + len(pending.messages) - 1):
                self.appended(where, pending.offset + len(pending.messages) - 1)

    def _produce(self, cluster: Cluster, pending: Pending) -> int:
        now_ns, where = self.server.world.now_ns, pending.where
        if self.owner is None:
            producer = Producer(self._id, 0, pending.sequence)
        else:
            if where not in self.added:
                cluster.log(where)
                cluster.transactions.add_partition(self.owner, where, now_ns)
                self.added.add(where)
            producer = Producer(self._id, self.owner.epoch, pending.sequence, self.owner.transactional_id)
        return cluster.produce(where, pending.messages, producer, self.process.key, now_ns)

    def _refused(self, pending: Pending, refusal: Refusal) -> None:
        where = pending.where
        if refusal.code in FENCING:
            self.fence(refusal)
            assert self.fatal is not None
            self._fail(pending, self.fatal)
        elif refusal.code is Code.MESSAGE_TOO_LARGE:
            self._fail(pending, MessageRefused(f"message {pending.envelopes[0].id or '(no id)':.80}: {refusal}"))
        elif refusal.code is Code.UNKNOWN_TOPIC_OR_PARTITION:
            self._fail(pending, DestinationRefused(f"{where}: {refusal}"))
        elif refusal.code is Code.INVALID_TXN_STATE:
            self._fail(pending, StepAborted(f"{where}: somebody has ended this broker transaction: {refusal}"))
        else:
            raise AssertionError(f"{where}: the client's own sequence is refused: {refusal}") from refusal

    def fence(self, why: Refusal) -> Fenced:
        """A newer owner has the id: nothing of this producer is taken any more."""
        assert self.owner is not None
        self.fatal = Fenced(f"transactional id {self.owner.transactional_id!r} has a newer owner: {why}")
        for queue in (*self._queues.values(), *self._in_flight.values()):
            for pending in queue:
                self._fail(pending, self.fatal)
            queue.clear()
        return self.fatal

    def _fail(self, pending: Pending, error: TxbusError) -> None:
        if not pending.done:
            pending.error = error
            self._wake(pending)

    def _wake(self, pending: Pending) -> None:
        waiting, pending.waiting = pending.waiting, []
        for strand in waiting:
            self.server.world.unpark(strand)

    # waiting

    def wait(self, pending: Pending, deadline_ns: int) -> bool:
        """Wait until a batch is acknowledged or refused; False when the time is over first."""
        world = self.server.world
        while not pending.done and world.now_ns < deadline_ns:
            strand = current_strand()
            pending.waiting.append(strand)
            world.park(Wait("broker", f"a record to be stored in {pending.where}"), deadline_ns)
            if strand in pending.waiting:
                pending.waiting.remove(strand)
        return pending.done

    def result(self, pending: Pending, deadline_ns: int) -> tuple[Receipt, ...]:
        """The receipts, or what became of the batch; SendUnknown when the time is over."""
        if not self.wait(pending, deadline_ns):
            raise SendUnknown(f"no answer from {pending.where} in time; the record may still be stored")
        pending.raise_error()
        return pending.receipts()

    def purge(self) -> None:
        """Forget what has not reached the broker (the broker transaction is being aborted)."""
        for where, queue in self._queues.items():
            if queue and queue[0].sequence >= 0:
                self._sequences[where] = queue[0].sequence
            queue.clear()

    def unfinished(self) -> list[Pending]:
        """What is queued or waits for its acknowledgement."""
        return [one for queues in (self._queues, self._in_flight) for queue in queues.values() for one in queue]

    # what the server tells (`Follower`)

    def appended(self, where: TopicPartition, offset: int) -> None:
        flying = self._in_flight.get(where)
        if not flying or not self.process.alive:
            return
        for pending in tuple(flying):
            if pending.offset + len(pending.messages) - 1 == offset:
                flying.remove(pending)
                if not pending.silent:
                    pending.acked = True
                    self._wake(pending)

    def leaderless(self, where: TopicPartition) -> None:
        flying = self._in_flight.get(where)
        if flying:
            self._queues.setdefault(where, deque()).extendleft(reversed(flying))
            flying.clear()
        if self._queues.get(where):
            later(self.process, _RETRY_NS, lambda: self._pump(where))

    def readable(self, where: TopicPartition) -> None: ...

    def rebalanced(self, group: str) -> None: ...

    def close(self) -> None:
        """Nothing is sent any more."""
        self.closed = True
        if self in self.server.followers:
            self.server.followers.remove(self)


def check_envelope(envelope: Envelope) -> None:
    """What the client library refuses before anything is sent."""
    limits = CAPABILITIES.limits
    name = f"message {envelope.id or '(no id)':.80} to {envelope.topic!r}"
    if envelope.deliver_at_s is not None:
        raise CapabilityMissing(f"{name}: Kafka delivers nothing later (DELAYED_DELIVERY); leave deliver_at_s out")
    if limits.payload_bytes_max is not None and len(envelope.payload) > limits.payload_bytes_max:
        raise MessageRefused(f"{name}: {len(envelope.payload)} bytes, the limit is {limits.payload_bytes_max}")
    headers = envelope.size - len(envelope.payload)
    if limits.headers_bytes_max is not None and headers > limits.headers_bytes_max:
        raise MessageRefused(f"{name}: {headers} bytes of headers and key, the limit is {limits.headers_bytes_max}")
