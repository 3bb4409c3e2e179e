"""What a relay asks and tells the service's ledgers, in a task of its own (rules 8 to 10, 26, 27).

Questions come from the relay's polling thread and answers go back through a callback; a slow or
absent database therefore never delays a poll.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from txbus._halves import HalfId
from txbus._message import Envelope, TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._telemetry import Alarm, CheckBack, CheckerFailed, Emit
from txbus.errors import StoreError
from txbus.stores.contract import Database

__all__ = ["Answer", "LedgerDesk", "LedgerDeskBudget", "OwnChecker", "Question"]

OwnChecker = Callable[[Envelope, int], Outcome]


@dataclass(frozen=True, slots=True)
class LedgerDeskBudget:
    """``lock_wait_s``: for an open ledger row. ``round_s``: one round's time for one database.
    ``retention_s``: how long ledger rows are kept. ``check_max``: answers of an own checker."""

    lock_wait_s: float = 0.2
    round_s: float = 1.0
    retention_s: float = 7 * 86400.0
    check_max: int = 15
    confirm_interval_s: float = 1.0
    ids_per_select: int = 200


@dataclass(frozen=True, slots=True)
class Question:
    """One half to ask about. ``envelope`` is set where an own checker is to be asked."""

    where: TopicPartition
    id: HalfId
    ledger_id: str
    database: str
    created_s: float
    age_s: float
    checks: int
    envelope: Envelope | None


@dataclass(frozen=True, slots=True)
class Answer:
    """``outcome`` UNKNOWN: ask again later. ``counted``: an own checker did answer.
    ``park``: set aside for an operator, for this reason."""

    question: Question
    outcome: Outcome
    counted: bool = False
    park: str | None = None


class LedgerDesk:
    """Answers questions and confirms what was published. Thread-safe; one task works."""

    def __init__(
        self,
        service: str,
        databases: Mapping[str, Database],
        checkers: Mapping[str, OwnChecker],
        ports: Ports,
        emit: Emit,
        budget: LedgerDeskBudget,
        answered: Callable[[Sequence[Answer]], None],
    ) -> None:
        """``answered`` gets the answers of a round, in the desk's own task."""
        self._service = service
        self._databases = databases
        self._checkers = checkers
        self._clock = ports.clock
        self._emit = emit
        self._budget = budget
        self._answered = answered
        self._condition = ports.runtime.condition()
        self._questions: list[Question] = []
        self._confirm: dict[str, list[HalfId]] = {}
        self._confirmed_at_s = self._clock.monotonic_s()
        self._stopping = False
        self._busy = False
        self._alarmed: set[tuple[str, str]] = set()
        self._task = ports.runtime.spawn(self._run, f"txbus-ledger-{service}")

    def ask(self, questions: Sequence[Question]) -> None:
        with self._condition:
            self._questions.extend(questions)
            self._condition.notify_all()

    def confirm(self, database: str, ids: Sequence[HalfId]) -> None:
        """Note these as published; written to the ledger in batches, and again by the next owner
        if this process dies before (a row without it is only listed by the audit)."""
        with self._condition:
            self._confirm.setdefault(database, []).extend(ids)
            self._condition.notify_all()

    @property
    def idle(self) -> bool:
        with self._condition:
            return not (self._busy or self._questions or self._confirm)

    def stop(self) -> None:
        """Write the waiting confirmations and end. Idempotent, bounded by the databases' answers."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        self._task.join(5.0)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                while not self._questions and not self._stopping:
                    if self._confirm and self._confirm_due_s() <= 0:
                        break
                    self._condition.wait(self._confirm_due_s() if self._confirm else None)
                questions, self._questions = self._questions, []
                confirm: dict[str, list[HalfId]] = {}
                if self._stopping or self._confirm_due_s() <= 0:
                    confirm, self._confirm = self._confirm, {}
                stopping = self._stopping
                self._busy = True
            if questions and not stopping:
                self._answer_all(questions)
            if confirm:
                self._write_confirmations(confirm, stopping)
            if stopping:
                with self._condition:
                    self._busy = False
                return

    def _confirm_due_s(self) -> float:
        return self._confirmed_at_s + self._budget.confirm_interval_s - self._clock.monotonic_s()

    def _write_confirmations(self, confirm: Mapping[str, list[HalfId]], last: bool) -> None:
        self._confirmed_at_s = self._clock.monotonic_s()
        for name, ids in confirm.items():
            try:
                self._databases[name].confirm(ids, self._clock.wall_s())
            except StoreError as exc:
                if last:
                    self._alarm_once("unconfirmed", f"database {name!r}: {len(ids)} published halves not noted: {exc}")
                else:
                    self.confirm(name, ids)

    # answers

    def _answer_all(self, questions: Sequence[Question]) -> None:
        by_database: dict[str, list[Question]] = {}
        for question in questions:
            by_database.setdefault(question.database, []).append(question)
        for name, asked in by_database.items():
            answers = self._answer_database(name, asked)
            for answer in answers:
                self._report(answer)
            self._answered([a for a, _ in answers])

    def _answer_database(self, name: str, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        database = self._databases.get(name)
        if database is None:
            known = ", ".join(sorted(self._databases)) or "none"
            reason = f"unknown database {name!r} (this service has: {known}): not asked, nothing written"
            self._alarm_once("foreign half", reason)
            return [(Answer(q, Outcome.UNKNOWN), reason) for q in asked]
        try:
            identity = database.identity()
            ours = [q for q in asked if q.ledger_id == identity]
            answers = self._ask_ledger(database, ours)
        except StoreError as exc:
            return [(Answer(q, Outcome.UNKNOWN), f"database away: {exc}") for q in asked]
        for q in asked:
            if q.ledger_id != identity:
                reason = (
                    f"database {name!r} is ledger {identity}, the half's is {q.ledger_id} (a copy or a restored "
                    "backup?): not asked, nothing written"
                )
                self._alarm_once("foreign half", reason)
                answers.append((Answer(q, Outcome.UNKNOWN), reason))
        return answers

    def _ask_ledger(self, database: Database, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        oldest_s = self._clock.wall_s() - self._budget.retention_s / 2
        look_first = [q for q in asked if q.created_s < oldest_s or q.envelope is not None]
        answers: list[tuple[Answer, str]] = []
        fence = [q for q in asked if q.created_s >= oldest_s and q.envelope is None]
        if look_first:
            rows = database.look([q.id for q in look_first])
            for q in look_first:
                row = rows.get(q.id)
                if row is not None:
                    answers.append((Answer(q, row.outcome), ""))
                elif q.created_s < oldest_s:
                    # The row may have been purged: its absence says nothing (rule 10).
                    why = f"too old to know: older than half of ledger_retention_s={self._budget.retention_s:g}"
                    answers.append((Answer(q, Outcome.UNKNOWN, park=why), why))
                else:
                    answers.append(self._ask_own(q, fence))
        # A half that its own checker calls rolled back is answered by the fence instead.
        return [a for a in answers if a[0].question not in fence] + self._fence(database, fence)

    def _ask_own(self, q: Question, fence: list[Question]) -> tuple[Answer, str]:
        """An application's own checker; its ROLLED_BACK is fenced in the ledger before it counts,
        so that a local transaction still open fails instead of losing its message."""
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
        if outcome is Outcome.ROLLED_BACK:
            fence.append(q)
        if outcome is Outcome.UNKNOWN and q.checks + 1 >= self._budget.check_max:
            why = f"its checker answered UNKNOWN {q.checks + 1} times (check_max={self._budget.check_max})"
            return Answer(q, Outcome.UNKNOWN, counted=True, park=why), why
        return Answer(q, outcome, counted=outcome is Outcome.UNKNOWN), error

    def _fence(self, database: Database, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        answers: list[tuple[Answer, str]] = []
        deadline_s = self._clock.monotonic_s() + self._budget.round_s
        for start in range(0, len(asked), self._budget.ids_per_select):
            chunk = asked[start : start + self._budget.ids_per_select]
            if self._clock.monotonic_s() >= deadline_s:
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
                answers.append((Answer(q, outcome), reason))
        return answers

    def _report(self, answered: tuple[Answer, str]) -> None:
        answer, reason = answered
        q = answer.question
        self._emit(
            CheckBack(self._service, "", q.id.tx_id, q.id.attempt, q.database, answer.outcome, q.age_s, reason)
        )

    def _alarm_once(self, what: str, detail: str) -> None:
        if (what, detail) not in self._alarmed:
            self._alarmed.add((what, detail))
            self._emit(Alarm(self._service, "", what, detail))
