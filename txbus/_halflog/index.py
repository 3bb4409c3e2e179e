"""What a relay knows of one half partition: a pure state machine without I/O or clock.

Fed with the log's entries in order, it answers: what may be published now and in which order, what
is due for a check, which position is safe, and whether re-appending is due. No answer costs a walk
over all open halves, so that a step's work does not grow with the number of halves that wait.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from txbus._halflog.records import DecisionEntry, Entry, HalfEntry, ReleaseEntry, StepEntry, entry_size
from txbus._halves import Half, HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome

__all__ = ["HalfIndex", "Key", "OpenHalf"]

Key = tuple[str, str]
Mark = tuple[tuple[int, int], HalfId]


@dataclass(slots=True)
class OpenHalf:
    """An unsettled half.

    ``first`` is where its first H stands (offset, index in the record): its place in the order.
    ``since``: a new owner that reads from here learns all that is known of it. ``offset``: the
    record with its payloads. ``envelopes`` is None while they are out of memory.
    """

    entry: HalfEntry
    first: tuple[int, int]
    since: int
    offset: int
    seen_s: float
    envelopes: tuple[Envelope, ...] | None
    keys: tuple[Key, ...]
    topics: frozenset[str]
    messages: int
    size: int
    outcome: Outcome | None
    checks: int = 0
    checked_s: float | None = None
    asking: bool = False
    parked: str | None = None
    released: bool = False
    by_operator: bool = False

    @property
    def id(self) -> HalfId:
        return self.entry.half.id

    @property
    def mark(self) -> Mark:
        return self.first, self.id

    @property
    def holds(self) -> bool:
        """Do later halves of its keys have to wait for it? One rolled back has nothing to order."""
        return not self.released and self.outcome is not Outcome.ROLLED_BACK

    def known(self, envelopes: tuple[Envelope, ...]) -> HalfEntry:
        """H′: the half with its payloads, as it would be re-appended now."""
        bare = self.entry.half
        return HalfEntry(
            Half(bare.id, bare.ledger_id, bare.database, bare.created_s, envelopes),
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
    _order: list[Mark] = field(default_factory=list)
    _keys: dict[Key, list[Mark]] = field(default_factory=dict)
    _ready: list[Mark] = field(default_factory=list)
    _undecided: dict[HalfId, None] = field(default_factory=dict)
    _parked: dict[HalfId, None] = field(default_factory=dict)
    _released: set[HalfId] = field(default_factory=set)
    _floor: list[tuple[int, HalfId]] = field(default_factory=list)
    _ahead: set[HalfId] = field(default_factory=set)
    _unchecked: deque[HalfId] = field(default_factory=deque)
    _again: deque[HalfId] = field(default_factory=deque)

    # what the log says

    def apply(self, entry: Entry, offset: int, index: int, now_s: float) -> None:
        """Take in one entry, read at ``offset`` as the ``index``-th of its record."""
        match entry:
            case HalfEntry():
                self._apply_half(entry, offset, index, now_s)
            case DecisionEntry():
                half = self.halves.get(entry.id)
                # A D for a half that is not here is D before H, or D after S: harmless. The ledger
                # answers for the first, the second is settled.
                if half is not None:
                    self.decide(half, entry.outcome, entry.operator)
            case ReleaseEntry():
                half = self.halves.get(entry.id)
                if half is not None and half.parked is not None:
                    self._release(half)
            case StepEntry():
                self.last_step = max(self.last_step, entry.step)
                for settled in entry.settled:
                    self._ahead.discard(settled.id)
                    self._forget(settled.id)

    def _apply_half(self, entry: HalfEntry, offset: int, index: int, now_s: float) -> None:
        half_id = entry.half.id
        if half_id in self._ahead:
            return  # an H′ of ours from before the S that settled it; that S is still to be read
        known = self.halves.get(half_id)
        if known is None:
            self._open(entry, offset, index, now_s)
        elif entry.first is not None:
            self._read_back(known, entry, offset)

    def _open(self, entry: HalfEntry, offset: int, index: int, now_s: float) -> None:
        half = entry.half
        opened = OpenHalf(
            entry=HalfEntry(Half(half.id, half.ledger_id, half.database, half.created_s, ()), entry.part, entry.parts),
            first=entry.first if entry.first is not None else (offset, index),
            since=offset,
            offset=offset,
            seen_s=now_s,
            envelopes=half.envelopes,
            keys=tuple({(e.topic, e.key): None for e in half.envelopes if e.key is not None}),
            topics=frozenset(e.topic for e in half.envelopes),
            messages=len(half.envelopes),
            size=entry_size(entry),
            outcome=entry.outcome,
            checks=entry.checks,
            parked=entry.parked,
            released=entry.released,
        )
        self.halves[half.id] = opened
        self.payload_bytes += opened.size
        bisect.insort(self._order, opened.mark)
        heapq.heappush(self._floor, (opened.since, half.id))
        if opened.released:
            self._released.add(half.id)
        for key in opened.keys:
            bisect.insort(self._keys.setdefault(key, []), opened.mark)
        self._watch(opened)
        for key in opened.keys:
            if self._keys[key][-1] != opened.mark:
                # An H′ takes its old place, before halves that may have seemed ready.
                for _, later in self._keys[key]:
                    self._refresh(self.halves[later])

    def _read_back(self, known: OpenHalf, entry: HalfEntry, offset: int) -> None:
        """An H′ of a half that is here: of the former owner, or our own."""
        known.offset = offset
        known.checks = max(known.checks, entry.checks)
        if entry.parked is not None and not known.by_operator:
            # Parked after its outcome was known (it cannot be published): the flag counts until an
            # operator's word, which may stand before this H′ in the log.
            self.park(known, entry.parked)
        elif entry.parked is None and entry.outcome is not None:
            self.decide(known, entry.outcome, False)
        if entry.released:
            self._release(known)
        # An operator's word that this H′ does not carry must stay in a new owner's reach.
        if (entry.outcome is not None or not known.by_operator) and entry.released == known.released:
            known.since = offset
            heapq.heappush(self._floor, (offset, known.id))

    # changes

    def decide(self, half: OpenHalf, outcome: Outcome, operator: bool) -> None:
        """Give an outcome to a half that has none; the first one stays."""
        if half.outcome is not None:
            return
        half.outcome, half.by_operator, half.parked = outcome, operator, None
        self._changed(half)

    def park(self, half: OpenHalf, why: str) -> None:
        """Set aside for an operator: it has no outcome any more, and is not asked about."""
        half.parked, half.outcome = why, None
        self._changed(half)

    def _release(self, half: OpenHalf) -> None:
        half.released = True
        self._released.add(half.id)
        self._changed(half)

    def settled(self, half_id: HalfId) -> None:
        """Forget a half whose S we have written and not read back yet."""
        self._ahead.add(half_id)
        self._forget(half_id)

    def _forget(self, half_id: HalfId) -> None:
        half = self.halves.pop(half_id, None)
        if half is None:
            return
        if half.envelopes is not None:
            self.payload_bytes -= half.size
        _remove(self._order, half.mark)
        _remove(self._ready, half.mark)
        self._undecided.pop(half_id, None)
        self._parked.pop(half_id, None)
        self._released.discard(half_id)
        for key in half.keys:
            _remove(self._keys[key], half.mark)
            if not self._keys[key]:
                del self._keys[key]
        for key in half.keys:
            self._refresh_front(key)
        self._compact()

    def _compact(self) -> None:
        """Keep what is looked up lazily in proportion to the open halves."""
        if len(self._floor) > 2 * len(self.halves) + 64:
            self._floor = [(half.since, half.id) for half in self.halves.values()]
            heapq.heapify(self._floor)
        if len(self._unchecked) > 2 * len(self._undecided) + 64:
            self._unchecked = deque(half_id for half_id in self._unchecked if half_id in self._undecided)

    def _changed(self, half: OpenHalf) -> None:
        self._watch(half)
        for key in half.keys:
            self._refresh_front(key)

    def _watch(self, half: OpenHalf) -> None:
        """File a half under what it waits for."""
        if half.parked is not None:
            self._parked[half.id] = None
        else:
            self._parked.pop(half.id, None)
        if half.outcome is None and half.parked is None:
            if half.id not in self._undecided:
                self._undecided[half.id] = None
                self._unchecked.append(half.id)
        else:
            self._undecided.pop(half.id, None)
        self._refresh(half)

    def _refresh_front(self, key: Key) -> None:
        """Look again at those of a key that nothing before them holds."""
        for _, half_id in self._keys.get(key, ()):
            half = self.halves[half_id]
            self._refresh(half)
            if half.holds:
                return

    def _refresh(self, half: OpenHalf) -> None:
        at = bisect.bisect_left(self._ready, half.mark)
        listed = at < len(self._ready) and self._ready[at] == half.mark
        ready = half.outcome is Outcome.ROLLED_BACK or (half.outcome is Outcome.COMMITTED and _Chain(self).free(half))
        if ready and not listed:
            self._ready.insert(at, half.mark)
        elif listed and not ready:
            del self._ready[at]

    # what may be done

    def in_order(self) -> Iterator[OpenHalf]:
        """All unsettled halves by their first position."""
        for _, half_id in self._order:
            yield self.halves[half_id]

    def publishable(
        self,
        halves_max: int,
        messages_max: int,
        bytes_max: int,
        avoid_topics: frozenset[str] = frozenset(),
        avoid: frozenset[HalfId] = frozenset(),
    ) -> list[OpenHalf]:
        """The halves of the next step, in the order in which they are to be sent (rule 17).

        A committed half follows every earlier half of each of its keys that still holds; one rolled
        back has nothing to order. ``avoid_topics`` and ``avoid`` are held back. At least one half,
        even if it alone exceeds the limits.
        """
        chosen: list[OpenHalf] = []
        chain = _Chain(self)
        waiting = list(self._ready)  # sorted, so it is a heap
        messages = size = 0
        while waiting and len(chosen) < halves_max:
            half = self.halves[heapq.heappop(waiting)[1]]
            committed = half.outcome is Outcome.COMMITTED
            if committed:
                if half.id in avoid or not avoid_topics.isdisjoint(half.topics):
                    continue
                if chosen and (messages + half.messages > messages_max or size + half.size > bytes_max):
                    break
                messages += half.messages
                size += half.size
            chosen.append(half)
            for mark in chain.take(half):
                heapq.heappush(waiting, mark)
        return chosen

    @property
    def idle(self) -> bool:
        """Is there nothing to do but to wait for an operator?"""
        return not self._undecided and not self._ready

    @property
    def undecided_count(self) -> int:
        """Halves without an outcome that are not parked."""
        return len(self._undecided)

    def undecided(self) -> Iterator[OpenHalf]:
        """Halves to check back: no outcome, not parked; the longest known first."""
        return (self.halves[half_id] for half_id in self._undecided)

    def parked(self) -> Iterator[OpenHalf]:
        """Halves set aside for an operator."""
        return (self.halves[half_id] for half_id in self._parked)

    def behind(self, half: OpenHalf) -> int:
        """How many later halves wait for this one's keys."""
        if not half.holds:
            return 0
        return len({i for key in half.keys for i in self._later(key, half)})

    def _later(self, key: Key, half: OpenHalf) -> list[HalfId]:
        row = self._keys[key]
        return [half_id for _, half_id in row[bisect.bisect_right(row, half.mark) :]]

    def held_keys(self) -> dict[Key, int]:
        """Keys held by parked halves, with the number of halves waiting behind each."""
        held: dict[Key, int] = {}
        for half in self.parked():
            if half.holds:
                for key in half.keys:
                    row = self._keys[key]
                    waiting = len(row) - bisect.bisect_right(row, half.mark)
                    held[key] = max(held.get(key, 0), waiting)
        return held

    # check-back (rule 25)

    def next_check_s(self, after_s: float, interval_s: float) -> float:
        """When the next question is due, on the clock of ``now_s``; infinite if none is."""
        due_s = float("inf")
        first, again = self._front(self._unchecked), self._front(self._again)
        if first is not None:
            due_s = first.seen_s + after_s
        if again is not None:
            assert again.checked_s is not None
            due_s = min(due_s, again.checked_s + interval_s)
        return due_s

    def due(self, now_s: float, after_s: float, interval_s: float, at_once: bool) -> list[OpenHalf]:
        """Take the halves to ask about now: those read ``after_s`` ago (``at_once``: however
        lately), and those asked about ``interval_s`` ago without an answer."""
        due: list[OpenHalf] = []
        while (half := self._front(self._unchecked)) and (at_once or half.seen_s + after_s <= now_s):
            due.append(half)
            self._unchecked.popleft()
        while (half := self._front(self._again)) and (half.checked_s or 0.0) + interval_s <= now_s:
            due.append(half)
            self._again.popleft()
        for half in due:
            half.asking, half.checked_s = True, now_s
        return due

    def ask_again(self, half: OpenHalf) -> None:
        """A question brought no outcome: it is due again after an interval."""
        if half.asking:
            half.asking = False
            self._again.append(half.id)

    def _front(self, queue: deque[HalfId]) -> OpenHalf | None:
        """The first of a queue that still waits for an answer; both are sorted by their times."""
        while queue:
            if queue[0] in self._undecided:
                return self.halves[queue[0]]
            queue.popleft()
        return None

    # positions (rules 16, 19)

    def position(self, read_next: int, without: Iterable[HalfId] = ()) -> int:
        """The offset a new owner may start from (rule 16): the oldest unsettled half, and never
        past what was read. ``without``: ids that are settled together with this position."""
        gone = set(without)
        aside: list[tuple[int, HalfId]] = []
        oldest = read_next
        while self._floor:
            since, half_id = self._floor[0]
            half = self.halves.get(half_id)
            if half is None or half.since != since:
                heapq.heappop(self._floor)  # outdated
            elif half_id in gone:
                aside.append(heapq.heappop(self._floor))
            else:
                oldest = since
                break
        for entry in aside:
            heapq.heappush(self._floor, entry)
        return min(oldest, read_next)

    def reappend_due(self, read_next: int, position: int, records: int) -> bool:
        """Is the log's distance too long? Never by time, never by a check (rule 19)."""
        return read_next - position > max(records, 2 * len(self.halves))

    def reappended(self, halves: Iterable[OpenHalf], read_next: int) -> None:
        """Their H′ stand at or above ``read_next`` from now on."""
        for half in halves:
            half.since = read_next
        self._floor = [(half.since, half.id) for half in self.halves.values()]
        heapq.heapify(self._floor)

    # payloads (rule 20)

    def payload_floor(self, offset: int) -> int:
        """The lowest record that payloads out of memory must be read from, at most ``offset``."""
        return min([offset, *(h.offset for h in self.halves.values() if h.envelopes is None)])

    def drop_payloads(self, down_to_bytes: int) -> None:
        """Take payloads out of memory, those needed last first; they can be read at ``offset``."""
        for _, half_id in reversed(self._order):
            if self.payload_bytes <= down_to_bytes:
                return
            half = self.halves[half_id]
            if half.envelopes is not None:
                half.envelopes = None
                self.payload_bytes -= half.size


