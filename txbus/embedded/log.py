"""A topic of the embedded broker read by position."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from txbus.embedded.database import Database
from txbus.embedded.positions import partition_range
from txbus.embedded.records import RecordWriter, fetch, move_due, received_of
from txbus.embedded.schema import record_id
from txbus.embedded.topics import TopicRow, Topics
from txbus.errors import NotOpen
from txbus.spi import Received

__all__ = ["EmbeddedLog"]

_READ_BYTES = 8 * 1024 * 1024
_DELETE_ROWS = 1000


class EmbeddedLog:
    """See `txbus.spi.Log`. Offsets have no gaps; the readable end is the end."""

    def __init__(self, database: Database, topics: Topics, name: str, forget: Callable[[object], None]) -> None:
        self._database = database
        self._topics = topics
        self._name = name
        self._forget = forget
        self._reader = database.reader()
        self._closed = False

    def _topic(self) -> TopicRow:
        if self._closed:
            raise NotOpen(f"{self._database.label}: the log of {self._name!r} is closed")
        return self._topics.need(self._name)

    def start(self, partition: int) -> int:
        """The first retained offset."""
        ident = self._topic().partition(partition)
        with self._reader.snapshot() as connection:
            return partition_range(connection, ident)[0]

    def end(self, partition: int) -> int:
        """The next offset to be given; delayed messages that are due are moved in first."""
        ident = self._topic().partition(partition)
        wall_s = self._database.ports.clock.wall_s()
        with self._reader.snapshot() as connection:
            end = partition_range(connection, ident)[1]
            due = connection.execute(
                "SELECT 1 FROM delayed WHERE partition = ? AND deliver_at <= ? LIMIT 1", (ident, wall_s)
            ).fetchone()
        if due is None:
            return end

        def move(connection: sqlite3.Connection) -> int:
            writer = RecordWriter(connection, self._topics, wall_s, lambda count: 0)
            while move_due(writer, (ident,), wall_s):
                writer = RecordWriter(connection, self._topics, wall_s, lambda count: 0)
            return partition_range(connection, ident)[1]

        return self._database.write(move)

    def read(self, partition: int, offset: int, max_records: int, timeout_s: float) -> tuple[tuple[Received, ...], int]:
        """Records from an offset on, or from the first retained one; at most about 8 MiB at once.

        Does not wait, whatever ``timeout_s``.
        """
        topic = self._topic()
        ident = topic.partition(partition)
        with self._reader.snapshot() as connection:
            start, _ = partition_range(connection, ident)
            first = max(offset, start)
            rows = fetch(connection, ident, first, max_records, _READ_BYTES)
        where = topic.places[partition]
        records = tuple([received_of(where, row, 1, None) for row in rows])
        return records, (rows[-1][0] + 1 if rows else first)

    def truncate(self, partition: int, before: int) -> None:
        """Delete below ``before``: first the start moves, durably, then rows go in small batches."""
        ident = self._topic().partition(partition)
        delete_below(self._database, ident, before)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._forget(self)
        self._reader.close()


def delete_below(database: Database, partition_id: int, before: int) -> None:
    """Raise a partition's start and delete what lies below it, 1,000 rows a write."""

    def raise_start(connection: sqlite3.Connection) -> int:
        start, end = partition_range(connection, partition_id)
        new = max(start, min(before, end))
        if new != start:
            connection.execute("UPDATE partitions SET start_offset = ? WHERE id = ?", (new, partition_id))
        return new

    def delete(connection: sqlite3.Connection) -> int:
        lowest, limit = record_id(partition_id, 0), record_id(partition_id, start)
        first = connection.execute(
            "SELECT id FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 1", (lowest, limit)
        ).fetchone()
        if first is None:
            return 0
        return connection.execute(
            "DELETE FROM records WHERE id >= ? AND id < ?", (lowest, min(limit, first[0] + _DELETE_ROWS))
        ).rowcount

    start = database.write(raise_start)
    while database.write(delete, durable=False, announce=False):
        pass
