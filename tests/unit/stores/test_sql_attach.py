"""Adopted transactions: the caller's Session or Connection commits, and the hooks stand around it."""

from __future__ import annotations

import gc
import sqlite3
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, exc, text
from sqlalchemy.orm import Session

from tests.unit.stores.shop import BRIEF_S, CHILDREN, EFFECTS, NOW_S, Effect, Shop, row
from tests.unit.stores.test_sql_local import FailingCommit
from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus.errors import ConfigurationError, Superseded, TransactionError
from txbus.stores._sql_attach import AdoptedTransaction
from txbus.stores.contract import CommitResult, LocalTransaction
from txbus.stores.sql import SqlDatabase


class Hooks:
    """Inserts a ledger row before the COMMIT, as the core does, and writes down what it hears."""

    def __init__(self, tx_id: str = "tx", refuse: BaseException | None = None) -> None:
        self.id = HalfId(tx_id, 1)
        self.refuse = refuse
        self.heard: list[str] = []
        self.error: BaseException | None = None
        self.seen_before_commit: Callable[[], object] | None = None
        self.seen: object = None

    def before_commit(self, transaction: LocalTransaction) -> None:
        self.heard.append("before_commit")
        transaction.flush()
        transaction.insert_ledger(row(self.id))
        if self.seen_before_commit is not None:
            self.seen = self.seen_before_commit()
        if self.refuse is not None:
            raise self.refuse

    def after_commit(self, transaction: LocalTransaction) -> None:
        self.heard.append("after_commit")

    def commit_failed(self, transaction: LocalTransaction, error: BaseException) -> None:
        self.heard.append("commit_failed")
        self.error = error

    def rolled_back(self, transaction: LocalTransaction) -> None:
        self.heard.append("rolled_back")

    def savepoint(self, transaction: LocalTransaction, name: str) -> None:
        self.heard.append(f"{name} begins")

    def savepoint_rolled_back(self, transaction: LocalTransaction, name: str) -> None:
        self.heard.append(f"{name} rolled back")

    def savepoint_released(self, transaction: LocalTransaction, name: str) -> None:
        self.heard.append(f"{name} released")


def outcome(shop: Shop, tx_id: str = "tx") -> Outcome | None:
    return shop.database().settle([HalfId(tx_id, 1)], NOW_S, BRIEF_S).get(HalfId(tx_id, 1))


Owner = Session | Connection


