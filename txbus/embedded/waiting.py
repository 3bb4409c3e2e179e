"""How a receiver learns that something was written.

Writes of its own process announce themselves on the hub's condition. Writes of other processes
change what ``PRAGMA data_version`` answers (it reads a counter in the file's shared memory, a few
microseconds), which is asked every ``wake_poll_s``, and every 20 ms after a second without a record
or while every partition is paused. SQLite has no call that waits for a commit of another process.
"""

from __future__ import annotations

from collections.abc import Callable

from txbus.embedded.database import Database, Reader

__all__ = ["QUIET_AFTER_S", "wait_for_change"]

QUIET_AFTER_S = 1.0
"""Seconds without a record after which a receiver looks less often."""
_QUIET_POLL_S = 0.02


def wait_for_change(
    database: Database,
    reader: Reader,
    announced: int,
    seen: int | None,
    until_s: float,
    quiet_from_s: float,
    woken: Callable[[], bool],
) -> None:
    """Return at ``until_s`` (monotonic), or soon after a write that ``announced`` and ``seen`` lack.

    From ``quiet_from_s`` on it looks less often."""
    hub, clock = database.hub, database.ports.clock
    poll_s = database.options.wake_poll_s
    while True:
        now_s = clock.monotonic_s()
        wait_s = until_s - now_s
        if wait_s <= 0:
            return
        if database.polls:
            wait_s = min(wait_s, poll_s if now_s < quiet_from_s else max(poll_s, _QUIET_POLL_S))
        with hub.changed:
            if hub.version == announced and not woken():
                hub.changed.wait(wait_s)
            if hub.version != announced or woken():
                return
        if database.polls and reader.version() != seen:
            return
