"""Handles a received record for one scope: once, with its effect, or not at all.

Order of things: decode → take the message in the inbox, first statement of the handler's
transaction → the application's function → commit → done. A duplicate finds its row taken and has no
effect. What goes wrong is either the message's fault (counted, retried, at last a dead letter) or
nobody's (given back, not counted).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from txbus._consumer_contract import DeadLetterSink, Disposition, Done, GiveBack, RetryAfter, Run
from txbus._inbox_attempts import Attempts, brief
from txbus._inbox_signature import Delivery, HandlerSignature, HandlerTransaction
from txbus._message import Topic
from txbus._ports import Ports
from txbus._retry import Retry
from txbus._telemetry import Alarm, DuplicateSuppressed, EffectCommitted, Emit, HandlerFailed, Heard
from txbus._wire import identity, log_identity, tag_of, trace_id
from txbus.errors import (
    AlreadyCommitted,
    BackendUnavailable,
    CommitUnknown,
    DecodeError,
    DuplicateInFlight,
    Fenced,
    HalfFailed,
    KeyHeld,
    OutcomeUnknown,
    SendUnknown,
    SettingsError,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    Superseded,
)
from txbus.spi import Received
from txbus.stores.contract import Database

__all__ = ["InFlight", "InboxBudget", "InboxHandler"]

InFlight: TypeAlias = Literal["wait", "skip", "fail"]

# While the application's function runs: the way to broker or database is away. A lock that is not
# given is counted there, because a handler can wait for itself.
_AWAY = (StoreUnavailable, BackendUnavailable, HalfFailed)
# While the transaction ends: nothing of this is the message's fault, and where the outcome is open
# the inbox row decides at the next run.
_NOT_ITS_FAULT = (
    StoreError,
    BackendUnavailable,
    HalfFailed,
    KeyHeld,
    OutcomeUnknown,
    Superseded,
    AlreadyCommitted,
    SendUnknown,
    CommitUnknown,
    Fenced,
)
_HELD_UP_FROM = 3


@dataclass(frozen=True, slots=True)
class InboxBudget:
    """Times in seconds. ``lock_wait_s``: how long a duplicate waits for the transaction that has the
    message. ``give_back_s``: first wait and cap, with jitter, while database or broker are away.
    ``claim_ahead``: offsets claimed at once for their first, uncounted run; after a crash up to so
    many messages cost a commit more.
    """

    lock_wait_s: float = 5.0
    give_back_s: tuple[float, float] = (0.1, 30.0)
    claim_ahead: int = 512

    def __post_init__(self) -> None:
        if not 0.0 <= self.lock_wait_s <= 3600.0:
            raise SettingsError(f"InboxBudget: lock_wait_s={self.lock_wait_s} must be 0 to 3,600")
        if not 0.0 < self.give_back_s[0] <= self.give_back_s[1]:
            raise SettingsError(f"InboxBudget: give_back_s={self.give_back_s} must be 0 < first <= cap")
        if not 0 <= self.claim_ahead <= 1_000_000:
            raise SettingsError(f"InboxBudget: claim_ahead={self.claim_ahead} must be 0 to 1,000,000")


class _Step(enum.IntEnum):
    BEGIN = 0
    TAKE = 1
    RUN = 2
    END = 3


class _HandledBefore(Exception):
    """Leaves the handler's transaction without an effect."""


@dataclass(frozen=True, slots=True)
class _Job:
    received: Received
    run: Run
    source: str
    message_id: str
    payload: Any


