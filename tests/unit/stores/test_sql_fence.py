"""The fence: a checker's insert and an application's insert of the same row, in every order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import Engine, event, select

from tests.unit.stores.shop import BRIEF_S, EFFECTS, NOW_S, PATIENT_S, Shop, begins_itself, committed, effect, row
from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus.errors import StoreBusy, StoreUnavailable, Superseded
from txbus.stores._sql_local import OwnTransaction
from txbus.stores.contract import CommitResult
from txbus.stores.sql import SqlDatabase

ID = HalfId("tx", 1)
FENCE = "BEGIN IMMEDIATE"


def before(engine: Engine, statement: str, act: Callable[[], None]) -> None:
    """Call ``act`` each time when this engine is about to execute the statement."""

    def executing(conn: Any, cursor: Any, sql: str, *rest: Any) -> None:
        if sql.startswith(statement):
            act()

    event.listen(engine, "before_cursor_execute", executing)


def open_transaction(database: SqlDatabase) -> OwnTransaction:
    transaction = database.begin(PATIENT_S)
    effect(transaction, "paid")
    transaction.insert_ledger(row(ID))
    return transaction


# the matrix: who is first, and how the application ends


@pytest.mark.parametrize("commits", [True, False])
def test_checker_waits_for_the_open_transaction(shop: Shop, commits: bool) -> None:
    """A checker that meets an open ledger row waits for its end and answers what became of it."""
    application = open_transaction(shop.database())
    fencing, engine = threading.Event(), shop.engine()
    before(engine, FENCE, fencing.set)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(shop.database(engine).settle, [ID], NOW_S, PATIENT_S)
        assert fencing.wait(PATIENT_S)
        if commits:
            assert application.commit() is CommitResult.COMMITTED
        else:
            application.rollback()
        settled = answer.result(PATIENT_S)
    assert settled == {ID: Outcome.COMMITTED if commits else Outcome.ROLLED_BACK}
    assert shop.effects() == ({"paid"} if commits else set())


def test_checker_first_supersedes_the_application(shop: Shop) -> None:
    """After a fence the application's ledger insert is Superseded and its effect is gone."""
    application = shop.database().begin(PATIENT_S)
    assert shop.database().settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK}
    effect(application, "paid")
    with pytest.raises(Superseded, match="tx#1"):
        application.insert_ledger(row(ID))
    application.rollback()
    assert shop.effects() == set()
    assert shop.database().settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK}


def test_application_that_holds_on_is_not_guessed_about(shop: Shop) -> None:
    """While the application is open beyond the lock wait there is no answer, and nothing is written."""
    application = open_transaction(shop.database())
    checker = shop.database()
    for _ in range(3):
        assert checker.settle([ID], NOW_S, BRIEF_S) == {}
    assert application.commit() is CommitResult.COMMITTED
    assert checker.settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.COMMITTED}


def test_another_writer_is_no_answer_either(shop: Shop) -> None:
    """A file busy with an unrelated writer gives no answer for missing rows, but does for those there."""
    settled, missing = HalfId("settled", 1), HalfId("missing", 1)
    committed(shop.database(), settled)
    with shop.engine().begin() as other:
        other.execute(EFFECTS.insert(), {"name": "unrelated"})
        answer = shop.database().settle([settled, missing], NOW_S, BRIEF_S)
        assert answer == {settled: Outcome.COMMITTED}
    assert shop.database().settle([missing], NOW_S, BRIEF_S) == {missing: Outcome.ROLLED_BACK}


# every interleaving

APPLICATION = ("begin", "insert", "commit")
CHECKER = ("select", "fence")


def interleavings() -> Iterator[tuple[str, ...]]:
    """All orders of the application's steps and the checker's, each in its own order."""
    length = len(APPLICATION) + len(CHECKER)
    for places in combinations(range(length), len(CHECKER)):
        checker, application = iter(CHECKER), iter(APPLICATION)
        yield tuple(next(checker if place in places else application) for place in range(length))


class Application:
    """A local transaction taken step by step; a refused step rolls it back."""

    def __init__(self, database: SqlDatabase, *, reads: bool) -> None:
        self._database = database
        self._reads = reads
        self._transaction: OwnTransaction | None = None
        self.committed = False

    def step(self, name: str) -> None:
        if name == "begin":
            self._transaction = self._database.begin(PATIENT_S)
            if self._reads:  # an old snapshot from here on, where the engine emits BEGIN
                self._transaction.connection.execute(select(EFFECTS)).all()
            return
        if self._transaction is None:
            return
        if name == "commit":
            self.committed = self._transaction.commit() is CommitResult.COMMITTED
            return
        try:
            self._transaction.insert_ledger(row(ID))
            effect(self._transaction, "paid")
        except (Superseded, StoreBusy):
            self._transaction.rollback()
            self._transaction = None


