"""What the store says to servers, compiled without one; a later suite runs it there."""

from __future__ import annotations

import pytest
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from txbus.stores._sql_flavour import Flavour, MySQL, PostgreSQL, Sqlite
from txbus.stores._sql_tables import INBOX, LEDGER, METADATA

PSYCOPG: Dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]
PYMYSQL: Dialect = mysql.pymysql.dialect()
PYSQLITE: Dialect = sqlite.pysqlite.dialect()


@pytest.mark.parametrize(
    ("flavour", "ignores"),
    [
        (Sqlite(PYSQLITE), "ON CONFLICT DO NOTHING"),
        (PostgreSQL(PSYCOPG), "ON CONFLICT DO NOTHING"),
        (MySQL(PYMYSQL), "INSERT IGNORE"),
    ],
)
def test_a_conflict_is_no_error(flavour: Flavour, ignores: str) -> None:
    """An insert of a row that exists is told by its row count: on PostgreSQL an error would abort the
    application's transaction."""
    statement = flavour.insert_ignore(LEDGER)
    assert ignores in statement.sql and "RETURNING" not in statement.sql
    values = {column.name: index for index, column in enumerate(LEDGER.columns)}
    bound = statement.parameters(values)
    assert sorted(bound.values() if isinstance(bound, dict) else bound) == list(range(len(LEDGER.columns)))
    if isinstance(bound, dict):
        assert all(f"%({name})s" in statement.sql for name in bound)


@pytest.mark.parametrize("dialect", [PSYCOPG, PYMYSQL, PYSQLITE], ids=lambda dialect: dialect.name)
def test_ddl_compiles(dialect: Dialect) -> None:
    """Every table and index has DDL on every database."""
    for table in METADATA.sorted_tables:
        assert f"CREATE TABLE {table.name}" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE INDEX txbus_" in str(CreateIndex(index).compile(dialect=dialect))


def test_mysql_compares_ids_byte_by_byte() -> None:
    """MySQL's tables have a binary collation, or ids that differ in case would be one, and keys fit in
    its 3,072 bytes."""
    assert "COLLATE utf8mb4_bin" in str(CreateTable(INBOX).compile(dialect=PYMYSQL))
    for table in METADATA.tables.values():
        chars = sum(getattr(column.type, "length", None) or 0 for column in table.primary_key.columns)
        assert chars * 4 <= 3_072 - 16, table.name


def test_unconfirmed_index_is_partial_where_it_can_be() -> None:
    """SQLite and PostgreSQL index only the rows that wait for confirmation."""
    (index,) = (index for index in LEDGER.indexes if index.name == "txbus_ledger_unconfirmed")
    for dialect, partial in ((PSYCOPG, True), (PYSQLITE, True), (PYMYSQL, False)):
        assert ("WHERE" in str(CreateIndex(index).compile(dialect=dialect))) is partial
