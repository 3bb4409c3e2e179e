"""The tables of the SQL store, the same on every database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import SchemaItem

__all__ = [
    "ATTEMPTS",
    "DATABASES",
    "DEAD_LETTERS",
    "HELD",
    "INBOX",
    "KEY_CHARS",
    "LEDGER",
    "MESSAGE_ID_CHARS",
    "META",
    "METADATA",
    "RUNS",
    "SCHEMA_VERSION",
    "SCOPE_CHARS",
    "SOURCE_CHARS",
    "TOPIC_CHARS",
    "TX_ID_CHARS",
]

SCHEMA_VERSION = 1
TX_ID_CHARS = 128
# The three together stay below MySQL's 3,072 bytes of a key at four bytes a character.
SCOPE_CHARS = 120
SOURCE_CHARS = 250
MESSAGE_ID_CHARS = 250
TOPIC_CHARS = 250
KEY_CHARS = 250

METADATA = MetaData()
# Binary collation: ids that differ in case only are different ids.
_MYSQL: dict[str, Any] = {
    f"{name}_{option}": value
    for name in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_LONG_BYTES = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")


def _table(name: str, *items: SchemaItem, clustered: bool = True) -> Table:
    # Without a rowid SQLite keeps one tree for the table and its key: one page less to write a row.
    table: Table = Table(name, METADATA, *items, sqlite_with_rowid=not clustered, **_MYSQL)
    return table


META = _table(
    "txbus_meta",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("identity", String(64), nullable=False),
)

LEDGER = _table(
    "txbus_ledger",
    Column("tx_id", String(TX_ID_CHARS), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("outcome", String(16), nullable=False),
    Column("database_name", String(250), nullable=False),
    Column("messages", Integer, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("confirmed_s", Double),
    # Numbers of the parts published so far, with commas; only for a row that has several.
    Column("confirmed_parts", _LONG_TEXT),
    Column("reserved", SmallInteger, nullable=False),
)
UNCONFIRMED = text("confirmed_s IS NULL AND messages > 0")
Index("txbus_ledger_created", LEDGER.c.created_s)
Index(
    "txbus_ledger_unconfirmed",
    LEDGER.c.confirmed_s,
    LEDGER.c.created_s,
    sqlite_where=UNCONFIRMED,
    postgresql_where=UNCONFIRMED,
)

INBOX = _table(
    "txbus_inbox",
    Column("scope", String(SCOPE_CHARS), primary_key=True),
    Column("source", String(SOURCE_CHARS), primary_key=True),
    Column("message_id", String(MESSAGE_ID_CHARS), primary_key=True),
    Column("handled_s", Double, nullable=False),
)
Index("txbus_inbox_handled", INBOX.c.handled_s)

ATTEMPTS = _table(
    "txbus_attempts",
    Column("scope", String(SCOPE_CHARS), primary_key=True),
    Column("source", String(SOURCE_CHARS), primary_key=True),
    Column("message_id", String(MESSAGE_ID_CHARS), primary_key=True),
    Column("attempts", Integer, nullable=False),
    Column("due_s", Double, nullable=False),
    Column("error_text", _LONG_TEXT, nullable=False),
)

RUNS = _table(
    "txbus_runs",
    Column("scope", String(SCOPE_CHARS), primary_key=True),
    Column("topic", String(TOPIC_CHARS), primary_key=True),
    Column("partition_no", Integer, primary_key=True, autoincrement=False),
    Column("below", BigInteger, nullable=False),
)

# Keys whose halves wait behind a parked one. ``key_text`` is whole where the key holds a hash.
HELD = _table(
    "txbus_held",
    Column("partition_no", Integer, primary_key=True, autoincrement=False),
    Column("topic", String(TOPIC_CHARS), primary_key=True),
    Column("message_key", String(KEY_CHARS), primary_key=True),
    Column("key_text", _LONG_TEXT, nullable=False),
    Column("waiting", Integer, nullable=False),
)

# The names of all databases of a service, in each of them: a relay must know every one.
DATABASES = _table(
    "txbus_databases",
    Column("service", String(100), primary_key=True),
    Column("database_name", String(250), primary_key=True),
)

# ``identity_json`` has scope, source and message id in full where the key holds only a hash.
DEAD_LETTERS = _table(
    "txbus_dead_letters",
    Column("scope", String(SCOPE_CHARS), primary_key=True),
    Column("source", String(SOURCE_CHARS), primary_key=True),
    Column("message_id", String(MESSAGE_ID_CHARS), primary_key=True),
    Column("identity_json", _LONG_TEXT),
    Column("topic", String(TOPIC_CHARS), nullable=False),
    Column("partition_no", Integer, nullable=False),
    Column("offset_no", BigInteger, nullable=False),
    Column("message_key", _LONG_TEXT),
    Column("headers", _LONG_TEXT, nullable=False),
    Column("payload", _LONG_BYTES, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error_text", _LONG_TEXT, nullable=False),
    Column("dead_s", Double, nullable=False),
    clustered=False,
)
