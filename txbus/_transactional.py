"""A local transaction that sends: half durable, then COMMIT, then the outcome.

The order on leaving the block is fixed (rule 1 in docs/explanation/protocol.md): session flush → ledger insert
returned → half stored → COMMIT → outcome told. Everything else here is about the ways in which
that order can be cut short.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from txbus._halves import Half, HalfChannel, HalfId
from txbus._message import Envelope, Receipt, Topic
from txbus._outcome import Outcome
from txbus._ports import Clock, Ports
from txbus._telemetry import (
    Alarm,
    Emit,
    HalfStored,
    Heard,
    LocalBegan,
    LocalCommitted,
    LocalEnded,
    OutcomeTold,
)
from txbus._wire import SendArguments, SendOptions
from txbus.errors import (
    ConfigurationError,
    LocalTimeout,
    NotOpen,
    OutcomeUnknown,
    StoreError,
)
from txbus.stores.contract import CommitResult, Database, LedgerRow, LocalTransaction

if TYPE_CHECKING:
    # Types only: the core never imports a database library.
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

__all__ = [
    "AttachedScope",
    "AttachedSessions",
    "LocalBudget",
    "LocalParts",
    "MakeEnvelope",
    "TransactionScope",
    "settle_outcome",
]

T = TypeVar("T")
MakeEnvelope = Callable[[Topic[Any], Any, SendOptions], Envelope]


@dataclass(frozen=True, slots=True)
class LocalBudget:
    """Times in seconds. ``settle_s``: how long a lost COMMIT answer is looked for in the ledger."""

    local_timeout_s: float = 30.0
    half_timeout_s: float = 5.0
    settle_s: float = 10.0
    settle_lock_wait_s: float = 1.0


@dataclass(frozen=True, slots=True)
class LocalParts:
    """What all local transactions of one database have in common."""

    service: str
    database: Database
    channel: HalfChannel | None
    make: MakeEnvelope
    ports: Ports
    emit: Emit
    heard: Heard
    budget: LocalBudget


class _State(enum.Enum):
    NEW = "new"
    OPEN = "open"
    ENDED = "ended"


class _Outgoing:
    """The messages of one local transaction, with its savepoints. One thread."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self._savepoints: list[tuple[str, int]] = []

    def savepoint(self, name: str) -> None:
        self._savepoints.append((name, len(self.envelopes)))

    def roll_back_to(self, name: str) -> None:
        at = self._latest(name)
        if at is not None:
            del self.envelopes[self._savepoints[at][1] :]
            del self._savepoints[at:]

    def release(self, name: str) -> None:
        at = self._latest(name)
        if at is not None:
            del self._savepoints[at:]

    def _latest(self, name: str) -> int | None:
        """SQL lets a name be used again: the last one counts."""
        return max((at for at, (known, _) in enumerate(self._savepoints) if known == name), default=None)


