"""A LocalTransaction of SQLAlchemy: the statements of the store in the application's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, NestedTransaction, event
from sqlalchemy.orm import Session

from txbus._outcome import Outcome
from txbus.errors import ConfigurationError, Superseded, TransactionError
from txbus.stores._sql_errors import Fault, fault_of, raise_translated, shown
from txbus.stores._sql_flavour import Flavour, Statement
from txbus.stores._sql_gate import Gate
from txbus.stores._sql_inbox import InboxStatements, letter_values, message_key
from txbus.stores._sql_ledger import checked_tx_id, ledger_values
from txbus.stores._sql_savepoints import SavepointStack
from txbus.stores._sql_tables import LEDGER
from txbus.stores.contract import CommitResult, DeadLetter, LedgerRow, SavepointHooks

__all__ = ["LocalStatements", "OwnTransaction", "SqlTransaction"]


class LocalStatements:
    """What a local transaction executes. Compiled once for each database."""

    def __init__(self, flavour: Flavour, inbox: InboxStatements) -> None:
        # It may fail, unlike the others: a conflict ends the transaction anyway, and above READ
        # COMMITTED only a failing INSERT tells a fence from another conflict.
        self.ledger: Statement = flavour.insert(LEDGER)
        self.inbox = inbox


class SqlTransaction:
    """The store's statements on a connection. `OwnTransaction` and an adopted one end differently.

    Used by one thread.
    """

    def __init__(self, gate: Gate, statements: LocalStatements) -> None:
        self._gate = gate
        self._statements = statements
        self._commit_error: BaseException | None = None

    @property
    def connection(self) -> Connection:
        """The SQLAlchemy Connection that is in the transaction."""
        raise NotImplementedError

    @property
    def commit_error(self) -> BaseException | None:
        """What COMMIT raised, if it did."""
        return self._commit_error

    def insert_ledger(self, row: LedgerRow) -> None:
        """See `LocalTransaction.insert_ledger`. Waits as long as the connection's own limits say."""
        assert row.outcome is not Outcome.UNKNOWN, row
        checked_tx_id(row.id.tx_id)
        connection = self._open("inserting the ledger row")
        try:
            self._statements.ledger.run(connection, ledger_values(row))
        except Exception as exc:
            if fault_of(exc, connection.dialect) is not Fault.REFUSED:
                raise_translated(exc, connection.dialect, f"inserting the ledger row of {row.id}", self._gate.name)
            raise Superseded(
                f"local transaction {row.id} on database {self._gate.name!r} was settled by a checker or a "
                "later attempt before its COMMIT: it is rolled back; run it again under the same tx_id"
            ) from exc

    def insert_inbox(self, scope: str, source: str, message_id: str, lock_wait_s: float) -> bool:
        """See `LocalTransaction.insert_inbox`."""
        connection = self._open("taking the message")
        values = message_key(scope, source, message_id)
        values["handled_s"] = self._gate.clock.wall_s()
        try:
            inserted = self._gate.flavour.insert_waiting(connection, self._statements.inbox.take, values, lock_wait_s)
        except Exception as exc:
            raise_translated(exc, connection.dialect, f"taking message {message_id!r}", self._gate.name)
        return inserted == 1

    def clear_attempt(self, scope: str, source: str, message_id: str) -> None:
        """See `LocalTransaction.clear_attempt`."""
        connection = self._open("forgetting attempts")
        try:
            self._statements.inbox.forget.run(connection, message_key(scope, source, message_id))
        except Exception as exc:
            raise_translated(exc, connection.dialect, "forgetting attempts", self._gate.name)

    def insert_dead_letter(self, letter: DeadLetter) -> None:
        """See `LocalTransaction.insert_dead_letter`."""
        connection = self._open("keeping a dead letter")
        try:
            self._statements.inbox.bury.run(connection, letter_values(letter))
        except Exception as exc:
            raise_translated(exc, connection.dialect, "keeping a dead letter", self._gate.name)

    def _open(self, doing: str) -> Connection:
        """The connection, while the transaction that was begun is still the open one."""
        raise NotImplementedError


