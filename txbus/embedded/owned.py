"""What a receiver keeps in memory of a partition that it owns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from txbus.embedded.ack_window import AckWindow
from txbus.embedded.database import Row
from txbus.spi import TopicPartition

__all__ = ["Handle", "Owned"]


@dataclass(frozen=True, slots=True)
class Handle:
    """Which ownership, and which run between two seeks, a delivery belongs to.

    ``redelivery`` is the row of a redelivered one; its acknowledgement deletes it.
    """

    member: str
    partition_id: int
    epoch: int
    run: int
    redelivery: int | None = None


@dataclass(slots=True)
class Owned:
    """One owned partition: what comes next, what was read ahead, what is unfinished.

    ``run`` grows with each seek, so that a delivery of before is told from one of after.
    ``sought``: the next acknowledged position may lie below the group's present one.
    """

    where: TopicPartition
    partition_id: int
    epoch: int
    next_offset: int
    window: AckWindow
    waits_for_seek: bool = False
    paused: bool = False
    run: int = 0
    sought: bool = False
    buffer: deque[Row] = field(default_factory=deque)
    redelivering: set[int] = field(default_factory=set)

    @property
    def open(self) -> bool:
        """Whether it may deliver."""
        return not self.paused and not self.waits_for_seek

    def seek(self, offset: int) -> None:
        """Go on at an offset and forget what is unfinished."""
        self.next_offset = offset
        self.window = AckWindow(offset)
        self.waits_for_seek = False
        self.run += 1
        self.sought = True
        self.buffer.clear()
        self.redelivering.clear()

    def reads_from(self) -> int:
        """The first offset that is neither delivered nor read ahead."""
        return int(self.buffer[-1][0]) + 1 if self.buffer else self.next_offset
