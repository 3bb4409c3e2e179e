"""The receiving side: a message is taken once, attempts and dead letters are kept as they were."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from tests.unit.stores.shop import BRIEF_S, EFFECTS, PATIENT_S, Shop, effect
from txbus.errors import StoreBusy
from txbus.stores.contract import AttemptRow, DeadLetter
from txbus.stores.sql import SqlDatabase

WILD = "a\x00b\udc80\udcff\\u0041 \u00e9\U0001f600 "


def letter(scope: str = "scope", message_id: str = "id", error: str = "boom", dead_s: float = 5.0) -> DeadLetter:
    return DeadLetter(
        scope, "source", message_id, "orders", 3, 2**40, "key", {"ce_id": message_id}, b"\x00\xff", 4, error, dead_s
    )


def take(database: SqlDatabase, scope: str, source: str, message_id: str) -> bool:
    transaction = database.begin(PATIENT_S)
    try:
        taken = transaction.insert_inbox(scope, source, message_id, BRIEF_S)
        transaction.commit()
        return taken
    finally:
        transaction.rollback()


@pytest.mark.parametrize("commits", [True, False])
def test_second_handler_waits_for_the_first(shop: Shop, commits: bool) -> None:
    """A handler of a message in flight waits for the other one; then it is a duplicate or its own."""
    first, engine, waiting = shop.database().begin(PATIENT_S), shop.engine(), threading.Event()
    assert first.insert_inbox("scope", "source", "id", BRIEF_S)
    second = shop.database(engine)

    def take_second() -> bool:
        transaction = second.begin(PATIENT_S)
        waiting.set()
        try:
            return transaction.insert_inbox("scope", "source", "id", PATIENT_S)
        finally:
            transaction.rollback()

    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take_second)
        assert waiting.wait(PATIENT_S)
        if commits:
            first.commit()
        else:
            first.rollback()
        assert taken.result(PATIENT_S) is not commits


def test_message_in_flight_is_busy_after_the_wait(shop: Shop) -> None:
    """A message that another handler holds longer than the wait is StoreBusy, and the wait is over."""
    first = shop.database().begin(PATIENT_S)
    assert first.insert_inbox("scope", "source", "id", BRIEF_S)
    with pytest.raises(StoreBusy, match="message 'id'"):
        take(shop.database(), "scope", "source", "id")
    first.commit()
    assert not take(shop.database(), "scope", "source", "id")


def test_effect_happens_once_among_many(shop: Shop) -> None:
    """Eight handlers of the same twenty messages make twenty effects."""

    def handle(database: SqlDatabase) -> None:
        for number in range(20):
            while True:
                transaction = database.begin(PATIENT_S)
                try:
                    if transaction.insert_inbox("scope", "source", str(number), PATIENT_S):
                        effect(transaction, f"effect {number}")
                        transaction.commit()
                    break
                except StoreBusy:
                    continue
                finally:
                    transaction.rollback()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(handle, [shop.database() for _ in range(8)]))
    assert shop.effects() == {f"effect {number}" for number in range(20)}


def test_wild_identities_are_told_apart(database: SqlDatabase) -> None:
    """Identities of any characters and lengths are taken once each and remembered exactly."""
    keys = [
        ("s", "a", "b"),
        ("s", "a ", "b"),
        ("s", "a", "b "),
        ("s", "", ""),
        (WILD, WILD, WILD),
        (WILD, WILD, WILD + "\x00"),
        ("s", "x" * 5_000, "y" * 5_000),
        ("s", "x" * 5_000, "y" * 5_001),
        ("S", "A", "B"),
    ]
    for key in keys:
        assert take(database, *key), key
    for key in keys:
        assert database.handled(*key) and not take(database, *key)
    assert not database.handled(WILD, WILD, WILD + " ")


def test_attempts_of_wild_messages(database: SqlDatabase) -> None:
    """Attempts of any message come back as they were, with a bounded error text."""
    kept = AttemptRow(WILD, WILD, WILD, 2, 7.5, WILD)
    database.record_attempt(kept)
    assert database.attempt(WILD, WILD, WILD) == kept
    database.record_attempt(AttemptRow("s", "a", "b", 1, 0.0, "x" * 1_000_000))
    found = database.attempt("s", "a", "b")
    assert found is not None and found.error == "x" * len(found.error) and len(found.error) <= 4_000


def test_attempts_are_apart_from_the_handler(shop: Shop, database: SqlDatabase) -> None:
    """A recorded attempt stays when the handler's transaction that clears it is rolled back."""
    database.record_attempt(AttemptRow("s", "a", "b", 3, 0.0, "boom"))
    transaction = database.begin(PATIENT_S)
    transaction.clear_attempt("s", "a", "b")
    transaction.rollback()
    found = shop.database().attempt("s", "a", "b")
    assert found is not None and found.attempts == 3


def test_concurrent_attempts_and_runs(shop: Shop) -> None:
    """Upserts of the same row by eight clients at once all succeed; started runs keep the highest."""
    barrier = threading.Barrier(8)

    def write(number: int) -> None:
        database = shop.database()
        barrier.wait()
        for below in range(number, 40, 8):
            database.record_attempt(AttemptRow("s", "a", "b", below, 0.0, ""))
            database.start_runs("s", "topic", 0, below)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert shop.database().runs_started("s", "topic", 0) == 39
    assert shop.database().attempt("s", "a", "b") is not None


