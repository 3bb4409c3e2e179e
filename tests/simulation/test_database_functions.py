"""Time and chance of SQL are the simulation's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from tests.simulation.database_runs import DatabaseRun, S, databases
from txbus_sim._database import Databases, SimDatabase
from txbus_sim._world import Process, current_strand


def schema(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE stamps (id INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP, day TEXT DEFAULT "
            "CURRENT_DATE, clock TEXT DEFAULT (current_time), real REAL DEFAULT (julianday('now')), "
            "lot INTEGER DEFAULT (random()), token TEXT DEFAULT (hex(randomblob(8))))"
        )
        connection.exec_driver_sql("CREATE INDEX by_month ON stamps (strftime('%Y-%m', at))")
        connection.exec_driver_sql("INSERT INTO stamps (id) VALUES (0)")


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Databases, SimDatabase]]:
    with databases(schema) as made:
        yield made


def asked(shop: tuple[Databases, SimDatabase], sql: str, after_s: float = 0.0, schedule: str = "") -> Any:
    """The first row that a process gets, some virtual time after the run's begin."""
    seen: list[Any] = []

    def main(process: Process) -> None:
        process.world.sleep_ns(round(after_s * S))
        with sa.create_engine(shop[1].url).begin() as connection:
            seen.append(tuple(connection.exec_driver_sql(sql).one()))

    with DatabaseRun(shop[0], schedule) as run:
        run(orders=main)
    return seen[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("CURRENT_TIMESTAMP", "2026-01-01 00:01:00"),
        ("current_date", "2026-01-01"),
        ("CURRENT_TIME", "00:01:00"),
        ("datetime('now')", "2026-01-01 00:01:00"),
        ("datetime()", "2026-01-01 00:01:00"),
        ("DATETIME('NOW', '+1 day', 'start of day')", "2026-01-02 00:00:00"),
        ("date('now')", "2026-01-01"),
        ("time('now')", "00:01:00"),
        ("strftime('%s', 'now')", "1767225660"),
        ("strftime('%M')", "01"),
        ("unixepoch('now')", 1767225660),
        ("unixepoch()", 1767225660),
        ("round(julianday('now'), 4)", 2461041.5007),
        ("datetime('2020-02-03 04:05:06')", "2020-02-03 04:05:06"),
        ("date(NULL)", None),
        ("datetime('no time')", None),
    ],
)
def test_now_is_virtual(shop: tuple[Databases, SimDatabase], expression: str, expected: object) -> None:
    """Every way to ask SQLite for the present gives virtual time; given times are computed as ever."""
    # The connection takes half a millisecond, a statement a tenth.
    assert asked(shop, f"SELECT {expression}", after_s=60.0) == (expected,)


def test_defaults_of_tables_are_virtual(shop: tuple[Databases, SimDatabase]) -> None:
    """DEFAULT CURRENT_TIMESTAMP and its like, in a schema made before the run."""
    found = asked(shop, "INSERT INTO stamps (id) VALUES (1) RETURNING at, day, clock, round(real, 4)", after_s=60.0)
    assert found == ("2026-01-01 00:01:00", "2026-01-01", "00:01:00", 2461041.5007)
    with DatabaseRun(shop[0]):
        assert shop[1].rows("SELECT at FROM stamps") == [("2026-01-01 00:00:00",)]


def test_clock_of_the_process_counts(shop: tuple[Databases, SimDatabase]) -> None:
    """A wall clock that was stepped is seen by SQL, which runs in the process."""
    seen: list[object] = []

    def main(process: Process) -> None:
        process.wall_skew_ns = -86_400 * S
        with sa.create_engine(shop[1].url).connect() as connection:
            seen.append(connection.exec_driver_sql("SELECT date('now'), CURRENT_DATE").one())

    with DatabaseRun(shop[0]) as run:
        run(orders=main)
    assert seen == [("2025-12-31", "2025-12-31")]


def test_chance_is_the_processs(shop: tuple[Databases, SimDatabase]) -> None:
    """random() and randomblob() are drawn from the process: the same in each run, different in each
    incarnation, and of full range."""
    sql = "SELECT random(), hex(randomblob(4)), length(randomblob(0)), typeof(random())"
    first, again = asked(shop, sql), asked(shop, sql)
    other = asked(shop, sql, schedule="orders/sql.connect:shop#1 crash-before")
    assert first == again
    assert first[:2] != other[:2]
    assert first[2:] == (1, "integer")


def test_schema_draws_the_same_in_every_worker() -> None:
    """What a schema function draws or stamps in SQL is the same wherever it is made."""
    with databases(schema) as (_, one), databases(schema) as (_, other):
        assert one.template.content == other.template.content


def test_memory_of_its_own_has_them_too(shop: tuple[Databases, SimDatabase]) -> None:
    """`:memory:` of a process is its own, with virtual time."""
    import sqlite3

    seen: list[object] = []

    def main(process: Process) -> None:
        connection = shop[0].connect_by_path(sqlite3.connect, process, database=":memory:")
        connection.execute("CREATE TABLE t (x)")
        seen.append(connection.execute("SELECT date('now'), count(*) FROM t").fetchone())
        current_strand().process.world.sleep_ns(S)

    with DatabaseRun(shop[0]) as run:
        run(a=main, b=main)
        assert run.labels == []
    assert seen == [("2026-01-01", 0)] * 2
