"""The tables of a bus file, and the two numbers that mark one.

A record's id is ``partition id * 2**40 + offset``, so that one table in the order of its rowid is
every partition's log, without a second index to maintain on each send.
"""

from __future__ import annotations

__all__ = ["APPLICATION_ID", "OFFSET_BITS", "SCHEMA_VERSION", "STATEMENTS", "record_id"]

APPLICATION_ID = 0x54584255
"""``TXBU``, in the header of every bus file (bytes 68 to 71)."""
SCHEMA_VERSION = 1
OFFSET_BITS = 40

STATEMENTS = (
    """CREATE TABLE topics (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL,
        kind TEXT NOT NULL, retention_s REAL, internal INTEGER NOT NULL, created_at REAL NOT NULL)""",
    """CREATE TABLE partitions (
        id INTEGER PRIMARY KEY, topic INTEGER NOT NULL, number INTEGER NOT NULL,
        start_offset INTEGER NOT NULL DEFAULT 0, next_offset INTEGER NOT NULL DEFAULT 0,
        UNIQUE (topic, number))""",
    """CREATE TABLE records (
        id INTEGER PRIMARY KEY, key TEXT, headers TEXT NOT NULL, payload BLOB NOT NULL, tag TEXT,
        deliver_at REAL, stored_at REAL NOT NULL)""",
    """CREATE TABLE delayed (
        id INTEGER PRIMARY KEY, partition INTEGER NOT NULL, key TEXT, headers TEXT NOT NULL,
        payload BLOB NOT NULL, tag TEXT, deliver_at REAL NOT NULL)""",
    "CREATE INDEX delayed_due ON delayed (partition, deliver_at)",
    """CREATE TABLE positions (
        group_name TEXT NOT NULL, partition INTEGER NOT NULL, position INTEGER NOT NULL,
        note TEXT NOT NULL, PRIMARY KEY (group_name, partition)) WITHOUT ROWID""",
    "CREATE TABLE groups (name TEXT PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE members (
        group_name TEXT NOT NULL, member TEXT NOT NULL, topics TEXT NOT NULL, lease_s REAL NOT NULL,
        expires_at REAL NOT NULL, PRIMARY KEY (group_name, member)) WITHOUT ROWID""",
    """CREATE TABLE leases (
        group_name TEXT NOT NULL, partition INTEGER NOT NULL, member TEXT, epoch INTEGER NOT NULL,
        PRIMARY KEY (group_name, partition)) WITHOUT ROWID""",
    """CREATE TABLE redeliveries (
        id INTEGER PRIMARY KEY AUTOINCREMENT, group_name TEXT NOT NULL, partition INTEGER NOT NULL,
        offset INTEGER NOT NULL, attempt INTEGER NOT NULL, due_at REAL NOT NULL, key TEXT,
        headers TEXT NOT NULL, payload BLOB NOT NULL, tag TEXT, deliver_at REAL, stored_at REAL NOT NULL)""",
    "CREATE INDEX redeliveries_due ON redeliveries (group_name, partition, due_at)",
    "CREATE TABLE producers (transactional_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID",
)


def record_id(partition_id: int, offset: int) -> int:
    """The row of an offset; offsets beyond the partition's range would be another partition's."""
    assert 0 <= offset < 1 << OFFSET_BITS
    return (partition_id << OFFSET_BITS) + offset