class _Chain:
    """What is free to go once some halves, taken in order, have gone."""

    __slots__ = ("_cursors", "_index", "_offered", "_taken")

    def __init__(self, index: HalfIndex) -> None:
        self._index = index
        self._taken: set[HalfId] = set()
        self._offered: set[HalfId] = set()
        self._cursors: dict[Key, int] = {}

    def free(self, half: OpenHalf) -> bool:
        """Does nothing that holds stand before it, for any of its keys (rule 3)?"""
        return all(self._first_holding(key, half.mark) is None for key in half.keys)

    def take(self, half: OpenHalf) -> list[Mark]:
        """Let it go; the marks of committed halves that are free now and were not before."""
        self._taken.add(half.id)
        if not half.holds:
            return []
        freed: list[Mark] = []
        for key in half.keys:
            head = self._first_holding(key, None)
            candidates = [head] if head is not None else []
            for half_id in [*candidates, *self._index._released]:
                if half_id in self._taken or half_id in self._offered:
                    continue
                next_half = self._index.halves[half_id]
                if next_half.outcome is Outcome.COMMITTED and self.free(next_half):
                    self._offered.add(half_id)
                    if not self._listed(next_half.mark):
                        freed.append(next_half.mark)
        return freed

    def _listed(self, mark: Mark) -> bool:
        at = bisect.bisect_left(self._index._ready, mark)
        return at < len(self._index._ready) and self._index._ready[at] == mark

    def _first_holding(self, key: Key, before: Mark | None) -> HalfId | None:
        """The first half of a key that holds and was not taken, standing before a mark."""
        row = self._index._keys[key]
        cursor = self._cursors.get(key, 0)
        while cursor < len(row):
            mark = row[cursor]
            if before is not None and mark >= before:
                break
            if mark[1] not in self._taken and self._index.halves[mark[1]].holds:
                self._cursors[key] = cursor
                return mark[1]
            cursor += 1
        self._cursors[key] = cursor
        return None


def _remove(row: list[Mark], mark: Mark) -> None:
    at = bisect.bisect_left(row, mark)
    if at < len(row) and row[at] == mark:
        del row[at]
