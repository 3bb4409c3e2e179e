"""What is left in a database when a process dies, or its connection breaks, at any point."""

from __future__ import annotations

import gc
import sqlite3
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.simulation.database_runs import Account, DatabaseRun, Entry, databases
from txbus_sim._database import Databases, SimDatabase
from txbus_sim._world import Process, StopReason
from txbus_sim.faults import COMMIT, Fault
from txbus_sim.history import LocalCommitted, LocalRolledBack


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Databases, SimDatabase]]:
    with databases() as made:
        yield made


def transfer(url: str) -> None:
    """Two statements that belong together; done once, however often the process is started anew."""
    engine = sa.create_engine(url)
    with Session(engine) as session:
        if session.scalar(sa.select(sa.func.count()).select_from(Entry)):
            return
        session.add(Entry(account="bob", cents=30))
        account = session.get_one(Account, "ann")
        account.cents -= 30
        session.commit()


State = tuple[list[tuple[object, ...]], list[tuple[object, ...]]]


def state(database: SimDatabase) -> State:
    return database.rows("SELECT name, cents FROM accounts ORDER BY name"), database.rows(
        "SELECT account, cents FROM entries"
    )


NOTHING: State = ([("ann", 100), ("bob", 0)], [])
ALL: State = ([("ann", 70), ("bob", 0)], [("bob", 30)])


def test_every_statement_is_a_point(shop: tuple[Databases, SimDatabase]) -> None:
    """A plain ORM transaction has a point for connecting, each statement and the commit; none is
    there for what SQLAlchemy does while it makes its first connection."""
    with DatabaseRun(shop[0]) as run:
        run(orders=lambda process: transfer(shop[1].url))
        assert run.labels == [
            "sql.connect:shop",
            "sql.select:shop.entries",
            "sql.insert:shop.entries",
            "sql.select:shop.accounts",
            "sql.update:shop.accounts",
            "sql.commit:shop",
        ]
        assert state(shop[1]) == ALL


def test_crash_at_every_point_leaves_all_or_nothing(shop: tuple[Databases, SimDatabase]) -> None:
    """Killed for ever before or after any operation: both rows or none, and both from the commit on."""
    made, database = shop
    with DatabaseRun(made) as run:
        addresses = run(orders=lambda process: transfer(database.url)).reached
    found = {}
    for address in addresses:
        for word in ("kill-before", "kill-after"):
            with DatabaseRun(made, f"{address} {word}") as run:
                run(orders=lambda process: transfer(database.url))
                found[address.label, word] = state(database)
                assert run.reason is StopReason.FINISHED
    assert [key for key, after in found.items() if after == ALL] == [("sql.commit:shop", "kill-after")]
    assert all(after in (NOTHING, ALL) for after in found.values())
    assert len(found) == 12


def test_restart_finishes_the_work_once(shop: tuple[Databases, SimDatabase]) -> None:
    """Whatever single fault hits the first incarnation, the transfer is there once in the end."""
    made, database = shop
    with DatabaseRun(made) as run:
        points = run(orders=lambda process: transfer(database.url)).world.history.points()
    tried = 0
    for point in points:
        for fault in point.faults:
            amount = " 2s" if fault in (Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY) else ""
            with DatabaseRun(made, f"{point.address} {fault.value}{amount}") as run:
                run(orders=lambda process: transfer(database.url))
                expected = NOTHING if fault is Fault.KILL_BEFORE else ALL
                if fault is Fault.KILL_AFTER and point.label != "sql.commit:shop":
                    expected = NOTHING
                assert state(database) == expected, (point.address, fault)
                tried += 1
    assert tried == 8 + 4 * 9 + len(COMMIT)


def test_lost_answer_is_committed_and_a_disconnect(shop: tuple[Databases, SimDatabase]) -> None:
    """The commit took place; the application sees a broken connection, and its pool makes another."""
    made, database = shop
    seen: list[object] = []

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url)
        with engine.connect() as connection:
            connection.execute(sa.update(Account).values(cents=7))
            try:
                connection.commit()
            except sa.exc.OperationalError as exc:
                seen.append((exc.connection_invalidated, connection.invalidated))
        with engine.connect() as connection:
            seen.append(connection.scalar(sa.select(Account.cents)))

    with DatabaseRun(made, "orders/sql.commit:shop#1 answer-lost") as run:
        run(orders=main)
        assert seen == [(True, True), 7]
        assert run.labels.count("sql.connect:shop") == 2
        (commit,) = run.ended
        assert isinstance(commit, LocalCommitted) and not commit.answered and commit.changed == {"accounts": 2}


