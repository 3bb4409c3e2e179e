"""What a relay knows of one half partition: a pure state machine without I/O or clock.

Fed with the log's entries in order, it answers: what may be published now and in which order, what
is due for a check, which position is safe, and whether re-appending is due.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from txbus._halflog.records import DecisionEntry, Entry, HalfEntry, ReleaseEntry, StepEntry, entry_size
from txbus._halves import Half, HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome

__all__ = ["HalfIndex", "OpenHalf"]

Key = tuple[str, str]


@dataclass(slots=True)
class OpenHalf:
    """An unsettled half.

    ``first`` is where its first H stands (offset, index in the record): its place in the order.
    ``offset`` is the record a new owner must be able to read it from; after a re-append, until the
    new record was read back, a lower bound of it. ``envelopes`` is None while the payloads are out
    of memory.
    """

    entry: HalfEntry
    first: tuple[int, int]
    offset: int
    offset_exact: bool
    seen_s: float
    envelopes: tuple[Envelope, ...] | None
    keys: tuple[Key, ...]
    topics: frozenset[str]
    messages: int
    size: int
    outcome: Outcome | None
    checks: int = 0
    checked_s: float | None = None
    parked: str | None = None
    released: bool = False
    by_operator: bool = False

    @property
    def id(self) -> HalfId:
        return self.entry.half.id

    @property
    def holds(self) -> bool:
        """Do later halves of its keys have to wait for it?"""
        return not self.released

    def known(self) -> HalfEntry:
        """H′: the half as it would be re-appended now. Its payloads must be in memory."""
        assert self.envelopes is not None
        bare = self.entry.half
        return HalfEntry(
            Half(bare.id, bare.ledger_id, bare.database, bare.created_s, self.envelopes),
            self.entry.part,
            self.entry.parts,
            self.first,
            self.outcome,
            self.checks,
            self.parked,
            self.released,
        )


@dataclass(slots=True)
class HalfIndex:
    """The unsettled halves of one half partition."""

    halves: dict[HalfId, OpenHalf] = field(default_factory=dict)
    payload_bytes: int = 0
    last_step: int = 0
    _order: list[tuple[tuple[int, int], HalfId]] = field(default_factory=list)
    _keys: dict[Key, list[tuple[tuple[int, int], HalfId]]] = field(default_factory=dict)

    def apply(self, entry: Entry, offset: int, index: int, now_s: float) -> None:
        """Take in one entry, read at ``offset`` as the ``index``-th of its record."""
        match entry:
            case HalfEntry():
                self._apply_half(entry, offset, index, now_s)
            case DecisionEntry():
                half = self.halves.get(entry.id)
                # A D for a half that is not here is D before H, or D after S: harmless. The ledger
                # answers for the first, the second is settled.
                if half is not None and half.outcome is None:
                    half.outcome = entry.outcome
                    half.by_operator = entry.operator
                    half.parked = None
            case ReleaseEntry():
                half = self.halves.get(entry.id)
                if half is not None and half.parked is not None:
                    half.released = True
            case StepEntry():
                self.last_step = max(self.last_step, entry.step)
                for half_id, _ in entry.settled:
                    self.settle(half_id)

    def _apply_half(self, entry: HalfEntry, offset: int, index: int, now_s: float) -> None:
        half_id = entry.half.id
        known = self.halves.get(half_id)
        if known is not None:
            known.offset, known.offset_exact = offset, True
            known.checks = max(known.checks, entry.checks)
            if entry.parked is None:
                known.outcome = known.outcome or entry.outcome
            elif not known.by_operator:
                # Parked after its outcome was known (it cannot be published): the flag counts until
                # an operator's word, which may stand before this H′ in the log.
                known.parked, known.outcome = entry.parked, None
            known.released = known.released or entry.released
            return
        half = entry.half
        size = entry_size(entry)
        keys = tuple({(e.topic, e.key): None for e in half.envelopes if e.key is not None})
        bare = Half(half.id, half.ledger_id, half.database, half.created_s, ())
        opened = OpenHalf(
            entry=HalfEntry(bare, entry.part, entry.parts),
            first=entry.first if entry.first is not None else (offset, index),
            offset=offset,
            offset_exact=True,
            seen_s=now_s,
            envelopes=half.envelopes,
            keys=keys,
            topics=frozenset(e.topic for e in half.envelopes),
            messages=len(half.envelopes),
            size=size,
            outcome=entry.outcome,
            checks=entry.checks,
            parked=entry.parked,
            released=entry.released,
        )
        self.halves[half_id] = opened
        self.payload_bytes += size
        bisect.insort(self._order, (opened.first, half_id))
        for key in keys:
            bisect.insort(self._keys.setdefault(key, []), (opened.first, half_id))

    def settle(self, half_id: HalfId) -> None:
        """Forget a half: its S is written."""
        half = self.halves.pop(half_id, None)
        if half is None:
            return
        if half.envelopes is not None:
            self.payload_bytes -= half.size
        mark = (half.first, half_id)
        del self._order[bisect.bisect_left(self._order, mark)]
        for key in half.keys:
            row = self._keys[key]
            del row[bisect.bisect_left(row, mark)]
            if not row:
                del self._keys[key]

    def in_order(self) -> Iterator[OpenHalf]:
        """All unsettled halves by their first position."""
        for _, half_id in self._order:
            yield self.halves[half_id]

    def publishable(self, halves_max: int, messages_max: int, bytes_max: int, avoid: frozenset[str]) -> list[OpenHalf]:
        """The halves of the next step, in the order in which they are to be sent (rule 17).

        A half with an outcome follows every earlier half of each of its keys that still holds; one
        rolled back has nothing to order. ``avoid`` names destinations that are held back. At least
        one half, even if it alone exceeds the limits.
        """
        chosen: list[OpenHalf] = []
        blocked: set[Key] = set()
        messages = size = 0
        for half in self.in_order():
            if len(chosen) >= halves_max:
                break
            decided = half.outcome is not None
            committed = half.outcome is Outcome.COMMITTED
            waits = committed and (
                not blocked.isdisjoint(half.keys) or not avoid.isdisjoint(half.topics)
            )
            if not decided or waits:
                if half.holds:
                    blocked.update(half.keys)
                continue
            if committed:
                if chosen and (messages + half.messages > messages_max or size + half.size > bytes_max):
                    break
                messages += half.messages
                size += half.size
            chosen.append(half)
        return chosen

    def undecided(self) -> Iterator[OpenHalf]:
        """Halves to check back: no outcome, not parked; oldest first."""
        return (h for h in self.in_order() if h.outcome is None and h.parked is None)

    def behind(self, half: OpenHalf) -> int:
        """How many later halves wait for this one's keys."""
        if not half.holds:
            return 0
        waiting = {i for key in half.keys for first, i in self._keys.get(key, ()) if first > half.first}
        return len(waiting)

    def held_keys(self) -> dict[Key, int]:
        """Keys held by parked halves, with the number of halves waiting behind."""
        held: dict[Key, int] = {}
        for half in self.in_order():
            if half.parked is not None and half.holds:
                for key in half.keys:
                    held[key] = sum(1 for first, _ in self._keys[key] if first > half.first)
        return held

    def position(self, read_next: int, without: Iterable[HalfId] = ()) -> int:
        """The offset a new owner may start from (rule 16): the oldest unsettled half, and never
        past what was read. ``without``: ids that are settled together with this position."""
        gone = set(without)
        return min((h.offset for h in self.halves.values() if h.id not in gone), default=read_next)

    def reappend_due(self, read_next: int, position: int, records: int) -> bool:
        """Is the log's distance too long? Never by time, never by a check (rule 19)."""
        return read_next - position > max(records, 2 * len(self.halves))

    def drop_payload(self, half: OpenHalf) -> None:
        """Take a half's payloads out of memory; they can be read again at ``offset``."""
        assert half.offset_exact and half.envelopes is not None
        half.envelopes = None
        self.payload_bytes -= half.size

    def restore_payload(self, half: OpenHalf, envelopes: tuple[Envelope, ...]) -> None:
        assert half.envelopes is None
        half.envelopes = envelopes
        self.payload_bytes += half.size

    def reappended(self, halves: Iterable[OpenHalf], read_next: int) -> None:
        """Their H′ stand at or above ``read_next`` from now on."""
        for half in halves:
            half.offset, half.offset_exact = read_next, False
