"""Attempts of one tx_id: numbered, each settled before the next begins, committed at most once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.unit.stores.shop import BRIEF_S, NOW_S, PATIENT_S, Shop, committed, effect, row
from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus.errors import AlreadyCommitted, ConfigurationError, StoreBusy, Superseded
from txbus.stores.sql import SqlDatabase


def test_reservations_count_up(database: SqlDatabase) -> None:
    """Each reservation settles the attempt before it by a row marked reserved."""
    assert [database.reserve("tx", NOW_S, BRIEF_S) for _ in range(3)] == [2, 3, 4]
    rows = database.attempts_of("tx")
    assert [(row.id.attempt, row.outcome, row.reserved) for row in rows] == [
        (attempt, Outcome.ROLLED_BACK, True) for attempt in (1, 2, 3)
    ]


def test_fence_of_a_checker_reserves_nothing(database: SqlDatabase) -> None:
    """After a checker's fence of attempt 1, attempt 2 is settled as well and attempt 3 is given."""
    database.settle([HalfId("tx", 1)], NOW_S, BRIEF_S)
    assert database.reserve("tx", NOW_S, BRIEF_S) == 3
    assert [row.reserved for row in database.attempts_of("tx")] == [False, True]


def test_reserved_attempt_commits_once(database: SqlDatabase) -> None:
    """The reserved attempt can commit; then no further one is given."""
    attempt = database.reserve("tx", NOW_S, BRIEF_S)
    committed(database, HalfId("tx", attempt))
    with pytest.raises(AlreadyCommitted, match="attempt 2"):
        database.reserve("tx", NOW_S, BRIEF_S)


def test_open_attempt_is_busy_and_then_looked_at_again(shop: Shop) -> None:
    """An open attempt is StoreBusy naming it; when it has committed, it is AlreadyCommitted."""
    open_ = shop.database().begin(PATIENT_S)
    open_.insert_ledger(row(HalfId("tx", 1)))
    with pytest.raises(StoreBusy, match="attempt 1 of tx_id 'tx'"):
        shop.database().reserve("tx", NOW_S, BRIEF_S)
    open_.commit()
    with pytest.raises(AlreadyCommitted):
        shop.database().reserve("tx", NOW_S, BRIEF_S)


@pytest.mark.parametrize("tx_id", ["", "x" * 129])
def test_id_that_does_not_fit_is_refused(database: SqlDatabase, tx_id: str) -> None:
    """An id that the ledger cannot keep as a whole is refused where it comes in."""
    with pytest.raises(ConfigurationError, match="1 to 128"):
        database.reserve(tx_id, NOW_S, BRIEF_S)
    transaction = database.begin(PATIENT_S)
    with pytest.raises(ConfigurationError, match="1 to 128"):
        transaction.insert_ledger(row(HalfId(tx_id, 1)))
    transaction.rollback()


def test_concurrent_reservations_differ(shop: Shop) -> None:
    """Eight callers that reserve one tx_id at once get eight different attempts."""
    barrier = threading.Barrier(8)

    def reserve(database: SqlDatabase) -> int:
        barrier.wait()
        return database.reserve("tx", NOW_S, PATIENT_S)

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(reserve, [shop.database() for _ in range(8)]))
    assert sorted(numbers) == list(range(2, 10))


def test_business_transaction_commits_at_most_once(shop: Shop) -> None:
    """Six callers run the same block under one tx_id, with checkers in between: one effect in the end."""
    barrier = threading.Barrier(8)

    def run(number: int) -> bool:
        database = shop.database()
        barrier.wait()
        while True:
            try:
                attempt = database.reserve("tx", NOW_S, PATIENT_S)
            except AlreadyCommitted:
                return False
            transaction = database.begin(PATIENT_S)
            try:
                effect(transaction, f"paid by {number}")
                transaction.insert_ledger(row(HalfId("tx", attempt)))
            except Exception:
                transaction.rollback()
                continue
            transaction.commit()
            return True

    def check() -> None:
        database = shop.database()
        barrier.wait()
        for attempt in range(1, 30):
            database.settle([HalfId("tx", attempt)], NOW_S, BRIEF_S)

    with ThreadPoolExecutor(8) as pool:
        checkers = [pool.submit(check) for _ in range(2)]
        runs = [pool.submit(run, number) for number in range(6)]
        assert sum(done.result(PATIENT_S * 2) for done in runs) == 1
        for checker in checkers:
            checker.result(PATIENT_S * 2)
    assert len(shop.effects()) == 1
    outcomes = [row.outcome for row in shop.database().attempts_of("tx")]
    assert outcomes.count(Outcome.COMMITTED) == 1


