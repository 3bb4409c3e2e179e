"""Records between envelopes and rows, and the one way in which records enter the log."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from txbus.embedded.capabilities import DELAY_S_MAX, HEADERS_BYTES_MAX, PAYLOAD_BYTES_MAX
from txbus.embedded.database import Row
from txbus.embedded.schema import OFFSET_BITS, record_id
from txbus.embedded.topics import TopicRow, Topics, partition_of_key
from txbus.errors import MessageRefused
from txbus.spi import Envelope, Position, Receipt, Received, TopicPartition

__all__ = ["COLUMNS", "Place", "RecordWriter", "check_message", "fetch", "move_due", "received_of"]

COLUMNS = "key, headers, payload, tag, deliver_at, stored_at"
_OFFSET_MASK = (1 << OFFSET_BITS) - 1
_INSERT = f"INSERT INTO records (id, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_DELAY = "INSERT INTO delayed (partition, key, headers, payload, tag, deliver_at) VALUES (?, ?, ?, ?, ?, ?)"
_DUE = (
    "SELECT id, partition, key, headers, payload, tag, deliver_at FROM delayed "
    "WHERE partition = ? AND deliver_at <= ? ORDER BY deliver_at, id LIMIT ?"
)
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
# Without looking for blanks around it, because `_ENCODE` writes none.
_DECODE = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class Place:
    """Where an envelope goes, and its headers as they are stored."""

    envelope: Envelope
    topic: TopicRow
    number: int
    partition_id: int
    headers: str


def check_message(envelope: Envelope, now_s: float) -> str:
    """The headers as stored; `MessageRefused` names the message and the limit it breaks."""
    if len(envelope.payload) > PAYLOAD_BYTES_MAX:
        raise _refused(envelope, f"payload of {len(envelope.payload)} bytes; the limit is {PAYLOAD_BYTES_MAX}")
    # Surrogates are escaped, so that bytes of foreign clients come back as they were.
    headers = _ENCODE(dict(envelope.headers)) if envelope.headers else "{}"
    key = envelope.key or ""
    if len(headers) + len(key) > HEADERS_BYTES_MAX // 6:
        # Only a large one is measured exactly: escaping makes at most six bytes of a character.
        size = len(key.encode("utf-8", "surrogatepass")) + sum(
            len(name.encode("utf-8", "surrogatepass")) + len(value.encode("utf-8", "surrogatepass"))
            for name, value in envelope.headers.items()
        )
        if size > HEADERS_BYTES_MAX:
            raise _refused(envelope, f"headers and key of {size} bytes; the limit is {HEADERS_BYTES_MAX}")
    for name, text in (("key", envelope.key), ("tag", envelope.tag)):
        if text is not None and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as exc:
                raise _refused(envelope, f"its {name} {text!r:.80} is not Unicode text: {exc.reason}") from exc
    if envelope.deliver_at_s is not None and not envelope.deliver_at_s - now_s <= DELAY_S_MAX:
        delay_s = envelope.deliver_at_s - now_s
        raise _refused(envelope, f"delay of {delay_s:.0f} s; the limit is {DELAY_S_MAX:.0f}")
    return headers


def _refused(envelope: Envelope, what: str) -> MessageRefused:
    return MessageRefused(f"message {envelope.id or '(without id)':.80} to {envelope.topic!r}: {what}")


class RecordWriter:
    """Adds records to the log within one write transaction; nothing is in the file before `flush`.

    ``place`` refuses and changes nothing; ``add`` cannot fail. So one that is refused leaves its
    neighbours in the same transaction untouched.
    """

    def __init__(
        self, connection: sqlite3.Connection, topics: Topics, wall_s: float, spread: Callable[[int], int]
    ) -> None:
        self.connection = connection
        self._topics = topics
        self._wall_s = wall_s
        self._spread = spread
        self._next: dict[int, int] = {}
        self._records: list[Row] = []
        self._delayed: list[Row] = []

    def place(self, envelope: Envelope, partition: int | None = None) -> Place:
        """Where it goes; `DestinationRefused`, `MessageRefused`."""
        topic = self._topics.need(envelope.topic, self.connection)
        headers = check_message(envelope, self._wall_s)
        if partition is None:
            count = len(topic.ids)
            partition = self._spread(count) if envelope.key is None else partition_of_key(envelope.key, count)
        return Place(envelope, topic, partition, topic.partition(partition), headers)

    def add(self, place: Place) -> Receipt:
        """Give it its offset, or keep it until it is due."""
        envelope, ident = place.envelope, place.partition_id
        offset: int | None = None
        if envelope.deliver_at_s is not None and envelope.deliver_at_s > self._wall_s:
            self._delayed.append(
                (ident, envelope.key, place.headers, envelope.payload, envelope.tag, envelope.deliver_at_s)
            )
        else:
            offset = self.append(
                ident, (envelope.key, place.headers, envelope.payload, envelope.tag, envelope.deliver_at_s)
            )
        return Receipt(envelope.id or "", envelope.topic, place.number, offset)

    def append(self, partition_id: int, columns: Row) -> int:
        """Put key, headers, payload, tag and deliver_at at the end of a partition."""
        offset = self._next.get(partition_id)
        if offset is None:
            row = self.connection.execute("SELECT next_offset FROM partitions WHERE id = ?", (partition_id,)).fetchone()
            offset = int(row[0])
        self._next[partition_id] = offset + 1
        self._records.append((record_id(partition_id, offset), *columns, self._wall_s))
        return offset

    def flush(self) -> None:
        """Write what was added; the transaction's commit makes it readable."""
        if self._records:
            self.connection.executemany(_INSERT, self._records)
            self.connection.executemany(
                "UPDATE partitions SET next_offset = ? WHERE id = ?",
                [(offset, ident) for ident, offset in self._next.items()],
            )
        if self._delayed:
            self.connection.executemany(_DELAY, self._delayed)


def move_due(writer: RecordWriter, partition_ids: tuple[int, ...], now_s: float, count_max: int = 500) -> int:
    """Move delayed messages that are due to the end of their partitions; how many were moved.

    The log's order is therefore the order of delivery.
    """
    moved = 0
    for ident in partition_ids:
        rows = writer.connection.execute(_DUE, (ident, now_s, count_max)).fetchall()
        for row in rows:
            writer.append(row[1], row[2:])
        writer.connection.executemany("DELETE FROM delayed WHERE id = ?", [(row[0],) for row in rows])
        moved += len(rows)
    writer.flush()
    return moved


def fetch(connection: sqlite3.Connection, partition_id: int, offset: int, count_max: int, bytes_max: int) -> list[Row]:
    """Rows of a partition from an offset on: (offset, *COLUMNS). At least one row if there is one."""
    cursor = connection.execute(
        f"SELECT id & {_OFFSET_MASK}, {COLUMNS} FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        (record_id(partition_id, offset), record_id(partition_id + 1, 0), count_max),
    )
    rows: list[Row] = []
    size = 0
    try:
        for row in cursor:
            rows.append(row)
            size += len(row[3]) + len(row[2])
            if size >= bytes_max:
                break
    finally:
        cursor.close()
    return rows


def received_of(where: TopicPartition, row: Row, attempt: int, handle: object) -> Received:
    """A row (offset, *COLUMNS) as it is handed over."""
    offset, key, headers, payload, tag, deliver_at_s, stored_at_s = row
    return Received(
        envelope=Envelope(where.topic, payload, key, _DECODE(headers)[0], tag, deliver_at_s),
        position=Position(where.topic, where.partition, offset),
        attempt=attempt,
        stored_at_s=stored_at_s,
        handle=handle,
    )