@pytest.mark.parametrize("label", ["sql.update:shop.accounts", "sql.select:shop.accounts", "sql.commit:shop"])
def test_dropped_connection_rolls_back(shop: tuple[Databases, SimDatabase], label: str) -> None:
    """A connection that breaks before a request arrives loses what was not committed."""
    made, database = shop
    seen: list[object] = []

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url)
        connection = engine.connect()
        try:
            connection.execute(sa.insert(Entry).values(account="ann", cents=1))
            connection.execute(sa.update(Account).values(cents=7))
            connection.execute(sa.select(Account)).all()
            connection.commit()
        except sa.exc.OperationalError as exc:
            seen.append(exc.connection_invalidated)
        connection.close()

    with DatabaseRun(made, f"orders/{label}#1 drop") as run:
        run(orders=main)
        assert seen == [True]
        assert state(database) == NOTHING
        assert [type(one) is LocalRolledBack and one.why for one in run.ended] == ["dropped"]


def test_failed_statement_leaves_the_local_transaction_open(shop: tuple[Databases, SimDatabase]) -> None:
    """Nothing of the statement happened, what was before stays, and the commit can be tried again."""
    made, database = shop
    seen: list[object] = []

    def main(process: Process) -> None:
        with sa.create_engine(database.url).connect() as connection:
            connection.execute(sa.insert(Entry).values(account="ann", cents=1))
            try:
                connection.execute(sa.update(Account).values(cents=7))
            except sa.exc.OperationalError as exc:
                seen.append((exc.connection_invalidated, getattr(exc.orig, "sqlite_errorname", "")))
            raw = connection.connection
            with pytest.raises(sqlite3.OperationalError):
                raw.commit()
            raw.commit()

    with DatabaseRun(made, "orders/sql.update:shop.accounts#1 fail\norders/sql.commit:shop#1 fail") as run:
        run(orders=main)
        assert run.world.processes[0].error is None
        assert seen == [(False, "SQLITE_BUSY")]
        assert state(database) == (NOTHING[0], [("ann", 1)])


def test_refused_connection_is_the_drivers_error(shop: tuple[Databases, SimDatabase]) -> None:
    """A connection that is refused raises what SQLite raises for a file that cannot be opened."""
    made, database = shop
    seen: list[object] = []

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url)
        for _ in range(2):
            try:
                with engine.connect() as connection:
                    seen.append(connection.scalar(sa.select(sa.func.count()).select_from(Entry)))
            except sa.exc.OperationalError as exc:
                seen.append(getattr(exc.orig, "sqlite_errorname", ""))

    with DatabaseRun(made, "orders/sql.connect:shop#1 fail") as run:
        run(orders=main)
        assert seen == ["SQLITE_CANTOPEN", 0]


def test_dead_process_has_no_effect(shop: tuple[Databases, SimDatabase]) -> None:
    """``finally``, ``__exit__``, ``__del__`` and the pool's own cleanup of a dead process, run when its
    memory is freed, commit nothing, and say nothing."""
    made, database = shop
    ran: list[str] = []

    class Committing:
        def __init__(self, connection: sa.Connection) -> None:
            self.connection = connection

        def __del__(self) -> None:
            ran.append("del")
            try:
                self.connection.connection.commit()
            finally:
                self.connection.close()

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url)
        connection = engine.connect()
        kept = Committing(connection)
        with Session(engine) as session:
            try:
                session.execute(sa.update(Account).values(cents=7))
                session.execute(sa.select(Account)).all()
            finally:
                ran.append("finally")
                try:
                    session.commit()
                finally:
                    raw = kept.connection.connection
                    raw.commit()
                    raw.cursor().execute("DELETE FROM accounts")

    unraisable: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with DatabaseRun(made, "orders/sql.select:shop.accounts#1 kill-before") as run:
            run(orders=main)
            run.world.free()
            gc.collect()
            assert state(database) == NOTHING
        assert sorted(ran) == ["del", "finally"]
        assert [type(one) is LocalRolledBack and one.why for one in run.ended] == ["crash"]
    finally:
        sys.unraisablehook = hook
    # What a __del__ raises goes there; the frames of a dead process are unwound by this one only.
    assert {one.exc_type.__name__ for one in unraisable} <= {"ProcessIsDead"}  # type: ignore[attr-defined]


def test_connection_that_is_dropped_unclosed_lets_go(shop: tuple[Databases, SimDatabase]) -> None:
    """A living process's connection that was collected as garbage is rolled back and frees its lock."""
    made, database = shop

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url, connect_args={"timeout": 0})
        raw = engine.raw_connection()
        raw.detach()
        raw.cursor().execute("UPDATE accounts SET cents = 7")
        del raw
        gc.collect()  # Python 3.11's connections are in a circle with their cache of statements
        with engine.begin() as connection:
            connection.execute(sa.update(Account).values(cents=8))

    with DatabaseRun(made) as run:
        run(orders=main)
        assert [type(one).__name__ for one in run.ended] == ["LocalRolledBack", "LocalCommitted"]
