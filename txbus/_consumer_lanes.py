"""Which record may run next: a lane for each key, strictly in order, others go on.

No thread, no clock, no lock: the consumer calls it under its condition.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable

from txbus._consumer_contract import Ownership, Run
from txbus._message import TopicPartition
from txbus.spi import Received

__all__ = ["Lane", "Lanes", "Share", "Work"]


class Share(Ownership):
    """An owned partition with its lanes. ``unfinished`` counts the running ones too."""

    __slots__ = ("lanes", "paused", "running", "unfinished")

    def __init__(self, where: TopicPartition, gain: int) -> None:
        super().__init__(where, gain)
        self.lanes: dict[str, Lane] = {}
        self.unfinished = 0
        self.running = 0
        self.paused = False


class Lane:
    """Records of one key of one partition, the first of which may be running or held."""

    __slots__ = ("key", "share", "works")

    def __init__(self, share: Share, key: str | None) -> None:
        self.share = share
        self.key = key
        self.works: deque[Work] = deque()


class Work(Run):
    """A run with its place in a lane."""

    __slots__ = ("lane", "share")

    def __init__(self, received: Received, share: Share, lane: Lane) -> None:
        super().__init__(received, share)
        self.share = share
        self.lane = lane


class Lanes:
    """All lanes of one consumer.

    A lane is in one of three places: in the ready queue, among the held ones until it is due, or
    with the worker that runs its first record. So no two records of a key ever run at once.
    """

    def __init__(self) -> None:
        self.shares: dict[TopicPartition, Share] = {}
        self.unfinished = 0
        self.running = 0
        self._ready: deque[Lane] = deque()
        self._held: list[tuple[float, int, Lane]] = []
        self._order = 0
        self._gains = 0
        self._latest: Share | None = None

    @property
    def ready(self) -> int:
        return len(self._ready)

    @property
    def held(self) -> int:
        """Lanes that wait for a time; those of lost partitions are left out."""
        return sum(not lane.share.lost for _, _, lane in self._held)

    def gain(self, where: TopicPartition) -> Share:
        """A partition is owned from now on. What was held of it before is forgotten."""
        self.lose((where,))
        self._gains += 1
        share = self.shares[where] = Share(where, self._gains)
        return share

    def lose(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Drop these partitions' waiting records. Running ones end by `finish`, to no avail."""
        gone: list[TopicPartition] = []
        for where in partitions:
            share = self.shares.pop(where, None)
            if share is not None:
                share.lost = True
                self._drop_waiting(share)
                gone.append(where)
        return gone

    def close(self) -> None:
        """Drop whatever waits, of every partition; what runs may finish."""
        for share in self.shares.values():
            share.closing = True
            self._drop_waiting(share)
        self._ready.clear()
        self._held.clear()

    def add(self, received: Received) -> None:
        """Queue a record behind those of its key, or by itself if it has none."""
        position = received.position
        share = self._latest
        # A poll brings the records of a partition one after the other.
        if (
            share is None
            or share.lost
            or share.where.partition != position.partition
            or share.where.topic != position.topic
        ):
            share = self._latest = self.shares.get(position.where) or self.gain(position.where)
        key = received.envelope.key
        lane = share.lanes.get(key) if key is not None else None
        if lane is None:
            lane = Lane(share, key)
            if key is not None:
                share.lanes[key] = lane
            self._ready.append(lane)
        lane.works.append(Work(received, share, lane))
        if position.offset >= share.end:
            share.end = position.offset + 1
        share.unfinished += 1
        self.unfinished += 1

    def release(self, now_s: float) -> None:
        """Move held lanes whose time has come to the ready ones."""
        while self._held and self._held[0][0] <= now_s:
            self._ready.append(heapq.heappop(self._held)[2])

    @property
    def next_due_s(self) -> float | None:
        """When the first held lane is due, on the clock of `hold`."""
        return self._held[0][0] if self._held else None

    def available(self) -> bool:
        """Would `take` give a record?"""
        while self._ready and (self._ready[0].share.lost or self._ready[0].share.closing):
            self._ready.popleft()
        return bool(self._ready)

    def take(self) -> Work | None:
        """The next record to run, or None."""
        while self._ready:
            lane = self._ready.popleft()
            share = lane.share
            if not (share.lost or share.closing):
                share.running += 1
                self.running += 1
                return lane.works[0]
        return None

    def finish(self, work: Work) -> bool:
        """It needs no further run here; False if its partition was lost meanwhile."""
        share = self._stopped(work)
        share.unfinished -= 1
        self.unfinished -= 1
        if share.lost:
            return False
        lane = work.lane
        lane.works.popleft()
        if lane.works:
            self._ready.append(lane)
        elif lane.key is not None:
            share.lanes.pop(lane.key, None)
        return True

    def hold(self, work: Work, due_s: float) -> None:
        """It runs again at ``due_s``, before any other of its key."""
        share = self._stopped(work)
        if share.lost or share.closing:
            share.unfinished -= 1
            self.unfinished -= 1
            return
        self._order += 1
        heapq.heappush(self._held, (due_s, self._order, work.lane))

    def _stopped(self, work: Work) -> Share:
        share = work.share
        share.running -= 1
        self.running -= 1
        assert share.running >= 0 and work.lane.works[0] is work
        return share

    def _drop_waiting(self, share: Share) -> None:
        self.unfinished -= share.unfinished - share.running
        share.unfinished = share.running
        share.lanes.clear()