class _Sending:
    """What an own and an attached local transaction have in common: from messages to outcome."""

    def __init__(self, parts: LocalParts, tx_id: str | None = None, trace_id: str = "") -> None:
        """``tx_id``: the application chose the id and may run the block again under it; then every
        attempt has a ledger row, even without messages, and its number is reserved on entering."""
        self._named = tx_id is not None
        self._parts = parts
        self._database = parts.database
        self._clock = parts.ports.clock
        self._chosen = None if tx_id is None else HalfId(tx_id, 1)
        self._trace_id = trace_id
        self._outgoing = _Outgoing()
        self._half: Half | None = None
        self._in_ledger = False
        self._receipts: tuple[Receipt, ...] = ()
        self._outcome = Outcome.UNKNOWN
        self._began_s = self._clock.monotonic_s()
        self._state = _State.NEW

    @property
    def _half_id(self) -> HalfId:
        """A fresh one is made when it is asked for: a transaction that sends nothing needs none."""
        if self._chosen is None:
            self._chosen = HalfId(self._parts.ports.entropy.unique_id(), 1)
        return self._chosen

    @property
    def id(self) -> str:
        """The local transaction's id: in the ledger, in events, in `OutcomeUnknown`."""
        return self._half_id.tx_id

    @property
    def attempt(self) -> int:
        """The attempt under this id: 1 for a fresh id; with ``tx_id=`` from 2, because entering the block
        settles the attempt before it."""
        return self._half_id.attempt

    @property
    def database(self) -> str:
        """The name of the database."""
        return self._database.name

    @property
    def outcome(self) -> Outcome:
        """UNKNOWN while it is open; COMMITTED or ROLLED_BACK once it is settled."""
        return self._outcome

    @property
    def receipts(self) -> tuple[Receipt, ...]:
        """Where the half messages are stored, after the block; empty if it sent none."""
        return self._receipts

    def send(
        self,
        topic: Topic[T],
        payload: T,
        **options: Unpack[SendArguments],
    ) -> str:
        """Add a message; it becomes visible if and only if the local transaction commits.

        Nothing is sent before the block ends. Returns the message id.
        """
        self._require_open()
        if self._parts.channel is None:
            raise ConfigurationError("this bus has no half message channel: it was opened without any database")
        envelope = self._parts.make(topic, payload, SendOptions(**options))
        self._reach()
        self._outgoing.envelopes.append(envelope)
        assert envelope.id is not None
        return envelope.id

    def _reach(self) -> None:
        """The local transaction has begun, or begins now, before a message is noted for it."""

    # savepoints (`SavepointHooks`)

    def savepoint(self, transaction: LocalTransaction, name: str) -> None:
        self._outgoing.savepoint(name)

    def savepoint_rolled_back(self, transaction: LocalTransaction, name: str) -> None:
        self._outgoing.roll_back_to(name)

    def savepoint_released(self, transaction: LocalTransaction, name: str) -> None:
        self._outgoing.release(name)

    def _require_open(self) -> None:
        if self._state is not _State.OPEN:
            raise NotOpen(f"local transaction {self.id} is {self._state.value}: send inside of its block")

    def _opened(self) -> None:
        self._state = _State.OPEN
        if self._parts.heard(LocalBegan):
            self._parts.emit(LocalBegan(self._parts.service, self._trace_id, self.id, self.attempt, self.database))

    def _before_commit(self, local: LocalTransaction) -> None:
        """Everything that must have happened when COMMIT is issued. Raising means: roll back."""
        self._check_in_time()
        envelopes = tuple(self._outgoing.envelopes)
        if not envelopes and not self._named:
            return
        parts, channel = self._parts, self._parts.channel
        now_s = self._clock.wall_s()
        half = Half(self._half_id, self._database.identity(), self.database, now_s, envelopes)
        if envelopes:
            assert channel is not None
            channel.check(half)
        local.flush()
        local.insert_ledger(LedgerRow(self._half_id, Outcome.COMMITTED, self.database, len(envelopes), now_s))
        self._in_ledger = True
        self._check_in_time()
        if not envelopes:
            return
        assert channel is not None
        self._half = half
        self._receipts = channel.store(half, parts.budget.half_timeout_s)
        if parts.heard(HalfStored):
            parts.emit(HalfStored(parts.service, self._trace_id, self.id, self.attempt, self.database, len(envelopes)))

    def _check_in_time(self) -> None:
        late_s = self._clock.monotonic_s() - self._began_s - self._parts.budget.local_timeout_s
        if late_s > 0:
            detail = (
                f"local transaction {self.id} on {self.database!r} reached its commit {late_s:.3g} s after "
                f"local_timeout_s={self._parts.budget.local_timeout_s:g}: rolled back"
            )
            self._parts.emit(Alarm(self._parts.service, self._trace_id, "local timeout", detail))
            raise LocalTimeout(f"{detail}; shorten the block or raise local_timeout_s")

    def _committed(self) -> None:
        self._outcome = Outcome.COMMITTED
        if self._parts.heard(LocalCommitted):
            messages = len(self._outgoing.envelopes)
            self._parts.emit(
                LocalCommitted(self._parts.service, self._trace_id, self.id, self.attempt, self.database, messages)
            )
        self._tell(Outcome.COMMITTED)
        self._ended()

    def _rolled_back(self) -> None:
        """COMMIT was never sent, or it was refused, or the fence answered: this is certain."""
        self._outcome = Outcome.ROLLED_BACK
        self._tell(Outcome.ROLLED_BACK)
        self._ended()

    def _tell(self, outcome: Outcome) -> None:
        if self._half is not None:
            assert self._parts.channel is not None
            self._parts.channel.tell(self._half, outcome)
            if self._parts.heard(OutcomeTold):
                self._parts.emit(OutcomeTold(self._parts.service, self._trace_id, self.id, self.attempt, outcome))

    def _ended(self) -> None:
        self._state = _State.ENDED
        if self._parts.heard(LocalEnded):
            self._parts.emit(
                LocalEnded(
                    self._parts.service,
                    self._trace_id,
                    self.id,
                    self.attempt,
                    self.database,
                    self._outcome,
                    len(self._outgoing.envelopes),
                    self._clock.monotonic_s() - self._began_s,
                )
            )

    def _settle_unknown(self, error: BaseException | None) -> bool:
        """COMMIT's answer was lost: ask the ledger by fencing, on a connection of its own.

        True: committed. False: rolled back for certain. OutcomeUnknown if the database does not
        answer within ``settle_s``; nothing is told to the broker then, check-back will ask.
        """
        if not self._in_ledger:
            self._state = _State.ENDED
            raise OutcomeUnknown(
                f"COMMIT of {self.id} on {self.database!r} got no clear answer ({error}) and it sent no message, "
                "so no ledger row tells: look into your own tables (a block with tx_id= always has a row)",
                tx_id=self.id,
                database=self.database,
            ) from error
        outcome = settle_outcome(self._database, self._half_id, self._clock, self._parts.budget)
        if outcome is Outcome.UNKNOWN:
            self._state = _State.ENDED
            raise OutcomeUnknown(
                f"COMMIT of {self.id} on {self.database!r} got no clear answer ({error}) and its ledger cannot be "
                f"reached; ask bus.outcome({self.id!r}) later, and do not run the block again under a new id",
                tx_id=self.id,
                database=self.database,
            ) from error
        return outcome is Outcome.COMMITTED


