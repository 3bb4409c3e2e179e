"""RocketMQ's consumer groups over gRPC: pop with an invisible time, redelivery, dead letters, order.

There is no ownership of queues: whoever asks gets what is visible. A group made for order holds a
queue back while one of its messages is out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from txbus_sim.dialects.rocketmq_messages import (
    ILLEGAL_INVISIBLE,
    INTERNAL,
    INVALID_RECEIPT,
    Message,
    Rules,
    ServerStatus,
    Stored,
    Topic,
)

__all__ = ["Group", "Popped", "dead_letter_topic"]


def dead_letter_topic(group: str) -> str:
    """Where the dead letters of a group go."""
    return f"%DLQ%{group}"


@dataclass(frozen=True, slots=True)
class Popped:
    """One hand-over. ``receipt`` is good until ``until_ns``."""

    stored: Stored
    attempt: int
    receipt: int
    until_ns: int


@dataclass(slots=True)
class _Flight:
    """A message that is out; with ``batch`` one of an ordered group's batch."""

    topic: str
    stored: Stored
    attempt: int
    until_ns: int
    batch: _Batch | None = None


@dataclass(slots=True)
class _Again:
    """A message that waits for its redelivery."""

    topic: str
    stored: Stored
    attempt: int
    due_ns: int


@dataclass(slots=True)
class _Batch:
    """What an ordered group has out of one queue: offsets, and those not acknowledged yet."""

    offsets: tuple[int, ...]
    attempt: int
    until_ns: int
    open: set[int]


@dataclass(slots=True)
class _Place:
    """A group in one queue: the next offset to hand over."""

    offset: int = 0
    batch: _Batch | None = None


