"""The store for any SQLAlchemy 2 Engine: SQLite, PostgreSQL, MySQL and MariaDB.

`txbus.stores.plugin` makes a `SqlDatabase` of the Engine that an application gives to its Bus. The
tables (``txbus_…``) live in the application's own database, beside the rows they speak about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._telemetry import Emit
from txbus.stores import _sql_schema
from txbus.stores._sql_attach import Adoptions
from txbus.stores._sql_errors import shown
from txbus.stores._sql_flavour import flavour_of
from txbus.stores._sql_gate import Gate
from txbus.stores._sql_held import Held
from txbus.stores._sql_inbox import Inbox, InboxStatements
from txbus.stores._sql_ledger import Ledger
from txbus.stores._sql_local import LocalStatements, OwnTransaction
from txbus.stores.contract import AttachHooks, AttemptRow, DeadLetter, LedgerRow, LocalTransaction, SavepointHooks

__all__ = ["SqlDatabase", "is_engine"]


def is_engine(candidate: object) -> bool:
    """Is this a SQLAlchemy Engine (and not an asyncio one)?"""
    return isinstance(candidate, Engine)


class SqlDatabase:
    """A `Database` on a SQLAlchemy Engine. Thread-safe; making it does no I/O.

    The Engine stays the application's: its pool must have a connection to spare for check-back.
    """

    def __init__(self, name: str, engine: Engine, ports: Ports, emit: Emit) -> None:
        flavour = flavour_of(engine)
        inbox = InboxStatements(flavour)
        self._gate = Gate(name, engine, flavour, ports.clock, ports.entropy)
        self._local = LocalStatements(flavour, inbox)
        self._ledger = Ledger(self._gate)
        self._inbox = Inbox(self._gate, inbox)
        self._held = Held(self._gate)
        self._adoptions = Adoptions(self._gate, self._local)
        self._identity: str | None = None

    @property
    def name(self) -> str:
        return self._gate.name

    @property
    def engine(self) -> Engine:
        """The application's Engine."""
        return self._gate.engine

    def __repr__(self) -> str:
        return f"SqlDatabase({self.name!r}, {shown(self.engine)!r})"

    # the schema

    def verify(self) -> Sequence[str]:
        return _sql_schema.differences(self._gate)

    def create_schema(self) -> None:
        _sql_schema.create_schema(self._gate)

    def schema_sql(self) -> str:
        return _sql_schema.schema_sql(self._gate)

    def identity(self) -> str:
        """The ledger's identity, read once by this object: a restored database is another Engine."""
        if self._identity is None:
            self._identity = _sql_schema.identity(self._gate)
        return self._identity

    # the application's transactions

    def begin(self, local_timeout_s: float, hooks: SavepointHooks | None = None) -> OwnTransaction:
        """See `Database.begin`. ``hooks`` are told of savepoints that the application makes."""
        return OwnTransaction(self._gate, self._local, local_timeout_s, hooks)

    def adopt(self, owner: Any, hooks: AttachHooks) -> LocalTransaction:
        return self._adoptions.adopt(owner, hooks)

    def adopt_sessions(
        self, maker: sessionmaker[Any] | scoped_session[Any], hooks_for: Callable[[Session], AttachHooks]
    ) -> Callable[[], None]:
        """Adopt every transaction that a session of this maker begins on this database.

        ``hooks_for(session)`` is called when the transaction reaches the database for the first
        time (autobegin, first statement). Returns what ends it for transactions begun later.
        """
        return self._adoptions.adopt_sessions(maker, hooks_for)

    def adopted(self, owner: Session | Connection) -> LocalTransaction | None:
        """The adopted transaction that is open on this Session or Connection, if there is one."""
        return self._adoptions.open_on(owner)

    def hooks_of(self, owner: Any) -> AttachHooks | None:
        found = self._adoptions.open_on(owner)
        return found.hooks if found is not None else None

    def makes_sessions(self, owner: Any) -> bool:
        return isinstance(owner, sessionmaker | scoped_session)

    def recognises(self, owner: Any) -> bool:
        return self._adoptions.recognises(owner)

    # the ledger

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        return self._ledger.settle(ids, now_s, lock_wait_s)

    def look(self, ids: Sequence[HalfId]) -> Mapping[HalfId, LedgerRow]:
        return self._ledger.look(ids)

    def attempts_of(self, tx_id: str) -> Sequence[LedgerRow]:
        return self._ledger.attempts_of(tx_id)

    def reserve(self, tx_id: str, now_s: float, lock_wait_s: float) -> int:
        return self._ledger.reserve(tx_id, now_s, lock_wait_s)

    def confirm(self, ids: Sequence[HalfId], now_s: float) -> None:
        self._ledger.confirm(ids, now_s)

    def confirm_parts(self, parts: Sequence[tuple[HalfId, int, int]], now_s: float) -> None:
        """See `Database.confirm_parts`."""
        self._ledger.confirm_parts(parts, now_s)

    def unconfirmed(self, older_than_s: float, limit: int) -> Sequence[LedgerRow]:
        return self._ledger.unconfirmed(older_than_s, limit)

    def purge_ledger(self, created_before_s: float, limit: int) -> int:
        return self._ledger.purge(created_before_s, limit)

    def decide(self, row: LedgerRow) -> Outcome:
        return self._ledger.decide(row)

    def replace_held(self, partition: int, held: Mapping[tuple[str, str], int]) -> None:
        self._held.replace(partition, held)

    def held_keys(self) -> frozenset[tuple[str, str]]:
        return self._held.keys()

    def join_service(self, service: str, names: Set[str]) -> frozenset[str]:
        return self._held.join_service(service, names)

    # the inbox side

    def handled(self, scope: str, source: str, message_id: str) -> bool:
        return self._inbox.handled(scope, source, message_id)

    def purge_inbox(self, handled_before_s: float, limit: int) -> int:
        return self._inbox.purge(handled_before_s, limit)

    def attempt(self, scope: str, source: str, message_id: str) -> AttemptRow | None:
        return self._inbox.attempt(scope, source, message_id)

    def record_attempt(self, row: AttemptRow) -> None:
        self._inbox.record_attempt(row)

    def runs_started(self, scope: str, topic: str, partition: int) -> int | None:
        return self._inbox.runs_started(scope, topic, partition)

    def start_runs(self, scope: str, topic: str, partition: int, below: int) -> int | None:
        return self._inbox.start_runs(scope, topic, partition, below)

    def record_dead_letter(self, letter: DeadLetter) -> None:
        self._inbox.record_dead_letter(letter)

    def dead_letters(self, scope: str | None, limit: int) -> Sequence[DeadLetter]:
        return self._inbox.dead_letters(scope, limit)

    def count_dead_letters(self) -> Mapping[str, int]:
        return self._inbox.count_dead_letters()

    def close(self) -> None:
        """Detach from sessionmakers; the Engine stays as it is. Idempotent."""
        self._adoptions.close()
