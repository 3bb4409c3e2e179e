"""Answers questions about halves from the service's ledgers, by the fence (rules 8, 10, 26, 27).

What the half log and native half messages share: who may be asked, in which order, and what is never
answered. Numbered rules: docs/explanation/protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from txbus._halves import HalfId
from txbus._message import Envelope, TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Clock
from txbus._telemetry import Alarm, CheckBack, CheckerFailed, Emit
from txbus.errors import StoreError
from txbus.stores.contract import Database

__all__ = ["Answer", "CheckBudget", "LedgerAnswers", "OwnChecker", "Question"]

OwnChecker: TypeAlias = Callable[[Envelope, int], Outcome]
_TOLD_MAX = 100_000
"""Halves without an answer that are remembered, so that a repeated one is told more quietly."""


@dataclass(frozen=True, slots=True)
class CheckBudget:
    """``lock_wait_s``: for an open ledger row. ``round_s``: one round's time for one database.
    ``retention_s``: how long ledger rows are kept. ``check_max``: answers of an own checker.
    ``ids_per_fence`` times ``lock_wait_s`` is what one call may wait for locks. ``held_after_s``: an
    open ledger row is reported from this age of its half on; a sender should be done by then."""

    lock_wait_s: float = 0.2
    held_after_s: float = 35.0
    round_s: float = 1.0
    retention_s: float = 7 * 86400.0
    check_max: int = 15
    ids_per_select: int = 200
    ids_per_fence: int = 5


@dataclass(frozen=True, slots=True)
class Question:
    """One half to ask about. ``where``: the half partition; of a native half message its topic, and its
    partition 0. ``envelope`` is set where an own checker is to be asked. Without ``fence`` only a row
    that is there answers."""

    where: TopicPartition
    id: HalfId
    ledger_id: str
    database: str
    created_s: float
    age_s: float
    checks: int
    envelope: Envelope | None
    fence: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """``outcome`` UNKNOWN: ask again later. ``counted``: an own checker did answer.
    ``park``: set aside for an operator, for this reason. ``own``: an own checker says COMMITTED, and
    no row does."""

    question: Question
    outcome: Outcome
    counted: bool = False
    park: str | None = None
    own: bool = False


class LedgerAnswers:
    """Answers by rounds. Used by one task at a time; writes nothing into a ledger that is not the half's."""

    def __init__(
        self,
        service: str,
        databases: Mapping[str, Database],
        checkers: Mapping[str, OwnChecker],
        clock: Clock,
        emit: Emit,
        budget: CheckBudget,
        stopping: Callable[[], bool],
    ) -> None:
        """``stopping``: whether a round should end early."""
        self._service = service
        self._databases = databases
        self._checkers = checkers
        self._clock = clock
        self._emit = emit
        self._budget = budget
        self._stopping = stopping
        self._alarmed: set[tuple[str, str]] = set()
        self._unanswered: dict[HalfId, bool] = {}

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each, database by database, with an event each. StoreError never passes."""
        by_database: dict[str, list[Question]] = {}
        for question in questions:
            by_database.setdefault(question.database, []).append(question)
        answered: list[Answer] = []
        for name, asked in by_database.items():
            try:
                answers = self._answer_database(name, asked)
            except StoreError as exc:
                answers = [(Answer(q, Outcome.UNKNOWN), f"database away: {exc}") for q in asked]
            except Exception as exc:
                reason = f"unexpected {type(exc).__name__}: {exc}"
                self.alarm_once("ledger desk", f"database {name!r}: {reason}")
                answers = [(Answer(q, Outcome.UNKNOWN), reason) for q in asked]
            for answer, reason in answers:
                self.report(answer, reason)
                answered.append(answer)
        return answered

    def _answer_database(self, name: str, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        database = self._databases.get(name)
        if database is None:
            known = ", ".join(sorted(self._databases)) or "none"
            reason = f"unknown database {name!r} (this service has: {known}): not asked, nothing written"
            self.alarm_once("foreign half", reason)
            return [(Answer(q, Outcome.UNKNOWN), reason) for q in asked]
        identity = database.identity()
        answers: list[tuple[Answer, str]] = []
        for q in asked:
            if q.ledger_id != identity:
                reason = (
                    f"database {name!r} is ledger {identity}, the half's is {q.ledger_id} (a copy or a restored "
                    "backup?): not asked, nothing written"
                )
                self.alarm_once("foreign half", reason)
                answers.append((Answer(q, Outcome.UNKNOWN), reason))
        return answers + self._ask_ledger(database, [q for q in asked if q.ledger_id == identity])

    def _ask_ledger(self, database: Database, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        """One SELECT for many first; then fences for those without a row, as time allows."""
        answers: list[tuple[Answer, str]] = []
        fence: list[Question] = []
        oldest_s = self._clock.wall_s() - self._budget.retention_s / 2
        deadline_s = self._clock.monotonic_s() + self._budget.round_s
        for start in range(0, len(asked), self._budget.ids_per_select):
            chunk = asked[start : start + self._budget.ids_per_select]
            if self._out_of_time(deadline_s):
                answers += [(Answer(q, Outcome.UNKNOWN), "no time left in this round") for q in chunk]
                continue
            rows = database.look([q.id for q in chunk])
            for q in chunk:
                row = rows.get(q.id)
                if row is not None:
                    answers.append((Answer(q, row.outcome), ""))
                elif q.created_s < oldest_s:
                    # The row may have been purged: its absence says nothing (rule 10).
                    why = f"too old to know: older than half of ledger_retention_s={self._budget.retention_s:g}"
                    answers.append((Answer(q, Outcome.UNKNOWN, park=why), why))
                elif not q.fence:
                    answers.append((Answer(q, Outcome.UNKNOWN), "its checker is asked with another of its messages"))
                elif q.envelope is not None:
                    answer, reason = self._ask_own(q)
                    if answer.outcome is Outcome.ROLLED_BACK:
                        fence.append(q)
                    else:
                        answers.append((answer, reason))
                else:
                    fence.append(q)
        return answers + self._fence(database, fence, deadline_s)

    def _out_of_time(self, deadline_s: float) -> bool:
        return self._stopping() or self._clock.monotonic_s() >= deadline_s

    def _ask_own(self, q: Question) -> tuple[Answer, str]:
        """An application's own checker. Its ROLLED_BACK is fenced in the ledger before it counts, so
        that a local transaction still open fails instead of losing its message; its COMMITTED
        counts without a row, which is what an own checker is for."""
        assert q.envelope is not None
        error = ""
        try:
            outcome = self._checkers[q.envelope.topic](q.envelope, q.checks + 1)
        except Exception as exc:
            outcome, error = Outcome.UNKNOWN, f"{type(exc).__name__}: {exc}"
        if not isinstance(outcome, Outcome):
            outcome, error = Outcome.UNKNOWN, f"answered {outcome!r}, which is no Outcome"
        if error:
            self._emit(CheckerFailed(self._service, "", q.id.tx_id, q.envelope.topic, error))
        if outcome is Outcome.UNKNOWN and not error:
            if q.checks + 1 >= self._budget.check_max:
                why = f"its checker answered UNKNOWN {q.checks + 1} times (check_max={self._budget.check_max})"
                return Answer(q, outcome, counted=True, park=why), why
            return Answer(q, outcome, counted=True), "its checker answered UNKNOWN"
        return Answer(q, outcome, own=outcome is Outcome.COMMITTED), error

    def _fence(self, database: Database, asked: Sequence[Question], deadline_s: float) -> list[tuple[Answer, str]]:
        answers: list[tuple[Answer, str]] = []
        for start in range(0, len(asked), self._budget.ids_per_fence):
            chunk = asked[start : start + self._budget.ids_per_fence]
            if self._out_of_time(deadline_s):
                answers += [(Answer(q, Outcome.UNKNOWN), "no time left in this round") for q in chunk]
                continue
            try:
                outcomes = database.settle([q.id for q in chunk], self._clock.wall_s(), self._budget.lock_wait_s)
            except StoreError as exc:
                answers += [(Answer(q, Outcome.UNKNOWN), f"database away: {exc}") for q in chunk]
                continue
            for q in chunk:
                outcome = outcomes.get(q.id, Outcome.UNKNOWN)
                reason = "" if q.id in outcomes else "its local transaction is still open, or the database is busy"
                if reason and q.age_s >= self._budget.held_after_s:
                    self.alarm_once(
                        "ledger row held",
                        f"database {q.database!r}: the local transaction of half {q.id} holds its ledger row beyond "
                        f"its timeout, now for {self._budget.held_after_s:.0f} s or more; is its process stopped? "
                        "End its connection",
                    )
                answers.append((Answer(q, outcome), reason))
        return answers

    def report(self, answer: Answer, reason: str) -> None:
        """The event of one answer; one that says nothing new, and said so before, is marked."""
        q = answer.question
        open_ = answer.outcome is Outcome.UNKNOWN and answer.park is None
        again = self._unanswered.pop(q.id, False) and open_
        if open_:
            self._unanswered[q.id] = True
            if len(self._unanswered) > _TOLD_MAX:
                # The one not asked about for longest: another relay has it now, or it got a D.
                del self._unanswered[next(iter(self._unanswered))]
        self._emit(
            CheckBack(self._service, "", q.id.tx_id, q.id.attempt, q.database, answer.outcome, q.age_s, reason, again)
        )

    def alarm_once(self, what: str, detail: str) -> None:
        """An alarm that is raised once for each detail."""
        if (what, detail) not in self._alarmed:
            self._alarmed.add((what, detail))
            self._emit(Alarm(self._service, "", what, detail))
