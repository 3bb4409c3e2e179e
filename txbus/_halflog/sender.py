"""The sending side of the half log: joins the entries of concurrent callers into shared records.

One caller at a time leads: it takes everything queued, appends one record per half partition (and
byte limit), and leads until its own records are durable; meanwhile the next batch gathers. Every
caller awaits its own records, for its own time. The sender's words on outcomes (D) are not awaited:
they ride with the next batch, or are flushed by a background task after a short linger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from txbus._halflog.records import DecisionEntry, EncodedEntry, encode_entry, homes, join, split
from txbus._halves import Half
from txbus._message import Envelope, Receipt
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._telemetry import Alarm, Emit
from txbus.errors import (
    BackendError,
    BackendUnavailable,
    DestinationRefused,
    HalfFailed,
    KeyHeld,
    MessageRefused,
    NotOpen,
    SendUnknown,
)
from txbus.spi import PendingAppend, Sender

__all__ = ["HalfLogSender", "HalfSenderBudget"]


@dataclass(frozen=True, slots=True)
class HalfSenderBudget:
    """``record_bytes_max``: joined entries fill a record up to here. ``entry_bytes_max``: a larger
    half is refused; the rest up to the broker's limit is reserve for what H′ and S add (rule 7).
    ``hint_linger_s``: how long a D waits for company. ``hints_max``: more D that wait are dropped."""

    record_bytes_max: int = 256 * 1024
    entry_bytes_max: int = 900 * 1024
    hint_linger_s: float = 0.005
    hints_max: int = 100_000
    hints_per_batch: int = 1_000
    close_s: float = 5.0


@dataclass(slots=True, eq=False)
class _Record:
    """Entries of several callers that share one append; ``pending`` or ``error`` once handed over."""

    partition: int
    entries: list[EncodedEntry] = field(default_factory=list)
    size: int = 0
    pending: PendingAppend | None = None
    error: BackendError | None = None


@dataclass(slots=True, eq=False)
class _Ticket:
    """One caller's entries by half partition, and the records that they went into."""

    entries: dict[int, EncodedEntry]
    deadline_s: float
    taken: bool = False
    handed_over: bool = False
    records: dict[int, _Record] = field(default_factory=dict)