@pytest.mark.parametrize("snapshot", [False, True])
@pytest.mark.parametrize("order", list(interleavings()), ids=" ".join)
def test_every_interleaving_agrees(shop: Shop, order: tuple[str, ...], snapshot: bool) -> None:
    """In all ten orders the checker's answers are the truth, the same for ever, and the effect's."""
    engine = shop.engine()
    application = Application(shop.database(begins_itself(engine) if snapshot else engine), reads=snapshot)
    checking = shop.engine()
    select_at, fence_at = order.index("select"), order.index("fence")
    between = list(order[select_at + 1 : fence_at])

    def run_between() -> None:
        while between:
            application.step(between.pop(0))

    before(checking, FENCE, run_between)
    checker = shop.database(checking)
    for name in order[:select_at]:
        application.step(name)
    first = checker.settle([ID], NOW_S, BRIEF_S)
    run_between()  # the checker did not get to its insert: the row was there when it looked
    for name in order[fence_at + 1 :]:
        application.step(name)

    last = checker.settle([ID], NOW_S, BRIEF_S)
    assert last == {ID: Outcome.COMMITTED if application.committed else Outcome.ROLLED_BACK}
    assert first in ({}, last)
    assert checker.settle([ID], NOW_S, BRIEF_S) == last
    assert shop.effects() == ({"paid"} if application.committed else set())


def test_the_interleavings_are_all_of_them() -> None:
    """Three steps and two give ten orders, and they include each outcome of the race."""
    orders = list(interleavings())
    assert len(set(orders)) == 10
    assert ("select", "fence", "begin", "insert", "commit") in orders
    assert ("begin", "insert", "select", "fence", "commit") in orders


# many ids, errors, cost


def test_many_ids_in_one_question(shop: Shop, database: SqlDatabase) -> None:
    """A thousand ids are answered in one question, with more than one statement's variables."""
    ids = [HalfId(f"tx-{number}", 1 + number % 3) for number in range(1_000)]
    for id in ids[::100]:
        committed(database, id)
    answer = database.settle([*ids, *ids[:5]], NOW_S, BRIEF_S)
    assert {id for id in ids if answer[id] is Outcome.COMMITTED} == set(ids[::100])
    assert len(answer) == len(ids)
    assert database.settle(ids, NOW_S, BRIEF_S) == answer


def test_settled_ids_are_only_read(shop: Shop) -> None:
    """Ids that have rows are answered by one SELECT, without a write lock."""
    database = shop.database()
    ids = [HalfId(f"tx-{number}", 1) for number in range(50)]
    wanted = database.settle(ids, NOW_S, BRIEF_S)
    engine, statements = shop.engine(), list[str]()
    event.listen(engine, "before_cursor_execute", lambda c, k, sql, *rest: statements.append(sql))
    with shop.engine().begin() as writer:
        writer.execute(EFFECTS.insert(), {"name": "busy"})
        assert shop.database(engine).settle(ids, NOW_S, BRIEF_S) == wanted
    assert [sql.split()[0] for sql in statements] == ["SELECT"]


def test_settle_never_reserves(database: SqlDatabase) -> None:
    """A checker's fence is no reservation of the next attempt."""
    database.settle([ID], NOW_S, BRIEF_S)
    (fence,) = database.attempts_of("tx")
    assert fence.outcome is Outcome.ROLLED_BACK and not fence.reserved and fence.created_s == NOW_S


def test_database_out_of_reach_is_unavailable(shop: Shop) -> None:
    """A file that cannot be opened is StoreUnavailable, for a question and for a beginning."""
    database = shop.database()
    database.engine.dispose()
    shop.path.rename(shop.path.with_suffix(".away"))
    shop.path.mkdir()
    with pytest.raises(StoreUnavailable, match="'shop'"):
        database.settle([ID], NOW_S, BRIEF_S)
    with pytest.raises(StoreUnavailable, match="'shop'"):
        database.begin(PATIENT_S)


def test_exhausted_pool_is_unavailable(shop: Shop) -> None:
    """A pool without a connection to spare is StoreUnavailable, not an answer."""
    engine = shop.engine(pool_size=1, max_overflow=0, pool_timeout=0.01)
    database = shop.database(engine)
    with engine.connect(), pytest.raises(StoreUnavailable):
        database.settle([ID], NOW_S, BRIEF_S)
    assert database.settle([ID], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK}


def test_lock_wait_is_restored(shop: Shop) -> None:
    """The busy timeout of a pooled connection is the application's own again after a question."""
    engine = shop.engine(pool_size=1, max_overflow=0)
    database = shop.database(engine)

    def busy_timeout() -> int:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())

    own = busy_timeout()
    database.settle([ID], NOW_S, 7.0)
    assert busy_timeout() == own
    transaction = database.begin(PATIENT_S)
    assert transaction.insert_inbox("scope", "source", "id", 7.0)
    assert transaction.connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == own
    transaction.commit()
    with shop.engine().begin() as writer:
        writer.execute(EFFECTS.insert(), {"name": "busy"})
        assert database.settle([HalfId("other", 1)], NOW_S, BRIEF_S) == {}
    assert busy_timeout() == own


def test_engine_that_begins_itself_is_fenced_too(shop: Shop) -> None:
    """An Engine whose events emit BEGIN, as SQLAlchemy's documentation has it, is fenced as well."""
    database = shop.database(begins_itself(shop.engine()))
    other = HalfId("other", 1)
    committed(database, other)
    assert database.settle([ID, other], NOW_S, BRIEF_S) == {ID: Outcome.ROLLED_BACK, other: Outcome.COMMITTED}
    with pytest.raises(Superseded):
        committed(database, ID)
