"""One half partition in the hands of its owner: take-over, steps, re-append, truncation.

Used by the relay's polling thread only. All knowledge is in the `HalfIndex`; this module does the
I/O in the order that the rules of halflog.md give.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.records import Entry, HalfEntry, StepEntry, decode, encode
from txbus._halves import HalfId
from txbus._message import Envelope, TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._telemetry import Alarm, Emit, HalfParked, Reconnected, StepCommitted, StepOpen, TakeOver
from txbus.errors import (
    BackendError,
    BackendUnavailable,
    CommitUnknown,
    DecodeError,
    DestinationRefused,
    Fenced,
    MessageRefused,
)
from txbus.spi import Backend, BrokerTransaction, BrokerTransactions, Committed, Log, Membership, Received, Receiver

__all__ = ["HalfPartition", "PartitionBudget", "Phase"]


@dataclass(frozen=True, slots=True)
class PartitionBudget:
    """Bounds of one partition's work; times in seconds."""

    step_halves_max: int = 500
    step_messages_max: int = 500
    step_bytes_max: int = 4 * 1024 * 1024
    window_halves_max: int = 20_000
    payload_budget_bytes: int = 64 * 1024 * 1024
    reappend_records: int = 2_000
    reappend_batch_bytes: int = 256 * 1024
    truncate_records: int = 5_000
    broker_transaction_timeout_s: float = 60.0
    backoff_s: tuple[float, float] = (0.2, 10.0)
    destination_backoff_s: float = 5.0


class Phase(enum.Enum):
    """READING: the index is not complete, nothing may be published. ACTIVE: it is.

    DOWN: the clients were dropped; to be taken over again after a backoff."""

    DOWN = "down"
    READING = "reading"
    ACTIVE = "active"


