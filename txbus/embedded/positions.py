"""Where a group stands in a partition, and where it begins without a position."""

from __future__ import annotations

import sqlite3

from txbus.embedded.schema import OFFSET_BITS, record_id
from txbus.errors import SettingsError
from txbus.spi import Committed, Subscription

__all__ = ["check_start", "find_time", "move_position", "partition_range", "read_position", "start_position"]


def partition_range(connection: sqlite3.Connection, partition_id: int) -> tuple[int, int]:
    """The first retained offset and the end."""
    row = connection.execute(
        "SELECT start_offset, next_offset FROM partitions WHERE id = ?", (partition_id,)
    ).fetchone()
    return int(row[0]), int(row[1])


def read_position(connection: sqlite3.Connection, group: str, partition_id: int) -> Committed | None:
    """The position that is written, None if there is none."""
    row = connection.execute(
        "SELECT position, note FROM positions WHERE group_name = ? AND partition = ?", (group, partition_id)
    ).fetchone()
    return Committed(int(row[0]), str(row[1])) if row else None


def move_position(
    connection: sqlite3.Connection, group: str, partition_id: int, position: Committed, back: bool
) -> None:
    """Write a position; with ``back`` it may also lie below the present one."""
    connection.execute(
        "INSERT INTO positions (group_name, partition, position, note) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (group_name, partition) DO UPDATE SET position = excluded.position, note = excluded.note"
        + ("" if back else " WHERE position < excluded.position"),
        (group, partition_id, position.offset, position.note),
    )


def find_time(connection: sqlite3.Connection, partition_id: int, wall_s: float) -> int:
    """The first retained record stored at or after a time; the end if there is none.

    Wall time may have been stepped, so that every record is looked at, and none is skipped.
    """
    start, end = partition_range(connection, partition_id)
    row = connection.execute(
        "SELECT id FROM records WHERE id >= ? AND id < ? AND stored_at >= ? ORDER BY id LIMIT 1",
        (record_id(partition_id, start), record_id(partition_id, end), wall_s),
    ).fetchone()
    return int(row[0]) & ((1 << OFFSET_BITS) - 1) if row else end


def check_start(subscription: Subscription) -> None:
    """`SettingsError` for a start that is neither a word nor seconds."""
    start = subscription.start
    if isinstance(start, str) and start not in ("earliest", "latest"):
        raise SettingsError(f"start={start!r}: allowed are 'earliest', 'latest' and seconds since the epoch")


def start_position(connection: sqlite3.Connection, subscription: Subscription, partition_id: int) -> int:
    """Where a new owner goes on.

    A group's first position by "latest" or by time is written at once: else the next owner would
    compute it anew and pass over what came meanwhile.
    """
    start, end = partition_range(connection, partition_id)
    committed = read_position(connection, subscription.group, partition_id)
    if committed is not None:
        return max(committed.offset, start)
    if subscription.start == "earliest":
        return start
    if isinstance(subscription.start, str):
        offset = end
    else:
        offset = find_time(connection, partition_id, subscription.start)
    move_position(connection, subscription.group, partition_id, Committed(offset), back=True)
    return offset
