"""Local transactions that txbus begins and ends: what COMMIT says, and what a block may not do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, exc

from tests.unit.stores.shop import (
    BRIEF_S,
    CHILDREN,
    EFFECTS,
    NOW_S,
    PATIENT_S,
    Effect,
    Shop,
    begins_itself,
    effect,
    row,
)
from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus.errors import ConfigurationError, StoreBusy, StoreFull, StoreUnavailable, TransactionError
from txbus.stores._sql_local import OwnTransaction
from txbus.stores.contract import CommitResult, LocalTransaction
from txbus.stores.sql import SqlDatabase

ID = HalfId("tx", 1)


class FailingCommit(sqlite3.Connection):
    """A driver's connection whose next COMMIT raises, after it was carried out or before."""

    error: BaseException | None = None
    carried_out = False

    def commit(self) -> None:
        error, FailingCommit.error = FailingCommit.error, None
        if error is None or FailingCommit.carried_out:
            super().commit()
        if error is not None:
            raise error


def failing(shop: Shop, error: BaseException, *, carried_out: bool) -> SqlDatabase:
    """A client whose next COMMIT fails in this way, once it is told to."""
    engine = shop.engine(connect_args={"factory": FailingCommit})
    FailingCommit.carried_out = carried_out
    database = shop.database(engine)
    transaction = database.begin(PATIENT_S)  # a connection is in the pool from now on
    transaction.commit()
    FailingCommit.error = error
    return database


def written(database: SqlDatabase) -> OwnTransaction:
    transaction = database.begin(PATIENT_S)
    effect(transaction, "paid")
    transaction.insert_ledger(row(ID))
    return transaction


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), KeyboardInterrupt(), SystemExit(), RuntimeError("driver")]
)
def test_commit_that_says_nothing_is_unknown(shop: Shop, error: BaseException, carried_out: bool) -> None:
    """After an error that tells nothing the outcome is UNKNOWN, and the ledger on a new connection
    knows it at once: the connection no longer holds the lock."""
    transaction = written(failing(shop, error, carried_out=carried_out))
    assert transaction.commit() is CommitResult.UNKNOWN
    found = transaction.commit_error
    assert found is error or isinstance(found, exc.DBAPIError)
    outcome = Outcome.COMMITTED if carried_out else Outcome.ROLLED_BACK
    assert shop.database().settle([ID], NOW_S, BRIEF_S) == {ID: outcome}
    assert shop.effects() == ({"paid"} if carried_out else set())
    transaction.rollback()


def test_deferred_constraint_is_refused(shop: Shop, database: SqlDatabase) -> None:
    """A COMMIT that a constraint refuses is REFUSED, rolled back, and the connection is as new."""
    transaction = written(database)
    transaction.connection.execute(CHILDREN.insert(), {"id": 1, "parent": 99})
    assert transaction.commit() is CommitResult.REFUSED
    assert isinstance(transaction.commit_error, exc.IntegrityError)
    assert shop.effects() == set()
    again = written(database)
    assert again.commit() is CommitResult.COMMITTED
    assert shop.effects() == {"paid"}


def test_busy_commit_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A COMMIT that a reader blocks (rollback journal) is REFUSED: the transaction is rolled back and
    leaves no lock behind, although SQLite would have kept it open."""
    shop = Shop(tmp_path_factory.mktemp("busy") / "shop.db", "DELETE")
    transaction = written(shop.database())
    reader = sqlite3.connect(shop.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM effects").fetchall()
    assert transaction.commit() is CommitResult.REFUSED
    assert "locked" in str(transaction.commit_error)
    reader.close()
    assert shop.effects() == set()
    assert shop.database().settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK}
    shop.close()


def test_rollback_may_be_repeated(shop: Shop, database: SqlDatabase) -> None:
    """rollback is idempotent, harmless after a commit, and silent on a broken connection."""
    committed = written(database)
    committed.commit()
    committed.rollback()
    assert shop.effects() == {"paid"}
    broken = database.begin(PATIENT_S)
    effect(broken, "lost")
    broken.connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
    broken.rollback()
    broken.rollback()
    assert shop.effects() == {"paid"}


def test_connections_go_back(shop: Shop) -> None:
    """Every end of a local transaction gives its connection back: a pool of one lasts."""
    database = shop.database(shop.engine(pool_size=1, max_overflow=0, pool_timeout=0.05))
    for number in range(4):
        ended = database.begin(PATIENT_S)
        effect(ended, str(number))
        if number % 2:
            ended.rollback()
        else:
            ended.commit()
        refused = database.begin(PATIENT_S)
        refused.connection.execute(CHILDREN.insert(), {"id": 1, "parent": 99})
        assert refused.commit() is CommitResult.REFUSED
        with_session = database.begin(PATIENT_S)
        with_session.session.add(Effect(name=f"session {number}"))
        with_session.flush()
        with_session.commit()
    assert shop.effects() == {"0", "2", *(f"session {number}" for number in range(4))}


# the block's session and connection


def test_session_commit_leaves_commit_to_the_block(shop: Shop, database: SqlDatabase) -> None:
    """session.commit() inside of a block flushes; nothing is visible before the block's end."""
    transaction = database.begin(PATIENT_S)
    transaction.session.add(Effect(name="orm"))
    transaction.session.commit()
    assert shop.effects() == set()
    transaction.session.add(Effect(name="later"))
    transaction.flush()
    transaction.insert_ledger(row(ID))
    assert transaction.commit() is CommitResult.COMMITTED
    assert shop.effects() == {"orm", "later"}


