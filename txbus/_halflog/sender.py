"""The sending side of the half log: joins the entries of concurrent callers into shared records.

One caller at a time leads: it takes everything queued, writes one record per half partition (and
byte limit), waits for them, and wakes its followers. While it waits, the next batch gathers. The
sender's words on outcomes (D) are not awaited: they ride with the next batch, or are flushed by a
background task after a short linger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from txbus._halflog.records import (
    DecisionEntry,
    Entry,
    HalfEntry,
    encode,
    entry_size,
    half_partition,
    split,
)
from txbus._halves import Half
from txbus._message import Envelope, Receipt
from txbus._outcome import Outcome
from txbus._ports import Ports
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
    ``hint_linger_s``: how long a D waits for company."""

    record_bytes_max: int = 256 * 1024
    entry_bytes_max: int = 900 * 1024
    hint_linger_s: float = 0.005
    hints_max: int = 100_000


@dataclass(slots=True, eq=False)
class _Ticket:
    """One caller's entries, and what became of them."""

    entries: dict[int, HalfEntry]
    deadline_s: float
    taken: bool = False
    done: bool = False
    abandoned: bool = False
    error: BackendError | None = None
    pendings: list[PendingAppend] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Record:
    """Entries of several tickets that share one append."""

    partition: int
    entries: list[Entry] = field(default_factory=list)
    tickets: list[_Ticket] = field(default_factory=list)
    size: int = 0


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
    ) -> None:
        """``held_keys`` gives the keys behind whose parked halves too many wait already (rule 28).
        Whether a destination exists and takes the message was checked when the envelope was made."""
        self._sender = sender
        self._topic = topic
        self._partitions = partitions
        self._clock = ports.clock
        self._budget = budget
        self._held_keys = held_keys
        self._condition = ports.runtime.condition()
        self._queue: list[_Ticket] = []
        self._hints: list[tuple[int, DecisionEntry]] = []
        self._leading = False
        self._closing = False
        self._flusher = ports.runtime.spawn(self._flush_hints, f"txbus-hints-{topic}")

    # HalfChannel

    def check(self, half: Half) -> None:
        """Refuse before any row is locked what could never be stored or published."""
        held = self._held_keys()
        for envelope in half.envelopes:
            if held and envelope.key is not None and (envelope.topic, envelope.key) in held:
                raise KeyHeld(
                    f"topic {envelope.topic!r}, key {envelope.key!r}: too many halves wait behind a parked one; "
                    "see `txbus unresolved list` and resolve it, then try again"
                )
        for entry in split(half, self._partitions).values():
            size = entry_size(entry)
            if size > self._budget.entry_bytes_max:
                raise MessageRefused(
                    f"local transaction {half.id}: its {len(entry.half.envelopes)} messages of one half partition "
                    f"take {size} bytes, more than the {self._budget.entry_bytes_max} a half may have; "
                    "send fewer or smaller messages in one block"
                )

    def store(self, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        """See `HalfChannel.store`. The deadline covers the queueing (rule 5)."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        ticket = _Ticket(split(half, self._partitions), deadline_s)
        lead = self._enqueue(ticket)
        if lead:
            self._lead(ticket)
        if not ticket.done:
            self._await_directly(ticket)
        if ticket.error is None and len(ticket.receipts) < len(ticket.entries):
            ticket.error = SendUnknown("no answer came in time")
        if ticket.error is not None:
            error = ticket.error
            if isinstance(error, (MessageRefused, DestinationRefused)):
                raise error
            raise HalfFailed(
                f"local transaction {half.id}: its half message was not durable in {self._topic!r} "
                f"within half_timeout_s={timeout_s:g}: {error}"
            ) from error
        return tuple(ticket.receipts)

    def tell(self, half: Half, outcome: Outcome) -> None:
        """Queue a D for each half partition of this half; a lost one costs a check, no more."""
        keys = {e.key for e in half.envelopes if e.key is not None}
        homes = {half_partition(key, self._partitions) for key in keys}
        if not homes:
            homes = {half_partition(half.id.tx_id, self._partitions)}
        word = DecisionEntry(half.id, outcome)
        with self._condition:
            if len(self._hints) < self._budget.hints_max:
                self._hints.extend((home, word) for home in homes)
                if not self._leading:
                    self._condition.notify_all()

    def close(self) -> None:
        """Send the waiting hints and stop. Idempotent."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._flusher.join(5.0)
        self._sender.close()

    # joining

    def _enqueue(self, ticket: _Ticket) -> bool:
        """Queue a ticket and wait until it is done, handed to the caller, or the caller's to lead."""
        with self._condition:
            if self._closing:
                raise NotOpen("the bus is closed: no half message can be stored any more")
            self._queue.append(ticket)
            while not (ticket.done or ticket.abandoned):
                if not self._leading and not ticket.taken:
                    self._leading = True
                    return True
                left_s = ticket.deadline_s - self._clock.monotonic_s()
                if left_s <= 0:
                    if not ticket.taken:
                        self._queue.remove(ticket)
                        ticket.done = True
                        ticket.error = BackendUnavailable("it was still queued behind other halves")
                    break
                self._condition.wait(left_s)
            return False

    def _lead(self, own: _Ticket | None) -> None:
        """Append everything queued and wait for it, no longer than the own deadline."""
        with self._condition:
            tickets, self._queue = self._queue, []
            hints, self._hints = self._hints, []
            for ticket in tickets:
                ticket.taken = True
        try:
            started = self._append(self._join(tickets, hints), tickets)
            for record, pending in started:
                self._await_record(record, pending, own)
        finally:
            with self._condition:
                self._leading = False
                for ticket in tickets:
                    # What the leader could not wait for any longer, its callers wait for themselves.
                    ticket.abandoned = ticket.abandoned or bool(ticket.pendings)
                    ticket.done = not ticket.pendings
                self._condition.notify_all()

    def _join(self, tickets: list[_Ticket], hints: list[tuple[int, DecisionEntry]]) -> list[_Record]:
        records: list[_Record] = []
        filling: dict[int, _Record] = {}

        def add(partition: int, entry: Entry, ticket: _Ticket | None) -> None:
            size = entry_size(entry)
            record = filling.get(partition)
            if record is None or record.size + size > self._budget.record_bytes_max:
                record = filling[partition] = _Record(partition)
                records.append(record)
            record.entries.append(entry)
            record.size += size
            if ticket is not None:
                record.tickets.append(ticket)

        for partition, word in hints:
            add(partition, word, None)
        for ticket in tickets:
            for partition, entry in ticket.entries.items():
                add(partition, entry, ticket)
        return records

    def _append(self, records: list[_Record], tickets: list[_Ticket]) -> list[tuple[_Record, PendingAppend]]:
        started: list[tuple[_Record, PendingAppend]] = []
        for record in records:
            try:
                pending = self._sender.append(Envelope(self._topic, encode(record.entries)), record.partition)
            except BackendError as exc:
                if not self._isolate(record, exc, started):
                    self._fail(record, exc)
                continue
            started.append((record, pending))
            for ticket in record.tickets:
                ticket.pendings.append(pending)
        return started

    def _await_record(self, record: _Record, pending: PendingAppend, own: _Ticket | None) -> None:
        now_s = self._clock.monotonic_s()
        deadline_s = own.deadline_s if own is not None else now_s + 1.0
        if deadline_s <= now_s and own is not None:
            return
        try:
            receipt = pending.result(max(0.0, deadline_s - now_s))
        except BackendError as exc:
            if self._clock.monotonic_s() >= deadline_s and not exc.outcome_known:
                return
            alone: list[tuple[_Record, PendingAppend]] = []
            self._forget(record, pending)
            if not self._isolate(record, exc, alone):
                self._fail(record, exc)
            for single, second in alone:
                self._await_record(single, second, own)
            return
        self._forget(record, pending)
        for ticket in record.tickets:
            ticket.receipts.append(receipt)

    def _isolate(
        self, record: _Record, error: BackendError, started: list[tuple[_Record, PendingAppend]]
    ) -> bool:
        """A joined record was refused for good, so nothing of it is stored: send its entries one by
        one, so that a bad one does not fail its neighbours (rule 7)."""
        if not isinstance(error, MessageRefused) or len(record.entries) < 2:
            return False
        for ticket, entry in [(t, t.entries[record.partition]) for t in record.tickets]:
            single = _Record(record.partition, [entry], [ticket], entry_size(entry))
            started.extend(self._append([single], [ticket]))
        return True

    def _fail(self, record: _Record, error: BackendError) -> None:
        for ticket in record.tickets:
            ticket.error = ticket.error or error

    def _forget(self, record: _Record, pending: PendingAppend) -> None:
        for ticket in record.tickets:
            ticket.pendings.remove(pending)

    def _await_directly(self, ticket: _Ticket) -> None:
        """The leader left before this ticket's records were durable: wait for the rest of our time."""
        for pending in list(ticket.pendings):
            left_s = ticket.deadline_s - self._clock.monotonic_s()
            try:
                ticket.receipts.append(pending.result(max(0.0, left_s)))
            except BackendError as exc:
                ticket.error = ticket.error or exc

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
            with self._condition:
                while self._leading:
                    self._condition.wait()
                if not self._hints:
                    continue
                self._leading = True
            self._lead(None)