@dataclass(slots=True)
class Group:
    """A consumer group. ``ordered``: made with order (``-o true``)."""

    name: str
    ordered: bool
    rules: Rules
    bury: Callable[[Message, int], None]
    """Stores a dead letter."""
    _places: dict[tuple[str, int], _Place] = field(default_factory=dict)
    _flights: dict[int, _Flight] = field(default_factory=dict)
    _again: list[_Again] = field(default_factory=list)
    _done: set[int] = field(default_factory=set)
    _receipts: int = 0
    _turn: int = 0

    def place(self, topic: str, queue: int) -> _Place:
        return self._places.setdefault((topic, queue), _Place())

    def knows(self, topic: str) -> bool:
        return any(name == topic for name, _ in self._places)

    def reset(self, topic: Topic) -> None:
        """The administrator's reset to the newest message: what is stored already is passed over."""
        for number, queue in enumerate(topic.queues):
            self.place(topic.name, number).offset = len(queue)

    def has_new(self, topic: Topic) -> bool:
        """Something that was never handed over: what ends a waiting poll. A redelivery does not."""
        return any(self._has_new(topic, number) for number in range(len(topic.queues)))

    def _has_new(self, topic: Topic, number: int) -> bool:
        place = self.place(topic.name, number)
        if place.batch is not None and place.batch.open:
            return False
        return place.offset < len(topic.queues[number])

    def may_pop(self, topic: Topic, now_ns: int) -> bool:
        """Whether a `pop` now could find, or bury, anything."""
        self._expire(now_ns)
        if self.has_new(topic) or any(one.topic == topic.name and one.due_ns <= now_ns for one in self._again):
            return True
        batches = [self.place(topic.name, number).batch for number in range(len(topic.queues))]
        return any(batch is not None and batch.open and batch.until_ns <= now_ns for batch in batches)

    # handing over

    def pop(self, topic: Topic, tags: frozenset[str] | None, most: int, invisible_ns: int, now_ns: int) -> list[Popped]:
        """What is visible now, ``most`` at most; empty if nothing is."""
        if most > self.rules.receive_max:
            raise ServerStatus(INTERNAL, f"pop message's num {most} is greater than {self.rules.receive_max}")
        self._check_invisible(invisible_ns, self.rules.invisible_ns_min)
        self._expire(now_ns)
        found: list[Popped] = []
        self._turn += 1
        for step in range(len(topic.queues)):
            number = (self._turn + step) % len(topic.queues)
            room = most - len(found)
            if room <= 0:
                break
            take = self._pop_ordered if self.ordered else self._pop_new
            found += take(topic, number, tags, room, now_ns + invisible_ns, now_ns)
        return found if self.ordered else found + self._pop_again(topic, most - len(found), invisible_ns, now_ns)

    def _check_invisible(self, invisible_ns: int, least_ns: int) -> None:
        if not least_ns <= invisible_ns <= self.rules.invisible_ns_max:
            raise ServerStatus(ILLEGAL_INVISIBLE, f"invisible time of {invisible_ns} ns")

    def _pop_new(
        self, topic: Topic, number: int, tags: frozenset[str] | None, room: int, until_ns: int, now_ns: int
    ) -> list[Popped]:
        place, queue, found = self.place(topic.name, number), topic.queues[number], list[Popped]()
        while place.offset < len(queue) and len(found) < room:
            stored = queue[place.offset]
            place.offset += 1
            if tags is None or stored.message.tag in tags:
                found.append(self._hand_over(topic.name, stored, 1, until_ns, None))
        return found

    def _pop_again(self, topic: Topic, room: int, invisible_ns: int, now_ns: int) -> list[Popped]:
        found: list[Popped] = []
        due = [one for one in self._again if one.topic == topic.name and one.due_ns <= now_ns]
        for one in sorted(due, key=lambda one: one.due_ns):
            if len(found) >= room:
                break
            self._again.remove(one)
            if one.attempt > self.rules.retries_max + 1:
                # The proxy looks at the attempts when a consumer asks, and not before.
                self.bury(one.stored.message, now_ns)
            else:
                found.append(self._hand_over(one.topic, one.stored, one.attempt, now_ns + invisible_ns, None))
        return found

    def _pop_ordered(
        self, topic: Topic, number: int, tags: frozenset[str] | None, room: int, until_ns: int, now_ns: int
    ) -> list[Popped]:
        """A queue gives nothing while a batch of it is out; what is not acknowledged comes again."""
        place, queue = self.place(topic.name, number), topic.queues[number]
        before = place.batch
        if before is not None and before.open:
            if now_ns < before.until_ns:
                return []
            place.offset = min(before.open)
            if before.attempt > self.rules.retries_max:
                for offset in sorted(before.open):
                    self.bury(queue[offset].message, now_ns)
                before.open.clear()
        taken: list[Stored] = []
        while place.offset < len(queue) and len(taken) < room:
            stored = queue[place.offset]
            place.offset += 1
            acknowledged = before is not None and stored.offset in before.offsets and stored.offset not in before.open
            if not acknowledged and (tags is None or stored.message.tag in tags):
                taken.append(stored)
        offsets = tuple(one.offset for one in taken)
        same = before is not None and before.open and before.offsets == offsets
        attempt = before.attempt + 1 if same and before is not None else 1
        place.batch = _Batch(offsets, attempt, until_ns, set(offsets)) if offsets else None
        return [self._hand_over(topic.name, one, attempt, until_ns, place.batch) for one in taken]

    def _hand_over(self, topic: str, stored: Stored, attempt: int, until_ns: int, batch: _Batch | None) -> Popped:
        self._receipts += 1
        self._flights[self._receipts] = _Flight(topic, stored, attempt, until_ns, batch)
        return Popped(stored, attempt, self._receipts, until_ns)

    def _expire(self, now_ns: int) -> None:
        """What was out for too long waits for its redelivery."""
        late_ns = self.rules.redelivery_late_ns
        for receipt, flight in list(self._flights.items()):
            if flight.until_ns <= now_ns:
                del self._flights[receipt]
                if flight.batch is None:
                    due_ns = flight.until_ns + late_ns
                    self._again.append(_Again(flight.topic, flight.stored, flight.attempt + 1, due_ns))

    # what receivers say

    def ack(self, receipt: int, now_ns: int) -> Stored | None:
        """It is done; None if it was already. 40013 for a receipt that is over."""
        if receipt in self._done:
            return None
        flight = self._flight(receipt, now_ns)
        del self._flights[receipt]
        self._done.add(receipt)
        if flight.batch is not None:
            flight.batch.open.discard(flight.stored.offset)
        return flight.stored

    def change_invisible(self, receipt: int, after_ns: int, now_ns: int) -> Popped:
        """Visible again ``after_ns`` from now; returns it with its new receipt, the old one is over."""
        self._check_invisible(after_ns, 0)
        flight = self._flight(receipt, now_ns)
        del self._flights[receipt]
        if flight.batch is not None:
            flight.batch.until_ns = now_ns + after_ns
        return self._hand_over(flight.topic, flight.stored, flight.attempt, now_ns + after_ns, flight.batch)

    def _flight(self, receipt: int, now_ns: int) -> _Flight:
        self._expire(now_ns)
        flight = self._flights.get(receipt)
        if flight is None:
            raise ServerStatus(INVALID_RECEIPT, f"receipt handle {receipt} is expired")
        return flight

    # for administrators

    def oldest_open(self, topic: Topic, number: int) -> int | None:
        """The lowest offset of a queue that is not done; the next one if all are; None: never read."""
        place = self._places.get((topic.name, number))
        if place is None:
            return None
        open_ = [f.stored.offset for f in self._flights.values() if f.topic == topic.name and f.stored.queue == number]
        open_ += [a.stored.offset for a in self._again if a.topic == topic.name and a.stored.queue == number]
        if place.batch is not None:
            open_ += place.batch.open
        return min([*open_, place.offset])