@pytest.mark.parametrize(
    "end",
    [
        lambda tx: tx.session.rollback(),
        lambda tx: tx.connection.rollback(),
        lambda tx: tx.connection.get_transaction().rollback(),
    ],
    ids=["session.rollback", "connection.rollback", "transaction.rollback"],
)
@pytest.mark.parametrize("goes_on", [True, False])
def test_block_ended_inside_cannot_commit(
    shop: Shop, database: SqlDatabase, end: Callable[[LocalTransaction], None], goes_on: bool
) -> None:
    """A transaction that the application itself rolled back has no ledger row and no COMMIT, not even
    when it wrote something afterwards."""
    transaction = database.begin(PATIENT_S)
    transaction.session.add(Effect(name="undone"))
    transaction.flush()
    end(transaction)
    if goes_on:
        transaction.connection.execute(EFFECTS.insert(), {"name": "stray"})
    with pytest.raises(TransactionError, match="leave the block to commit"):
        transaction.insert_ledger(row(ID))
    with pytest.raises(TransactionError, match="ended already"):
        transaction.commit()
    transaction.rollback()
    assert shop.effects() == set()
    assert database.settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK}


def test_block_committed_inside_is_an_error(shop: Shop, database: SqlDatabase) -> None:
    """An application that commits inside of its block hears of it; its messages are not sent."""
    transaction = database.begin(PATIENT_S)
    effect(transaction, "early")
    transaction.connection.commit()
    with pytest.raises(TransactionError, match="leave the block to commit"):
        transaction.insert_ledger(row(ID))
    transaction.rollback()
    assert database.settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK}


def test_session_may_be_closed_inside(shop: Shop, database: SqlDatabase) -> None:
    """close() of the block's session keeps what was flushed for the block's COMMIT."""
    transaction = database.begin(PATIENT_S)
    with transaction.session as session:
        session.add(Effect(name="flushed"))
        session.flush()
    assert shop.effects() == set()
    transaction.insert_ledger(row(ID))
    assert transaction.commit() is CommitResult.COMMITTED
    assert shop.effects() == {"flushed"}


def test_objects_are_usable_after_the_block(database: SqlDatabase) -> None:
    """ORM objects keep their values after the commit; nothing is loaded again."""
    transaction = database.begin(PATIENT_S)
    kept = Effect(name="kept")
    transaction.session.add(kept)
    transaction.flush()
    transaction.commit()
    assert kept.name == "kept"


@pytest.mark.parametrize("own_begin", [True, False])
def test_savepoint_is_no_commit(shop: Shop, own_begin: bool) -> None:
    """A released savepoint that is the first statement commits nothing, whoever emits BEGIN."""
    engine = shop.engine()
    database = shop.database(begins_itself(engine) if own_begin else engine)
    for use in (_core_savepoint, _orm_savepoint):
        transaction = database.begin(PATIENT_S)
        use(transaction)
        assert shop.effects() == set()
        transaction.rollback()
        assert shop.effects() == set()


def _core_savepoint(transaction: LocalTransaction) -> None:
    with transaction.connection.begin_nested():
        effect(transaction, "core")


def _orm_savepoint(transaction: LocalTransaction) -> None:
    with transaction.session.begin_nested():
        transaction.session.add(Effect(name="orm"))