class HalfLogSender:
    """Stores halves in a half log (a `HalfChannel`). Thread-safe."""

    def __init__(
        self,
        sender: Sender,
        topic: str,
        partitions: int,
        ports: Ports,
        budget: HalfSenderBudget,
        held_keys: Callable[[], frozenset[tuple[str, str]]],
        emit: Emit | None = None,
        service: str = "",
    ) -> None:
        """``held_keys`` gives the keys behind whose parked halves too many wait already (rule 28).
        Whether a destination exists and takes the message was checked when the envelope was made."""
        self._sender = sender
        self._topic = topic
        self._partitions = partitions
        self._clock = ports.clock
        self._budget = budget
        self._held_keys = held_keys
        self._emit = emit
        self._service = service
        self._condition = ports.runtime.condition()
        self._queue: list[_Ticket] = []
        self._hints: list[tuple[int, DecisionEntry]] = []
        self._leading = False
        self._closing = False
        self._flusher = ports.runtime.spawn(self._flush_hints, f"txbus-hints-{topic}")

    # HalfChannel

    def check(self, half: Half) -> None:
        """See `HalfChannel.check`: keys, held keys, and the bytes of each half partition's share."""
        held = self._held_keys()
        for envelope in half.envelopes:
            if envelope.key is None:
                continue
            try:
                envelope.key.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as exc:
                raise MessageRefused(f"topic {envelope.topic!r}: key {envelope.key!r:.100} is no text: {exc}") from exc
            if held and (envelope.topic, envelope.key) in held:
                raise KeyHeld(
                    f"topic {envelope.topic!r}, key {envelope.key!r}: too many halves wait behind a parked one; "
                    "see `txbus unresolved list` and resolve it, then try again"
                )
        for entry in split(half, self._partitions).values():
            size = encode_entry(entry).size
            if size > self._budget.entry_bytes_max:
                raise MessageRefused(
                    f"local transaction {half.id}: its {len(entry.half.envelopes)} messages of one half partition "
                    f"take {size} bytes, more than the {self._budget.entry_bytes_max} a half may have; "
                    "send fewer or smaller messages in one block"
                )

    def store(self, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        """See `HalfChannel.store`. The deadline covers the queueing (rule 5); an H of unknown fate is
        not sent again (rule 4)."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        entries = {p: encode_entry(entry) for p, entry in split(half, self._partitions).items()}
        ticket = _Ticket(entries, deadline_s)
        try:
            if self._wait_for_turn(ticket):
                self._lead(ticket)
            return tuple(self._await(ticket, partition) for partition in ticket.entries)
        except (MessageRefused, DestinationRefused):
            raise
        except BackendError as exc:
            raise HalfFailed(
                f"local transaction {half.id}: its half message was not durable in {self._topic!r} "
                f"within half_timeout_s={timeout_s:g}: {exc}"
            ) from exc

    def tell(self, half: Half, outcome: Outcome) -> None:
        """Queue a D for each half partition of this half; a lost one costs a check, no more."""
        word = DecisionEntry(half.id, outcome)
        with self._condition:
            if self._closing or len(self._hints) >= self._budget.hints_max:
                return
            self._hints.extend((home, word) for home in homes(half, self._partitions))
            if not self._leading:
                self._condition.notify_all()

    def flush(self) -> None:
        """Hand the waiting D over to the broker's client now. Does not await them; never raises."""
        with self._condition:
            while self._leading:
                if not self._condition.wait(self._budget.close_s):
                    return
            self._leading = True
        try:
            self._lead(None)
        except BackendError:
            pass  # hints: check-back asks for what they would have told
        except Exception as exc:
            if self._emit is not None:
                self._emit(Alarm(self._service, "", "half log", f"hints lost: {type(exc).__name__}: {exc}"))

    def close(self) -> None:
        """Send the waiting hints and stop. Idempotent; bounded by ``close_s`` and the client."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._flusher.join(self._budget.close_s)
        self._sender.close()

    # joining

    def _wait_for_turn(self, ticket: _Ticket) -> bool:
        """Queue up; True if this caller is to lead, False once a leader has handed its entries over.

        BackendUnavailable when the time is over first: then nothing of it was, or will be, sent
        unless a leader is at it just now."""
        with self._condition:
            if self._closing:
                raise NotOpen("the bus is closed: no half message can be stored any more")
            self._queue.append(ticket)
            try:
                while not ticket.handed_over:
                    left_s = ticket.deadline_s - self._clock.monotonic_s()
                    if left_s <= 0:
                        if ticket.taken:
                            raise SendUnknown("it was being handed over when the time was over")
                        raise BackendUnavailable("it was still queued behind other halves")
                    if not self._leading and not ticket.taken:
                        self._leading = True
                        return True
                    self._condition.wait(left_s)
                return False
            except BaseException:
                if not ticket.taken:
                    self._queue.remove(ticket)
                raise

    def _lead(self, own: _Ticket | None) -> None:
        """Append everything queued; then lead on until the own records are durable, so that the next
        batch gathers company meanwhile."""
        with self._condition:
            tickets, self._queue = self._queue, []
            hints = self._hints[: self._budget.hints_per_batch]
            del self._hints[: len(hints)]
            for ticket in tickets:
                ticket.taken = True
        records = self._join(tickets, hints)
        try:
            for record in records:
                self._append(record)
            self._hand_over(tickets)
            for record in own.records.values() if own is not None else ():
                if record.pending is not None and own is not None:
                    self._settle(record.pending, own.deadline_s)
        finally:
            for record in records:
                if record.pending is None and record.error is None:
                    record.error = BackendUnavailable("the caller that was to send it was interrupted")
            with self._condition:
                self._leading = False
            self._hand_over(tickets)

    def _hand_over(self, tickets: list[_Ticket]) -> None:
        with self._condition:
            for ticket in tickets:
                ticket.handed_over = True
            self._condition.notify_all()

    def _settle(self, pending: PendingAppend, deadline_s: float) -> None:
        try:
            pending.result(max(0.0, deadline_s - self._clock.monotonic_s()))
        except BackendError:
            pass  # each caller sees for itself what became of its own

    def _join(self, tickets: list[_Ticket], hints: list[tuple[int, DecisionEntry]]) -> list[_Record]:
        records: list[_Record] = []
        filling: dict[int, _Record] = {}

        def add(partition: int, entry: EncodedEntry) -> _Record:
            record = filling.get(partition)
            if record is None or record.size + entry.size > self._budget.record_bytes_max:
                record = filling[partition] = _Record(partition)
                records.append(record)
            record.entries.append(entry)
            record.size += entry.size
            return record

        for ticket in tickets:
            for partition, entry in ticket.entries.items():
                ticket.records[partition] = add(partition, entry)
        for partition, word in hints:
            add(partition, encode_entry(word))
        return records

    def _append(self, record: _Record) -> None:
        try:
            record.pending = self._sender.append(Envelope(self._topic, join(record.entries)), record.partition)
        except BackendError as exc:
            record.error = exc

    def _await(self, ticket: _Ticket, partition: int) -> Receipt:
        """The receipt of the own entry in one half partition.

        A joined record that was refused for good is not stored, by the contract of the SPI; so the
        own entry is sent alone then, and a bad one does not fail its neighbours (rule 7)."""
        record = ticket.records[partition]
        try:
            return self._result(record, ticket.deadline_s)
        except MessageRefused:
            if len(record.entries) == 1:
                raise
        alone = _Record(partition, [ticket.entries[partition]])
        self._append(alone)
        return self._result(alone, ticket.deadline_s)

    def _result(self, record: _Record, deadline_s: float) -> Receipt:
        if record.error is not None:
            # One error object is not raised in several threads at once.
            raise type(record.error)(*record.error.args) from record.error
        assert record.pending is not None
        return record.pending.result(max(0.0, deadline_s - self._clock.monotonic_s()))

    def _flush_hints(self) -> None:
        while True:
            with self._condition:
                while not self._closing and not self._hints:
                    self._condition.wait()
                if not self._hints:
                    return
                closing = self._closing
            if not closing:
                self._clock.sleep_s(self._budget.hint_linger_s)
            self.flush()