class OwnTransaction(SqlTransaction):
    """A local transaction that txbus begins and ends."""

    def __init__(self, gate: Gate, statements: LocalStatements, timeout_s: float, hooks: SavepointHooks | None) -> None:
        super().__init__(gate, statements)
        self._hooks = hooks
        self._session: Session | None = None
        self._result: CommitResult | None = None
        engine = gate.engine
        try:
            self._connection = engine.connect()
        except Exception as exc:
            raise_translated(exc, engine.dialect, "beginning", gate.name)
        try:
            self._transaction = self._connection.begin()
            if gate.flavour.autocommits(self._connection):
                raise ConfigurationError(
                    f"database {gate.name!r}: engine {shown(engine)!r} is in AUTOCOMMIT, where nothing commits "
                    "together: give txbus an engine with a transactional isolation level, or "
                    "engine.execution_options(isolation_level=...)"
                )
            self._connection.begin_nested = self._begin_nested  # type: ignore[method-assign]
            self._limits = gate.flavour.limit(self._connection, timeout_s)
        except BaseException as exc:
            self._connection.close()
            if not isinstance(exc, Exception):
                raise
            raise_translated(exc, engine.dialect, "beginning", gate.name)

    @property
    def connection(self) -> Connection:
        """The SQLAlchemy Connection. Its commit() or rollback() inside of the block is an error later."""
        return self._connection

    @property
    def session(self) -> Session:
        """A Session on the connection; its commit() flushes and leaves the COMMIT to txbus."""
        if self._session is None:
            # rollback_only: commit() and close() leave the connection's transaction open, and
            # rollback() does roll it back; the block then ends in an error. Rolling back to a
            # savepoint instead would send the messages without their effects.
            self._session = Session(self._connection, join_transaction_mode="rollback_only", expire_on_commit=False)
        return self._session

    def flush(self) -> None:
        """See `LocalTransaction.flush`."""
        if self._session is not None:
            self._session.flush()

    def commit(self) -> CommitResult:
        """See `LocalTransaction.commit`. The connection is back in its pool, or closed, on return."""
        assert self._result is None, "commit() after the end"
        self._open("COMMIT")
        try:
            self._transaction.commit()
            self._result = CommitResult.COMMITTED
        except BaseException as exc:
            self._commit_error = exc
            self._result = self._gate.flavour.after_failed_commit(self._connection, exc)
        self._release()
        return self._result

    def rollback(self) -> None:
        """See `LocalTransaction.rollback`."""
        if self._result is not None or self._connection.closed:
            return
        self._result = CommitResult.REFUSED
        try:
            if self._transaction.is_active:
                self._transaction.rollback()
            self._connection.rollback()  # what the application began after ending ours by itself
        except Exception:
            self._invalidate()
        self._release()

    def _open(self, doing: str) -> Connection:
        if not self._transaction.is_active:
            raise TransactionError(
                f"database {self._gate.name!r}: {doing}: the transaction has ended already; "
                "tx.connection.commit(), or rollback() of tx.connection or tx.session, was called inside of the "
                "block: leave the block to commit, and raise to roll back"
            )
        return self._connection

    def _begin_nested(self) -> NestedTransaction:
        """Stands before the connection's own begin_nested(), which Sessions call as well.

        An event listener would do, but costs a third of the rate of a small local transaction,
        used or not; so the listeners are made with the first savepoint.
        """
        connection = self._connection
        self._gate.flavour.before_savepoint(connection)
        if self._hooks is not None:
            stack = SavepointStack(self, self._hooks)
            self._hooks = None
            event.listen(connection, "savepoint", lambda c, name: stack.began())
            event.listen(connection, "rollback_savepoint", lambda c, name, _: stack.rolled_back(c, name))
            event.listen(connection, "release_savepoint", lambda c, name, _: stack.released(c, name))
        return Connection.begin_nested(connection)

    def _release(self) -> None:
        # Circles of references: the collector's work for them would cost each message some microseconds.
        del self._connection.begin_nested
        self._hooks = None
        try:
            if self._session is not None:
                self._session.close()
            self._gate.flavour.unlimit(self._connection, self._limits)
        except Exception:
            self._invalidate()
        try:
            self._connection.close()
        except Exception:
            self._invalidate()

    def _invalidate(self) -> None:
        try:
            self._connection.invalidate()
        except Exception:
            pass  # it is broken, and its pool learns it at the next use
