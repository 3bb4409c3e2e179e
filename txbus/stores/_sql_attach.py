"""Adopting transactions that the application begins and ends itself.

The hook is the Connection's ``commit`` event: it fires for Sessions and Connections alike, after
the flush and right before the driver's COMMIT. SQLAlchemy has no event after it and none for its
failure; so the COMMIT is issued inside of that event, and SQLAlchemy's own one that follows finds
nothing to commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, TwoPhaseTransaction, event
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import Session, SessionTransaction, scoped_session, sessionmaker

from txbus.errors import ConfigurationError, TransactionError
from txbus.stores._sql_errors import shown
from txbus.stores._sql_gate import Gate
from txbus.stores._sql_local import LocalStatements, SqlTransaction
from txbus.stores._sql_savepoints import SavepointStack
from txbus.stores.contract import AttachHooks, CommitResult, LocalTransaction

__all__ = ["AdoptedTransaction", "Adoptions"]


class AdoptedTransaction(SqlTransaction):
    """A local transaction that the caller ends. Inert after its end."""

    def __init__(
        self,
        gate: Gate,
        statements: LocalStatements,
        owner: Session | Connection,
        hooks: AttachHooks,
        reach: Callable[[Session], Connection],
    ) -> None:
        super().__init__(gate, statements)
        # Weak, because the owner leads here: what the caller drops must go, and be rolled back.
        self._owner = ref(owner)
        self._kind = type(owner).__name__
        self._connection: ref[Connection] | None = None
        self.hooks = hooks
        self._reach = reach
        self._ended = False
        self._committing = False
        self.savepoints = SavepointStack(self, hooks)
        self.commit_result: CommitResult | None = None
        """How the COMMIT ended; None before it, and after a rollback without one."""

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def connection(self) -> Connection:
        """The caller's Connection; of a Session that has none yet it is made.

        ConfigurationError for a Connection that has not begun: its rollback would fire no event, and
        what was sent would go with a later, unrelated commit.
        """
        connection = None if self._connection is None else self._connection()
        if connection is not None and not self._committing and not connection.in_transaction():
            raise ConfigurationError(
                f"database {self._gate.name!r}: the attached {self._kind} has not begun its transaction: send inside "
                "of `with connection.begin():`"
            )
        if connection is None:
            owner = self._owner()
            if not isinstance(owner, Session):
                raise TransactionError(f"database {self._gate.name!r}: the attached {self._kind} is gone")
            connection = self._reach(owner)
        return connection

    @property
    def session(self) -> Session:
        """The caller's Session; ConfigurationError when a Connection was given."""
        owner = self._owner()
        if not isinstance(owner, Session):
            raise ConfigurationError(
                f"database {self._gate.name!r}: the attached {self._kind} is no Session: attach the Session"
            )
        return owner

    def flush(self) -> None:
        """See `LocalTransaction.flush`. In the COMMIT itself the flush has happened."""
        owner = self._owner()
        if isinstance(owner, Session) and not self._committing:
            owner.flush()

    def commit(self) -> CommitResult:
        """Never called: the caller commits."""
        raise AssertionError("an adopted transaction is committed by its owner")

    def rollback(self) -> None:
        """Never called: the caller rolls back."""
        raise AssertionError("an adopted transaction is rolled back by its owner")

    # what the connection's events call

    def follow(self, connection: Connection) -> None:
        self._connection = ref(connection)
        self.savepoints.start(connection)

    def on_commit(self, connection: Connection) -> None:
        """The hooks, and the COMMIT between them."""
        self._committing = True
        try:
            _refuse_autocommit(self._gate, connection)
            self.hooks.before_commit(self)
        except BaseException:
            self._ended = True
            self._roll_back(connection)
            self.hooks.rolled_back(self)
            raise
        try:
            connection.dialect.do_commit(connection.connection)
        except BaseException as exc:
            error = _wrapped(connection, exc)
            self._ended = True
            self._commit_error = error
            self.commit_result = self._gate.flavour.after_failed_commit(connection, error)
            self.hooks.commit_failed(self, error)
            if error is exc:
                raise
            raise error from exc
        self._ended = True
        self.commit_result = CommitResult.COMMITTED
        self.hooks.after_commit(self)

    def on_rollback(self) -> None:
        self._ended = True
        self.hooks.rolled_back(self)

    def before_savepoint(self, connection: Connection) -> None:
        self._gate.flavour.before_savepoint(connection)
        self.savepoints.began()

    def _roll_back(self, connection: Connection) -> None:
        # SQLAlchemy sends no ROLLBACK for a transaction whose commit raised.
        try:
            connection.dialect.do_rollback(connection.connection)
        except Exception:
            connection.invalidate()

    def _open(self, doing: str) -> Connection:
        if self._ended:
            raise TransactionError(
                f"database {self._gate.name!r}: {doing}: the attached transaction has ended; attach again "
                "for the next one"
            )
        return self.connection


