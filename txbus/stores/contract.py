"""What the core needs of an application's database: ledger, inbox, attempts, dead letters.

A store plugs in through the entry point group ``txbus.stores``: a `StorePlugin` that recognises
what the application gave as a database (`txbus.stores.sql`: a SQLAlchemy Engine).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._telemetry import Emit

__all__ = [
    "AttachHooks",
    "AttemptRow",
    "CommitResult",
    "Database",
    "DeadLetter",
    "LedgerRow",
    "LocalTransaction",
    "SavepointHooks",
    "StorePlugin",
]


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One row of the ledger: the fence and the truth of one attempt.

    ``reserved`` marks a ROLLED_BACK row that a later attempt wrote to settle this one.
    """

    id: HalfId
    outcome: Outcome
    database: str
    messages: int
    created_s: float
    confirmed_s: float | None = None
    reserved: bool = False


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """How often a handler's scope has run for one message, and when it may run again."""

    scope: str
    source: str
    message_id: str
    attempts: int
    due_s: float
    error: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery given up on: everything needed to look at it and to send it again."""

    scope: str
    source: str
    message_id: str
    topic: str
    partition: int
    offset: int
    key: str | None
    headers: Mapping[str, str]
    payload: bytes
    attempts: int
    error: str
    dead_s: float


class CommitResult(enum.Enum):
    """What a COMMIT's answer says."""

    COMMITTED = "committed"
    REFUSED = "refused"
    """Definitely rolled back (SQLSTATE classes 23 and 40 without 40003, and their equals)."""
    UNKNOWN = "unknown"
    """Anything else: the ledger must be asked on a new connection."""


class LocalTransaction(Protocol):
    """One open transaction of the application's database. Used by one thread.

    Errors are translated to StoreError where the store caused the statement; the application's own
    statements raise what its library raises.
    """

    @property
    def connection(self) -> Any:
        """The library's connection (SQLAlchemy: Connection)."""
        ...

    @property
    def session(self) -> Any:
        """The library's ORM session, bound to the connection and made on first use."""
        ...

    def flush(self) -> None:
        """Send pending ORM work to the database. Raises the library's errors."""
        ...

    def insert_ledger(self, row: LedgerRow) -> None:
        """Insert and return only when the database answered: from now on the row is the fence.

        `Superseded` if a row of this id exists; StoreBusy, StoreUnavailable, StoreFull."""
        ...

    def insert_inbox(self, scope: str, source: str, message_id: str, lock_wait_s: float) -> bool:
        """Take the message for this scope; False if it was handled already.

        Waits for another open transaction that took it, up to ``lock_wait_s``, then StoreBusy."""
        ...

    def clear_attempt(self, scope: str, source: str, message_id: str) -> None:
        """Forget the message's attempts together with this transaction's effects."""
        ...

    def insert_dead_letter(self, letter: DeadLetter) -> None:
        """Keep a dead letter; one per scope, source and message id, the first one stays."""
        ...

    def commit(self) -> CommitResult:
        """COMMIT, and release the connection unless the outcome is REFUSED (then it is rolled
        back). Never raises for the database's answer; `commit_error` has it."""
        ...

    @property
    def commit_error(self) -> BaseException | None: ...

    def rollback(self) -> None:
        """ROLLBACK and release. Idempotent; never raises for a broken connection."""
        ...


class SavepointHooks(Protocol):
    """What the core does around savepoints: messages of a rolled-back one are not sent."""

    def savepoint(self, transaction: LocalTransaction, name: str) -> None:
        """A savepoint begins."""
        ...

    def savepoint_rolled_back(self, transaction: LocalTransaction, name: str) -> None:
        """What was sent since this savepoint began is forgotten."""
        ...

    def savepoint_released(self, transaction: LocalTransaction, name: str) -> None: ...


class AttachHooks(SavepointHooks, Protocol):
    """What the core does around the commit of a transaction that the caller ends."""

    def before_commit(self, transaction: LocalTransaction) -> None:
        """Raising here makes the caller's commit fail, and nothing is committed."""
        ...

    def after_commit(self, transaction: LocalTransaction) -> None: ...

    def commit_failed(self, transaction: LocalTransaction, error: BaseException) -> None:
        """COMMIT was sent and raised. May raise what the caller shall see instead."""
        ...

    def rolled_back(self, transaction: LocalTransaction) -> None: ...


