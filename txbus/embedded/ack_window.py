"""Which deliveries of a partition are unfinished, and how far the position may move."""

from __future__ import annotations

from collections import deque
from collections.abc import Set

__all__ = ["AckWindow"]


class AckWindow:
    """The deliveries of one partition from a position on, finished in any order.

    Offsets are delivered in growing order, not necessarily by one. ``low`` is the position that
    may be committed: everything delivered below it is finished, and it is never above an
    unfinished delivery. ``len`` counts the unfinished. Used by one thread.
    """

    __slots__ = ("_low", "_open", "_order")

    def __init__(self, position: int) -> None:
        self._low = position
        self._order: deque[int] = deque()
        self._open: set[int] = set()

    @property
    def low(self) -> int:
        return self._low

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, offset: int) -> bool:
        """Whether it was delivered and is unfinished."""
        return offset in self._open

    def deliver(self, offset: int) -> None:
        """An offset was handed out. It lies above all that were before."""
        last = self._order[-1] if self._order else self._low - 1
        assert offset > last, f"offset {offset} delivered after {last}"
        self._order.append(offset)
        self._open.add(offset)

    def low_after(self, offsets: Set[int]) -> int:
        """Where ``low`` would be if these were finished too. Changes nothing, so that a position
        can be written before the window follows it."""
        low = self._low
        for offset in self._order:
            if offset in self._open and offset not in offsets:
                break
            low = offset + 1
        return low

    def finish(self, offsets: Set[int]) -> int:
        """These are done; returns the new ``low``. One that is finished or unknown is passed over."""
        self._open -= offsets
        while self._order and self._order[0] not in self._open:
            self._low = self._order.popleft() + 1
        return self._low
