"""Half messages of a broker that has them itself (RocketMQ), as the channel of local transactions.

N messages of a local transaction are N half messages with one ledger row: all or none, eventually. The
sender's word is a hint; the broker may ask in spite of it, ask anybody of the service, and ask again what
it was told. So every answer comes from the ledger, by the fence, and is the same for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from txbus._checkback import Answer, CheckBudget, LedgerAnswers, OwnChecker, Question
from txbus._halves import Half, HalfId
from txbus._message import Envelope, Receipt, TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Ports, Task
from txbus._telemetry import Alarm, CheckBack, Emit
from txbus.errors import BackendError, DestinationRefused, HalfFailed, MessageRefused, NotOpen, StoreError
from txbus.spi import Check, HalfMessages
from txbus.stores.contract import Database, LedgerRow

__all__ = ["NativeHalves", "NativeHalvesBudget", "NativeHealth"]

ID, ATTEMPT, LEDGER, DATABASE = "txbus-half-id", "txbus-half-attempt", "txbus-half-ledger", "txbus-half-database"
SERVICE, CREATED, PART, ASKS = "txbus-half-service", "txbus-half-created", "txbus-half-part", "txbus-half-asks"
"""Headers of each half message. ``PART``: its number of how many, ``2/5``; ``ASKS``: the topic whose own
checker is asked about all of them."""


@dataclass(frozen=True, slots=True)
class NativeHalvesBudget:
    """Times in seconds. ``hints_max``: more outcomes that wait are dropped, which costs a check each.
    ``headers_bytes_max`` is the broker's limit, None for none."""

    poll_s: float = 0.5
    confirm_interval_s: float = 1.0
    hints_max: int = 100_000
    close_s: float = 5.0
    reconnect_s: tuple[float, float] = (0.2, 10.0)
    headers_bytes_max: int | None = None
    check: CheckBudget = field(default_factory=CheckBudget)


@dataclass(frozen=True, slots=True)
class NativeHealth:
    """``waiting``: outcomes that were not handed to the broker yet. ``answered``: questions, since the
    start. ``last_error``: what went wrong last with the broker; empty after a turn that went well."""

    running: bool
    waiting: int
    answered: int
    last_error: str


@dataclass(slots=True)
class _Prepared:
    """What of a half is stored: a handle for each part. ``unsure``: of one more nobody knows."""

    half: Half
    handles: dict[int, object] = field(default_factory=dict)
    unsure: bool = False


@dataclass(slots=True)
class _Published:
    """What is to be noted in one database's ledger: whole local transactions, and parts of some."""

    whole: list[HalfId] = field(default_factory=list)
    parts: list[tuple[HalfId, int, int]] = field(default_factory=list)


