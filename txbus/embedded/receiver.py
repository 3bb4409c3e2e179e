"""A member of a consumer group on the embedded broker."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from txbus.embedded.database import Database
from txbus.embedded.feed import Feed
from txbus.embedded.member import Changes, Member
from txbus.embedded.membership import fenced_of
from txbus.embedded.owned import Handle, Owned
from txbus.embedded.positions import check_start, find_time, move_position, read_position
from txbus.embedded.records import check_message
from txbus.embedded.topics import Topics
from txbus.embedded.waiting import QUIET_AFTER_S, wait_for_change
from txbus.errors import Fenced, NotOpen, SettingsError
from txbus.spi import Batch, Committed, Membership, Received, Subscription, TopicPartition

__all__ = ["EmbeddedReceiver"]

_NOTHING: Changes = (frozenset(), frozenset())


@dataclass(slots=True)
class _Done:
    """What is to be acknowledged of one partition."""

    part: Owned
    offsets: set[int] = field(default_factory=set)
    redeliveries: set[int] = field(default_factory=set)


class EmbeddedReceiver:
    """Leases partitions and delivers their records; see `txbus.spi.Receiver` for the promises.

    It joins the group with its first `receive`. A heartbeat is written at most five times in a
    lease, so that a silent member is replaced after 0.8 to 1 times ``lease_s``.
    """

    def __init__(
        self,
        database: Database,
        topics: Topics,
        subscription: Subscription,
        maintain: Callable[[], None],
        forget: Callable[[object], None],
    ) -> None:
        check_start(subscription)
        if not subscription.group or not subscription.topics or not subscription.lease_s > 0:
            raise SettingsError(f"{subscription} needs a group, a topic and a lease_s above 0")
        self._database = database
        self._topics = topics
        self._subscription = subscription
        self._maintain = maintain
        self._forget = forget
        self._clock = database.ports.clock
        self._reader = database.reader()
        self._member: Member | None = None
        self._feed: Feed | None = None
        self._seen: int | None = None
        self._idle_since_s = self._clock.monotonic_s()
        self._woken = False
        self._closed = False

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        """Wait for records or a change of the assignment.

        A member that finds itself fenced gets a Batch with its losses; the next call joins anew.
        """
        assert max_messages >= 1
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            self._check_open()
            announced = self._database.hub.version
            woken, self._woken = self._woken, False
            gained, lost = self._keep_standing()
            if self._closed:
                # Closed by another thread meanwhile; what was joined after it left is left again.
                self._leave()
                self._check_open()
            member, feed = self._member, self._feed
            if member is None or feed is None:
                return Batch((), Membership(frozenset()), gained, lost)
            received = feed.deliver(member.owned, max_messages)
            self._maintain()
            now_s = self._clock.monotonic_s()
            if received:
                self._idle_since_s = now_s
            if received or gained or lost or woken or now_s >= deadline_s:
                return Batch(tuple(received), member.snapshot, gained, lost)
            due_in_s = feed.due_s - self._clock.wall_s()
            until_s = min(deadline_s, member.beat_s, now_s + max(0.0, due_in_s))
            # While everything is paused, no record that others write could be delivered.
            paused = bool(member.owned) and not any(part.open for part in member.owned.values())
            quiet_from_s = now_s if paused else self._idle_since_s + QUIET_AFTER_S
            wait_for_change(self._database, self._reader, announced, self._seen, until_s, quiet_from_s, self._is_woken)

    def _is_woken(self) -> bool:
        return self._woken or self._closed

    def wake(self) -> None:
        """A waiting `receive`, or else the next one, returns without waiting. Thread-safe."""
        with self._database.hub.changed:
            self._woken = True
            self._database.hub.changed.notify_all()

    def _keep_standing(self) -> Changes:
        """Join, look at what was written, and write a heartbeat if it is due or the group changed."""
        changes = _NOTHING
        if self._member is None:
            self._member = Member(self._database, self._topics, self._subscription)
            self._feed = Feed(self._database, self._topics, self._reader, self._subscription.group, self._member.name)
            self._seen = None
        member, feed = self._member, self._feed
        assert feed is not None
        self._look(member, feed)
        if feed.generation != member.generation:
            member.beat_now()
        if self._clock.monotonic_s() >= member.beat_s:
            changes = member.beat()
            if member.fenced:
                self._member = self._feed = None
            elif changes != _NOTHING:
                self._seen = None
                self._look(member, feed)
        return changes

    def _look(self, member: Member, feed: Feed) -> None:
        version = self._reader.version()
        if version != self._seen or self._clock.wall_s() >= feed.due_s:
            # The version is taken before the look: what comes between is seen by the next one.
            self._seen = version
            feed.look(member.owned, member.partition_ids)

    def ack(self, received: Sequence[Received]) -> None:
        """These are done: the position moves up to the first unfinished delivery.

        Durable against the death of processes; after a power cut some may be delivered again.
        What lies behind an unfinished one is remembered by this member only. `Fenced` names the
        partitions that were lost; those of the others are acknowledged.
        """
        self._check_open()
        done, lost = self._sort(received)
        if done:
            lost |= self._acknowledge(done)
        if lost:
            raise self._fenced(lost, "acknowledge")

    def _sort(self, received: Sequence[Received]) -> tuple[dict[TopicPartition, _Done], set[TopicPartition]]:
        """By partition, without what was sought away or finished; and the partitions not owned."""
        done: dict[TopicPartition, _Done] = {}
        lost: set[TopicPartition] = set()
        # What was delivered together shares a handle, and mostly comes back together.
        latest: object = None
        entry: _Done | None = None
        for one in received:
            handle = one.handle
            if handle is not latest or entry is None:
                latest, entry = handle, self._entry_of(one, done, lost)
            if entry is None:
                continue
            assert isinstance(handle, Handle)
            if handle.redelivery is None:
                entry.offsets.add(one.position.offset)
            elif handle.redelivery in entry.part.redelivering:
                entry.redeliveries.add(handle.redelivery)
        return done, lost

    def _entry_of(
        self, received: Received, done: dict[TopicPartition, _Done], lost: set[TopicPartition]
    ) -> _Done | None:
        """Where an acknowledgement is noted; None if it is of no use, or its partition is lost."""
        where = received.position.where
        part = self._part_of(received)
        if part is None:
            lost.add(where)
            done.pop(where, None)
        if part is None or where in lost:
            return None
        entry = done.setdefault(where, _Done(part))
        assert isinstance(received.handle, Handle)
        return entry if received.handle.run == part.run else None

    def _part_of(self, received: Received) -> Owned | None:
        """The owned partition that a delivery belongs to; None if it is not owned any more."""
        handle, member = received.handle, self._member
        if not isinstance(handle, Handle):
            raise SettingsError(f"{received.position} was not received from {self._database.label}")
        part = member.owned.get(received.position.where) if member is not None else None
        if member is None or part is None or (handle.member, handle.epoch) != (member.name, part.epoch):
            return None
        return part

    def _acknowledge(self, done: dict[TopicPartition, _Done]) -> set[TopicPartition]:
        member = self._member
        assert member is not None
        group = self._subscription.group
        epochs = {entry.part.partition_id: entry.part.epoch for entry in done.values()}
        lows = {where: entry.part.window.low_after(entry.offsets) for where, entry in done.items()}

        def work(connection: sqlite3.Connection) -> list[int]:
            fenced = fenced_of(connection, group, member.name, epochs, self._clock.monotonic_s())
            for where, entry in done.items():
                part = entry.part
                if part.partition_id in fenced:
                    continue
                if lows[where] != part.window.low:
                    move_position(connection, group, part.partition_id, Committed(lows[where]), part.sought)
                connection.executemany(
                    "DELETE FROM redeliveries WHERE id = ?", [(ident,) for ident in entry.redeliveries]
                )
            return fenced

        writes = any(e.redeliveries or lows[w] != e.part.window.low for w, e in done.items())
        if writes:
            fenced = self._database.write(work, durable=False, announce=False)
        else:
            with self._reader.snapshot() as connection:
                fenced = fenced_of(connection, group, member.name, epochs, self._clock.monotonic_s())
        lost: set[TopicPartition] = set()
        for where, entry in done.items():
            if entry.part.partition_id in fenced:
                lost.add(where)
                continue
            if entry.part.window.low != entry.part.window.finish(entry.offsets):
                entry.part.sought = False
            entry.part.redelivering -= entry.redeliveries
        return lost

    def _fenced(self, lost: set[TopicPartition], what: str) -> Fenced:
        if self._member is not None:
            self._member.beat_now()
        names = ", ".join(str(where) for where in sorted(lost))
        return Fenced(
            f"group {self._subscription.group!r} has given {names} to another member, or the lease of "
            f"{self._subscription.lease_s} s ended without a receive: cannot {what}; receive() again rejoins"
        )

    def redeliver(self, received: Received, after_s: float) -> None:
        """Give it back, to be delivered after ``after_s`` with ``attempt`` one higher.

        A copy is stored in the same write that moves the position past it; others flow on.
        A second call for the same delivery changes nothing.
        """
        self._check_open()
        part, member = self._part_of(received), self._member
        if part is None or member is None:
            raise self._fenced({received.position.where}, "redeliver")
        handle, offset = received.handle, received.position.offset
        assert isinstance(handle, Handle)
        known = offset in part.window if handle.redelivery is None else handle.redelivery in part.redelivering
        if handle.run != part.run or not known:
            return
        group, due_s = self._subscription.group, self._clock.wall_s() + max(0.0, after_s)

        def work(connection: sqlite3.Connection) -> bool:
            epochs = {part.partition_id: part.epoch}
            if fenced_of(connection, group, member.name, epochs, self._clock.monotonic_s()):
                return False
            if handle.redelivery is not None:
                connection.execute(
                    "UPDATE redeliveries SET attempt = ?, due_at = ? WHERE id = ?",
                    (received.attempt + 1, due_s, handle.redelivery),
                )
            else:
                _store_redelivery(connection, group, part.partition_id, received, due_s)
                low = part.window.low_after({offset})
                if low != part.window.low:
                    move_position(connection, group, part.partition_id, Committed(low), part.sought)
            return True

        if not self._database.write(work):
            raise self._fenced({received.position.where}, "redeliver")
        if handle.redelivery is not None:
            part.redelivering.discard(handle.redelivery)
        elif part.window.low != part.window.finish({offset}):
            part.sought = False
        self._seen = None

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """Deliver nothing of these until `resume`, or until they are lost."""
        self._set_paused(partitions, True)

    def resume(self, partitions: frozenset[TopicPartition]) -> None:
        self._set_paused(partitions, False)

    def _set_paused(self, partitions: frozenset[TopicPartition], paused: bool) -> None:
        for where in partitions:
            part = self._member.owned.get(where) if self._member is not None else None
            if part is not None:
                part.paused = paused
        self._seen = None

    def committed(self, where: TopicPartition) -> Committed | None:
        """The group's position in the file. Any partition, owned or not."""
        self._check_open()
        ident = self._topics.need(where.topic).partition(where.partition)
        with self._reader.snapshot() as connection:
            return read_position(connection, self._subscription.group, ident)

    def seek(self, where: TopicPartition, offset: int) -> None:
        """Go on at an offset of an owned partition; `Fenced` if it is not owned."""
        self._check_open()
        self._seekable(where).seek(max(0, offset))
        self._seen = None

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        """Go on at the first record stored at or after a time, or at the end."""
        self._check_open()
        part = self._seekable(where)
        with self._reader.snapshot() as connection:
            offset = find_time(connection, part.partition_id, wall_s)
        part.seek(offset)
        self._seen = None

    def _seekable(self, where: TopicPartition) -> Owned:
        part = self._member.owned.get(where) if self._member is not None else None
        if part is None:
            raise self._fenced({where}, "seek")
        return part

    def _check_open(self) -> None:
        self._database.check_process()
        if self._closed:
            raise NotOpen(f"{self._database.label}: the receiver of {self._subscription.group!r} is closed")

    def close(self) -> None:
        """Leave the group; its partitions are free at once. Idempotent, waits for one write at most."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        self._forget(self)
        self._leave()
        self._reader.close()

    def _leave(self) -> None:
        member = self._member
        if member is not None:
            member.leave()


def _store_redelivery(
    connection: sqlite3.Connection, group: str, partition_id: int, received: Received, due_s: float
) -> None:
    envelope = received.envelope
    connection.execute(
        "INSERT INTO redeliveries (group_name, partition, offset, attempt, due_at, key, headers, payload, tag, "
        "deliver_at, stored_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            group,
            partition_id,
            received.position.offset,
            received.attempt + 1,
            due_s,
            envelope.key,
            check_message(envelope, envelope.deliver_at_s or 0.0),
            envelope.payload,
            envelope.tag,
            envelope.deliver_at_s,
            received.stored_at_s,
        ),
    )