def test_superseded_attempt_cannot_commit(database: SqlDatabase) -> None:
    """An attempt that a later reservation settled is Superseded."""
    first = database.reserve("tx", NOW_S, BRIEF_S)
    second = database.reserve("tx", NOW_S, BRIEF_S)
    with pytest.raises(Superseded):
        committed(database, HalfId("tx", first))
    committed(database, HalfId("tx", second))


# an operator's word, confirmation and purge


def test_operator_decides_what_is_open_to_decision(database: SqlDatabase) -> None:
    """An operator's row stands unless there is one, which wins."""
    word = row(HalfId("tx", 1))
    assert database.decide(word) is Outcome.COMMITTED
    assert database.settle([word.id], NOW_S, BRIEF_S) == {word.id: Outcome.COMMITTED}
    fenced = HalfId("fenced", 1)
    database.settle([fenced], NOW_S, BRIEF_S)
    assert database.decide(row(fenced)) is Outcome.ROLLED_BACK


def test_confirmation_keeps_its_first_time(database: SqlDatabase) -> None:
    """confirm is idempotent and touches COMMITTED rows only."""
    committed(database, HalfId("tx", 1))
    database.settle([HalfId("fenced", 1)], NOW_S, BRIEF_S)
    for now_s in (NOW_S + 1, NOW_S + 2):
        database.confirm([HalfId("tx", 1), HalfId("fenced", 1), HalfId("missing", 1)], now_s)
    rows = database.look([HalfId("tx", 1), HalfId("fenced", 1), HalfId("missing", 1)])
    assert {id.tx_id: row.confirmed_s for id, row in rows.items()} == {"tx": NOW_S + 1, "fenced": None}


def test_unconfirmed_are_listed_oldest_first(database: SqlDatabase) -> None:
    """unconfirmed lists COMMITTED rows with messages, oldest first, up to its limit."""
    for number in range(5):
        committed(database, HalfId(f"tx-{number}", 1), created_s=100.0 - number)
    committed(database, HalfId("empty", 1), messages=0, created_s=1.0)
    listed = [row.id.tx_id for row in database.unconfirmed(100.0, 3)]
    assert listed == ["tx-4", "tx-3", "tx-2"]


def test_purge_takes_the_oldest_settled(database: SqlDatabase) -> None:
    """Purge deletes fences, confirmed rows and those without messages; never what may be asked about."""
    committed(database, HalfId("open", 1), created_s=1.0)
    committed(database, HalfId("confirmed", 1), created_s=2.0)
    committed(database, HalfId("empty", 1), messages=0, created_s=3.0)
    database.settle([HalfId("fenced", 1)], 4.0, BRIEF_S)
    committed(database, HalfId("young", 1), messages=0, created_s=NOW_S)
    database.confirm([HalfId("confirmed", 1)], NOW_S)
    assert database.purge_ledger(4.0, 100) == 2  # a row of the very time stays
    assert database.purge_ledger(NOW_S, 100) == 1
    names = ("open", "confirmed", "empty", "fenced", "young")
    left = database.look([HalfId(name, 1) for name in names])
    assert {id.tx_id for id in left} == {"open", "young"}


def test_purge_of_a_large_batch(database: SqlDatabase) -> None:
    """A batch beyond one statement's variables is deleted, and counted rightly."""
    database.settle([HalfId(f"tx-{number}", 1) for number in range(1_500)], 1.0, BRIEF_S)
    assert [database.purge_ledger(2.0, 1_200) for _ in range(3)] == [1_200, 300, 0]


def test_listing_and_purge_use_indexes(database: SqlDatabase) -> None:
    """SQLite finds unconfirmed and old rows by an index; it does not read the whole ledger."""
    queries = (
        "SELECT * FROM txbus_ledger WHERE confirmed_s IS NULL AND messages > 0 AND created_s < 5",
        "SELECT tx_id FROM txbus_ledger WHERE created_s < 5 ORDER BY created_s LIMIT 10",
    )
    with database.engine.connect() as connection:
        for query in queries:
            plan = " ".join(str(line) for line in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
            assert "USING" in plan and "INDEX txbus_ledger_" in plan, plan
