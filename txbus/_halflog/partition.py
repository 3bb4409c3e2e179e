"""One half partition in the hands of its owner: take-over, steps, re-append, truncation.

Used by the relay's polling thread only. All knowledge is in the `HalfIndex`; this module does the
I/O in the order that the rules give (docs/explanation/protocol.md).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.records import (
    EncodedEntry,
    Entry,
    HalfEntry,
    NewerRecord,
    Settled,
    StepEntry,
    decode,
    encode_entry,
    join,
)
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

__all__ = ["HalfPartition", "PartitionBudget", "Phase", "SettledStep"]

T = TypeVar("T")
SettledStep = Callable[[TopicPartition, int, Sequence[Settled]], None]
_REASON_CHARS_MAX = 500
"""Of why a half is parked: H′ must fit where H did (rule 7)."""


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
    reread_s: float = 1.0


class Phase(enum.Enum):
    """READING: the index is not complete, nothing may be published. ACTIVE: it is.

    DOWN: the clients were dropped; to be taken over again after a backoff."""

    DOWN = "down"
    READING = "reading"
    ACTIVE = "active"


class _Guilty(Exception):
    """The broker refused this very message of this half."""

    def __init__(self, half: OpenHalf, topic: str, error: MessageRefused | DestinationRefused) -> None:
        super().__init__(str(error))
        self.half = half
        self.topic = topic
        self.error = error


@dataclass(slots=True)
class _Step:
    """What one broker transaction is to do."""

    number: int
    chosen: list[OpenHalf]
    parking: list[tuple[OpenHalf, str]]
    again: list[OpenHalf]
    position: int
    reached: int
    """The position without the bound of ledger rows that are not marked yet."""

    @property
    def messages(self) -> int:
        return sum(h.messages for h in self.chosen if h.outcome is Outcome.COMMITTED)

    def settled(self) -> tuple[Settled, ...]:
        rows: list[Settled] = []
        for half in self.chosen:
            assert half.outcome is not None
            about = half.entry
            rows.append(Settled(half.id, half.outcome, about.half.database, about.part, about.parts))
        return tuple(rows)


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
        settled: SettledStep,
    ) -> None:
        """``settled`` is told what each step settled, also of a former owner whose step is read
        again; `confirmed` is the answer to it."""
        self.where = where
        self.phase = Phase.DOWN
        self.index = HalfIndex()
        self.read_next = 0
        self.records_read = 0
        self.retry_at_s = 0.0
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
        self._truncated = 0
        self._paused = False
        self._failures = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.index = HalfIndex()
        self.records_read = 0
        self._open: BrokerTransaction | None = None
        self._position: int | None = None
        self._step = self._until_step = self._marked_step = 0
        self._until_offset: int | None = None
        self._halves_max = self._budget.step_halves_max
        self._park_next: dict[HalfId, str] = {}
        self._repaired: set[str] = set()
        self._refused_until: dict[str, float] = {}
        self._reported: set[str] = set()
        self._aside_until: dict[HalfId, float] = {}
        self._unconfirmed: dict[int, int] = {}
        self._reread: tuple[int, dict[HalfId, tuple[Envelope, ...]]] = (-1, {})

    # take-over (rules 14, 20, 21)

    def take_over(self, membership: Membership) -> None:
        """Fence the former owner, find the position, and begin to read from it."""
        if self._clock.monotonic_s() < self.retry_at_s:
            return
        self._begin_anew()
        try:
            self._transactions = self._backend.broker_transactions(self._id, self._budget.broker_transaction_timeout_s)
            self._repair_own(membership)
            committed = self._receiver.committed(self.where)
            self.read_next = committed.offset if committed else self._log.start(self.where.partition)
            self._until_offset = self._log.end(self.where.partition)
            self._receiver.seek(self.where, self.read_next)
            self._resume()
        except BackendError as exc:
            self._go_down(exc)
            return
        if committed is not None:
            self._position = committed.offset
            if committed.note:
                step, marked = committed.note.split()
                self._step = self._until_step = int(step)
                self._marked_step = int(marked)
        self.phase = Phase.READING

    def _repair_own(self, membership: Membership) -> None:
        """A broker that lost the former owner's abort marker would make its records visible with
        our first commit; an aborted broker transaction on the same partition repairs that."""
        assert self._transactions is not None
        repair = self._transactions.begin()
        repair.send(Envelope(self.where.topic, join([])), self.where.partition)
        repair.positions(self._group, membership, {self.where: Committed(0)})
        repair.abort()

    def _repair_destinations(self, topics: Iterable[str]) -> bool:
        """The same for destinations, before this owner's first commit there: a former owner may
        have published what we cannot know (its index was ahead of ours), to any partition of them.

        False if one of them is refused: it is held back."""
        missing = sorted(set(topics) - self._repaired)
        if not missing:
            return True
        assert self._transactions is not None
        admin = self._backend.admin()
        try:
            found = admin.describe(missing)
        finally:
            admin.close()
        refused: list[tuple[str, DestinationRefused]] = []
        touch = self._open = self._transactions.begin()
        for topic in missing:
            description = found[topic]
            try:
                if description is None:
                    raise DestinationRefused(f"topic {topic!r} does not exist")
                for partition in range(description.partitions):
                    touch.send(Envelope(topic, b""), partition)
            except DestinationRefused as exc:
                refused.append((topic, exc))
                break  # the broker transaction may be broken now
            except MessageRefused as exc:
                self._alarm(f"destination {topic!r} could not be repaired: {exc}")
                break
        touch.abort()
        self._open = None
        for topic, error in refused:
            self._hold_topic(topic, error)
        if not refused:
            self._repaired.update(missing)
        return not refused

    def feed(self, received: Received, now_s: float) -> None:
        """Take in one record of the log."""
        assert self.phase is not Phase.DOWN
        offset = received.position.offset
        try:
            entries: Sequence[Entry] = decode(received.envelope.payload)
        except NewerRecord as exc:
            self._alarm(f"stopped at {received.position}: {exc}")
            self._go_down(BackendUnavailable(str(exc)))
            return
        except DecodeError as exc:
            self._alarm(f"{received.position} skipped: {exc}")
            entries = ()
        self.read_next = offset + 1
        self.records_read += 1
        for number, entry in enumerate(entries):
            self.index.apply(entry, offset, number, now_s)
            if isinstance(entry, StepEntry) and self.phase is Phase.READING:
                self._settled_before(entry, offset)
        if self.phase is Phase.READING and 0 < self._until_step <= self.index.last_step:
            self._activate()
        self._keep_budget()

    def _settled_before(self, entry: StepEntry, offset: int) -> None:
        self._step = max(self._step, entry.step)
        if entry.step > self._marked_step:
            self._note_settled(entry.step, offset, entry.settled)

    def _activate(self) -> None:
        """Act from now on: no S of a former owner can follow any more (rule 20)."""
        self.phase = Phase.ACTIVE
        self._until_offset = None
        self._failures = 0
        self._emit(TakeOver(self._service, "", self.where.partition, self.records_read, len(self.index.halves)))

    def _look_for_end(self) -> None:
        """Without an S to wait for, the readable end of the take-over is where reading suffices:
        what became readable later was not written by a former owner."""
        assert self._until_offset is not None
        try:
            if self.read_next < self._until_offset:
                records, upto = self._log.read(self.where.partition, self.read_next, 1, self._budget.reread_s)
                if records or upto < self._until_offset:
                    return
        except BackendError as exc:
            self._go_down(exc)
            return
        if self.index.last_step < self._until_step:
            self._alarm(f"step {self._until_step} stands beside the position, but its S is not in the log")
        self._activate()

    # the window (rule 20)

    @property
    def window_full(self) -> bool:
        """Are there too many open halves to read on? Not while only an operator's word, which must
        be read, can make room."""
        return len(self.index.halves) >= self._budget.window_halves_max and not self.index.idle

    def _keep_budget(self) -> None:
        budget = self._budget.payload_budget_bytes
        if self.index.payload_bytes > budget:
            self.index.drop_payloads(budget // 2)
        if self.window_full and not self._paused and self.phase is Phase.ACTIVE:
            self._paused = True
            self._receiver.pause(frozenset({self.where}))
            self._alarm(f"{len(self.index.halves)} halves are open; reading stops until some are settled")

    def _resume_reading(self) -> None:
        room = len(self.index.halves) < self._budget.window_halves_max * 3 // 4
        if self._paused and (room or self.index.idle):
            self._resume()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._receiver.resume(frozenset({self.where}))

    def payloads(self, half: OpenHalf) -> tuple[Envelope, ...]:
        """A half's messages; read again from the log, and not kept, if they are out of memory."""
        if half.envelopes is not None:
            return half.envelopes
        if self._reread[0] != half.offset:
            records, _ = self._log.read(self.where.partition, half.offset, 1, self._budget.reread_s)
            here = [r for r in records if r.position.offset == half.offset]
            entries = decode(here[0].envelope.payload) if here else ()
            found = {e.half.id: e.half.envelopes for e in entries if isinstance(e, HalfEntry)}
            self._reread = (half.offset, found)
        envelopes = self._reread[1].get(half.id)
        if envelopes is None:
            self._reread = (-1, {})
            raise BackendUnavailable(f"{self.where}@{half.offset}: half {half.id} could not be read again")
        return envelopes

    # steps (rules 15 to 19, 22)

    def park(self, half_id: HalfId, reason: str) -> None:
        """Set a half aside for an operator with the next step."""
        if half_id in self.index.halves:
            self._park_next[half_id] = reason[:_REASON_CHARS_MAX]

    def work(self, membership: Membership) -> bool:
        """One step, if anything is to be done; True if more may be."""
        if self.phase is Phase.READING:
            self._look_for_end()
        if self.phase is not Phase.ACTIVE or self._clock.monotonic_s() < self.retry_at_s:
            return False
        self._resume_reading()
        step = self._plan()
        return step is not None and self._attempt(step, membership)

    def _plan(self) -> _Step | None:
        budget = self._budget
        chosen: list[OpenHalf] = []
        parking = self._parking()
        if not parking:
            chosen = self.index.publishable(
                self._halves_max,
                budget.step_messages_max,
                budget.step_bytes_max,
                self._still_held(self._refused_until),
                self._still_held(self._aside_until),
            )
        position = self.index.position(self.read_next, [h.id for h in chosen])
        before = position if chosen or parking or self._position is None else self._position
        # A step that is being narrowed down to a fault carries nothing that is not at issue.
        due = not parking and (not chosen or self._halves_max >= budget.step_halves_max)
        due = due and self.index.reappend_due(self.read_next, before, budget.reappend_records)
        if not (chosen or parking or due):
            return None
        again = [half for half, _ in parking]
        if due:
            gone = {half.id for half in chosen}
            again = [half for half in self.index.in_order() if half.id not in gone]
            position = self.read_next
        return _Step(self._step + 1, chosen, parking, again, min(position, self._unmarked(position)), position)

    def _unmarked(self, position: int) -> int:
        """Where a new owner must begin to learn of every step whose ledger rows are not marked yet;
        given up beyond twice the distance of a re-append."""
        limit = 2 * max(self._budget.reappend_records, 2 * len(self.index.halves))
        for step, offset in list(self._unconfirmed.items()):
            if self.read_next - offset <= limit:
                return offset
            del self._unconfirmed[step]
        return position

    def _parking(self) -> list[tuple[OpenHalf, str]]:
        """One half to park, in a step of its own; not those that got an outcome meanwhile."""
        for half_id in list(self._park_next):
            half = self.index.halves.get(half_id)
            if half is not None and half.outcome is None:
                return [(half, self._park_next[half_id])]
            del self._park_next[half_id]
        return []

    def _still_held(self, until: dict[T, float]) -> frozenset[T]:
        now_s = self._clock.monotonic_s()
        for name in [name for name, at_s in until.items() if at_s <= now_s]:
            del until[name]
        return frozenset(until)

    def _attempt(self, step: _Step, membership: Membership) -> bool:
        """One broker transaction; afterwards everything is known of it, or the clients are gone."""
        assert self._transactions is not None
        committed = (half for half in step.chosen if half.outcome is Outcome.COMMITTED)
        try:
            if not self._repair_destinations(topic for half in committed for topic in half.topics):
                return True
            opened = self._open = self._transactions.begin()
            self._fill(opened, step, membership)
            self._emit(StepOpen(self._service, "", self.where.partition, step.messages, len(step.chosen)))
            opened.commit()
            self._open = None
        except (Fenced, CommitUnknown) as exc:
            self._go_down(exc)
            return False
        except (BackendError, _Guilty) as exc:
            try:
                if self._open is not None:
                    self._open.abort()
                    self._open = None
            except BackendError as second:
                self._go_down(second)
                return False
            return self._failed(step, exc)
        self._done(step)
        return True

    def _fill(self, opened: BrokerTransaction, step: _Step, membership: Membership) -> None:
        """Messages in order, H′, S as the last record, and the position with its number (rule 15)."""
        for half in step.chosen:
            if half.outcome is Outcome.COMMITTED:
                for envelope in self.payloads(half):
                    try:
                        opened.send(envelope)
                    except (MessageRefused, DestinationRefused) as exc:
                        raise _Guilty(half, envelope.topic, exc) from exc
        reasons = {half.id: why for half, why in step.parking}
        batch: list[EncodedEntry] = []
        size = 0
        for half in step.again:
            known = half.known(self.payloads(half))
            if half.id in reasons:
                known = HalfEntry(
                    known.half,
                    known.part,
                    known.parts,
                    known.first,
                    None,
                    known.checks,
                    reasons[half.id],
                    known.released,
                )
            entry = encode_entry(known)
            if batch and size + entry.size > self._budget.reappend_batch_bytes:
                self._append(opened, batch)
                batch, size = [], 0
            batch.append(entry)
            size += entry.size
        if batch:
            self._append(opened, batch)
        self._append(opened, [encode_entry(StepEntry(step.number, step.settled()))])
        # Beside the position: this step's number, and up to which step the ledgers know everything.
        marked = next(iter(self._unconfirmed), step.number) - 1
        note = f"{step.number} {marked}"
        opened.positions(self._group, membership, {self.where: Committed(step.position, note)})

    def _append(self, opened: BrokerTransaction, entries: Sequence[EncodedEntry]) -> None:
        opened.send(Envelope(self.where.topic, join(entries)), self.where.partition)

    def _done(self, step: _Step) -> None:
        self._step = step.number
        self._position = step.reached
        self._failures = 0
        self._halves_max = min(self._budget.step_halves_max, self._halves_max * 2)
        settled = step.settled()
        for half in step.chosen:
            self.index.settled(half.id)
            if half.outcome is Outcome.COMMITTED:
                self._reported -= half.topics
        if step.again and not step.parking:
            self.index.reappended(step.again, self.read_next)
        for half, why in step.parking:
            self.index.park(half, why)
            del self._park_next[half.id]
            self._emit(HalfParked(self._service, "", half.id.tx_id, half.id.attempt, why))
        self._emit(StepCommitted(self._service, "", self.where.partition, step.messages, len(step.chosen)))
        self._note_settled(step.number, self.read_next, settled)
        self._resume_reading()
        self._truncate(step.position)

    def _truncate(self, position: int) -> None:
        """Only below a position whose commit returned (rule 23), and below what is read again."""
        if position - self._truncated < self._budget.truncate_records:
            return
        try:
            self._log.truncate(self.where.partition, self.index.payload_floor(position))
        except BackendError as exc:
            self._alarm(f"could not be truncated: {exc}")
        self._truncated = position

    # what the ledgers are told

    def _note_settled(self, step: int, offset: int, settled: Sequence[Settled]) -> None:
        published = [s for s in settled if s.outcome is Outcome.COMMITTED]
        if published:
            self._unconfirmed[step] = offset
            self._settled(self.where, step, published)

    def confirmed(self, step: int) -> None:
        """The ledgers know what this step published."""
        self._unconfirmed.pop(step, None)

    # failures

    def _failed(self, step: _Step, error: BackendError | _Guilty) -> bool:
        """The step was aborted for certain. Find the message or the destination at fault, or try
        again with half the halves (rule 22)."""
        if isinstance(error, _Guilty):
            if isinstance(error.error, MessageRefused):
                self._refuse(error.half, error.error)
            else:
                self._hold_topic(error.topic, error.error)
            return True
        if not isinstance(error, (MessageRefused, DestinationRefused)) or not step.messages:
            self._slow_down(error)
            return False
        if len(step.chosen) > 1:
            self._halves_max = len(step.chosen) // 2
            return True
        (half,) = step.chosen
        if isinstance(error, MessageRefused):
            self._refuse(half, error)
        elif len(half.topics) == 1:
            self._hold_topic(next(iter(half.topics)), error)
        else:
            self._aside_until[half.id] = self._clock.monotonic_s() + self._budget.destination_backoff_s
            self._alarm(f"half {half.id} held, one of {', '.join(sorted(half.topics))} is refused: {error}")
        return True

    def _refuse(self, half: OpenHalf, error: MessageRefused) -> None:
        why = f"cannot be published: {error}"
        self.index.park(half, why)
        self.park(half.id, why)

    def _hold_topic(self, topic: str, error: DestinationRefused) -> None:
        self._refused_until[topic] = self._clock.monotonic_s() + self._budget.destination_backoff_s
        self._repaired.discard(topic)
        if topic not in self._reported:
            self._reported.add(topic)
            self._alarm(f"halves for {topic!r} are held: {error}")

    def _slow_down(self, error: BackendError) -> None:
        """Again, later, with half the halves."""
        self._failures += 1
        self._halves_max = max(1, self._halves_max // 2)
        self._back_off()
        if self._failures == 3:
            self._alarm(f"steps fail: {error}")

    def _back_off(self) -> None:
        first, cap = self._budget.backoff_s
        wait_s = min(cap, first * 2.0 ** min(self._failures - 1, 30))
        self.retry_at_s = self._clock.monotonic_s() + wait_s * (0.5 + 0.5 * self._entropy.uniform())

    def _go_down(self, error: BackendError) -> None:
        """Fenced, or the result is unknown: drop the client, take over again; S tells (rule 21)."""
        self._failures += 1
        self.leave(orderly=False)
        self._back_off()
        try:
            # Nothing is read before the next take-over has sought its position.
            self._receiver.pause(frozenset({self.where}))
            self._paused = True
        except BackendError:
            pass  # then it is delivered, and ignored
        self._emit(Reconnected(self._service, "", f"half partition {self.where}", f"{type(error).__name__}: {error}"))

    def leave(self, orderly: bool) -> None:
        """Let go: the partition is lost, or the relay stops. Never raises."""
        transactions, self._transactions = self._transactions, None
        self.phase = Phase.DOWN
        self._begin_anew()
        if transactions is not None:
            try:
                if orderly:
                    transactions.close()
                else:
                    transactions.abandon()
            except BackendError as exc:
                self._alarm(f"not let go in order: {exc}")

    def _alarm(self, detail: str) -> None:
        self._emit(Alarm(self._service, "", "half log", f"{self.where}: {detail}"))