class InboxHandler:
    """One handler's scope; what a consumer calls for each record (`Handle`). Thread-safe.

    With a database the effect happens once per message and scope, and attempts survive a kill.
    Without one (``database`` and ``begin`` None) the function runs at least once, and attempts are
    counted in memory and by a broker that counts. ``tags``: what the consumer filters because the
    broker does not; None for everything.

    ``in_flight`` says what becomes of a message that another open transaction has taken: ``"wait"``
    for it up to ``lock_wait_s`` and then come back, ``"skip"`` to come back without waiting,
    ``"fail"`` to count a failed attempt (`DuplicateInFlight`). On a database that locks as a whole
    (SQLite) any other writer looks like that; ``"wait"`` is the one to use there.

    ``begin`` makes the handler's transaction, given the message's trace id.
    """

    def __init__(
        self,
        *,
        topic: Topic[Any],
        signature: HandlerSignature,
        scope: str,
        service: str,
        database: Database | None,
        begin: Callable[[str], HandlerTransaction] | None,
        dead_letters: DeadLetterSink,
        retry: Retry,
        ports: Ports,
        emit: Emit,
        heard: Heard,
        budget: InboxBudget,
        in_flight: InFlight = "wait",
        tags: frozenset[str] | None = None,
        attempts_counted: bool = False,
    ) -> None:
        assert (database is None) == (begin is None), "a handler's transaction needs a database"
        self._topic = topic
        self._signature = signature
        self._scope = scope
        self._service = service
        self._database = database
        self._begin = begin
        self._dead_letters = dead_letters
        self._retry = retry
        self._clock = ports.clock
        self._entropy = ports.entropy
        self._emit = emit
        self._heard = heard
        self._budget = budget
        self._in_flight = in_flight
        self._lock_wait_s = budget.lock_wait_s if in_flight == "wait" else 0.0
        self._tags = tags
        self._alone = ports.runtime.lock()
        self._held_up = False
        self._attempts: Attempts | None = None
        if database is not None:
            self._attempts = Attempts(scope, database, ports, budget.claim_ahead, attempts_counted)

    def __call__(self, received: Received, run: Run, /) -> Disposition:
        envelope = received.envelope
        if self._tags is not None and tag_of(envelope) not in self._tags:
            return Done()
        try:
            source, message_id = identity(received)
        except DecodeError as exc:
            return self._bury(received, run, *log_identity(received), 0, exc)
        if run.condemned is not None:
            return self._bury(received, run, source, message_id, *run.condemned)
        try:
            payload = self._topic.decode(envelope.payload)
        except DecodeError as exc:
            return self._bury(received, run, source, message_id, 0, exc)
        job = _Job(received, run, source, message_id, payload)
        if self._attempts is None:
            return self._run_bare(job)
        try:
            if self._attempts.free(run):
                return self._run_inside(job, self._attempts, 1, counted=False)
            return self._run_counted(job, self._attempts)
        except StoreError as exc:
            return self._give_back(run, exc)

    # with a database

    def _run_counted(self, job: _Job, attempts: Attempts) -> Disposition:
        """A message that may have run before: what is known decides. Raises StoreError."""
        standing = attempts.standing(job.run, job.source, job.message_id)
        if not standing.suspect:
            return self._run_recorded(job, attempts)
        with self._alone:
            # What came while this one waited for its turn: a stop, or the loss of the partition.
            if not job.run.wanted:
                return GiveBack(0.0)
            return self._run_recorded(job, attempts)

    def _run_recorded(self, job: _Job, attempts: Attempts) -> Disposition:
        assert self._database is not None
        run, source, message_id = job.run, job.source, job.message_id
        if self._database.handled(self._scope, source, message_id):
            return self._suppressed(job)
        standing = attempts.standing(run, source, message_id)
        if standing.attempts >= self._retry.max_attempts:
            return self._bury(job.received, run, source, message_id, standing.attempts, standing.error)
        wait_s = standing.due_s - self._clock.wall_s()
        if wait_s > 0.0:
            # A stepped clock must not hold a key for ever.
            return GiveBack(min(wait_s, self._retry.horizon_s()))
        number = standing.attempts + 1
        attempts.reserve(run, source, message_id, number, standing)
        return self._run_inside(job, attempts, number, counted=True)

    def _run_inside(self, job: _Job, attempts: Attempts, number: int, *, counted: bool) -> Disposition:
        """One run in a transaction with its inbox row. ``counted``: a row of attempts may exist."""
        assert self._begin is not None
        run, source, message_id = job.run, job.source, job.message_id
        step = _Step.BEGIN
        duplicate = False
        try:
            with self._begin(self._trace(job.received)) as transaction:
                step = _Step.TAKE
                local = transaction.local
                if local.insert_inbox(self._scope, source, message_id, self._lock_wait_s):
                    step = _Step.RUN
                    run.started = True
                    delivery = Delivery(job.received, source, message_id, number, self._scope, transaction)
                    try:
                        self._signature.call(job.payload, delivery, local)
                    finally:
                        delivery.end()
                else:
                    duplicate = True
                    if not counted:
                        raise _HandledBefore
                step = _Step.END
                if counted:
                    local.clear_attempt(self._scope, source, message_id)
        except _HandledBefore:
            pass
        except Exception as exc:
            return self._judge(job, attempts, number, counted, step, exc)
        self._held_up = False
        if duplicate:
            return self._suppressed(job)
        if self._heard(EffectCommitted):
            self._emit(EffectCommitted(self._service, self._trace(job.received), self._scope, message_id, number))
        return Done()

    def _judge(
        self, job: _Job, attempts: Attempts, number: int, counted: bool, step: _Step, error: Exception
    ) -> Disposition:
        """Whose fault is it? Only what the function did is the message's."""
        if step is _Step.TAKE and isinstance(error, StoreBusy):
            if self._in_flight != "fail":
                return self._give_back(job.run, None)
            taken = DuplicateInFlight(f"{job.message_id} is being handled by another transaction just now")
            taken.__cause__ = error
            return self._failed(job, attempts, number, counted, taken)
        if step in (_Step.BEGIN, _Step.TAKE) and not isinstance(error, StoreError):
            # No fault of the message, and not one that is expected: the consumer raises an alarm.
            raise error
        if step is not _Step.RUN and isinstance(error, _NOT_ITS_FAULT):
            return self._give_back(job.run, error)
        if isinstance(error, _AWAY):
            return self._give_back(job.run, error)
        return self._failed(job, attempts, number, counted, error)

    def _failed(self, job: _Job, attempts: Attempts, number: int, counted: bool, error: Exception) -> Disposition:
        run = job.run
        if not counted:
            try:
                # A process that lost this partition without knowing it may have been slow to fail.
                number += attempts.recorded(job.source, job.message_id)
            except StoreError:
                pass
        run.attempts = number
        run.reserved = 0
        delay_s = self._retry.delay_s(number, error, self._entropy.uniform())
        if delay_s is None:
            return self._bury(job.received, run, job.source, job.message_id, number, error)
        try:
            attempts.failed(job.source, job.message_id, number, self._clock.wall_s() + delay_s, error)
        except StoreError as exc:
            # This process knows it anyway; after a crash now one run more would be possible.
            self._note_held_up(run, exc)
        return self._retry_after(job, number, error, delay_s)

    # without a database

    def _run_bare(self, job: _Job) -> Disposition:
        number = job.received.attempt + job.run.failed
        if number > self._retry.max_attempts:
            text = f"handed over {number} times; no run of it ended well"
            return self._bury(job.received, job.run, job.source, job.message_id, number - 1, text)
        delivery = Delivery(job.received, job.source, job.message_id, number, self._scope, None)
        job.run.started = True
        try:
            self._signature.call(job.payload, delivery, None)
        except _AWAY as exc:
            return self._give_back(job.run, exc)
        except Exception as exc:
            delay_s = self._retry.delay_s(number, exc, self._entropy.uniform())
            if delay_s is None:
                return self._bury(job.received, job.run, job.source, job.message_id, number, exc)
            return self._retry_after(job, number, exc, delay_s)
        finally:
            delivery.end()
        self._held_up = False
        return Done()

    # the ways out

    def _suppressed(self, job: _Job) -> Disposition:
        self._emit(DuplicateSuppressed(self._service, self._trace(job.received), self._scope, job.message_id))
        return Done()

    def _retry_after(self, job: _Job, number: int, error: Exception, delay_s: float) -> Disposition:
        trace = self._trace(job.received)
        self._emit(HandlerFailed(self._service, trace, self._scope, job.message_id, number, brief(error), delay_s))
        return RetryAfter(delay_s)

    def _bury(
        self,
        received: Received,
        run: Run,
        source: str,
        message_id: str,
        attempts: int,
        error: BaseException | str,
    ) -> Disposition:
        """Keep it as a dead letter, or try that again later without another run."""
        try:
            self._dead_letters.keep(received, source, message_id, attempts, error)
        except Exception as exc:
            run.condemned = (attempts, error)
            if not isinstance(exc, _AWAY):
                detail = f"scope {self._scope}, {received.position}: {brief(exc)}"
                self._emit(Alarm(self._service, self._trace(received), "a dead letter is not kept", detail))
            return self._give_back(run, exc)
        return Done()

    def _give_back(self, run: Run, reason: BaseException | None) -> Disposition:
        """Nobody's fault: come back later. ``reason`` None if that is nothing to report."""
        if reason is not None:
            self._note_held_up(run, reason)
        first_s, cap_s = self._budget.give_back_s
        wait_s = min(cap_s, first_s * 2.0 ** min(run.given_back, 60))
        return GiveBack(wait_s * (1.0 - 0.5 * self._entropy.uniform()))

    def _note_held_up(self, run: Run, reason: BaseException) -> None:
        """One alarm for all that wait, until something succeeds again."""
        if run.given_back >= _HELD_UP_FROM and not self._held_up:
            self._held_up = True
            detail = f"scope {self._scope}, {run.received.position}: {brief(reason)}"
            self._emit(Alarm(self._service, self._trace(run.received), "a handler is held up", detail))

    @staticmethod
    def _trace(received: Received) -> str:
        return trace_id(received.envelope.headers)
