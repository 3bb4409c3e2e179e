"""What is read from the text of a SQL statement."""

from __future__ import annotations

import pytest

from txbus_sim._database._statements import Statement, Verb, read, split


@pytest.mark.parametrize(
    ("sql", "label"),
    [
        ("SELECT a FROM orders WHERE x = 1", "sql.select:shop.orders"),
        ('select "a" from "Orders"', "sql.select:shop.Orders"),
        ("SELECT 1", "sql.select:shop"),
        ("SELECT count(*) FROM (SELECT a FROM main.[my orders]) AS t", "sql.select:shop.my orders"),
        ("SELECT 'x FROM nowhere', a -- FROM nowhere\n FROM /* FROM b */ orders", "sql.select:shop.orders"),
        ("SELECT extract FROM `orders`;", "sql.select:shop.orders"),
        ("VALUES (1)", "sql.select:shop"),
        ("  -- hello\n/* there */ INSERT INTO orders (a) VALUES (1)", "sql.insert:shop.orders"),
        ("INSERT OR IGNORE INTO main.orders SELECT * FROM other", "sql.insert:shop.orders"),
        ("REPLACE INTO orders VALUES (1)", "sql.insert:shop.orders"),
        ("UPDATE orders SET a = 1", "sql.update:shop.orders"),
        ("UPDATE OR ROLLBACK orders SET a = 1", "sql.update:shop.orders"),
        ("DELETE FROM orders", "sql.delete:shop.orders"),
        ("WITH RECURSIVE t(n) AS (SELECT a FROM orders) SELECT n FROM t", "sql.select:shop.orders"),
        ("WITH t AS (SELECT a FROM stock) INSERT INTO orders SELECT * FROM t", "sql.insert:shop.orders"),
        ("WITH t AS (SELECT 1) DELETE FROM orders WHERE a IN t", "sql.delete:shop.orders"),
        ("CREATE TABLE orders (a)", "sql.ddl:shop"),
        ("BEGIN", "sql.begin:shop"),
        ("end transaction", "sql.commit:shop"),
        ("ROLLBACK", "sql.rollback:shop"),
    ],
)
def test_label_is_the_verb_and_the_table(sql: str, label: str) -> None:
    """Labels are made of what a statement does and to which table; texts and comments don't deceive."""
    assert read(sql).label("sql", "shop") == label


@pytest.mark.parametrize(
    ("sql", "verb", "name"),
    [
        ("SAVEPOINT sa_savepoint_1", Verb.SAVEPOINT, "sa_savepoint_1"),
        ('SAVEPOINT "One"', Verb.SAVEPOINT, "one"),
        ("RELEASE SAVEPOINT one", Verb.RELEASE, "one"),
        ("RELEASE one", Verb.RELEASE, "one"),
        ("ROLLBACK TO SAVEPOINT one", Verb.ROLLBACK_TO, "one"),
        ("rollback transaction to 'one'", Verb.ROLLBACK_TO, "one"),
        ("", Verb.OTHER, ""),
        ("-- nothing", Verb.OTHER, ""),
        ("ATTACH 'other.db' AS other", Verb.ATTACH, ""),
    ],
)
def test_savepoints_and_others(sql: str, verb: Verb, name: str) -> None:
    """Savepoints are known by their names, in which case does not count."""
    assert (read(sql).verb, read(sql).name) == (verb, name)


@pytest.mark.parametrize(
    ("sql", "name", "value"),
    [
        ("PRAGMA busy_timeout", "busy_timeout", None),
        ("PRAGMA busy_timeout=500;", "busy_timeout", "500"),
        ("pragma main.Busy_Timeout( 500 )", "busy_timeout", "500"),
        ("PRAGMA journal_mode = 'wal'", "journal_mode", "wal"),
        ("PRAGMA cache_size = -8192", "cache_size", "-8192"),
    ],
)
def test_pragmas(sql: str, name: str, value: str | None) -> None:
    """A pragma is asked, or set to a value."""
    assert read(sql) == Statement(Verb.PRAGMA, name, value)


def test_who_begins() -> None:
    """The driver begins before a statement that begins with INSERT, UPDATE, DELETE or REPLACE only."""
    began = ["INSERT INTO a VALUES (1)", "REPLACE INTO a VALUES (1)", "UPDATE a SET b = 1", "DELETE FROM a"]
    alone = ["SELECT 1", "CREATE TABLE a (b)", "WITH t AS (SELECT 1) DELETE FROM a", "PRAGMA optimize"]
    assert [read(sql).begun_by_driver for sql in (*began, *alone)] == [True] * 4 + [False] * 4
    assert read("BEGIN IMMEDIATE").takes_lock and not read("BEGIN DEFERRED").takes_lock
    assert read("INSERT OR FAIL INTO a VALUES (1)").keeps_rows


def test_script_is_split_into_statements() -> None:
    """Semicolons in texts, comments and triggers end no statement; nothing empty is left."""
    script = """
        CREATE TABLE a (b TEXT DEFAULT ';'); -- one; two
        CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM a; SELECT 1; END;
        ; INSERT INTO a VALUES ('x;y')
    """
    assert [read(statement).verb for statement in split(script)] == [Verb.DDL, Verb.DDL, Verb.INSERT]
