"""RocketMQ's half messages: half and op queues, check rounds, the proxy's memory, the discard topic.

A half is re-appended by every round that asks about it, so one half message is several records one
after the other, and an outcome marks one of them: the producer's own word the first, an answer the one
that was asked about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from txbus.spi import Outcome
from txbus_sim.dialects.rocketmq_messages import INTERNAL, Message, Rules, ServerStatus
from txbus_sim.history import Checked, HalfStored, Record, Settled

__all__ = ["DISCARD_TOPIC", "Halves", "Producer", "Question"]

DISCARD_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"


@dataclass(slots=True)
class HalfRecord:
    """One record of the half queue. ``checks``: how often it has been asked about."""

    serial: int
    transaction_id: str
    message: Message
    stored_ns: int
    checks: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """The broker asks a producer. ``round`` counts from 1 (``TRANSACTION_CHECK_TIMES``)."""

    transaction_id: str
    message: Message
    round: int
    asked_ns: int


@dataclass(slots=True, eq=False)
class Producer:
    """A producer as the proxy knows it. ``topics``: those announced; the broker asks it about them."""

    process: str
    topics: frozenset[str]
    checker: bool
    questions: list[Question] = field(default_factory=list)


@dataclass(slots=True)
class _Known:
    """What the proxy keeps so that it can tell the broker which record an outcome is about."""

    record: HalfRecord
    until_ns: int


class Halves:
    """The half messages of one broker. ``publish`` makes a message visible."""

    def __init__(
        self,
        rules: Rules,
        publish: Callable[[Message, str, int], object],
        note: Callable[[Record], None],
        message_id: Callable[[Message], str],
    ) -> None:
        self._rules = rules
        self._publish = publish
        self._note = note
        self._message_id = message_id
        self._records: list[HalfRecord] = []
        self._marks: dict[int, int] = {}
        self._known: dict[tuple[str, int], list[_Known]] = {}
        self._discarded: dict[str, HalfRecord] = {}
        self._producers: list[Producer] = []
        self._turns: dict[str, int] = {}
        self._serials = 0
        self._round_ns = rules.check_interval_ns
        """When the next round is due."""

    # producers

    def register(self, producer: Producer) -> None:
        """A producer that starts. Its questions gather in it."""
        self._producers.append(producer)

    def unregister(self, producer: Producer) -> None:
        """A producer that ends, orderly or not. Idempotent."""
        if producer in self._producers:
            self._producers.remove(producer)

    def is_registered(self, producer: Producer) -> bool:
        return producer in self._producers

    # from prepare to the outcome

    def prepare(self, message: Message, process: str, now_ns: int) -> str:
        """Store a half; returns its transaction id, which is new even for a message sent again."""
        record = self._append(f"T{self._serials + 1:06d}", message, now_ns, 0)
        self._know(record, now_ns)
        self._note(HalfStored(now_ns, process, message.topic, record.transaction_id, self._message_id(message)))
        return record.transaction_id

    def end(
        self,
        transaction_id: str,
        outcome: Outcome,
        process: str,
        now_ns: int,
        *,
        round: int = 0,
        lost: bool = False,
    ) -> None:
        """A producer's commit or rollback; with ``round`` the answer to the question of that round.

        50001 if the proxy does not remember it: each can be said once, within 30 s. ``lost``: the
        proxy says OK, and its one-way message to the broker does not arrive.
        """
        entries = self._known.get((transaction_id, round))
        known = entries.pop() if entries else None
        if known is None or known.until_ns < now_ns:
            raise ServerStatus(INTERNAL, f"cannot found transaction data of {transaction_id}")
        if lost or outcome is Outcome.UNKNOWN:
            return
        message = known.record.message
        self._note(Settled(now_ns, transaction_id, self._message_id(message), outcome))
        if outcome is Outcome.COMMITTED:
            self._publish(replace(message, transactional=False), process, now_ns)
        self._marks[known.record.serial] = now_ns

    def _append(self, transaction_id: str, message: Message, now_ns: int, checks: int) -> HalfRecord:
        if not self._records:
            self._set_round(now_ns)
        self._serials += 1
        record = HalfRecord(self._serials, transaction_id, message, now_ns, checks)
        self._records.append(record)
        return record

    def _know(self, record: HalfRecord, now_ns: int) -> None:
        known = _Known(record, now_ns + self._rules.proxy_memory_ns)
        self._known.setdefault((record.transaction_id, record.checks), []).append(known)

    # check rounds

    def next_deadline_ns(self) -> int | None:
        """The next round, None while there is nothing that it could ask about."""
        return self._round_ns if self._records else None

    def advance(self, now_ns: int) -> bool:
        """Hold the round that is due; whether it asked about anything."""
        if now_ns < self._round_ns:
            return False
        did = self._round(now_ns)
        self._set_round(now_ns)
        return did

    def _set_round(self, now_ns: int) -> None:
        """Rounds are held at multiples of the interval since the broker's start; missed ones are not."""
        interval_ns = self._rules.check_interval_ns
        self._round_ns = (now_ns // interval_ns + 1) * interval_ns

    def _round(self, now_ns: int) -> bool:
        """Ask about every half that is old enough, in the order of the half queue."""
        records, self._records = self._records, []
        asked: list[HalfRecord] = []
        for at, record in enumerate(records):
            marked_ns = self._marks.get(record.serial)
            if marked_ns is not None:
                if now_ns - marked_ns < self._rules.op_memory_ns:
                    self._records.append(record)
                else:
                    del self._marks[record.serial]
                continue
            if record.checks >= self._rules.check_max:
                self._discard(record, now_ns)
                continue
            if now_ns - record.message.born_ns <= self._rules.check_after_ns or record.stored_ns >= now_ns:
                # The round ends at the first young one, whatever stands behind it.
                self._records.extend(records[at:])
                break
            asked.append(record)
        for record in asked:
            self._ask(self._append(record.transaction_id, record.message, now_ns, record.checks + 1), now_ns)
        return len(records) != len(self._records) or bool(asked)

    def _ask(self, record: HalfRecord, now_ns: int) -> None:
        """One producer of the topic in turn; nobody is told if there is none, and it counts."""
        topic = record.message.topic
        candidates = [one for one in self._producers if topic in one.topics]
        if not candidates:
            return
        turn = self._turns[topic] = self._turns.get(topic, -1) + 1
        producer = candidates[turn % len(candidates)]
        self._know(record, now_ns)
        id = self._message_id(record.message)
        self._note(Checked(now_ns, producer.process, record.transaction_id, id, record.checks, None))
        if producer.checker:
            producer.questions.append(Question(record.transaction_id, record.message, record.checks, now_ns))

    # giving up, and the rescue

    def _discard(self, record: HalfRecord, now_ns: int) -> None:
        self._discarded[record.message.id] = record
        id = self._message_id(record.message)
        self._note(Settled(now_ns, record.transaction_id, id, Outcome.UNKNOWN, discarded=True))

    @property
    def discarded(self) -> tuple[Message, ...]:
        """What stands in the discard topic, in the order of its messages' ids."""
        return tuple(self._discarded[id].message for id in sorted(self._discarded))

    def resume(self, message_id: str, now_ns: int) -> None:
        """``resumeCheckHalfMessage``: put a discarded half back with a new budget. Each call does."""
        record = self._discarded.get(message_id)
        if record is None:
            raise ServerStatus(INTERNAL, f"no message {message_id!r} in {DISCARD_TOPIC}")
        self._append(record.transaction_id, record.message, now_ns, 0)

    # restarts

    def forget_marks(self, now_ns: int) -> int:
        """The broker died: outcomes of the last second are lost. About how many it will ask again."""
        for serial, at_ns in list(self._marks.items()):
            if now_ns - at_ns < self._rules.op_memory_ns:
                del self._marks[serial]
        return sum(record.serial not in self._marks for record in self._records)

    def forget_proxy(self) -> None:
        """The proxy died: it knows no producer and no half any more."""
        self._producers.clear()
        self._known.clear()