class Database(Protocol):
    """A database of the service, under the name the service gave it. Thread-safe.

    Methods other than `begin` and `adopt` use a connection and a short transaction of their own.
    """

    @property
    def name(self) -> str: ...

    def verify(self) -> Sequence[str]:
        """What is missing or differs in the schema, a sentence each; empty if it is right."""
        ...

    def create_schema(self) -> None:
        """Create the missing tables and the ledger's identity. Idempotent, safe in parallel."""
        ...

    def schema_sql(self) -> str:
        """The DDL, for whoever creates tables by hand."""
        ...

    def identity(self) -> str:
        """The ledger's own identity, stored in the database when its tables were made."""
        ...

    def begin(self, local_timeout_s: float, hooks: SavepointHooks | None = None) -> LocalTransaction:
        """Begin. Where the database can, it ends the transaction itself beyond the timeout."""
        ...

    def adopt(self, owner: Any, hooks: AttachHooks) -> LocalTransaction:
        """Hook into the transaction of a Session or Connection that the caller ends.

        A Session that has not begun does so when the result's `LocalTransaction.connection` is
        asked for; a Connection that has not is a ConfigurationError then. ConfigurationError for
        AUTOCOMMIT, and for a Session of another database."""
        ...

    def hooks_of(self, owner: Any) -> AttachHooks | None:
        """The hooks of the local transaction that is open on this Session or Connection, if adopted."""
        ...

    def makes_sessions(self, owner: Any) -> bool:
        """Is this a factory of sessions (SQLAlchemy: sessionmaker, scoped_session)?"""
        ...

    def adopt_sessions(self, maker: Any, hooks_for: Callable[[Any], AttachHooks]) -> Callable[[], None]:
        """Adopt every local transaction that a session of this factory begins; ``hooks_for(session)``
        is called when it begins. Returns what ends it for those begun later."""
        ...

    def recognises(self, owner: Any) -> bool:
        """Is this Engine, Connection, Session or sessionmaker of this database?"""
        ...

    # the ledger, from outside of the application's transactions

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        """The fencing checker. One SELECT for all; for an id without a row insert ROLLED_BACK
        under its key. COMMITTED or ROLLED_BACK, the same for ever; an id that is missing from the
        answer could not be settled (its row is locked by an open transaction).

        StoreUnavailable: none was. Idempotent."""
        ...

    def look(self, ids: Sequence[HalfId]) -> Mapping[HalfId, LedgerRow]:
        """The committed rows of these ids, without fencing."""
        ...

    def attempts_of(self, tx_id: str) -> Sequence[LedgerRow]:
        """All rows of one local transaction, by attempt."""
        ...

    def reserve(self, tx_id: str, now_s: float, lock_wait_s: float) -> int:
        """Settle every earlier attempt of ``tx_id`` and return the number of the next one.

        The caller that inserted the settling row owns the next attempt. AlreadyCommitted if one
        committed; StoreBusy if one is still open."""
        ...

    def confirm(self, ids: Sequence[HalfId], now_s: float) -> None:
        """All messages of these COMMITTED rows are known to be published. Idempotent."""
        ...

    def confirm_parts(self, parts: Sequence[tuple[HalfId, int, int]], now_s: float) -> None:
        """Of each COMMITTED row, the messages of part ``p`` of ``n`` (id, p, n) are known to be
        published; the row is confirmed once all n parts are, whoever tells them. Idempotent."""
        ...

    def unconfirmed(self, older_than_s: float, limit: int) -> Sequence[LedgerRow]:
        """COMMITTED rows with messages, created before a wall time and never confirmed."""
        ...

    def purge_ledger(self, created_before_s: float, limit: int) -> int:
        """Delete up to ``limit`` settled rows that are older: ROLLED_BACK ones, and COMMITTED ones
        that are confirmed or have no messages. Returns how many."""
        ...

    def decide(self, row: LedgerRow) -> Outcome:
        """An operator's outcome: insert this row unless one of its id exists; the outcome that
        stands afterwards. StoreBusy while the local transaction is open."""
        ...

    def replace_held(self, partition: int, held: Mapping[tuple[str, str], int]) -> None:
        """The keys (topic, key) held in one half partition, with the halves waiting behind each, in
        place of what was noted for that partition before."""
        ...

    def held_keys(self) -> frozenset[tuple[str, str]]:
        """All held keys noted by `replace_held`."""
        ...

    def join_service(self, service: str, names: Set[str]) -> frozenset[str]:
        """Note the names of a service's databases here; returns all that were ever noted for it.

        A relay that does not have them all would leave halves without an answer (rule 9)."""
        ...

    # the inbox side

    def handled(self, scope: str, source: str, message_id: str) -> bool: ...

    def purge_inbox(self, handled_before_s: float, limit: int) -> int: ...

    def attempt(self, scope: str, source: str, message_id: str) -> AttemptRow | None: ...

    def record_attempt(self, row: AttemptRow) -> None:
        """Upsert, committed on return, apart from any handler's transaction."""
        ...

    def runs_started(self, scope: str, topic: str, partition: int) -> int | None:
        """Offsets below this one may have been run before, by any process."""
        ...

    def start_runs(self, scope: str, topic: str, partition: int, below: int) -> int | None:
        """Raise `runs_started` (never lower it) and return what it was just before, None if it was
        not there; read and raised in one step, so that of two callers only one finds an offset above
        it. Committed on return."""
        ...

    def record_dead_letter(self, letter: DeadLetter) -> None:
        """Keep a dead letter apart from any handler's transaction, forget its attempts, and mark
        the message as handled in its scope."""
        ...

    def dead_letters(self, scope: str | None, limit: int) -> Sequence[DeadLetter]: ...

    def count_dead_letters(self) -> Mapping[str, int]:
        """How many, by scope."""
        ...

    def close(self) -> None:
        """Let go of what this object opened; the application's engine stays as it is."""
        ...


@runtime_checkable
class StorePlugin(Protocol):
    """What a store package registers."""

    def adapt(self, name: str, candidate: Any, ports: Ports, emit: Emit) -> Database | None:
        """A Database around the application's object, or None if it is not of this kind."""
        ...
