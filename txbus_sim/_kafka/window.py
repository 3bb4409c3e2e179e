"""One owned partition of a receiver: where it reads on, and what it has handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Set

__all__ = ["Owned"]


class Owned:
    """``position`` None: not known yet, or to be sought. ``run`` grows with each seek: deliveries from
    before it are forgotten. The group's position may move up to ``low``, never past an unfinished one."""

    __slots__ = ("_open", "_order", "low", "paused", "position", "run", "sought")

    def __init__(self) -> None:
        self.position: int | None = None
        self.paused = False
        self.run = 0
        self.low = 0
        self.sought = False
        """By `seek`, so that the next position may be lower than the group's."""
        self._order: deque[int] = deque()
        self._open: set[int] = set()

    def start(self, offset: int) -> None:
        """Read from here on."""
        self.position = self.low = offset
        self._order.clear()
        self._open.clear()

    def seek(self, offset: int) -> None:
        self.start(offset)
        self.run += 1
        self.sought = True

    def deliver(self, offset: int) -> None:
        self._order.append(offset)
        self._open.add(offset)

    def low_after(self, offsets: Set[int]) -> int:
        """Where ``low`` would be if these were finished, too. Changes nothing."""
        low = self.low
        for offset in self._order:
            if offset in self._open and offset not in offsets:
                break
            low = offset + 1
        return low

    def finish(self, offsets: Set[int]) -> None:
        self._open -= offsets
        while self._order and self._order[0] not in self._open:
            self.low = self._order.popleft() + 1
