"""The store's tables: made once, verified by name, with an identity of their own."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import QueuePool, StaticPool

from tests.unit.stores.shop import Shop
from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus._system import system_ports
from txbus.errors import ConfigurationError, SchemaMismatch
from txbus.stores._sql_tables import METADATA
from txbus.stores.sql import SqlDatabase


def _database(url: str, **options: Any) -> SqlDatabase:
    return SqlDatabase("shop", create_engine(url, **options), system_ports(), lambda event: None)


def test_each_missing_table_is_named(tmp_path: Path) -> None:
    """verify has a sentence for each missing table, with the command that makes it."""
    problems = _database(f"sqlite:///{tmp_path}/empty.db").verify()
    for table in METADATA.tables:
        assert any(table in problem and "`txbus schema create APP`" in problem for problem in problems), table
    assert len(problems) == len(METADATA.tables)


def test_missing_column_is_named(shop: Shop, database: SqlDatabase) -> None:
    """verify names a column that a table lacks."""
    with shop.engine().begin() as connection:
        connection.execute(text("ALTER TABLE txbus_ledger DROP COLUMN reserved"))
    (problem,) = database.verify()
    assert "txbus_ledger has no column reserved" in problem


@pytest.mark.parametrize(("version", "word"), [(0, "needs 1"), (2, "cannot go back")])
def test_other_version_is_named(shop: Shop, database: SqlDatabase, version: int, word: str) -> None:
    """verify tells tables of an older txbus from those of a newer one."""
    with shop.engine().begin() as connection:
        connection.execute(text("UPDATE txbus_meta SET version = :v"), {"v": version})
    (problem,) = database.verify()
    assert f"version {version}" in problem and word in problem


def test_missing_identity_is_repaired(shop: Shop, database: SqlDatabase) -> None:
    """Tables without an identity are found by verify, refused by identity, repaired by create_schema."""
    with shop.engine().begin() as connection:
        connection.execute(text("DELETE FROM txbus_meta"))
    assert any("identity" in problem for problem in database.verify())
    with pytest.raises(SchemaMismatch, match="txbus schema create APP"):
        database.identity()
    database.create_schema()
    assert database.verify() == [] and len(database.identity()) == 32


def test_missing_tables_are_a_schema_mismatch(tmp_path: Path) -> None:
    """Using a database without tables says which command makes them."""
    database = _database(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(SchemaMismatch, match="txbus schema create APP"):
        database.settle([HalfId("a", 1)], 1.0, 0.01)
    with pytest.raises(SchemaMismatch, match="txbus schema create APP"):
        database.identity()
    transaction = database.begin(5.0)
    with pytest.raises(SchemaMismatch, match="txbus schema create APP"):
        transaction.insert_inbox("scope", "source", "id", 0.01)
    transaction.rollback()


def test_concurrent_creation_makes_one_identity(tmp_path: Path) -> None:
    """Eight clients that create the schema of one file at once all succeed and read one identity."""
    clients = [_database(f"sqlite:///{tmp_path}/new.db") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(SqlDatabase.create_schema, clients))
        identities = set(pool.map(SqlDatabase.identity, clients))
    assert len(identities) == 1
    assert all(client.verify() == [] for client in clients)


def test_identities_of_two_databases_differ(tmp_path: Path) -> None:
    """Each ledger has an identity of its own."""
    one, two = (_database(f"sqlite:///{tmp_path}/{name}.db") for name in "ab")
    one.create_schema()
    two.create_schema()
    assert one.identity() != two.identity()


def test_ddl_by_hand_is_the_same_schema(tmp_path: Path) -> None:
    """schema_sql executed by hand leaves nothing for verify to find, and a fresh identity each time."""
    identities = set()
    for name in "ab":
        database = _database(f"sqlite:///{tmp_path}/{name}.db")
        connection = sqlite3.connect(tmp_path / f"{name}.db")
        connection.executescript(database.schema_sql())
        connection.close()
        assert database.verify() == []
        identities.add(database.identity())
        made = _database(f"sqlite:///{tmp_path}/made-{name}.db")
        made.create_schema()
        assert _shape(database) == _shape(made)
    assert len(identities) == 2


def _shape(database: SqlDatabase) -> object:
    found = inspect(database.engine)
    return {
        table: ([c["name"] for c in found.get_columns(table)], sorted(str(i["name"]) for i in found.get_indexes(table)))
        for table in found.get_table_names()
    }


@pytest.mark.parametrize(
    ("url", "pool"),
    [
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite://", StaticPool),
        ("sqlite://", QueuePool),
        ("sqlite:///file:shop?mode=memory&uri=true", QueuePool),
    ],
)
def test_memory_of_one_connection_is_refused(url: str, pool: type | None) -> None:
    """An in-memory database that no second connection can reach is refused with what to use instead."""
    database = _database(url, **({} if pool is None else {"poolclass": pool}))
    for call in (database.verify, database.create_schema):
        with pytest.raises(ConfigurationError, match="cache=shared"):
            call()


def test_shared_memory_is_settled_over_a_second_connection() -> None:
    """The in-memory database that the refusal recommends can be fenced."""
    database = _database("sqlite:///file:txbus-unit?mode=memory&cache=shared&uri=true", poolclass=QueuePool)
    database.create_schema()
    assert database.verify() == []
    id = HalfId("a", 1)
    assert database.settle([id], 1.0, 0.01) == {id: Outcome.ROLLED_BACK}
    database.engine.dispose()
