"""Sends outside of broker transactions: an idempotent producer with acks=all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from txbus.errors import BackendUnavailable, NotOpen, SendUnknown
from txbus.spi import Envelope, PendingAppend, Receipt, TopicPartition
from txbus_sim._kafka.labels import stable
from txbus_sim._kafka.producer import Pending, ProducerClient, check_envelope
from txbus_sim._kafka.server import KafkaServer
from txbus_sim._world import Process, nanoseconds
from txbus_sim.faults import CRASHES, REQUEST, Fault, Faults

__all__ = ["SimSender"]

_S = 1_000_000_000
_FLUSH_NS = 5 * _S
SEND: Faults = (*REQUEST, Fault.DUPLICATE, Fault.FAILOVER)


class SimSender:
    """See `txbus.spi.Sender`. Points: ``broker.send:TOPIC`` for each partition's batch,
    ``broker.append:TOPIC``, and ``broker.report:TOPIC`` when a delivery report wakes who waits for it."""

    def __init__(self, server: KafkaServer, process: Process, forget: Callable[[object], None]) -> None:
        self._server = server
        self._world = server.world
        self._forget = forget
        self._producer = ProducerClient(server, process)
        self._closed = False

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        """Each partition's batch is stored whole or not at all; several partitions are no unit."""
        self._check_open()
        deadline_ns = self._world.now_ns + nanoseconds(timeout_s)
        batches: dict[TopicPartition, list[int]] = {}
        for number, envelope in enumerate(envelopes):
            check_envelope(envelope)
            batches.setdefault(self._producer.place(envelope, None), []).append(number)
        sent: list[tuple[list[int], Pending, Fault | None]] = []
        for where, numbers in batches.items():
            fault = self._world.enter(f"broker.send:{stable(where.topic)}", SEND)
            pending = self._producer.submit(where, [envelopes[number] for number in numbers], fault)
            sent.append((numbers, pending, fault))
            self._world.leave(fault)
        found: dict[int, Receipt] = {}
        errors: list[BackendUnavailable] = []
        for numbers, pending, _ in sent:
            try:
                found.update(zip(numbers, self._producer.result(pending, deadline_ns), strict=True))
            except BackendUnavailable as exc:
                errors.append(exc)
        if errors:
            self._refused(errors, bool(found))
        return tuple(found[number] for number in range(len(envelopes)))

    def _refused(self, errors: list[BackendUnavailable], stored: bool) -> None:
        """Nothing was done only if no partition's batch was stored."""
        if stored:
            raise SendUnknown("some of the messages are stored, others were refused") from errors[0]
        raise errors[0]

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        """What is wrong with the message itself is raised here."""
        self._check_open()
        check_envelope(envelope)
        where = self._producer.place(envelope, partition)
        fault = self._world.enter(f"broker.append:{stable(where.topic)}", SEND)
        pending = self._producer.submit(where, (envelope,), fault)
        self._world.leave(fault)
        return _Append(self._producer, pending)

    def _check_open(self) -> None:
        if self._closed:
            raise NotOpen("sim+kafka://: the sender is closed")

    def close(self) -> None:
        """Waits 5 s at most for what was appended."""
        if self._closed:
            return
        self._closed = True
        deadline_ns = self._world.now_ns + _FLUSH_NS
        for pending in self._producer.unfinished():
            if not pending.silent:
                self._producer.wait(pending, deadline_ns)
        self._producer.close()
        self._forget(self)

    def vanish(self) -> None:
        """The process is gone; what is queued is never sent."""
        self._closed = True
        self._producer.close()


class _Append:
    """A record on its way (`PendingAppend`)."""

    def __init__(self, producer: ProducerClient, pending: Pending) -> None:
        self._producer = producer
        self._pending = pending

    def result(self, timeout_s: float) -> Receipt:
        world = self._producer.server.world
        (receipt,) = self._producer.result(self._pending, world.now_ns + nanoseconds(timeout_s))
        world.leave(world.enter(f"broker.report:{stable(self._pending.where.topic)}", CRASHES))
        return receipt
