"""The history tells what a commit changed, row by row, however it came about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import sqlalchemy as sa

from tests.simulation.database_runs import Account, DatabaseRun, Entry, databases
from txbus_sim._database import Databases, SimDatabase
from txbus_sim._world import Process
from txbus_sim.history import LocalCommitted, RowChange

DDL = (
    "CREATE TABLE parents (name TEXT PRIMARY KEY)",
    "CREATE TABLE children (id INTEGER PRIMARY KEY, parent TEXT REFERENCES parents (name) ON DELETE CASCADE)",
    "CREATE TABLE loose (value TEXT)",
    "CREATE TABLE pairs (a INTEGER, b TEXT, c BLOB, PRIMARY KEY (b, a)) WITHOUT ROWID",
    "CREATE TABLE audit (said TEXT)",
    "CREATE TRIGGER noted AFTER INSERT ON loose BEGIN INSERT INTO audit VALUES (NEW.value); END",
    'CREATE TABLE "odd name" ("select" INTEGER PRIMARY KEY, "it""s" REAL)',
    f"CREATE TABLE wide ({', '.join(f'c{number} INTEGER' for number in range(150))})",
    "CREATE VIRTUAL TABLE texts USING fts5 (body)",
)


def schema(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        for statement in DDL:
            connection.exec_driver_sql(statement)


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Databases, SimDatabase]]:
    with databases(schema) as made:
        yield made


def commits(made: Databases, work: Callable[[sa.Connection], object], url: str = "sqlite+sim:///shop") -> Any:
    """The commits of one process that does ``work`` on a connection."""

    def main(process: Process) -> None:
        with sa.create_engine(url).connect() as connection:
            work(connection)

    with DatabaseRun(made) as run:
        run(orders=main)
        return [one for one in run.ended if isinstance(one, LocalCommitted)]


def statements(*texts: str) -> Callable[[sa.Connection], None]:
    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        for text in texts:
            connection.exec_driver_sql(text)
        connection.commit()

    return work


def rows(commit: LocalCommitted) -> list[tuple[str, Mapping[str, object] | None, Mapping[str, object] | None]]:
    assert commit.rows is not None
    return [(row.table, row.before, row.after) for row in commit.rows]


def test_each_row_is_told_once_in_the_order_of_first_touch(shop: tuple[Databases, SimDatabase]) -> None:
    """Inserted and updated is inserted; updated twice is one change; what came and went is not told."""
    (commit,) = commits(
        shop[0],
        statements(
            "INSERT INTO parents VALUES ('b'), ('a'), ('gone')",
            "INSERT INTO children VALUES (1, 'b')",
            "UPDATE children SET parent = 'a'",
            "DELETE FROM parents WHERE name = 'gone'",
        ),
    )
    assert rows(commit) == [
        ("parents", None, {"name": "b"}),
        ("parents", None, {"name": "a"}),
        ("children", None, {"id": 1, "parent": "a"}),
    ]
    assert commit.changed == {"parents": 4, "children": 2}


def test_before_and_after(shop: tuple[Databases, SimDatabase]) -> None:
    """A later transaction's changes have the row before them and after them, also when the key moved
    and when a row was replaced."""
    work = statements("INSERT INTO parents VALUES ('a'), ('b'), ('c')")

    def main(connection: sa.Connection) -> None:
        work(connection)
        statements(
            "UPDATE parents SET name = 'z' WHERE name = 'a'",
            "DELETE FROM parents WHERE name = 'b'",
            "INSERT OR REPLACE INTO parents VALUES ('c')",
            "INSERT OR REPLACE INTO pairs VALUES (1, 'x', x'00'), (1, 'x', x'ff')",
        )(connection)
        statements("REPLACE INTO pairs VALUES (1, 'x', NULL)", "UPDATE parents SET name = name")(connection)

    _, second, third = commits(shop[0], main)
    assert rows(second) == [
        ("parents", {"name": "a"}, {"name": "z"}),
        ("parents", {"name": "b"}, None),
        ("pairs", None, {"a": 1, "b": "x", "c": b"\xff"}),
    ]
    assert rows(third) == [("pairs", {"a": 1, "b": "x", "c": b"\xff"}, {"a": 1, "b": "x", "c": None})]


def test_cascades_and_triggers_are_told(shop: tuple[Databases, SimDatabase]) -> None:
    """What the database itself changes along with a statement is a change like any other."""

    def main(connection: sa.Connection) -> None:
        statements("INSERT INTO parents VALUES ('a')", "INSERT INTO children VALUES (1, 'a'), (2, 'a')")(connection)
        statements("DELETE FROM parents")(connection)
        statements("INSERT INTO loose VALUES ('x')")(connection)

    _, second, third = commits(shop[0], main)
    assert sorted(rows(second), key=str) == [
        ("children", {"id": 1, "parent": "a"}, None),
        ("children", {"id": 2, "parent": "a"}, None),
        ("parents", {"name": "a"}, None),
    ]
    assert sorted(rows(third), key=str) == [
        ("audit", None, {"said": "x"}),
        ("loose", None, {"value": "x"}),
    ]


def test_rows_without_a_key_are_apart(shop: tuple[Databases, SimDatabase]) -> None:
    """Equal rows of a table without a primary key are different rows."""

    def main(connection: sa.Connection) -> None:
        statements("INSERT INTO loose VALUES ('x'), ('x'), ('y')")(connection)
        statements("DELETE FROM loose WHERE value = 'x'")(connection)

    _, second = commits(shop[0], main)
    assert rows(second) == [("loose", {"value": "x"}, None)] * 2


def test_odd_names_wide_and_virtual_tables(shop: tuple[Databases, SimDatabase]) -> None:
    """Quoted names, more columns than a SQL function takes, and full-text tables."""
    places = ", ".join(str(number) for number in range(150))

    def main(connection: sa.Connection) -> None:
        statements('INSERT INTO "odd name" VALUES (1, 2.5)')(connection)
        statements(f"INSERT INTO wide VALUES ({places})", "UPDATE wide SET c149 = -1")(connection)
        statements("UPDATE wide SET c0 = -1, c149 = NULL")(connection)
        statements("INSERT INTO texts VALUES ('hello world')")(connection)
        assert connection.exec_driver_sql("SELECT body FROM texts WHERE texts MATCH 'world'").all() == [
            ("hello world",)
        ]

    odd, wide, wider, _ = commits(shop[0], main)
    assert rows(odd) == [("odd name", None, {"select": 1, 'it"s': 2.5})]
    ((_, before, after),) = rows(wide)
    assert before is None and after == {**{f"c{number}": number for number in range(149)}, "c149": -1}
    ((_, before, after),) = rows(wider)
    assert before is not None and after is not None
    assert {name for name in before if before[name] != after[name]} == {"c0", "c149"}


def test_what_was_rolled_back_is_not_told(shop: tuple[Databases, SimDatabase]) -> None:
    """A savepoint's, a failed statement's, and a whole transaction's rows are no changes."""

    def main(connection: sa.Connection) -> None:
        connection.exec_driver_sql("INSERT INTO parents VALUES ('kept')")
        with pytest.raises(sa.exc.IntegrityError):
            connection.exec_driver_sql("INSERT INTO parents VALUES ('lost'), ('kept')")
        outer = connection.begin_nested()
        connection.exec_driver_sql("INSERT INTO parents VALUES ('outer')")
        inner = connection.begin_nested()
        connection.exec_driver_sql("INSERT INTO parents VALUES ('inner')")
        inner.rollback()
        outer.commit()
        lost = connection.begin_nested()
        connection.exec_driver_sql("UPDATE parents SET name = name || '!'")
        lost.rollback()
        with pytest.raises(sa.exc.IntegrityError):
            connection.exec_driver_sql("INSERT INTO parents VALUES (?)", [("many",), ("kept",)])
        connection.commit()
        connection.exec_driver_sql("DELETE FROM parents")
        connection.rollback()

    (commit,) = commits(shop[0], main)
    assert [after["name"] for _, _, after in rows(commit) if after] == ["kept", "outer", "many"]
    assert shop[0].names() == ("shop",)


