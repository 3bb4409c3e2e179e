"""The backend: sender, admin, and what hands out receivers and half messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dirbus.halves import DirHalves
from dirbus.journal import Journal
from dirbus.plugin import CAPABILITIES
from dirbus.receiver import DirReceiver
from dirbus.rules import check, missing, partition_of
from dirbus.state import envelope_to
from txbus.errors import BackendError, DestinationRefused
from txbus.spi import (
    BrokerTransactions,
    Capabilities,
    Envelope,
    GroupStatus,
    Log,
    Ports,
    Receipt,
    Subscription,
    TopicDescription,
    TopicKind,
    TopicPartition,
    TopicSpec,
)

__all__ = ["DirBackend", "DirSender"]


class DirPending:
    """An append that has ended already: dirbus has nothing to gain from waiting."""

    def __init__(self, receipt: Receipt | None, error: BackendError | None) -> None:
        self._receipt = receipt
        self._error = error

    def result(self, timeout_s: float) -> Receipt:
        if self._error is not None:
            raise self._error
        assert self._receipt is not None
        return self._receipt


class DirSender:
    """One journal line for each call, so a batch is there as a whole or not at all."""

    def __init__(self, journal: Journal, ports: Ports) -> None:
        self._journal = journal
        self._clock = ports.clock
        self._turn = 0

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        return self._send(envelopes, None) if envelopes else ()

    def append(self, envelope: Envelope, partition: int) -> DirPending:
        try:
            return DirPending(self._send([envelope], partition)[0], None)
        except BackendError as exc:
            return DirPending(None, exc)

    def close(self) -> None:
        pass

    def _send(self, envelopes: Sequence[Envelope], partition: int | None) -> tuple[Receipt, ...]:
        with self._journal.locked() as state:
            records, numbers = list[Any](), list[int]()
            for envelope in envelopes:
                check(state, envelope)
                self._turn += 1
                number = partition_of(state, envelope, self._turn) if partition is None else partition
                if not 0 <= number < len(state.topics[envelope.topic].partitions):
                    raise DestinationRefused(f"topic {envelope.topic!r} has no partition {number}")
                records.append([envelope_to(envelope), number])
                numbers.append(number)
            offsets = self._journal.append({"op": "send", "wall_s": self._clock.wall_s(), "records": records})
        return tuple(
            Receipt(envelope.id or "", envelope.topic, number, offset)
            for envelope, number, offset in zip(envelopes, numbers, offsets, strict=True)
        )


class DirAdmin:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        with self._journal.locked() as state:
            return {
                name: TopicDescription(name, len(state.topics[name].partitions), {}) if name in state.topics else None
                for name in topics
            }

    def create(self, specs: Sequence[TopicSpec]) -> None:
        with self._journal.locked() as state:
            for spec in specs:
                if spec.name not in state.topics:
                    self._journal.append({"op": "topic", "name": spec.name, "partitions": spec.partitions})

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        found = self.describe([spec.name])[spec.name]
        if found is None:
            raise DestinationRefused(f"topic {spec.name!r} does not exist; create it with the admin")
        if found.partitions == spec.partitions:
            return ()  # nothing is ever deleted, so no retention can be too short
        return (f"{spec.name} has {found.partitions} partitions, not {spec.partitions}; make a new topic",)

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        with self._journal.locked() as state:
            rows = []
            for topic in topics:
                for number, records in enumerate(state.topics[topic].partitions):
                    where = TopicPartition(topic, number)
                    known = state.groups[group].partitions[where]
                    rows.append(GroupStatus(where, known.low if known.acked else None, len(records), known.owner))
            return rows

    def close(self) -> None:
        pass


class DirBackend:
    """One client. What it does not promise it refuses, by name."""

    def __init__(self, directory: str, check_after_s: float, attempts_max: int, ports: Ports) -> None:
        self._journal = Journal(directory, attempts_max, ports)
        self._check_after_s = check_after_s
        self._ports = ports
        self._receivers: list[DirReceiver] = []

    @property
    def name(self) -> str:
        return "dirbus"

    def open(self) -> None:
        self._journal.open()

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return CAPABILITIES

    def admin(self) -> DirAdmin:
        return DirAdmin(self._journal)

    def sender(self, group: str) -> DirSender:
        return DirSender(self._journal, self._ports)

    def receiver(self, subscription: Subscription) -> DirReceiver:
        if subscription.manual or not isinstance(subscription.start, str):
            missing("replay")
        receiver = DirReceiver(self._journal, subscription, self._ports)
        self._receivers.append(receiver)
        return receiver

    def half_messages(self, group: str, topics: Sequence[str]) -> DirHalves:
        return DirHalves(self._journal, group, self._check_after_s, self._ports)

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        missing("broker transactions")

    def log(self, topic: str) -> Log:
        missing("log")

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.close()
        self._receivers.clear()
        self._journal.close()
