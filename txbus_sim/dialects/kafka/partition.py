"""One partition: offsets, batches of idempotent producers, open transactions, the last stable offset."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from txbus_sim.dialects.kafka.codes import Code, Refusal

__all__ = ["Entry", "Message", "PartitionLog", "Producer", "State"]

_BATCHES_REMEMBERED = 5


class State(Enum):
    """What a reader of committed records makes of an entry."""

    PLAIN = auto()
    """Written outside of broker transactions."""
    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()
    MARKER = auto()


@dataclass(frozen=True, slots=True)
class Message:
    """A record as it was sent: ``body`` is opaque to the broker, ``size`` is its bytes."""

    body: Any
    size: int


@dataclass(frozen=True, slots=True)
class Producer:
    """Who sends: ``id`` and ``epoch`` were given by the broker, ``sequence`` counts the records that
    it sent to this partition before. ``transactional_id`` is "" outside of broker transactions."""

    id: int
    epoch: int
    sequence: int
    transactional_id: str = ""


@dataclass(slots=True)
class Entry:
    """One offset of the log. ``message`` None: a marker. ``by``: the process that sent it."""

    offset: int
    at_ms: int
    producer_id: int
    state: State
    message: Message | None
    by: str = ""
    transactional_id: str = ""


@dataclass(slots=True)
class _Batch:
    first: int
    last: int
    offset: int


@dataclass(slots=True)
class _Sequences:
    """What the partition remembers of one producer."""

    epoch: int
    batches: deque[_Batch] = field(default_factory=lambda: deque(maxlen=_BATCHES_REMEMBERED))


@dataclass(slots=True)
class _Open:
    """An open broker transaction as this partition sees it: from its first offset to its marker."""

    first: int
    entries: list[Entry]


class PartitionLog:
    """A log. ``start``: first retained offset; ``replicated``: the high watermark, below which no
    failover loses anything. ``stored`` and ``visible`` are told of entries as offsets pass."""

    def __init__(self, stored: Callable[[Entry], None], visible: Callable[[Entry], None]) -> None:
        self.start = 0
        self.replicated = 0
        self.unavailable_until_ns = 0
        self._stored = stored
        self._visible = visible
        self._entries: list[Entry] = []
        self._base = 0
        self._sequences: dict[int, _Sequences] = {}
        self._open: dict[int, _Open] = {}
        self._shown = 0

    @property
    def end(self) -> int:
        """The next offset to be given (log end offset)."""
        return self._base + len(self._entries)

    @property
    def stable(self) -> int:
        """The last stable offset: nothing at or above it is readable by read_committed readers."""
        if not self._open:
            return self.replicated
        return min(self.replicated, min(one.first for one in self._open.values()))

    @property
    def open_producers(self) -> tuple[int, ...]:
        """Producer ids with an open broker transaction here."""
        return tuple(self._open)

    # writing

    def append(self, messages: Sequence[Message], producer: Producer, now_ms: int, by: str) -> int:
        """One batch, all of it or none; the offset of its first record. A batch that is here already
        is not stored again: the offset is the first one's."""
        sequences = self._sequences.get(producer.id)
        if sequences is not None:
            found = self._known(sequences, producer, len(messages))
            if found is not None:
                return found
        if sequences is None or sequences.epoch != producer.epoch:
            sequences = self._sequences[producer.id] = _Sequences(producer.epoch)
        first = self.end
        state = State.OPEN if producer.transactional_id else State.PLAIN
        entries = [
            Entry(first + number, now_ms, producer.id, state, message, by, producer.transactional_id)
            for number, message in enumerate(messages)
        ]
        self._entries.extend(entries)
        sequences.batches.append(_Batch(producer.sequence, producer.sequence + len(messages) - 1, first))
        if state is State.OPEN:
            opened = self._open.get(producer.id)
            if opened is None:
                opened = self._open[producer.id] = _Open(first, [])
            opened.entries.extend(entries)
        return first

    def _known(self, sequences: _Sequences, producer: Producer, count: int) -> int | None:
        """The offset of a batch that was stored before; refuses a gap and an outdated epoch."""
        if producer.epoch < sequences.epoch:
            raise Refusal(Code.INVALID_PRODUCER_EPOCH, f"epoch {producer.epoch}, known is {sequences.epoch}")
        if producer.epoch > sequences.epoch:
            if producer.sequence != 0:
                raise Refusal(Code.OUT_OF_ORDER_SEQUENCE_NUMBER, "a new epoch begins with sequence 0")
            return None
        last = producer.sequence + count - 1
        for batch in sequences.batches:
            if (batch.first, batch.last) == (producer.sequence, last):
                return batch.offset
        if sequences.batches and producer.sequence != sequences.batches[-1].last + 1:
            expected = sequences.batches[-1].last + 1
            raise Refusal(Code.OUT_OF_ORDER_SEQUENCE_NUMBER, f"sequence {producer.sequence}, expected {expected}")
        return None

    def mark(self, producer_id: int, epoch: int, commit: bool, now_ms: int) -> None:
        """End a producer's broker transaction here. The marker takes an offset. Everything since its
        first offset ends with it, also what an earlier marker should have ended and did not."""
        self._entries.append(Entry(self.end, now_ms, producer_id, State.MARKER, None))
        opened = self._open.pop(producer_id, None)
        if opened is not None:
            state = State.COMMITTED if commit else State.ABORTED
            for entry in opened.entries:
                entry.state = state
        sequences = self._sequences.get(producer_id)
        if sequences is None or sequences.epoch < epoch:
            self._sequences[producer_id] = _Sequences(epoch)
        self.replicate()

    def replicate(self) -> None:
        """All in-sync replicas have everything."""
        for offset in range(self.replicated, self.end):
            entry = self._entries[offset - self._base]
            if entry.message is not None:
                self._stored(entry)
        self.replicated = self.end
        self._show()

    def _show(self) -> None:
        stable = self.stable
        for offset in range(max(self._shown, self._base), stable):
            entry = self._entries[offset - self._base]
            if entry.state is State.PLAIN or entry.state is State.COMMITTED:
                self._visible(entry)
        self._shown = max(self._shown, stable)

    def fail_over(self) -> None:
        """A replica takes over: what was not replicated is gone, and so is its producers' memory of it."""
        keep = self.replicated - self._base
        gone, self._entries = self._entries[keep:], self._entries[:keep]
        if not gone:
            return
        for sequences in self._sequences.values():
            while sequences.batches and sequences.batches[-1].offset >= self.replicated:
                sequences.batches.pop()
        for producer_id in list(self._open):
            opened = self._open[producer_id]
            opened.entries = [entry for entry in opened.entries if entry.offset < self.replicated]
            if not opened.entries:
                del self._open[producer_id]

    def delete_below(self, before: int) -> None:
        """Delete records. An open broker transaction all of whose records are gone is gone, too."""
        if before > self.replicated:
            raise Refusal(Code.OFFSET_OUT_OF_RANGE, f"delete below {before}, the high watermark is {self.replicated}")
        if before <= self.start:
            return
        del self._entries[: before - self._base]
        self.start = self._base = before
        for producer_id in list(self._open):
            opened = self._open[producer_id]
            opened.entries = [entry for entry in opened.entries if entry.offset >= before]
            if opened.entries:
                opened.first = max(opened.first, before)
            else:
                del self._open[producer_id]
        self._show()

    # reading

    def fetch(self, offset: int, most: int) -> tuple[list[Entry], int]:
        """Readable records from an offset on, and the offset to go on from: behind markers and aborted
        records that follow. Refuses an offset below the start or above the end."""
        if not self.start <= offset <= self.end:
            raise Refusal(Code.OFFSET_OUT_OF_RANGE, f"offset {offset}, the log is {self.start} to {self.end}")
        found: list[Entry] = []
        stable = self.stable
        while offset < stable:
            entry = self._entries[offset - self._base]
            if entry.state is State.PLAIN or entry.state is State.COMMITTED:
                if len(found) == most:
                    break
                found.append(entry)
            offset += 1
        return found, offset

    def readable_from(self, offset: int) -> bool:
        """Whether a fetch from here would find a record or move on."""
        return max(offset, self.start) < self.stable

    def offset_at(self, at_ms: int) -> int:
        """The first offset stored at or after a time and below the last stable one; else that one."""
        times = [entry.at_ms for entry in self._entries]
        return min(self.stable, self._base + bisect_left(times, at_ms))