class _Watch:
    """The listeners of one Connection or Session, made once; inert while nothing is adopted."""

    def __init__(self) -> None:
        self._transaction: AdoptedTransaction | None = None

    @property
    def transaction(self) -> AdoptedTransaction | None:
        if self._transaction is not None and self._transaction.ended:
            self._transaction = None
        return self._transaction

    @transaction.setter
    def transaction(self, transaction: AdoptedTransaction) -> None:
        self._transaction = transaction


class _ConnectionWatch(_Watch):
    def __init__(self, connection: Connection) -> None:
        super().__init__()
        event.listen(connection, "commit", self._commit)
        event.listen(connection, "rollback", self._rollback)
        event.listen(connection, "savepoint", self._savepoint)
        event.listen(connection, "rollback_savepoint", self._rollback_savepoint)
        event.listen(connection, "release_savepoint", self._release_savepoint)
        event.listen(connection, "begin_twophase", self._begin_twophase)

    def _commit(self, connection: Connection) -> None:
        if self.transaction is not None:
            self.transaction.on_commit(connection)

    def _rollback(self, connection: Connection) -> None:
        if self.transaction is not None:
            self.transaction.on_rollback()

    def _savepoint(self, connection: Connection, name: str | None) -> None:
        if self.transaction is not None:
            self.transaction.before_savepoint(connection)

    def _rollback_savepoint(self, connection: Connection, name: str, context: None) -> None:
        if self.transaction is not None:
            self.transaction.savepoints.rolled_back(connection, name)

    def _release_savepoint(self, connection: Connection, name: str, context: None) -> None:
        if self.transaction is not None:
            self.transaction.savepoints.released(connection, name)

    def _begin_twophase(self, connection: Connection, xid: Any) -> None:
        if self.transaction is not None:
            _refuse_twophase()


class _SessionWatch(_Watch):
    """Makes a Session emit at once what it would emit with its next statement: BEGIN for an
    adopted transaction, and SAVEPOINT, without which the rollback of an idle one is not seen."""

    def __init__(self, session: Session, reach: Callable[[Session], Connection]) -> None:
        super().__init__()
        self._reach = reach
        event.listen(session, "after_transaction_create", self._created)

    def _created(self, session: Session, transaction: SessionTransaction) -> None:
        if self.transaction is not None and (transaction.nested or transaction.parent is None):
            self._reach(session)


