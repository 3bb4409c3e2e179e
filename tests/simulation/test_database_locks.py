"""Who sees what, and who waits for whom, when processes share a database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.simulation.database_runs import Account, DatabaseRun, Entry, S, databases
from txbus_sim._database import Databases, SimDatabase
from txbus_sim._world import Process, Strand, World, current_strand


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Databases, SimDatabase]]:
    with databases() as made:
        yield made


def sleep(seconds: float) -> None:
    current_strand().process.world.sleep_ns(round(seconds * S))


def now_s() -> float:
    return current_strand().process.world.now_ns / S


def writer(url: str, holds_s: float, begins_s: float = 0.0, cents: int = 7, **arguments: object) -> None:
    """Updates the accounts and commits some time later."""
    sleep(begins_s)
    with sa.create_engine(url, connect_args=arguments).begin() as connection:
        connection.execute(sa.update(Account).values(cents=cents))
        sleep(holds_s)


def test_reader_sees_the_committed_state(shop: tuple[Databases, SimDatabase]) -> None:
    """While a writer is open, others read what was committed before, without waiting for it."""
    made, database = shop
    seen: list[object] = []

    def reader(process: Process) -> None:
        engine = sa.create_engine(database.url)
        for _ in range(3):
            sleep(1)
            with engine.connect() as connection:
                began_s = now_s()
                total = connection.scalar(sa.select(sa.func.sum(Account.cents)))
                seen.append((round(began_s), total, now_s() - began_s < 0.01))

    with DatabaseRun(made) as run:
        run(writer=lambda process: writer(database.url, 1.5), reader=reader)
    assert seen == [(1, 100, True), (2, 14, True), (3, 14, True)]


def test_open_snapshot_stays_old(shop: tuple[Databases, SimDatabase]) -> None:
    """A transaction that has read sees its snapshot until it ends; it can't write from an old one, at
    once, as SQLite says it (SQLITE_BUSY_SNAPSHOT)."""
    made, database = shop
    seen: list[object] = []

    def reader(process: Process) -> None:
        raw = sa.create_engine(database.url).raw_connection().dbapi_connection
        assert raw is not None
        cursor = raw.cursor()
        cursor.execute("BEGIN")
        seen.append(cursor.execute("SELECT sum(cents) FROM accounts").fetchone()[0])
        sleep(3)
        seen.append(cursor.execute("SELECT sum(cents) FROM accounts").fetchone()[0])
        began_s = now_s()
        try:
            cursor.execute("UPDATE accounts SET cents = 1")
        except sa.create_engine(database.url).dialect.loaded_dbapi.OperationalError as exc:
            seen.append((getattr(exc, "sqlite_errorname", ""), now_s() - began_s < 0.01))
        raw.rollback()
        seen.append(cursor.execute("SELECT sum(cents) FROM accounts").fetchone()[0])

    with DatabaseRun(made) as run:
        run(writer=lambda process: writer(database.url, 1), reader=reader)
    assert seen == [100, 100, ("SQLITE_BUSY_SNAPSHOT", True), 14]


def test_reader_who_wants_to_write_meets_a_writer_at_once(shop: tuple[Databases, SimDatabase]) -> None:
    """With a snapshot there is no waiting for the lock: SQLite says busy, lest both wait for ever."""
    made, database = shop
    seen: list[object] = []

    def reader(process: Process) -> None:
        raw = sa.create_engine(database.url).raw_connection().dbapi_connection
        assert raw is not None
        cursor = raw.cursor()
        cursor.execute("BEGIN")
        cursor.execute("SELECT sum(cents) FROM accounts").fetchone()
        sleep(1)
        began_s = now_s()
        try:
            cursor.execute("UPDATE accounts SET cents = 1")
        except sa.create_engine(database.url).dialect.loaded_dbapi.OperationalError as exc:
            seen.append((getattr(exc, "sqlite_errorname", ""), now_s() - began_s < 0.01))

    with DatabaseRun(made) as run:
        run(writer=lambda process: writer(database.url, 3), reader=reader)
    assert seen == [("SQLITE_BUSY", True)]


def test_writers_wait_in_virtual_time(shop: tuple[Databases, SimDatabase]) -> None:
    """The second writer waits until the first has committed, and then sees what it wrote."""
    made, database = shop
    seen: list[object] = []

    def second(process: Process) -> None:
        sleep(1)
        with sa.create_engine(database.url).begin() as connection:
            connection.execute(sa.update(Account).values(cents=Account.cents + 1))
            seen.append(round(now_s(), 1))

    with DatabaseRun(made) as run:
        run(first=lambda process: writer(database.url, 4), second=second)
        assert seen == [4.0]
        assert database.rows("SELECT cents FROM accounts") == [(8,), (8,)]


def test_waiting_ends_with_the_connections_limit(shop: tuple[Databases, SimDatabase]) -> None:
    """``timeout`` and ``PRAGMA busy_timeout`` are virtual seconds; then it is "database is locked"."""
    made, database = shop
    seen: list[object] = []

    def second(process: Process) -> None:
        sleep(1)
        engine = sa.create_engine(database.url, connect_args={"timeout": 2})
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 2000
            for limit in (2000, 500, 0):
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {limit}")
                began_s = now_s()
                with pytest.raises(sa.exc.OperationalError, match="database is locked"):
                    connection.execute(sa.update(Account).values(cents=8))
                connection.rollback()
                seen.append(round(now_s() - began_s, 2))

    with DatabaseRun(made) as run:
        run(first=lambda process: writer(database.url, 10), second=second)
    assert seen == [2.0, 0.5, 0.0]


@pytest.mark.parametrize("how", ["kill-before", "drop"])
def test_waiter_goes_on_when_the_holder_is_gone(shop: tuple[Databases, SimDatabase], how: str) -> None:
    """A crash or a broken connection rolls back, which frees the lock at once."""
    made, database = shop
    with DatabaseRun(made, f"first/sql.commit:shop#1 {how}") as run:
        run(
            first=lambda process: writer(database.url, 3),
            second=lambda process: writer(database.url, 0, begins_s=1, cents=8, timeout=60),
        )
        lost, committed = run.ended[:2]
        assert (lost.process, committed.process) == ("first", "second")
        assert 3 < lost.at_ns / S < committed.at_ns / S < 3.1


def test_waiting_strand_tells_for_whom(shop: tuple[Databases, SimDatabase]) -> None:
    """The report of a run that is stuck can name the lock and the thread that has it."""
    made, database = shop
    seen: list[object] = []

    def looking(world: World) -> None:
        (strand,) = [one for process in world.processes for one in process.strands if one.wait is not None]
        assert strand.wait is not None and isinstance(strand.wait.owner, Strand)
        seen.append((strand.process.key, strand.wait.kind, strand.wait.what, strand.wait.owner.process.key))

    with DatabaseRun(made) as run:
        run.world.at(2 * S, lambda: looking(run.world))
        run(
            first=lambda process: writer(database.url, 3),
            second=lambda process: writer(database.url, 0, begins_s=1),
        )
    assert seen == [("second", "database lock", "the write lock of database shop", "first")]


def test_circle_over_two_databases_is_broken_at_once() -> None:
    """Who would close a circle of lock waits is told so; the others get their lock."""
    with databases() as (made, shop):
        stock = made.define("stock", shop.schema)  # type: ignore[arg-type]
        seen: list[object] = []

        def mover(one: str, other: str, begins_s: float) -> None:
            sleep(begins_s)
            # The longest limit: nobody may have to wait for it.
            arguments = {"timeout": 10_000}
            with sa.create_engine(one, connect_args=arguments).begin() as first:
                first.execute(sa.update(Account).values(cents=1))
                sleep(1)
                with sa.create_engine(other, connect_args=arguments).begin() as second:
                    try:
                        second.execute(sa.update(Account).values(cents=2))
                        seen.append(("had both", round(now_s())))
                    except sa.exc.OperationalError:
                        seen.append(("refused", round(now_s())))
                        raise

        with DatabaseRun(made) as run:
            with pytest.raises(sa.exc.OperationalError, match="locked"):
                run(
                    a=lambda process: mover(shop.url, stock.url, 0.0),
                    b=lambda process: mover(stock.url, shop.url, 0.5),
                )
        assert seen[:2] == [("refused", 2), ("had both", 2)]


def test_own_second_connection_is_refused_at_once(shop: tuple[Databases, SimDatabase]) -> None:
    """A thread that waits for a lock of its own other connection would wait for ever."""
    made, database = shop
    seen: list[object] = []

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url, connect_args={"timeout": 10_000})
        with engine.begin() as first:
            first.execute(sa.update(Account).values(cents=1))
            with engine.connect() as second:
                with pytest.raises(sa.exc.OperationalError, match="database is locked"):
                    second.execute(sa.insert(Entry).values(account="ann", cents=1))
            seen.append(now_s() < 1)

    with DatabaseRun(made) as run:
        run(orders=main)
    assert seen == [True]


def test_the_lock_goes_to_who_waits_longest(shop: tuple[Databases, SimDatabase]) -> None:
    """Three writers behind one that holds on: they are served in the order in which they came."""
    made, database = shop
    served: list[str] = []

    def waits(name: str, begins_s: float) -> None:
        sleep(begins_s)
        with sa.create_engine(database.url, connect_args={"timeout": 60}).begin() as connection:
            connection.execute(sa.update(Account).values(cents=1))
            served.append(name)
            sleep(1)

    with DatabaseRun(made) as run:
        run(
            first=lambda process: writer(database.url, 5),
            c=lambda process: waits("c", 3),
            a=lambda process: waits("a", 1),
            b=lambda process: waits("b", 2),
        )
    assert served == ["a", "b", "c"]
