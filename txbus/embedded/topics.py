"""The topics of a bus, and where a message goes."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from hashlib import blake2b

from txbus.embedded.capabilities import PARTITIONS_MAX
from txbus.embedded.database import Database
from txbus.errors import DestinationRefused, SettingsError
from txbus.spi import TopicPartition, TopicSpec

__all__ = ["TopicRow", "Topics", "partition_of_key"]


def partition_of_key(key: str, partitions: int) -> int:
    """The partition of a key: the same in every process and version, for ever."""
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


@dataclass(frozen=True, slots=True)
class TopicRow:
    """A topic as the file has it; ``ids`` are its partitions' row ids, by number."""

    name: str
    kind: str
    retention_s: float | None
    internal: bool
    ids: tuple[int, ...]
    places: tuple[TopicPartition, ...]

    def partition(self, number: int) -> int:
        """The row id of a partition; `DestinationRefused` for one that it does not have."""
        if not 0 <= number < len(self.ids):
            raise DestinationRefused(
                f"topic {self.name!r} has partitions 0 to {len(self.ids) - 1}, not {number}; its number of "
                "partitions is fixed when it is created"
            )
        return self.ids[number]


class Topics:
    """Topics by name. A topic never changes once it is created, so that it is read once. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, TopicRow] = {}

    def find(self, name: str, connection: sqlite3.Connection | None = None) -> TopicRow | None:
        """The topic, or None; through the connection of a transaction if one is open."""
        known = self._known.get(name)
        if known is not None:
            return known
        sql = "SELECT id, name, kind, retention_s, internal FROM topics WHERE name = ?"
        parts = "SELECT id FROM partitions WHERE topic = ? ORDER BY number"
        if connection is None:
            rows = self._database.rows(sql, (name,))
            ids = self._database.rows(parts, (rows[0][0],)) if rows else []
        else:
            rows = connection.execute(sql, (name,)).fetchall()
            ids = connection.execute(parts, (rows[0][0],)).fetchall() if rows else []
        if not rows or not ids:
            return None
        _, _, kind, retention_s, internal = rows[0]
        assert isinstance(kind, str) and (retention_s is None or isinstance(retention_s, float))
        row = TopicRow(
            name=name,
            kind=kind,
            retention_s=retention_s,
            internal=bool(internal),
            ids=tuple(r[0] for r in ids),
            places=tuple(TopicPartition(name, number) for number in range(len(ids))),
        )
        self._known[name] = row
        return row

    def need(self, name: str, connection: sqlite3.Connection | None = None) -> TopicRow:
        """The topic; `DestinationRefused` if it does not exist."""
        row = self.find(name, connection)
        if row is None:
            raise DestinationRefused(
                f"{self._database.label} has no topic {name!r}; declare it in Bus(topics=...) so that it is "
                "created at open, or create it with Backend.admin().create"
            )
        return row

    def create(self, spec: TopicSpec) -> None:
        """Create it unless it exists. Durable on return."""
        if not spec.name or len(spec.name) > 200:
            raise SettingsError(f"topic name {spec.name!r} must have 1 to 200 characters")
        if not 1 <= spec.partitions <= PARTITIONS_MAX:
            raise SettingsError(
                f"topic {spec.name!r}: partitions={spec.partitions} must lie between 1 and {PARTITIONS_MAX}"
            )
        if spec.retention_s is not None and not spec.retention_s > 0:
            raise SettingsError(f"topic {spec.name!r}: retention_s={spec.retention_s} must be above 0, or None")
        if self.find(spec.name) is not None:
            return
        now_s = self._database.ports.clock.wall_s()

        def insert(connection: sqlite3.Connection) -> None:
            if self.find(spec.name, connection) is not None:
                return
            retention_s = None if spec.retention_s is None else float(spec.retention_s)
            topic = connection.execute(
                "INSERT INTO topics (name, partitions, kind, retention_s, internal, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (spec.name, spec.partitions, spec.kind.value, retention_s, int(spec.internal), now_s),
            ).lastrowid
            connection.executemany(
                "INSERT INTO partitions (topic, number) VALUES (?, ?)",
                [(topic, number) for number in range(spec.partitions)],
            )

        self._database.write(insert)