def settle_outcome(database: Database, half_id: HalfId, clock: Clock, budget: LocalBudget) -> Outcome:
    """Fence one attempt, trying for ``settle_s``; UNKNOWN if the database does not answer."""
    deadline_s = clock.monotonic_s() + budget.settle_s
    wait_s = 0.05
    while True:
        try:
            outcomes = database.settle([half_id], clock.wall_s(), budget.settle_lock_wait_s)
            if half_id in outcomes:
                return outcomes[half_id]
        except StoreError:
            pass
        if clock.monotonic_s() + wait_s >= deadline_s:
            return Outcome.UNKNOWN
        clock.sleep_s(wait_s)
        wait_s = min(1.0, wait_s * 2)


class TransactionScope(_Sending):
    """A local transaction that txbus begins and commits: what ``with bus.transaction(…)`` yields.

    One thread, one use. Leaving the block normally commits; leaving it by an exception rolls back,
    and no message of it is ever visible. Raises what `txbus.errors.TransactionError` lists.
    """

    _local: LocalTransaction | None = None

    @property
    def connection(self) -> Connection:
        """The database's connection, inside of the local transaction."""
        connection: Connection = self._open_local().connection
        return connection

    @property
    def session(self) -> Session:
        """An ORM session on the same connection; made on first use, flushed before COMMIT."""
        session: Session = self._open_local().session
        return session

    @property
    def local(self) -> LocalTransaction:
        """The store's side of it, for what must join it (inbox rows)."""
        return self._open_local()

    def _open_local(self) -> LocalTransaction:
        self._require_open()
        assert self._local is not None
        return self._local

    def __enter__(self) -> TransactionScope:
        if self._state is not _State.NEW:
            raise NotOpen(f"local transaction {self.id} was entered before: make a new one for each block")
        if self._named:
            attempt = self._database.reserve(self.id, self._clock.wall_s(), self._parts.budget.settle_lock_wait_s)
            self._chosen = HalfId(self.id, attempt)
        self._began_s = self._clock.monotonic_s()
        self._local = self._database.begin(self._parts.budget.local_timeout_s, self)
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        local = self._open_local()
        if value is not None:
            local.rollback()
            self._rolled_back()
            return
        try:
            local.flush()
            self._before_commit(local)
        except BaseException:
            local.rollback()
            self._rolled_back()
            raise
        try:
            result = local.commit()
        except BaseException:
            self._commit_did_not_end(local)
            raise
        error = local.commit_error
        if result is CommitResult.COMMITTED:
            self._committed()
            return
        if result is CommitResult.UNKNOWN and self._settle_unknown(error):
            self._committed()
            if error is not None and not isinstance(error, Exception):
                raise error
            return
        self._rolled_back()
        assert error is not None
        raise error

    def _commit_did_not_end(self, local: LocalTransaction) -> None:
        """`LocalTransaction.commit` raised, so COMMIT may not have been sent, or may have been: with
        a ledger row the fence tells, without one nothing is told to anybody."""
        local.rollback()
        if not self._in_ledger:
            self._ended()
        elif self._settle_unknown(None):
            self._committed()
        else:
            self._rolled_back()


class AttachedScope(_Sending):
    """Messages that join a local transaction which the caller begins and commits.

    What ``bus.attach(session)`` returns (`AttachHooks` of the store contract). Half messages are
    durable before the caller's COMMIT is issued, and the outcome follows it.
    """

    _joined: LocalTransaction | None = None

    def attached(self) -> None:
        self._opened()

    def join(self, local: LocalTransaction) -> None:
        """This is the caller's local transaction; a Session may not have begun it."""
        self._joined = local

    def _reach(self) -> None:
        # A Session that has not begun fires no event when it is rolled back: what was sent would go
        # with a later, unrelated commit. So it begins with its first message.
        if self._joined is not None:
            _ = self._joined.connection

    def before_commit(self, transaction: LocalTransaction) -> None:
        self._before_commit(transaction)

    def after_commit(self, transaction: LocalTransaction) -> None:
        self._committed()

    def commit_failed(self, transaction: LocalTransaction, error: BaseException) -> None:
        if not self._in_ledger:
            self._ended()  # nothing was sent with it; the caller sees the database's own error
        elif self._settle_unknown(error):
            self._committed()
        else:
            self._rolled_back()

    def rolled_back(self, transaction: LocalTransaction) -> None:
        if self._state is _State.OPEN:
            self._rolled_back()


class AttachedSessions:
    """What ``bus.attach(sessionmaker)`` returns: call it with a session of that factory to send with
    the session's present local transaction. Thread-safe; `end` stops it for those begun later."""

    def __init__(self, scope_of: Callable[[Session], AttachedScope], end: Callable[[], None]) -> None:
        self._scope_of = scope_of
        self.end = end

    def __call__(self, session: Session) -> AttachedScope:
        """The scope of the session's present local transaction, which it begins if it has none."""
        return self._scope_of(session)
