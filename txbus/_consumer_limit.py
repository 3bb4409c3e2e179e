"""How many deliveries the consumers of one bus may handle together, for `max_messages`."""

from __future__ import annotations

from collections.abc import Callable

from txbus._ports import Ports

__all__ = ["DeliveryLimit"]


class DeliveryLimit:
    """A number of deliveries, shared by several consumers. Thread-safe.

    A consumer takes one before a run, and settles it after: it counts if the delivery is finished,
    else it is free again. So never more than ``limit`` are finished, whoever finishes them.
    """

    def __init__(self, limit: int, ports: Ports) -> None:
        self._lock = ports.runtime.lock()
        self._free = max(0, limit)
        self._open = max(0, limit)
        self._members: list[Callable[[], None]] = []

    def join(self, changed: Callable[[], None]) -> None:
        """``changed`` is called, by any thread and without a lock, when one is free again and when
        the last one is finished."""
        with self._lock:
            self._members.append(changed)

    @property
    def over(self) -> bool:
        """Are all of them finished?"""
        return self._open <= 0

    def take(self, most: int = 1) -> int:
        """Take up to ``most``; returns how many it got."""
        with self._lock:
            got = min(most, self._free)
            self._free -= got
            return got

    def settle(self, finished: int, unfinished: int = 0) -> None:
        """Of those taken, so many are finished and so many are free again. Not to be called under a
        lock that ``changed`` needs."""
        with self._lock:
            self._open -= finished
            self._free += unfinished
            if self._open > 0 and not unfinished:
                return
            members = list(self._members)
        for changed in members:
            changed()
