"""What the backends of one process share for one bus: the write lock and the wake-up.

A hub is found by the file's real path (or the memory bus's name) and the process id, lives from the
first backend that opens it to the last that closes it, and is the only state outside of objects
that the application holds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from txbus.spi import Runtime

__all__ = ["Hub", "enter_hub", "forget_process"]

_HUBS: dict[tuple[str, int], Hub] = {}


class Hub:
    """A write lock, and a condition that every committed write of this process announces.

    ``shared`` is the connection of a bus in memory; files have none, each backend opens its own.
    """

    def __init__(self, key: tuple[str, int], runtime: Runtime) -> None:
        self.key = key
        self.lock = runtime.lock()
        self.changed = runtime.condition()
        self.version = 0
        self.shared: sqlite3.Connection | None = None
        self._users = 0
        self._retired = False

    def announce(self) -> None:
        """Something was committed, or a receiver is to wake: waiting receivers look again."""
        with self.changed:
            self.version += 1
            self.changed.notify_all()

    def join(self, connect: Callable[[], sqlite3.Connection] | None) -> bool:
        """One more backend uses it; False if it was retired meanwhile."""
        with self.lock:
            if self._retired:
                return False
            if connect is not None and self.shared is None:
                self.shared = connect()
            self._users += 1
            return True

    def leave(self) -> None:
        """One backend less; the last one retires the hub and ends a bus in memory."""
        with self.lock:
            self._users -= 1
            assert self._users >= 0
            if self._users:
                return
            self._retired = True
            _HUBS.pop(self.key, None)
            if self.shared is not None:
                self.shared.close()


def enter_hub(name: str, runtime: Runtime, connect: Callable[[], sqlite3.Connection] | None = None) -> Hub:
    """The hub of a bus, made by the first who asks. Thread-safe: the registry's own steps are
    single dictionary operations, and a hub that retires between them is passed over."""
    key = (name, runtime.process_id())
    while True:
        hub = _HUBS.setdefault(key, Hub(key, runtime))
        if hub.join(connect):
            return hub


def forget_process(process_id: int) -> None:
    """Drop the hubs of a process that is gone without having closed them.

    For a simulator, whose processes share one interpreter and whose process ids come again in the
    next run; a real process takes its hubs with it. Nothing is closed or announced.
    """
    for key in [key for key in _HUBS if key[1] == process_id]:
        del _HUBS[key]