class Heard:
    """What a local transaction says about its savepoints."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def savepoint(self, transaction: LocalTransaction, name: str) -> None:
        self.said.append(("begins", name))

    def savepoint_rolled_back(self, transaction: LocalTransaction, name: str) -> None:
        self.said.append(("rolled back", name))

    def savepoint_released(self, transaction: LocalTransaction, name: str) -> None:
        self.said.append(("released", name))


def test_savepoints_of_a_block_are_told(shop: Shop, database: SqlDatabase) -> None:
    """Who begins with hooks hears of each savepoint's begin and end, of Session and Connection."""
    heard = Heard()
    transaction = database.begin(PATIENT_S, heard)
    first = transaction.session.begin_nested()
    transaction.session.add(Effect(name="undone"))
    transaction.session.flush()
    first.rollback()
    with transaction.connection.begin_nested():
        effect(transaction, "kept")
    transaction.commit()
    assert heard.said == [
        ("begins", "savepoint 1"),
        ("rolled back", "savepoint 1"),
        ("begins", "savepoint 2"),
        ("released", "savepoint 2"),
    ]
    assert shop.effects() == {"kept"}


# what is refused, and what errors become


@pytest.mark.parametrize(
    "change",
    [
        lambda engine: engine.execution_options(isolation_level="AUTOCOMMIT"),
        lambda engine: _autocommits_by_event(engine),
    ],
    ids=["option", "driver"],
)
def test_autocommit_is_refused(shop: Shop, change: Callable[[Engine], Engine]) -> None:
    """An Engine in AUTOCOMMIT is refused at begin, and gets its connection back."""
    engine = change(shop.engine(pool_size=1, max_overflow=0, pool_timeout=0.05))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            shop.database(engine).begin(PATIENT_S)


def test_autocommit_of_the_engine_is_refused(shop: Shop) -> None:
    """An Engine made with isolation_level="AUTOCOMMIT" is refused."""
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        shop.database(shop.engine(isolation_level="AUTOCOMMIT")).begin(PATIENT_S)


def _autocommits_by_event(engine: Engine) -> Engine:
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None

    event.listen(engine, "connect", connected)
    return engine


def test_full_database_is_full(shop: Shop) -> None:
    """A database that cannot grow is StoreFull, nothing is written, and it works again afterwards."""
    engine = shop.engine(pool_size=1, max_overflow=0)
    database = shop.database(engine)
    transaction = database.begin(PATIENT_S)
    pages = transaction.connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    transaction.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(10_000):
            transaction.insert_inbox("s", "a" * 250, f"{number:0250}", BRIEF_S)

    with pytest.raises(StoreFull, match="room"):
        fill()
    transaction.rollback()
    again = database.begin(PATIENT_S)
    again.connection.exec_driver_sql("PRAGMA max_page_count=1000000")
    assert again.insert_inbox("s", "a" * 250, f"{0:0250}", BRIEF_S)
    assert again.commit() is CommitResult.COMMITTED


def test_locked_database_is_busy(shop: Shop) -> None:
    """A ledger insert that gets no write lock is StoreBusy, and says what it was doing."""
    writer = shop.database().begin(PATIENT_S)
    effect(writer, "paid")
    late = shop.database().begin(PATIENT_S)
    with pytest.raises(StoreBusy, match="ledger row of tx#1"):
        late.insert_ledger(row(ID))
    late.rollback()
    writer.rollback()


def test_read_only_database_is_unavailable(shop: Shop) -> None:
    """A database that takes no writes is StoreUnavailable for a fence, never an answer."""
    engine = shop.engine()
    event.listen(engine, "connect", lambda connection, record: connection.execute("PRAGMA query_only=ON"))
    with pytest.raises(StoreUnavailable):
        shop.database(engine).settle([ID], NOW_S, BRIEF_S)


def test_closed_connection_is_unavailable(database: SqlDatabase) -> None:
    """A connection that broke under a statement of the store is StoreUnavailable."""
    transaction = database.begin(PATIENT_S)
    transaction.connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
    with pytest.raises(StoreUnavailable):
        transaction.insert_ledger(row(ID))
    transaction.rollback()


def test_application_errors_are_its_own(database: SqlDatabase) -> None:
    """The application's statements raise what SQLAlchemy raises."""
    transaction = database.begin(PATIENT_S)
    effect(transaction, "twice")
    with pytest.raises(exc.IntegrityError):
        effect(transaction, "twice")
    transaction.rollback()


def test_small_transactions_have_no_listeners(database: SqlDatabase) -> None:
    """A local transaction without savepoints puts no listener on the connection: they cost a third."""
    transaction = database.begin(PATIENT_S)
    assert isinstance(transaction.connection, Connection)
    assert not transaction.connection._has_events
    transaction.rollback()