class Adoptions:
    """Every adopted transaction of one database. Thread-safe: each owner is used by one thread."""

    def __init__(self, gate: Gate, statements: LocalStatements) -> None:
        self._gate = gate
        self._statements = statements
        self._connections: WeakKeyDictionary[Connection, _ConnectionWatch] = WeakKeyDictionary()
        self._sessions: WeakKeyDictionary[Session, _SessionWatch] = WeakKeyDictionary()
        self._makers: list[tuple[sessionmaker[Any], Callable[..., None]]] = []

    def adopt(self, owner: Any, hooks: AttachHooks) -> LocalTransaction:
        """See `Database.adopt`."""
        if isinstance(owner, scoped_session):
            owner = owner()
        if not isinstance(owner, (Session, Connection)) or not self.recognises(owner):
            raise ConfigurationError(
                f"{owner!r} is no Session or Connection of database {self._gate.name!r} ({shown(self._gate.engine)!r})"
            )
        if self._adopted(owner) is not None:
            raise ConfigurationError(f"{owner!r} is attached already, until its transaction ends")
        transaction = AdoptedTransaction(self._gate, self._statements, owner, hooks, self._reach)
        if isinstance(owner, Connection):
            self._follow(transaction, owner)
            return transaction
        self._watch_session(owner, transaction)
        if owner.in_transaction():
            self._reach(owner)
        return transaction

    def adopt_sessions(
        self, maker: sessionmaker[Any] | scoped_session[Any], hooks_for: Callable[[Session], AttachHooks]
    ) -> Callable[[], None]:
        """See `SqlDatabase.adopt_sessions`."""
        factory = maker.session_factory if isinstance(maker, scoped_session) else maker
        if not isinstance(factory, sessionmaker) or not self.recognises(factory):
            raise ConfigurationError(
                f"{maker!r} is no sessionmaker of database {self._gate.name!r} ({shown(self._gate.engine)!r})"
            )

        def after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
            if transaction.nested or not self._ours(connection):
                return
            if self._session_transaction(session) is not None:
                return  # adopted by hand
            hooks = hooks_for(session)
            adopted = AdoptedTransaction(self._gate, self._statements, session, hooks, self._reach)
            self._watch_session(session, adopted)
            self._follow(adopted, connection)

        entry = (factory, after_begin)
        event.listen(factory, "after_begin", after_begin)
        self._makers.append(entry)

        def detach() -> None:
            if entry in self._makers:
                self._makers.remove(entry)
                event.remove(factory, "after_begin", after_begin)

        return detach

    def open_on(self, owner: Session | Connection) -> AdoptedTransaction | None:
        """See `SqlDatabase.adopted`. A Session of an attached maker is made to begin."""
        found = self._adopted(owner)
        if isinstance(owner, Connection):
            return found
        if found is None and any(isinstance(owner, maker.class_) for maker, _ in self._makers):
            self._reach(owner)
            found = self._session_transaction(owner)
        return found

    def recognises(self, owner: Any) -> bool:
        """See `Database.recognises`."""
        if isinstance(owner, (Engine, Connection)):
            return self._ours(owner)
        if isinstance(owner, scoped_session):
            owner = owner.session_factory
        if isinstance(owner, Session):
            return self._bind(owner) is not None
        if isinstance(owner, sessionmaker):
            binds = [owner.kw.get("bind"), *(owner.kw.get("binds") or {}).values()]
            return any(bind is not None and self._ours(bind) for bind in binds)
        return False

    def close(self) -> None:
        for maker, listener in self._makers:
            event.remove(maker, "after_begin", listener)
        self._makers.clear()

    def _adopted(self, owner: Session | Connection) -> AdoptedTransaction | None:
        if isinstance(owner, Session):
            return self._session_transaction(owner)
        watch = self._connections.get(owner)
        return None if watch is None else watch.transaction

    def _session_transaction(self, session: Session) -> AdoptedTransaction | None:
        watch = self._sessions.get(session)
        return None if watch is None else watch.transaction

    def _watch_session(self, session: Session, transaction: AdoptedTransaction) -> None:
        if session.twophase:
            _refuse_twophase()
        watch = self._sessions.get(session)
        if watch is None:
            watch = self._sessions[session] = _SessionWatch(session, self._reach)
        watch.transaction = transaction

    def _reach(self, session: Session) -> Connection:
        """The Session's Connection to this database, in its transaction and followed."""
        bind = self._bind(session)
        assert bind is not None
        if isinstance(bind, Connection):
            # The Session may join it by a savepoint, which has to be seen.
            self._follow_once(session, bind)
        connection = session.connection(bind_arguments={"bind": bind})
        self._follow_once(session, connection)
        return connection

    def _follow_once(self, session: Session, connection: Connection) -> None:
        transaction = self._session_transaction(session)
        watch = self._connections.get(connection)
        if transaction is not None and (watch is None or watch.transaction is not transaction):
            self._follow(transaction, connection)

    def _follow(self, transaction: AdoptedTransaction, connection: Connection) -> None:
        if isinstance(connection.get_transaction(), TwoPhaseTransaction):
            _refuse_twophase()
        chosen = connection.get_execution_options().get("isolation_level") is not None
        if chosen or connection.in_transaction():
            _refuse_autocommit(self._gate, connection)
        watch = self._connections.get(connection)
        if watch is None:
            watch = self._connections[connection] = _ConnectionWatch(connection)
        if watch.transaction is not None and watch.transaction is not transaction:
            raise ConfigurationError(f"{connection!r} is attached already, until its transaction ends")
        watch.transaction = transaction
        transaction.follow(connection)

    def _bind(self, session: Session) -> Engine | Connection | None:
        return next((bind for bind in _binds(session) if self._ours(bind)), None)

    def _ours(self, bind: Engine | Connection) -> bool:
        # Engines that differ in execution options only share their pool.
        return isinstance(bind, (Engine, Connection)) and bind.engine.pool is self._gate.engine.pool


def _binds(session: Session) -> Iterator[Engine | Connection]:
    try:
        yield session.get_bind()
    except sa_exc.UnboundExecutionError:
        pass  # bound by mapper or table only
    # Public since SQLAlchemy 2.1.
    binds = getattr(session, "binds", None) or getattr(session, "_Session__binds", {})
    yield from binds.values()


def _refuse_autocommit(gate: Gate, connection: Connection) -> None:
    if gate.flavour.autocommits(connection):
        raise ConfigurationError(
            f"database {gate.name!r}: {connection!r} is in AUTOCOMMIT, where nothing commits together: use a "
            "transactional isolation level for what is attached to txbus"
        )


def _refuse_twophase() -> None:
    raise ConfigurationError("a two-phase transaction cannot be attached: another coordinator decides it")


def _wrapped(connection: Connection, error: BaseException) -> BaseException:
    """What SQLAlchemy's own COMMIT would have raised for a driver's error."""
    driver: Any = connection.dialect.dbapi
    if not isinstance(error, driver.Error) or not isinstance(error, Exception):
        return error
    lost = connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, None)  # type: ignore[arg-type]
    return sa_exc.DBAPIError.instance(
        None, None, error, driver.Error, connection_invalidated=lost, dialect=connection.dialect
    )