class NativeHalves:
    """Stores halves as the broker's own half messages, and answers the broker (a `HalfChannel`).

    Thread-safe. `start` begins two tasks, one that hands over outcomes and one that answers; without
    it `flush` and `turn` do their work. Every process that sends answers too, because the broker asks
    whoever it knows of.
    """

    def __init__(
        self,
        service: str,
        halves: HalfMessages,
        databases: Mapping[str, Database],
        checkers: Mapping[str, OwnChecker],
        ports: Ports,
        emit: Emit,
        budget: NativeHalvesBudget,
    ) -> None:
        self._service = service
        self._halves = halves
        self._databases = databases
        self._checkers = checkers
        self._ports = ports
        self._clock = ports.clock
        self._emit = emit
        self._budget = budget
        self._condition = ports.runtime.condition()
        self._prepared: dict[HalfId, _Prepared] = {}
        self._told: list[tuple[_Prepared, Outcome]] = []
        self._published: dict[str, _Published] = {}
        self._confirm_at_s = self._clock.monotonic_s()
        self._closing = False
        self._finishing = False
        self._answering = False
        self._answered = 0
        self._last_error = ""
        self._tasks: list[Task] = []
        self._answers = LedgerAnswers(
            service, databases, checkers, ports.clock, emit, budget.check, lambda: self._closing
        )

    def start(self) -> None:
        """Begin to hand over outcomes and to answer. Once."""
        assert not self._tasks and not self._closing, "native halves are started once"
        spawn = self._ports.runtime.spawn
        self._tasks = [
            spawn(self._run_finishing, f"txbus-outcomes-{self._service}"),
            spawn(self._run_answering, f"txbus-checks-{self._service}"),
        ]

    # HalfChannel

    def check(self, half: Half) -> None:
        """See `HalfChannel.check`: what the broker's limit of headers leaves no room for."""
        most = self._budget.headers_bytes_max
        for part, envelope in enumerate(half.envelopes):
            size = self._marked(half, part).size - len(envelope.payload)
            if most is not None and size > most:
                raise MessageRefused(
                    f"topic {envelope.topic!r}: headers and key of {size} bytes, those of its half included, are more "
                    f"than the {most} that the broker takes; send fewer or shorter headers"
                )

    def store(self, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        """One half message after the other, within ``timeout_s`` together. When one of them cannot be
        prepared the caller rolls back and tells so, which ends those before it.

        Receipts have neither partition (-1) nor offset: the message gets its place with its outcome.
        """
        deadline_s = self._clock.monotonic_s() + timeout_s
        prepared = _Prepared(half)
        with self._condition:
            if self._closing:
                raise NotOpen("the bus is closed: no half message can be stored any more")
            self._prepared[half.id] = prepared
        asks = self._asks(half)
        # The one whose checker is asked comes first: where another one exists, it does.
        for part in sorted(range(len(half.envelopes)), key=lambda part: half.envelopes[part].topic != asks):
            prepared.handles[part] = self._prepare(prepared, part, deadline_s, timeout_s)
        return tuple(Receipt(envelope.id or "", envelope.topic, -1, None) for envelope in half.envelopes)

    def _prepare(self, prepared: _Prepared, part: int, deadline_s: float, timeout_s: float) -> object:
        half = prepared.half
        left_s = deadline_s - self._clock.monotonic_s()
        what = f"local transaction {half.id}: the half message to {half.envelopes[part].topic!r} was not durable"
        if left_s <= 0:
            raise HalfFailed(f"{what} within half_timeout_s={timeout_s:g}: its turn did not come")
        try:
            return self._halves.prepare(self._marked(half, part), left_s)
        except (MessageRefused, DestinationRefused):
            raise
        except BackendError as exc:
            prepared.unsure = not exc.outcome_known
            raise HalfFailed(f"{what} within half_timeout_s={timeout_s:g}: {exc}") from exc

    def tell(self, half: Half, outcome: Outcome) -> None:
        """Queue the outcome of each half message; a lost one costs a check, no more."""
        with self._condition:
            prepared = self._prepared.pop(half.id, None)
            if prepared is None or self._closing or len(self._told) >= self._budget.hints_max:
                return
            self._told.append((prepared, outcome))
            self._condition.notify_all()

    def _asks(self, half: Half) -> str:
        return next((one.topic for one in half.envelopes if one.topic in self._checkers), "")

    def _marked(self, half: Half, part: int) -> Envelope:
        """The envelope with what a checker needs to know, in any process of the service."""
        envelope = half.envelopes[part]
        marks = {
            ID: half.id.tx_id,
            ATTEMPT: str(half.id.attempt),
            LEDGER: half.ledger_id,
            DATABASE: half.database,
            SERVICE: self._service,
            CREATED: repr(half.created_s),
            PART: f"{part + 1}/{len(half.envelopes)}",
        }
        asks = self._asks(half)
        if asks:
            marks[ASKS] = asks
        return replace(envelope, headers={**envelope.headers, **marks})

    # outcomes

    def flush(self) -> None:
        """Hand the waiting outcomes to the broker, and note what is finished. Never raises."""
        with self._condition:
            told, self._told = self._told, []
            self._finishing = True
        try:
            for prepared, outcome in told:
                self._finish(prepared, outcome)
            if self._published and (self._closing or self._confirm_due()):
                self._write_confirmations()
        except Exception as exc:
            self._emit(Alarm(self._service, "", "native halves", f"outcomes lost: {type(exc).__name__}: {exc}"))
        finally:
            with self._condition:
                self._finishing = False
                self._condition.notify_all()

    def _finish(self, prepared: _Prepared, outcome: Outcome) -> None:
        half, parts = prepared.half, len(prepared.half.envelopes)
        for part, handle in prepared.handles.items():
            try:
                self._halves.finish(handle, outcome)
            except BackendError as exc:
                self._last_error = f"{type(exc).__name__}: {exc}"
            else:
                if outcome is Outcome.COMMITTED:
                    self._note_published(half.database, half.id, part, parts)
        if outcome is Outcome.ROLLED_BACK and (prepared.unsure or 0 < len(prepared.handles) < parts):
            # What failed half way is settled for certain: its questions find the fence.
            self._fence(half)

    def _note_published(self, database: str, id: HalfId, part: int, parts: int) -> None:
        with self._condition:
            published = self._published.setdefault(database, _Published())
            if parts == 1:
                published.whole.append(id)
            else:
                published.parts.append((id, part, parts))
            self._condition.notify_all()

    def _fence(self, half: Half) -> None:
        try:
            wait_s = self._budget.check.lock_wait_s
            self._databases[half.database].settle([half.id], self._clock.wall_s(), wait_s)
        except StoreError:
            pass  # the check fences

    def _write_confirmations(self) -> None:
        """Committed, and the broker said OK. It may have forgotten it since; then it asks, long before
        the row is purged (ledger_retention_s)."""
        self._confirm_at_s = self._clock.monotonic_s() + self._budget.confirm_interval_s
        with self._condition:
            waiting, self._published = self._published, {}
        for name, published in waiting.items():
            database, now_s = self._databases[name], self._clock.wall_s()
            try:
                if published.whole:
                    database.confirm(published.whole, now_s)
                if published.parts:
                    database.confirm_parts(published.parts, now_s)
            except StoreError as exc:
                self._confirm_later(name, published, exc)

    def _confirm_later(self, name: str, published: _Published, error: StoreError) -> None:
        if self._closing:
            what = f"database {name!r}: what was published last is not noted: {error}"
            self._answers.alarm_once("unconfirmed", what)
            return
        with self._condition:
            later = self._published.setdefault(name, _Published())
            later.whole += published.whole
            later.parts += published.parts

    def _run_finishing(self) -> None:
        while True:
            with self._condition:
                while not (self._closing or self._told or self._confirm_due()):
                    self._condition.wait(self._confirm_wait_s())
                closing = self._closing
            self.flush()
            if closing:
                return

    def _confirm_due(self) -> bool:
        return bool(self._published) and self._clock.monotonic_s() >= self._confirm_at_s

    def _confirm_wait_s(self) -> float | None:
        return max(0.0, self._confirm_at_s - self._clock.monotonic_s()) if self._published else None

    # questions

    def turn(self, timeout_s: float) -> int:
        """Wait for questions and answer them; how many there were. BackendError: the broker is away."""
        checks = self._halves.checks(timeout_s)
        if not checks:
            return 0
        self._answering = True
        try:
            outcomes = self._outcomes(checks)
            for check, (question, outcome) in zip(checks, outcomes, strict=True):
                self._halves.answer(check, outcome)
                self._answered += 1
                if question is not None:
                    self._note_answered(check, question, outcome)
        finally:
            with self._condition:
                self._answering = False
                self._condition.notify_all()
        return len(checks)

    def _note_answered(self, check: Check, question: Question, outcome: Outcome) -> None:
        if outcome is Outcome.UNKNOWN:
            return
        with self._condition:
            # Its sender may never learn it (OutcomeUnknown); its word would come too late now.
            self._prepared.pop(question.id, None)
        part, _, parts = check.envelope.headers.get(PART, "").partition("/")
        if outcome is Outcome.COMMITTED and part.isdigit() and parts.isdigit():
            self._note_published(question.database, question.id, int(part) - 1, int(parts))

    def _outcomes(self, checks: Sequence[Check]) -> list[tuple[Question | None, Outcome]]:
        """One each, in their order; messages of one local transaction are asked about once."""
        asked = [self._question(check) for check in checks]
        questions: dict[HalfId, Question] = {}
        for question in asked:
            if question is not None and (question.id not in questions or question.envelope is not None):
                questions[question.id] = question
        answers = self._answers.answer(list(questions.values()))
        settled = {answer.question.id: self._settled(answer) for answer in answers}
        return [(one, settled[one.id] if one is not None else Outcome.UNKNOWN) for one in asked]

    def _question(self, check: Check) -> Question | None:
        """None for a half that is not this service's: not answered, nothing written."""
        headers, envelope = check.envelope.headers, check.envelope
        service = headers.get(SERVICE)
        if service != self._service:
            whose = f"service {service!r}'s" if service else "not one of txbus"
            self._foreign(headers.get(ID, ""), envelope.topic, f"it is {whose}")
            return None
        try:
            id = HalfId(headers[ID], int(headers[ATTEMPT]))
            ledger_id, database, created_s = headers[LEDGER], headers[DATABASE], float(headers[CREATED])
        except (KeyError, ValueError) as exc:
            self._foreign(headers.get(ID, ""), envelope.topic, f"its headers are damaged: {exc!r}")
            return None
        asks = headers.get(ASKS, "")
        own = envelope if asks == envelope.topic and asks in self._checkers else None
        return Question(
            TopicPartition(envelope.topic, 0),
            id,
            ledger_id,
            database,
            created_s,
            max(0.0, self._clock.wall_s() - created_s),
            check.attempt - 1,
            own,
            # Its checker is asked with another message of the same local transaction.
            fence=asks not in self._checkers or own is not None,
        )

    def _foreign(self, tx_id: str, topic: str, why: str) -> None:
        reason = f"the broker asks about a half message in {topic!r}, and {why}: not answered, nothing written"
        self._answers.alarm_once("foreign half", reason)
        self._emit(CheckBack(self._service, "", tx_id, 0, "", Outcome.UNKNOWN, 0.0, reason))

    def _settled(self, answer: Answer) -> Outcome:
        """An own checker's COMMITTED goes into the ledger, so that every message of the local
        transaction gets the same answer, for ever."""
        question = answer.question
        if answer.park is not None:
            self._answers.alarm_once(
                "unanswered half", f"half {question.id}: {answer.park}; the broker will give it up"
            )
        if not answer.own:
            return answer.outcome
        # Without messages to confirm: nobody but the checker knows of them.
        row = LedgerRow(question.id, answer.outcome, question.database, 0, question.created_s)
        try:
            return self._databases[question.database].decide(row)
        except StoreError:
            return Outcome.UNKNOWN

    def _run_answering(self) -> None:
        failures = 0
        while not self._closing:
            try:
                self.turn(self._budget.poll_s)
                failures, self._last_error = 0, ""
            except Exception as exc:
                failures += 1
                self._last_error = f"{type(exc).__name__}: {exc}"
                if not isinstance(exc, BackendError):
                    self._emit(Alarm(self._service, "", "native halves", f"unexpected {self._last_error}"))
                first_s, cap_s = self._budget.reconnect_s
                with self._condition:
                    if not self._closing:
                        self._condition.wait(min(cap_s, first_s * 2.0 ** min(failures - 1, 30)))

    # looking, and the end

    def health(self) -> NativeHealth:
        with self._condition:
            running = bool(self._tasks) and not self._closing
            return NativeHealth(running, len(self._told), self._answered, self._last_error)

    def wait_quiet(self, timeout_s: float) -> bool:
        """Every outcome told here is handed over and no question is in hand; False when the time is over
        first. What the broker may still ask about is not known."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        with self._condition:
            while self._told or self._finishing or self._answering or self._prepared:
                left_s = deadline_s - self._clock.monotonic_s()
                if left_s <= 0:
                    return False
                self._condition.wait(left_s)
        return True

    def close(self) -> None:
        """Hand over the waiting outcomes and stop. Idempotent; bounded by ``close_s`` and the client."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        deadline_s = self._clock.monotonic_s() + self._budget.close_s
        if not self._tasks:
            self.flush()
        for task in self._tasks:
            task.join(max(0.0, deadline_s - self._clock.monotonic_s()))
        self._tasks = []
        self._halves.close()
