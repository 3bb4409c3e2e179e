"""Times at which a cluster does something by itself."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

__all__ = ["Deadlines"]

Action = Callable[[int], None]


class Deadlines:
    """Actions by time, those of one time in the order of setting. An action looks for itself whether
    it is still wanted; ``next_ns`` may therefore be earlier than anything happens. ``owed`` counts those
    that finish what was decided already: they come although nobody asks for anything any more."""

    def __init__(self) -> None:
        self.owed = 0
        self._heap: list[tuple[int, int, Action]] = []
        self._number = 0

    def at(self, when_ns: int, action: Action) -> None:
        self._number += 1
        heappush(self._heap, (when_ns, self._number, action))

    def owe(self, when_ns: int, action: Action) -> None:
        def pay(now_ns: int) -> None:
            self.owed -= 1
            action(now_ns)

        self.owed += 1
        self.at(when_ns, pay)

    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    def advance(self, now_ns: int) -> None:
        while self._heap and self._heap[0][0] <= now_ns:
            heappop(self._heap)[2](now_ns)
