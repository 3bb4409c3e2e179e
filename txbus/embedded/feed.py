"""What a member's partitions have to deliver: records read ahead, and redeliveries that are due."""

from __future__ import annotations

from collections.abc import Mapping

from txbus.embedded.database import Database, Reader, Row
from txbus.embedded.owned import Handle, Owned
from txbus.embedded.records import COLUMNS, RecordWriter, fetch, move_due, received_of
from txbus.embedded.topics import Topics
from txbus.spi import Received, TopicPartition

__all__ = ["Feed"]

_AHEAD_ROWS = 256
_AHEAD_BYTES = 1024 * 1024
_REDELIVERIES = 100
_NEVER = float("inf")
_STATE = (
    "SELECT (SELECT generation FROM groups WHERE name = ?), "
    "(SELECT min(deliver_at) FROM delayed WHERE partition IN ({marks}))"
)
_ENDS = "SELECT id, start_offset, next_offset FROM partitions WHERE id IN ({marks})"
_WAITING = (
    "SELECT id, partition, due_at FROM redeliveries WHERE group_name = ? AND partition IN ({marks}) "
    "ORDER BY due_at, id LIMIT ?"
)
_REDELIVERY = f"SELECT offset, {COLUMNS}, attempt FROM redeliveries WHERE id = ?"


class Feed:
    """Looks into the file when something was written, and hands out what it found.

    ``generation`` is the group's, as last seen. ``due_s`` is the wall-clock time from which it is
    worth looking again although nothing was written. Used by the receiver's thread.
    """

    def __init__(self, database: Database, topics: Topics, reader: Reader, group: str, member: str) -> None:
        self._database = database
        self._topics = topics
        self._reader = reader
        self._group = group
        self._member = member
        self.generation = -1
        self.due_s = _NEVER
        self._ends: dict[int, int] = {}
        self._redeliveries: list[Row] = []
        self._turn = 0

    def look(self, owned: Mapping[TopicPartition, Owned], partition_ids: tuple[int, ...]) -> None:
        """Learn ends, due times and the group's generation; move delayed messages that are due."""
        wall_s = self._database.ports.clock.wall_s()
        delayed_s = self._state(partition_ids)
        if delayed_s <= wall_s:
            self._move(partition_ids)
            delayed_s = self._state(partition_ids)
        self.due_s = delayed_s
        parts = {o.partition_id: o for o in owned.values() if o.open}
        self._ends.clear()
        self._redeliveries = []
        if not parts:
            return
        marks = ",".join("?" * len(parts))
        for ident, start, end in self._reader.rows(_ENDS.format(marks=marks), tuple(parts)):
            part = parts[ident]
            self._ends[ident] = end
            if not part.buffer and part.next_offset < start:
                part.next_offset = start
        in_flight = {ident for part in parts.values() for ident in part.redelivering}
        limit = len(in_flight) + _REDELIVERIES
        waiting = self._reader.rows(_WAITING.format(marks=marks), (self._group, *parts, limit))
        self._redeliveries = [row for row in waiting if row[0] not in in_flight]
        if self._redeliveries:
            self.due_s = min(self.due_s, self._redeliveries[0][2])

    def _state(self, partition_ids: tuple[int, ...]) -> float:
        marks = ",".join("?" * len(partition_ids))
        generation, delayed_s = self._reader.rows(_STATE.format(marks=marks), (self._group, *partition_ids))[0]
        self.generation = 0 if generation is None else generation
        return _NEVER if delayed_s is None else float(delayed_s)

    def _move(self, partition_ids: tuple[int, ...]) -> None:
        now_s = self._database.ports.clock.wall_s()
        self._database.write(
            lambda connection: move_due(
                RecordWriter(connection, self._topics, now_s, lambda count: 0), partition_ids, now_s
            ),
            durable=False,
        )

    def deliver(self, owned: Mapping[TopicPartition, Owned], count_max: int) -> list[Received]:
        """Up to so many deliveries: redeliveries that are due, then records, partitions in turn."""
        received = self._redeliver(owned, count_max) if self._redeliveries else []
        parts = [part for part in owned.values() if part.open]
        self._turn += 1
        for index in range(len(parts)):
            if len(received) >= count_max:
                break
            self._drain(parts[(self._turn + index) % len(parts)], count_max, received)
        return received

    def _drain(self, part: Owned, count_max: int, received: list[Received]) -> None:
        handle = Handle(self._member, part.partition_id, part.epoch, part.run)
        while len(received) < count_max:
            if not part.buffer:
                if part.next_offset >= self._ends.get(part.partition_id, 0):
                    return
                with self._reader.snapshot() as connection:
                    part.buffer.extend(
                        fetch(connection, part.partition_id, part.next_offset, _AHEAD_ROWS, _AHEAD_BYTES)
                    )
                if not part.buffer:
                    return
            row = part.buffer.popleft()
            part.next_offset = row[0] + 1
            part.window.deliver(row[0])
            received.append(received_of(part.where, row, 1, handle))

    def _redeliver(self, owned: Mapping[TopicPartition, Owned], count_max: int) -> list[Received]:
        wall_s = self._database.ports.clock.wall_s()
        parts = {part.partition_id: part for part in owned.values() if part.open}
        received: list[Received] = []
        left: list[Row] = []
        for ident, partition_id, due_s in self._redeliveries:
            part = parts.get(partition_id)
            if part is None or ident in part.redelivering:
                continue
            if due_s > wall_s or len(received) >= count_max:
                left.append((ident, partition_id, due_s))
                continue
            rows = self._reader.rows(_REDELIVERY, (ident,))
            if rows:
                *row, attempt = rows[0]
                part.redelivering.add(ident)
                handle = Handle(self._member, partition_id, part.epoch, part.run, ident)
                received.append(received_of(part.where, tuple(row), attempt, handle))
        self._redeliveries = left
        return received