def test_tables_made_in_a_run_are_told(shop: tuple[Databases, SimDatabase]) -> None:
    """A process that makes or changes its tables by itself is followed."""

    def main(connection: sa.Connection) -> None:
        statements("CREATE TABLE fresh (id INTEGER PRIMARY KEY)", "INSERT INTO fresh VALUES (1)")(connection)
        statements("ALTER TABLE fresh ADD COLUMN note TEXT DEFAULT 'none'", "UPDATE fresh SET note = 'new'")(connection)
        statements("ALTER TABLE fresh RENAME TO stale", "DELETE FROM stale")(connection)
        statements("DROP TABLE stale")(connection)

    made = commits(shop[0], main)
    told = [row for commit in made for row in rows(commit)]
    assert told == [
        ("fresh", None, {"id": 1}),
        ("fresh", {"id": 1, "note": "none"}, {"id": 1, "note": "new"}),
        ("stale", {"id": 1, "note": "new"}, None),
    ]


def test_autocommit_tells_each_statement() -> None:
    """Without a transaction each statement is a commit of its own."""
    with databases() as (made, shop):

        def work(connection: sa.Connection) -> None:
            auto = connection.execution_options(isolation_level="AUTOCOMMIT")
            auto.execute(sa.insert(Entry).values(account="ann", cents=1))
            auto.execute(sa.update(Account).values(cents=5).where(Account.name == "ann"))
            auto.execute(sa.update(Account).values(cents=5).where(Account.name == "nobody"))

        first, second = commits(made, work, shop.url)
        assert rows(first) == [("entries", None, {"id": 1, "account": "ann", "cents": 1})]
        assert second.rows == (RowChange("accounts", {"name": "ann", "cents": 100}, {"name": "ann", "cents": 5}),)
        with DatabaseRun(made, "orders/sql.insert:shop.entries#1 answer-lost") as run:
            run(orders=lambda process: _insert_alone(shop.url))
            (lost,) = run.ended
            assert isinstance(lost, LocalCommitted) and not lost.answered
            assert shop.rows("SELECT count(*) FROM entries") == [(1,)]


def _insert_alone(url: str) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(sa.exc.OperationalError):
        connection.execute(sa.insert(Entry).values(account="ann", cents=1))