def test_concurrent_claims_of_runs_never_overlap(shop: Shop) -> None:
    """Of eight clients that raise started runs at once, each is told what it was just before: the
    ranges between what was told and what was asked for are disjoint and leave no gap."""
    barrier = threading.Barrier(8)

    def claim(number: int) -> list[tuple[int, int]]:
        database = shop.database()
        barrier.wait()
        asked = range(number + 1, 41, 8)
        told = [(database.start_runs("s", "topic", 0, below) or 0, below) for below in asked]
        return [(before, below) for before, below in told if before < below]

    with ThreadPoolExecutor(8) as pool:
        claimed = sorted(found for share in pool.map(claim, range(8)) for found in share)
    assert [offset for before, below in claimed for offset in range(before, below)] == list(range(40))


def test_runs_beyond_32_bits(database: SqlDatabase) -> None:
    """Offsets of large logs fit."""
    database.start_runs("s", "topic", 7, 2**40)
    database.start_runs("s", "topic", 7, 2**39)
    assert database.runs_started("s", "topic", 7) == 2**40


@pytest.mark.parametrize("repeat", [1, 400])
def test_dead_letter_of_wild_bytes(database: SqlDatabase, repeat: int) -> None:
    """A dead letter of any text, of any length, with any payload comes back equal."""
    wild = WILD * repeat
    kept = DeadLetter(wild, wild, wild, "orders", 0, 0, wild, {wild: wild, "b": ""}, bytes(range(256)), 9, wild, 1.5)
    database.record_dead_letter(kept)
    assert database.dead_letters(None, 10) == [kept]
    assert database.dead_letters(wild, 10) == [kept]
    assert database.handled(wild, wild, wild)


def test_dead_letter_without_a_key(database: SqlDatabase) -> None:
    """No key and an empty key are different."""
    none = DeadLetter("s", "a", "1", "t", 0, 0, None, {}, b"", 1, "", 1.0)
    empty = DeadLetter("s", "a", "2", "t", 0, 0, "", {}, b"", 1, "", 2.0)
    for each in (none, empty):
        database.record_dead_letter(each)
    assert database.dead_letters("s", 10) == [none, empty]


def test_dead_letter_is_one_step(shop: Shop) -> None:
    """Letter, inbox row and forgotten attempts commit together or not at all."""
    engine = shop.engine()
    database = shop.database(engine)
    database.record_attempt(AttemptRow("scope", "source", "id", 4, 0.0, "boom"))

    def fail(conn: object, cursor: object, sql: str, *rest: object) -> None:
        if sql.startswith("DELETE FROM txbus_attempts"):
            raise RuntimeError("the process dies here")

    event.listen(engine, "before_cursor_execute", fail)
    with pytest.raises(RuntimeError):
        database.record_dead_letter(letter())
    event.remove(engine, "before_cursor_execute", fail)
    assert database.dead_letters(None, 10) == [] and not database.handled("scope", "source", "id")
    database.record_dead_letter(letter())
    assert database.attempt("scope", "source", "id") is None
    assert database.dead_letters(None, 10) == [letter()] and database.handled("scope", "source", "id")


def test_handled_message_is_no_dead_letter(database: SqlDatabase) -> None:
    """A message whose effect has happened is not offered for another one by a dead letter."""
    assert take(database, "scope", "source", "id")
    database.record_dead_letter(letter())
    assert database.dead_letters(None, 10) == []


def test_dead_letters_are_listed_by_age_and_counted(database: SqlDatabase) -> None:
    """Dead letters come oldest first; counts are by scope."""
    for scope, id, dead_s in (("b", "1", 3.0), ("a", "2", 1.0), ("a", "3", 2.0)):
        database.record_dead_letter(letter(scope, id, dead_s=dead_s))
    assert [one.message_id for one in database.dead_letters(None, 2)] == ["2", "3"]
    assert database.count_dead_letters() == {"a": 2, "b": 1}


def test_inbox_purge_in_batches(database: SqlDatabase) -> None:
    """The inbox is purged in batches larger than one statement's variables; younger rows stay."""
    transaction = database.begin(PATIENT_S)
    for number in range(900):
        transaction.insert_inbox("s", "a", str(number), BRIEF_S)
    transaction.commit()
    assert database.purge_inbox(0.0, 1_000) == 0
    assert [database.purge_inbox(1e12, 800) for _ in range(3)] == [800, 100, 0]


def test_held_keys_are_replaced_by_partition(shop: Shop, database: SqlDatabase) -> None:
    """Held keys of a partition take the place of what was noted for it, and others stay."""
    database.replace_held(0, {("orders", "anna"): 5, ("orders", WILD * 99): 1})
    database.replace_held(1, {("orders", "anna"): 2, ("stock", ""): 1})
    other = shop.database()
    assert other.held_keys() == {("orders", "anna"), ("orders", WILD * 99), ("stock", "")}
    database.replace_held(0, {})
    assert other.held_keys() == {("orders", "anna"), ("stock", "")}
    database.replace_held(1, {})
    assert other.held_keys() == frozenset()


def test_effect_and_inbox_roll_back_together(shop: Shop, database: SqlDatabase) -> None:
    """A handler that fails leaves neither its effect nor its inbox row."""
    transaction = database.begin(PATIENT_S)
    assert transaction.insert_inbox("s", "a", "b", BRIEF_S)
    transaction.connection.execute(EFFECTS.insert(), {"name": "half"})
    transaction.rollback()
    assert shop.effects() == set() and not database.handled("s", "a", "b")
