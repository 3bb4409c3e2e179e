"""What a relay asks and tells the service's ledgers, in a task of its own (rules 8 to 10, 26, 27).

Questions come from the relay's polling thread and answers go back through a callback; a slow or
absent database therefore never delays a poll.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from txbus._checkback import Answer, CheckBudget, LedgerAnswers, OwnChecker, Question
from txbus._halflog.records import Settled
from txbus._message import TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Ports, Task
from txbus._telemetry import Alarm, Emit
from txbus.errors import StoreError
from txbus.stores.contract import Database

__all__ = ["Answer", "ConfirmedSteps", "LedgerDesk", "LedgerDeskBudget", "OwnChecker", "Question"]

StepId = tuple[TopicPartition, int]
ConfirmedSteps = Callable[[Sequence[StepId]], None]


@dataclass(frozen=True, slots=True)
class LedgerDeskBudget(CheckBudget):
    """``confirm_interval_s``: between two writes of what was published."""

    confirm_interval_s: float = 1.0


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
        self._answers = LedgerAnswers(service, databases, checkers, ports.clock, emit, budget, lambda: self._stopping)
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
                    self._answers.alarm_once("unconfirmed", what)
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
        for asked in by_database.values():
            # A slow database does not delay what another one answered.
            self._answered(self._answers.answer(asked))
