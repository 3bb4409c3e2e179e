"""What a relay asks and tells the service's ledgers, in a task of its own (rules 8 to 10, 26, 27).

Questions come from the relay's polling thread and answers go back through a callback; a slow or
absent database therefore never delays a poll.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from txbus._halflog.records import Settled
from txbus._halves import HalfId
from txbus._message import Envelope, TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Ports, Task
from txbus._telemetry import Alarm, CheckBack, CheckerFailed, Emit
from txbus.errors import StoreError
from txbus.stores.contract import Database

__all__ = ["Answer", "ConfirmedSteps", "LedgerDesk", "LedgerDeskBudget", "OwnChecker", "Question"]

OwnChecker = Callable[[Envelope, int], Outcome]
StepId = tuple[TopicPartition, int]
ConfirmedSteps = Callable[[Sequence[StepId]], None]


@dataclass(frozen=True, slots=True)
class LedgerDeskBudget:
    """``lock_wait_s``: for an open ledger row. ``round_s``: one round's time for one database.
    ``retention_s``: how long ledger rows are kept. ``check_max``: answers of an own checker.
    ``ids_per_fence`` times ``lock_wait_s`` is what one call may wait for locks. ``held_after_s``: an
    open ledger row is reported from this age of its half on; a sender should be done by then."""

    lock_wait_s: float = 0.2
    held_after_s: float = 35.0
    round_s: float = 1.0
    retention_s: float = 7 * 86400.0
    check_max: int = 15
    confirm_interval_s: float = 1.0
    ids_per_select: int = 200
    ids_per_fence: int = 5


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


@dataclass(slots=True)
class _Confirmation:
    """What a step published, waiting to be written to the ledgers."""

    step: StepId
    settled: Sequence[Settled]


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
        confirmed: ConfirmedSteps,
    ) -> None:
        """``answered`` gets the answers of a round, ``confirmed`` the steps that the ledgers know,
        both in the desk's own task. `start` begins it; without it, `turn` does its work."""
        self._service = service
        self._databases = databases
        self._checkers = checkers
        self._runtime = ports.runtime
        self._clock = ports.clock
        self._emit = emit
        self._budget = budget
        self._answered = answered
        self._confirmed = confirmed
        self._condition = ports.runtime.condition()
        self._questions: list[Question] = []
        self._confirm: list[_Confirmation] = []
        self._confirm_at_s = self._clock.monotonic_s()
        self._hurry = False
        self._stopping = False
        self._busy = False
        self._alarmed: set[tuple[str, str]] = set()
        self._task: Task | None = None

    def start(self) -> None:
        self._task = self._runtime.spawn(self._run, f"txbus-ledger-{self._service}")

    def ask(self, questions: Sequence[Question]) -> None:
        with self._condition:
            self._questions.extend(questions)
            self._condition.notify_all()

    def confirm(self, step: StepId, settled: Sequence[Settled]) -> None:
        """Note these as published; written to the ledgers in batches. Whoever takes over a half
        partition confirms again what may be missing."""
        with self._condition:
            self._confirm.append(_Confirmation(step, settled))
            self._condition.notify_all()

    def hurry(self) -> None:
        """Write what waits without waiting for company."""
        with self._condition:
            if self._confirm:
                self._hurry = True
                self._condition.notify_all()

    @property
    def idle(self) -> bool:
        with self._condition:
            return not (self._busy or self._questions or self._confirm)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write the waiting confirmations and end. Idempotent; bounded by ``timeout_s``."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._task is not None:
            self._task.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._stopping or self._questions or self._confirm_due()):
                    self._condition.wait(self._confirm_wait_s())
                stopping = self._stopping
            self.turn()
            if stopping:
                return

    def turn(self) -> None:
        """Answer what is asked and write what is due; never raises."""
        with self._condition:
            questions, self._questions = self._questions, []
            confirm: list[_Confirmation] = []
            if self._confirm_due() or self._stopping:
                confirm, self._confirm = self._confirm, []
                self._hurry = False
            self._busy = True
        try:
            if confirm:
                self._write_confirmations(confirm)
            self._answer_all(questions)
        except Exception as exc:
            # A question without an answer would never be asked again.
            self._emit(Alarm(self._service, "", "ledger desk", f"unexpected {type(exc).__name__}: {exc}"))
            self._answered([Answer(q, Outcome.UNKNOWN) for q in questions])
        finally:
            with self._condition:
                self._busy = False

    def _confirm_due(self) -> bool:
        return bool(self._confirm) and (self._hurry or self._clock.monotonic_s() >= self._confirm_at_s)

    def _confirm_wait_s(self) -> float | None:
        return max(0.0, self._confirm_at_s - self._clock.monotonic_s()) if self._confirm else None

    # confirmations

    def _write_confirmations(self, confirm: Sequence[_Confirmation]) -> None:
        self._confirm_at_s = self._clock.monotonic_s() + self._budget.confirm_interval_s
        away: set[str] = set()
        by_database: dict[str, list[Settled]] = {}
        for waiting in confirm:
            for settled in waiting.settled:
                if settled.database in self._databases:
                    by_database.setdefault(settled.database, []).append(settled)
        for name, rows in by_database.items():
            try:
                self._confirm_rows(self._databases[name], rows)
            except Exception as exc:
                away.add(name)
                known = isinstance(exc, StoreError)
                if self._stopping or not known:
                    what = f"database {name!r}: {len(rows)} published halves not noted: {type(exc).__name__}: {exc}"
                    self._alarm_once("unconfirmed", what)
        late = [waiting for waiting in confirm if not away.isdisjoint(s.database for s in waiting.settled)]
        with self._condition:
            self._confirm[:0] = late if not self._stopping else []
        self._confirmed([waiting.step for waiting in confirm if waiting not in late])

    def _confirm_rows(self, database: Database, rows: Sequence[Settled]) -> None:
        """A row with several parts is confirmed once all of them are: other relays may have them."""
        now_s = self._clock.wall_s()
        whole = [row.id for row in rows if row.parts == 1]
        parts = [(row.id, row.part, row.parts) for row in rows if row.parts > 1]
        if whole:
            database.confirm(whole, now_s)
        if parts:
            database.confirm_parts(parts, now_s)

    # answers

    def _answer_all(self, questions: Sequence[Question]) -> None:
        by_database: dict[str, list[Question]] = {}
        for question in questions:
            by_database.setdefault(question.database, []).append(question)
        for name, asked in by_database.items():
            try:
                answers = self._answer_database(name, asked)
            except StoreError as exc:
                answers = [(Answer(q, Outcome.UNKNOWN), f"database away: {exc}") for q in asked]
            except Exception as exc:
                reason = f"unexpected {type(exc).__name__}: {exc}"
                self._alarm_once("ledger desk", f"database {name!r}: {reason}")
                answers = [(Answer(q, Outcome.UNKNOWN), reason) for q in asked]
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
        identity = database.identity()
        answers: list[tuple[Answer, str]] = []
        for q in asked:
            if q.ledger_id != identity:
                reason = (
                    f"database {name!r} is ledger {identity}, the half's is {q.ledger_id} (a copy or a restored "
                    "backup?): not asked, nothing written"
                )
                self._alarm_once("foreign half", reason)
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
        return self._stopping or self._clock.monotonic_s() >= deadline_s

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
        return Answer(q, outcome), error

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
                    self._alarm_once(
                        "ledger row held",
                        f"database {q.database!r}: the local transaction of half {q.id} holds its ledger row beyond "
                        f"its timeout, now for {self._budget.held_after_s:.0f} s or more; is its process stopped? "
                        "End its connection",
                    )
                answers.append((Answer(q, outcome), reason))
        return answers

    def _report(self, answered: tuple[Answer, str]) -> None:
        answer, reason = answered
        q = answer.question
        self._emit(CheckBack(self._service, "", q.id.tx_id, q.id.attempt, q.database, answer.outcome, q.age_s, reason))

    def _alarm_once(self, what: str, detail: str) -> None:
        if (what, detail) not in self._alarmed:
            self._alarmed.add((what, detail))
            self._emit(Alarm(self._service, "", what, detail))