@pytest.fixture(params=["session", "connection"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def own(kind: str, database: SqlDatabase) -> Owner:
    return Session(database.engine) if kind == "session" else database.engine.connect()


def write(owner: Owner, name: str) -> None:
    if isinstance(owner, Session):
        owner.add(Effect(name=name))
    else:
        owner.execute(EFFECTS.insert(), {"name": name})


@pytest.mark.parametrize("begun", [True, False])
def test_commit(shop: Shop, database: SqlDatabase, kind: str, begun: bool) -> None:
    """The caller's commit() runs the hooks around COMMIT: the row is in it, the flush is before it."""
    with closing(own(kind, database)) as owner:
        if begun:
            owner.execute(text("SELECT 1"))
        hooks = Hooks()
        transaction = database.adopt(owner, hooks)
        hooks.seen_before_commit = lambda: (
            shop.effects() if shop.journal == "WAL" else set(),
            transaction.connection.scalar(text("SELECT count(*) FROM effects")),
        )
        write(owner, "paid")
        owner.commit()
        assert hooks.heard == ["before_commit", "after_commit"]
        assert hooks.seen == (set(), 1)
    assert shop.effects() == {"paid"} and outcome(shop) is Outcome.COMMITTED
    assert hooks.heard == ["before_commit", "after_commit"]


@pytest.mark.parametrize("ending", ["rollback", "close"])
def test_rollback(shop: Shop, database: SqlDatabase, kind: str, ending: str) -> None:
    """The caller's rollback() or close() is told once; nothing is committed."""
    owner, hooks = own(kind, database), Hooks()
    database.adopt(owner, hooks)
    write(owner, "paid")
    if isinstance(owner, Session):
        owner.flush()
    getattr(owner, ending)()
    owner.close()
    assert hooks.heard == ["rolled_back"]
    assert shop.effects() == set() and outcome(shop) is Outcome.ROLLED_BACK


@pytest.mark.parametrize("error", [ValueError("too late"), KeyboardInterrupt(), Superseded("fenced")])
def test_before_commit_that_raises(shop: Shop, database: SqlDatabase, kind: str, error: BaseException) -> None:
    """What before_commit raises is what commit() raises; the database has rolled back by then, and a
    later commit() of the same owner does not bring it back."""
    with closing(own(kind, database)) as owner:
        hooks = Hooks(refuse=error)
        database.adopt(owner, hooks)
        write(owner, "paid")
        with pytest.raises(type(error)) as raised:
            owner.commit()
        assert raised.value is error
        assert hooks.heard == ["before_commit", "rolled_back"]
        assert shop.effects() == set() and outcome(shop) is Outcome.ROLLED_BACK  # no lock is left behind
        owner.rollback()
        write(owner, "other")
        owner.commit()
        assert hooks.heard == ["before_commit", "rolled_back"]
    assert shop.effects() == {"other"}


def test_fence_reaches_the_caller(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """A checker that was first makes the caller's commit() raise Superseded."""
    with closing(own(kind, database)) as owner:
        database.adopt(owner, Hooks())
        assert outcome(shop) is Outcome.ROLLED_BACK
        write(owner, "paid")
        with pytest.raises(Superseded):
            owner.commit()
    assert shop.effects() == set()


def test_refused_commit(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """A COMMIT that the database refuses raises what SQLAlchemy would raise, tells commit_failed, and
    leaves nothing open."""
    with closing(own(kind, database)) as owner:
        hooks = Hooks()
        transaction = database.adopt(owner, hooks)
        assert isinstance(transaction, AdoptedTransaction)
        write(owner, "paid")
        owner.execute(CHILDREN.insert(), {"id": 1, "parent": 99})
        with pytest.raises(exc.IntegrityError, match="FOREIGN KEY") as raised:
            owner.commit()
        assert hooks.heard == ["before_commit", "commit_failed"]
        assert hooks.error is raised.value is transaction.commit_error
        assert transaction.commit_result is CommitResult.REFUSED
        assert outcome(shop) is Outcome.ROLLED_BACK
        owner.rollback()
        write(owner, "other")
        owner.commit()
    assert shop.effects() == {"other"}
    assert hooks.heard == ["before_commit", "commit_failed"]


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), KeyboardInterrupt()])
def test_unknown_commit(shop: Shop, kind: str, error: BaseException, carried_out: bool) -> None:
    """A COMMIT that tells nothing is UNKNOWN, and the ledger can be asked inside of commit_failed."""
    database = shop.database(shop.engine(connect_args={"factory": FailingCommit}))
    asked: list[Outcome | None] = []

    class Asking(Hooks):
        def commit_failed(self, transaction: LocalTransaction, error: BaseException) -> None:
            super().commit_failed(transaction, error)
            asked.append(outcome(shop))

    with closing(own(kind, database)) as owner:
        hooks = Asking()
        transaction = database.adopt(owner, hooks)
        write(owner, "paid")
        FailingCommit.error, FailingCommit.carried_out = error, carried_out
        with pytest.raises((exc.OperationalError, KeyboardInterrupt)):
            owner.commit()
        assert isinstance(transaction, AdoptedTransaction)
        assert transaction.commit_result is CommitResult.UNKNOWN
    assert asked == [Outcome.COMMITTED if carried_out else Outcome.ROLLED_BACK]
    assert hooks.heard == ["before_commit", "commit_failed"]
    assert shop.effects() == ({"paid"} if carried_out else set())


def test_commit_failed_may_raise_its_own(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """What commit_failed raises is what the caller sees."""

    class Own(Hooks):
        def commit_failed(self, transaction: LocalTransaction, error: BaseException) -> None:
            raise LookupError("ask the ledger")

    with closing(own(kind, database)) as owner:
        database.adopt(owner, Own())
        owner.execute(CHILDREN.insert(), {"id": 1, "parent": 99})
        with pytest.raises(LookupError):
            owner.commit()
    assert outcome(shop) is Outcome.ROLLED_BACK


def test_second_commit_is_another_transaction(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """After its end an adoption is inert; the owner can be adopted again for its next transaction."""
    with closing(own(kind, database)) as owner:
        first, second = Hooks("first"), Hooks("second")
        old = database.adopt(owner, first)
        write(owner, "one")
        owner.commit()
        write(owner, "two")
        owner.commit()
        assert first.heard == ["before_commit", "after_commit"]
        database.adopt(owner, second)
        write(owner, "three")
        with pytest.raises(TransactionError, match="attach again"):
            old.insert_ledger(row(HalfId("late", 1)))
        owner.commit()
        assert first.heard == second.heard == ["before_commit", "after_commit"]
    assert shop.effects() == {"one", "two", "three"}


def test_adopting_twice_is_refused(database: SqlDatabase, kind: str) -> None:
    """One adoption at a time; the refused one leaves the first as it is."""
    with closing(own(kind, database)) as owner:
        hooks = Hooks()
        database.adopt(owner, hooks)
        with pytest.raises(ConfigurationError, match="attached already"):
            database.adopt(owner, Hooks("other"))
        write(owner, "paid")
        owner.commit()
        assert hooks.heard == ["before_commit", "after_commit"]


def test_messages_alone_are_committed(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """An attached Session without a statement of its own still commits its ledger row."""
    with closing(own(kind, database)) as owner:
        hooks = Hooks()
        transaction = database.adopt(owner, hooks)
        if isinstance(owner, Connection):
            with pytest.raises(ConfigurationError, match="has not begun"):
                _ = transaction.connection
            owner.begin()
            assert transaction.connection is owner
        owner.commit()
        assert hooks.heard == ["before_commit", "after_commit"]
    assert outcome(shop) is Outcome.COMMITTED


def test_owner_ends_it_not_txbus(database: SqlDatabase, kind: str) -> None:
    """commit() and rollback() of an adopted transaction are broken invariants."""
    with closing(own(kind, database)) as owner:
        transaction = database.adopt(owner, Hooks())
        for end in (transaction.commit, transaction.rollback):
            with pytest.raises(AssertionError):
                end()


def test_nothing_is_kept_alive(database: SqlDatabase, kind: str) -> None:
    """Listeners and adoptions go with their owner."""
    owner, hooks = own(kind, database), Hooks()
    database.adopt(owner, hooks)
    write(owner, "paid")
    owner.commit()
    owner.close()
    alive = weakref.ref(owner), weakref.ref(hooks)
    del owner, hooks
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


# savepoints


def test_connection_savepoints(shop: Shop, database: SqlDatabase) -> None:
    """Savepoints of a Connection: nested, rolled back at once from outside, and released together."""
    with closing(database.engine.connect()) as owner:
        hooks = Hooks()
        database.adopt(owner, hooks)
        outer = owner.begin_nested()
        owner.begin_nested()
        write(owner, "undone")
        with pytest.warns(exc.SAWarning):
            outer.rollback()
        kept = owner.begin_nested()
        write(owner, "kept")
        kept.commit()
        owner.commit()
    assert hooks.heard == [
        "savepoint 1 begins",
        "savepoint 2 begins",
        "savepoint 1 rolled back",
        "savepoint 3 begins",
        "savepoint 3 released",
        "before_commit",
        "after_commit",
    ]
    assert shop.effects() == {"kept"}


def test_session_savepoints(shop: Shop, database: SqlDatabase) -> None:
    """Savepoints of a Session, in two levels, with a flush inside."""
    with closing(Session(database.engine)) as owner:
        hooks = Hooks()
        database.adopt(owner, hooks)
        with owner.begin_nested():
            write(owner, "kept")
            inner = owner.begin_nested()
            write(owner, "undone")
            owner.flush()
            inner.rollback()
        owner.commit()
    assert hooks.heard == [
        "savepoint 1 begins",
        "savepoint 2 begins",
        "savepoint 2 rolled back",
        "savepoint 1 released",
        "before_commit",
        "after_commit",
    ]
    assert shop.effects() == {"kept"}


def test_idle_session_savepoint_is_seen(database: SqlDatabase) -> None:
    """A Session's savepoint without any statement, where only messages were sent, is told as well;
    SQLAlchemy alone would not emit it."""
    with closing(Session(database.engine)) as owner:
        hooks = Hooks()
        database.adopt(owner, hooks)
        owner.begin_nested().rollback()
        with owner.begin_nested():
            pass
        owner.rollback()
    assert hooks.heard == [
        "savepoint 1 begins",
        "savepoint 1 rolled back",
        "savepoint 2 begins",
        "savepoint 2 released",
        "rolled_back",
    ]


def test_savepoint_from_before_the_adoption(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """Rolling back a savepoint that was open at the adoption undoes everything since, and is told so."""
    with closing(own(kind, database)) as owner:
        owner.execute(text("SELECT 1"))
        before = owner.begin_nested()
        owner.execute(text("SELECT 1"))
        hooks = Hooks()
        database.adopt(owner, hooks)
        with owner.begin_nested():
            write(owner, "undone")
        before.rollback()
        write(owner, "kept")
        owner.commit()
    assert hooks.heard == [
        "savepoint 0 begins",
        "savepoint 1 begins",
        "savepoint 1 released",
        "savepoint 0 rolled back",
        "savepoint 0 begins",
        "before_commit",
        "after_commit",
    ]
    assert shop.effects() == {"kept"}


def test_first_savepoint_is_no_commit(shop: Shop, database: SqlDatabase, kind: str) -> None:
    """A released savepoint that is an adopted transaction's first statement commits nothing."""
    with closing(own(kind, database)) as owner:
        database.adopt(owner, Hooks())
        with owner.begin_nested():
            write(owner, "inside")
        assert shop.effects() == set()
        owner.rollback()
    assert shop.effects() == set()


# whose transaction


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "create_savepoint", "control_fully"])
def test_session_on_a_connection_of_the_caller(shop: Shop, database: SqlDatabase, mode: Any) -> None:
    """A Session that joins the caller's Connection: the hooks stand around the Connection's COMMIT."""
    with closing(database.engine.connect()) as connection:
        connection.begin()
        session = Session(connection, join_transaction_mode=mode)
        hooks = Hooks()
        database.adopt(session, hooks)
        write(session, "paid")
        session.commit()
        if mode != "control_fully":
            assert "before_commit" not in hooks.heard and shop.effects() == set()
            connection.commit()
        assert [said for said in hooks.heard if "savepoint" not in said] == ["before_commit", "after_commit"]
    assert shop.effects() == {"paid"} and outcome(shop) is Outcome.COMMITTED


def test_joined_session_that_rolls_back_its_savepoint(shop: Shop, database: SqlDatabase) -> None:
    """A Session in create_savepoint mode that rolls back forgets what was sent, though the Connection
    commits."""
    with closing(database.engine.connect()) as connection:
        connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint")
        session.execute(text("SELECT 1"))
        hooks = Hooks()
        database.adopt(session, hooks)
        write(session, "undone")
        session.flush()
        session.rollback()
        connection.commit()
    assert "savepoint 0 rolled back" in hooks.heard
    assert shop.effects() == set()


def test_session_bound_by_mapper(shop: Shop, database: SqlDatabase, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A Session of two databases, bound by mapper, is adopted for the one that is ours."""
    other = create_engine(f"sqlite:///{tmp_path_factory.mktemp('other')}/other.db")
    with closing(Session(other, binds={Effect: database.engine})) as owner:
        assert database.recognises(owner)
        hooks = Hooks()
        database.adopt(owner, hooks)
        owner.execute(text("CREATE TABLE elsewhere (a)"), bind_arguments={"bind": other})
        write(owner, "ours")
        owner.commit()
    assert hooks.heard == ["before_commit", "after_commit"] and shop.effects() == {"ours"}
    other.dispose()


def test_engine_with_other_options_is_recognised(database: SqlDatabase) -> None:
    """An Engine that differs by execution options is the same database; another Engine is not."""
    optioned = database.engine.execution_options(logging_token="shop")
    assert database.recognises(optioned)
    with closing(Session(optioned)) as session, optioned.connect() as connection:
        assert database.recognises(session) and database.recognises(connection)
    foreign = create_engine(database.engine.url)
    with closing(Session(foreign)) as session, foreign.connect() as connection:
        for owner in (foreign, session, connection, "shop", None):
            assert not database.recognises(owner)
        with pytest.raises(ConfigurationError, match="no Session or Connection of database 'shop'"):
            database.adopt(session, Hooks())
    with closing(Session()) as unbound:
        assert not database.recognises(unbound)
    foreign.dispose()


@pytest.mark.parametrize("begun", [True, False])
def test_autocommit_is_refused(shop: Shop, database: SqlDatabase, begun: bool) -> None:
    """A Connection or Session in AUTOCOMMIT is refused, begun or not."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if begun:
            connection.execute(text("SELECT 1"))
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            database.adopt(connection, Hooks())
    autocommit = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with closing(Session(autocommit)) as session:
        session.execute(text("SELECT 1"))
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            database.adopt(session, Hooks())
    assert outcome(shop) is Outcome.ROLLED_BACK


def test_two_phase_is_refused(database: SqlDatabase) -> None:
    """A two-phase Session is refused; its outcome is decided elsewhere."""
    with closing(Session(database.engine, twophase=True)) as session:
        with pytest.raises(ConfigurationError, match="two-phase"):
            database.adopt(session, Hooks())
    with database.engine.connect() as connection:
        database.adopt(connection, Hooks())
        with pytest.raises((ConfigurationError, NotImplementedError), match="two-phase"):
            connection.begin_twophase()


def test_context_managers_of_sqlalchemy(shop: Shop, database: SqlDatabase) -> None:
    """with session.begin() and with connection.begin() around the adoption behave as commit()."""
    owners: tuple[Owner, ...] = (Session(database.engine), database.engine.connect())
    for number, owner in enumerate(owners):
        hooks = Hooks(f"tx-{number}")
        with closing(owner), owner.begin():
            database.adopt(owner, hooks)
            write(owner, str(number))
        assert hooks.heard == ["before_commit", "after_commit"]
    refused = Hooks("refused", refuse=ValueError("no"))

    def enter(connection: Connection) -> None:
        with connection.begin():
            database.adopt(connection, refused)
            write(connection, "refused")

    with database.engine.connect() as connection:
        with pytest.raises(ValueError, match="no"):
            enter(connection)
        assert refused.heard == ["before_commit", "rolled_back"]
    assert shop.effects() == {"0", "1"}


def test_application_listeners_keep_working(shop: Shop, database: SqlDatabase) -> None:
    """The application's own commit listeners of Engine and Session run once each."""
    heard: list[str] = []
    event.listen(database.engine, "commit", lambda connection: heard.append("engine"))
    with closing(Session(database.engine)) as session:
        event.listen(session, "after_commit", lambda session: heard.append("session"))
        database.adopt(session, Hooks())
        write(session, "paid")
        session.commit()
    assert heard == ["engine", "session"]