class HalfPartition:
    """An owned half partition. One thread only."""

    def __init__(
        self,
        service: str,
        group: str,
        where: TopicPartition,
        backend: Backend,
        receiver: Receiver,
        log: Log,
        ports: Ports,
        emit: Emit,
        budget: PartitionBudget,
        settled: Callable[[Sequence[tuple[OpenHalf, Outcome]]], None],
    ) -> None:
        """``settled`` is told what a committed step settled."""
        self.where = where
        self.phase = Phase.DOWN
        self.index = HalfIndex()
        self.read_next = 0
        self.records_read = 0
        self._service = service
        self._group = group
        self._id = f"{where.topic}.{where.partition}"
        self._backend = backend
        self._receiver = receiver
        self._log = log
        self._clock = ports.clock
        self._entropy = ports.entropy
        self._emit = emit
        self._budget = budget
        self._settled = settled
        self._transactions: BrokerTransactions | None = None
        self._position: int | None = None
        self._until_step = 0
        self._step = 0
        self._halves_max = budget.step_halves_max
        self._park_next: list[tuple[HalfId, str]] = []
        self._refused_until: dict[str, float] = {}
        self._failures = 0
        self._retry_at_s = 0.0
        self._truncated = 0
        self._paused = False

    # take-over (rules 14, 20, 21)

    def take_over(self, membership: Membership) -> None:
        """Fence the former owner, find the position, and begin to read from it."""
        if self._clock.monotonic_s() < self._retry_at_s:
            return
        try:
            self._transactions = self._backend.broker_transactions(
                self._id, self._budget.broker_transaction_timeout_s
            )
            # A broker that lost the former owner's abort marker would make its records visible with
            # our first commit; an aborted transaction on the same partition repairs that.
            repair = self._transactions.begin()
            repair.send(Envelope(self.where.topic, encode([])), self.where.partition)
            repair.positions(self._group, membership, {self.where: Committed(0)})
            repair.abort()
            committed = self._receiver.committed(self.where)
            self.read_next = committed.offset if committed else self._log.start(self.where.partition)
            self._receiver.seek(self.where, self.read_next)
        except BackendError as exc:
            self._go_down(exc)
            return
        self.index = HalfIndex()
        self.records_read = 0
        self._park_next.clear()
        self._step = self._until_step = int(committed.note or 0) if committed else 0
        self._position = committed.offset if committed else None
        self.phase = Phase.READING
        self._paused = False
        self._maybe_activate()

    def feed(self, received: Received, now_s: float) -> None:
        """Take in one record of the log."""
        assert self.phase is not Phase.DOWN
        self.read_next = received.position.offset + 1
        self.records_read += 1
        try:
            entries: Sequence[Entry] = decode(received.envelope.payload)
        except DecodeError as exc:
            self._emit(Alarm(self._service, "", "half log", f"{received.position} skipped: {exc}"))
            return
        for number, entry in enumerate(entries):
            self.index.apply(entry, received.position.offset, number, now_s)
        self._step = max(self._step, self.index.last_step)
        if self.phase is Phase.READING:
            self._maybe_activate()
        self._keep_budget()

    def _maybe_activate(self) -> None:
        """Act once the S beside the position was read: later there can be none of a former owner."""
        if self.index.last_step < self._until_step:
            return
        try:
            self._touch_destinations()
        except BackendError as exc:
            self._go_down(exc)
            return
        self.phase = Phase.ACTIVE
        self._failures = 0
        self._emit(
            TakeOver(self._service, "", self.where.partition, self.records_read, len(self.index.halves))
        )

    def _touch_destinations(self) -> None:
        """An aborted transaction over everything a former owner's open one may have touched."""
        assert self._transactions is not None
        keys = {key for half in self.index.in_order() for key in half.keys}
        if not keys:
            return
        touch = self._transactions.begin()
        try:
            for topic, key in sorted(keys):
                touch.send(Envelope(topic, b"", key))
        except (DestinationRefused, MessageRefused) as exc:
            self._emit(Alarm(self._service, "", "half log", f"{self.where}: destination not repaired: {exc}"))
        finally:
            touch.abort()

    # the window (rule 20)

    @property
    def window_full(self) -> bool:
        return len(self.index.halves) >= self._budget.window_halves_max

    def _keep_budget(self) -> None:
        if self.index.payload_bytes > self._budget.payload_budget_bytes:
            for half in reversed(list(self.index.in_order())):
                if half.envelopes is not None and half.offset_exact:
                    self.index.drop_payload(half)
                if self.index.payload_bytes <= self._budget.payload_budget_bytes // 2:
                    break
        if self.window_full and not self._paused and self.phase is Phase.ACTIVE:
            self._paused = True
            self._receiver.pause(frozenset({self.where}))
            self._emit(
                Alarm(
                    self._service, "", "half log",
                    f"{self.where}: {len(self.index.halves)} halves are open; reading stops until some are settled",
                )
            )

    def _resume_reading(self) -> None:
        if self._paused and len(self.index.halves) < self._budget.window_halves_max * 3 // 4:
            self._paused = False
            self._receiver.resume(frozenset({self.where}))

    def load(self, half: OpenHalf) -> tuple[Envelope, ...]:
        """A half's payloads, read again from the log if they are out of memory."""
        if half.envelopes is None:
            records, _ = self._log.read(self.where.partition, half.offset, 1, 5.0)
            for entry in decode(records[0].envelope.payload) if records else ():
                if isinstance(entry, HalfEntry) and entry.half.id == half.id:
                    self.index.restore_payload(half, entry.half.envelopes)
                    break
        if half.envelopes is None:
            raise BackendUnavailable(f"{self.where}@{half.offset}: half {half.id} could not be read again")
        return half.envelopes

    # steps (rules 15 to 19, 22)

    def park(self, half_id: HalfId, reason: str) -> None:
        """Set a half aside for an operator with the next step."""
        if half_id in self.index.halves:
            self._park_next.append((half_id, reason))

    def work(self, membership: Membership) -> bool:
        """One step, if anything is to be done; True if more may be."""
        if self.phase is not Phase.ACTIVE or self._clock.monotonic_s() < self._retry_at_s:
            return False
        chosen = self._choose()
        parking = [(h, why) for i, why in self._park_next if (h := self.index.halves.get(i)) is not None]
        position = self.index.position(self.read_next, [h.id for h in chosen])
        if chosen or parking:
            reappend = self.index.reappend_due(self.read_next, position, self._budget.reappend_records)
        else:
            reappend = self.index.reappend_due(
                self.read_next, self._position if self._position is not None else position,
                self._budget.reappend_records,
            )
            if not reappend:
                return False
        return self._attempt(chosen, parking, reappend, position, membership)

    def _choose(self) -> list[OpenHalf]:
        now_s = self._clock.monotonic_s()
        self._refused_until = {t: at for t, at in self._refused_until.items() if at > now_s}
        return self.index.publishable(
            self._halves_max,
            self._budget.step_messages_max,
            self._budget.step_bytes_max,
            frozenset(self._refused_until),
        )

    def _attempt(
        self,
        chosen: list[OpenHalf],
        parking: list[tuple[OpenHalf, str]],
        reappend: bool,
        position: int,
        membership: Membership,
    ) -> bool:
        assert self._transactions is not None
        try:
            opened = self._transactions.begin()
            try:
                self._step_into(opened, chosen, parking, reappend, position, membership)
            except (Fenced, CommitUnknown):
                raise
            except BaseException:
                opened.abort()
                raise
        except (MessageRefused, DestinationRefused) as exc:
            self._refused(chosen, exc)
            return True
        except (Fenced, CommitUnknown) as exc:
            self._go_down(exc)
            return False
        except BackendError as exc:
            self._slow_down(exc)
            return False
        return True

    def _step_into(
        self,
        opened: BrokerTransaction,
        chosen: list[OpenHalf],
        parking: list[tuple[OpenHalf, str]],
        reappend: bool,
        position: int,
        membership: Membership,
    ) -> None:
        step = self._step + 1
        messages = 0
        for half in chosen:
            if half.outcome is Outcome.COMMITTED:
                for envelope in self.load(half):
                    opened.send(envelope)
                    messages += 1
        for half, why in parking:
            half.parked = why
        gone = {half.id for half in chosen}
        again = [h for h in self.index.in_order() if h.id not in gone] if reappend else [h for h, _ in parking]
        self._append(opened, again)
        if reappend:
            position = self.read_next
        settled = tuple((h.id, h.outcome) for h in chosen if h.outcome is not None)
        self._send(opened, [StepEntry(step, settled)])
        opened.positions(self._group, membership, {self.where: Committed(position, str(step))})
        self._emit(StepOpen(self._service, "", self.where.partition, messages, len(chosen)))
        opened.commit()
        self._committed(step, position, chosen, parking, again if reappend else [])
        self._emit(StepCommitted(self._service, "", self.where.partition, messages, len(chosen)))

    def _append(self, opened: BrokerTransaction, halves: Sequence[OpenHalf]) -> None:
        """H′ of these halves, several to a record."""
        batch: list[Entry] = []
        size = 0
        for half in halves:
            self.load(half)
            if batch and size + half.size > self._budget.reappend_batch_bytes:
                self._send(opened, batch)
                batch, size = [], 0
            batch.append(half.known())
            size += half.size
        if batch:
            self._send(opened, batch)

    def _send(self, opened: BrokerTransaction, entries: Sequence[Entry]) -> None:
        opened.send(Envelope(self.where.topic, encode(entries)), self.where.partition)

    def _committed(
        self,
        step: int,
        position: int,
        chosen: list[OpenHalf],
        parking: list[tuple[OpenHalf, str]],
        again: list[OpenHalf],
    ) -> None:
        self._step = step
        self._position = position
        self._failures = 0
        self._halves_max = min(self._budget.step_halves_max, self._halves_max * 2)
        for half in chosen:
            self.index.settle(half.id)
        self.index.reappended(again, self.read_next)
        for half, why in parking:
            self._emit(HalfParked(self._service, "", half.id.tx_id, half.id.attempt, why))
        self._park_next.clear()
        self._settled([(h, h.outcome) for h in chosen if h.outcome is not None])
        self._resume_reading()
        # Only below a position whose commit returned (rule 23).
        if position - self._truncated >= self._budget.truncate_records:
            self._log.truncate(self.where.partition, position)
            self._truncated = position

    def _refused(self, chosen: list[OpenHalf], error: BackendError) -> None:
        """A message or a destination is at fault: narrow it down to one half (rule 22)."""
        if len(chosen) > 1:
            self._halves_max = max(1, len(chosen) // 2)
            return
        if not chosen:
            self._slow_down(error)
            return
        half = chosen[0]
        if isinstance(error, MessageRefused):
            half.outcome = half.outcome if half.outcome is Outcome.ROLLED_BACK else None
            self.park(half.id, f"cannot be published: {error}")
            return
        for topic in half.topics:
            self._refused_until[topic] = self._clock.monotonic_s() + self._budget.destination_backoff_s
        self._emit(
            Alarm(self._service, "", "half log", f"{self.where}: held for {', '.join(sorted(half.topics))}: {error}")
        )

    # failures

    def _slow_down(self, error: BackendError) -> None:
        """The step was aborted for certain: again, later, with half the halves."""
        self._failures += 1
        self._halves_max = max(1, self._halves_max // 2)
        self._back_off()
        if self._failures == 3:
            self._emit(Alarm(self._service, "", "half log", f"{self.where}: steps fail: {error}"))

    def _back_off(self) -> None:
        first, cap = self._budget.backoff_s
        wait_s = min(cap, first * 2.0 ** min(self._failures - 1, 30))
        self._retry_at_s = self._clock.monotonic_s() + wait_s * (0.5 + 0.5 * self._entropy.uniform())

    def _go_down(self, error: BackendError) -> None:
        """Fenced, or the result is unknown: drop the client, take over again; S tells (rule 21)."""
        self._failures += 1
        if self._transactions is not None:
            self._transactions.abandon()
            self._transactions = None
        self.phase = Phase.DOWN
        self.index = HalfIndex()
        self._back_off()
        self._emit(Reconnected(self._service, "", f"half partition {self.where}", f"{type(error).__name__}: {error}"))

    def leave(self, orderly: bool) -> None:
        """Let go: the partition is lost, or the relay stops."""
        if self._transactions is not None:
            if orderly:
                self._transactions.close()
            else:
                self._transactions.abandon()
            self._transactions = None
        self.phase = Phase.DOWN
        self.index = HalfIndex()

