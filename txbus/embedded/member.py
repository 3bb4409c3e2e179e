"""A receiver's membership: when it writes its heartbeat, and what it owns by it."""

from __future__ import annotations

import sqlite3

from txbus.embedded import membership
from txbus.embedded.ack_window import AckWindow
from txbus.embedded.database import Database
from txbus.embedded.membership import Standing, Token
from txbus.embedded.owned import Owned
from txbus.embedded.positions import start_position
from txbus.embedded.topics import Topics
from txbus.errors import TxbusError
from txbus.spi import Membership, Subscription, TopicPartition

__all__ = ["Changes", "Member"]

Changes = tuple[frozenset[TopicPartition], frozenset[TopicPartition]]
"""Partitions gained, and partitions lost."""

_BEATS_PER_LEASE = 5
_NEVER = float("inf")


class Member:
    """One membership, from joining to leaving or being fenced; a receiver that was fenced makes a
    new one under a new name. Used by the receiver's thread."""

    def __init__(self, database: Database, topics: Topics, subscription: Subscription) -> None:
        ports = database.ports
        self._database = database
        self._topics = topics
        self._subscription = subscription
        self._clock = ports.clock
        self._joined = False
        self._places = {
            ident: place
            for topic in map(topics.need, subscription.topics)
            for ident, place in zip(topic.ids, topic.places, strict=True)
        }
        self.name = f"{ports.runtime.process_id()}-{ports.entropy.unique_id()}"
        self.partition_ids = tuple(self._places)
        self.owned: dict[TopicPartition, Owned] = {}
        self.snapshot = Membership(frozenset())
        self.generation = -1
        self.fenced = False
        self.beat_s = -_NEVER
        """The monotonic time of the next heartbeat; -inf: with the next `beat`."""

    def beat_now(self) -> None:
        """Something happened to the group or to us: find out with the next `receive`."""
        self.beat_s = -_NEVER

    def beat(self) -> Changes:
        """Write the heartbeat (the first one joins); what it changed."""
        token = Token(self._subscription.group, self.name, {})
        known = {part.partition_id: part.epoch for part in self.owned.values()}

        def work(connection: sqlite3.Connection) -> tuple[Standing, dict[int, int], float]:
            now_s = self._clock.monotonic_s()
            standing = membership.refresh(
                connection,
                self._topics,
                token,
                self._subscription.topics,
                self._subscription.lease_s,
                now_s,
                joining=not self._joined,
            )
            starts = {
                ident: start_position(connection, self._subscription, ident)
                for ident, epoch in standing.epochs.items()
                if known.get(ident) != epoch
            }
            return standing, starts, now_s

        standing, starts, now_s = self._database.write(work, durable=False, announce=False)
        self._joined = True
        if standing.changed:
            self._database.hub.announce()
        if standing.fenced:
            return self._drop()
        self.generation = standing.generation
        self.beat_s = min(now_s + self._subscription.lease_s / _BEATS_PER_LEASE, standing.look_again_s)
        return self._take(standing, starts)

    def _take(self, standing: Standing, starts: dict[int, int]) -> Changes:
        lost = frozenset(w for w, part in self.owned.items() if part.partition_id not in standing.epochs)
        for where in lost:
            del self.owned[where]
        for ident, start in starts.items():
            self.owned[self._places[ident]] = Owned(
                where=self._places[ident],
                partition_id=ident,
                epoch=standing.epochs[ident],
                next_offset=start,
                window=AckWindow(start),
                waits_for_seek=self._subscription.manual,
            )
        gained = frozenset(self._places[ident] for ident in starts)
        if gained or lost or self.snapshot.token is None:
            token = Token(self._subscription.group, self.name, dict(standing.epochs))
            self.snapshot = Membership(frozenset(self.owned), token)
        return gained, lost

    def _drop(self) -> Changes:
        lost = frozenset(self.owned)
        self.owned.clear()
        self.snapshot = Membership(frozenset())
        self.fenced = True
        return frozenset(), lost

    def leave(self) -> None:
        """Free the partitions at once; if that cannot be written, the lease ends by itself."""
        # Another thread may be in a receive: it keeps its old dictionary, unchanged.
        self.owned = {}
        if not self._joined or self.fenced:
            return
        try:
            self._database.write(
                lambda connection: membership.leave(connection, self._subscription.group, self.name),
                durable=False,
            )
        except TxbusError:
            return
