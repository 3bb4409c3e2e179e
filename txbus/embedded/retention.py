"""Deletes records older than their topic's retention, a little at a time, beside other work."""

from __future__ import annotations

import sqlite3

from txbus.embedded.database import Database
from txbus.embedded.schema import OFFSET_BITS, record_id
from txbus.errors import BackendError

__all__ = ["Retention"]

_ROUND_S = 5.0
_BUSY_ROUND_S = 0.2
_ROWS = 500
_CANDIDATES = (
    "SELECT p.id, p.start_offset, p.next_offset, t.retention_s FROM partitions p JOIN topics t ON t.id = p.topic "
    "WHERE t.retention_s IS NOT NULL AND p.next_offset > p.start_offset"
)
_OLDEST = "SELECT id, stored_at FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"


class Retention:
    """`tick` is called by senders and receivers and does something every five seconds. Thread-safe.

    Old records go from the front of a partition only: one behind a younger one waits for it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = database.ports.clock
        self._turn = database.ports.runtime.lock()
        self._next_s = self._clock.monotonic_s() + _ROUND_S

    def tick(self) -> None:
        """Delete at most 500 records of each partition. What fails is tried again next time."""
        if self._clock.monotonic_s() < self._next_s or not self._turn.acquire(blocking=False):
            return
        try:
            more = self._round()
            self._next_s = self._clock.monotonic_s() + (_BUSY_ROUND_S if more else _ROUND_S)
        except BackendError:
            self._next_s = self._clock.monotonic_s() + _ROUND_S
        finally:
            self._turn.release()

    def _round(self) -> bool:
        now_s = self._clock.wall_s()
        more = False
        for ident, start, end, retention_s in self._database.rows(_CANDIDATES):
            first, beyond, cutoff_s = record_id(ident, start), record_id(ident, end), now_s - retention_s
            oldest = self._database.rows(_OLDEST, (first, beyond, 1))
            if oldest and oldest[0][1] < cutoff_s:

                def delete(
                    connection: sqlite3.Connection,
                    ident: int = ident,
                    cutoff_s: float = cutoff_s,
                    first: int = first,
                    beyond: int = beyond,
                ) -> int:
                    rows = connection.execute(_OLDEST, (first, beyond, _ROWS)).fetchall()
                    keep = next((index for index, row in enumerate(rows) if row[1] >= cutoff_s), len(rows))
                    if keep:
                        limit = rows[keep - 1][0] + 1
                        connection.execute(
                            "UPDATE partitions SET start_offset = max(start_offset, ?) WHERE id = ?",
                            (limit & ((1 << OFFSET_BITS) - 1), ident),
                        )
                        connection.execute("DELETE FROM records WHERE id >= ? AND id < ?", (record_id(ident, 0), limit))
                    return keep

                more |= self._database.write(delete, durable=False, announce=False) == _ROWS
        return more
