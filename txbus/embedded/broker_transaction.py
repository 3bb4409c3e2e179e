"""Broker transactions: kept in memory until the commit, which is one SQLite transaction.

Nothing uncommitted is ever in the file, so that a reader has nothing to wait for or to skip, and
an owner who falls silent holds nothing up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from txbus.embedded.database import Database
from txbus.embedded.group_commit import GroupCommit
from txbus.embedded.membership import Token, fenced_of
from txbus.embedded.positions import move_position
from txbus.embedded.records import RecordWriter
from txbus.embedded.topics import Topics
from txbus.errors import BackendUnavailable, CommitUnknown, Fenced, MessageRefused, NotOpen, SendUnknown, StepAborted
from txbus.spi import BrokerTransaction, Committed, Envelope, Membership, TopicPartition

__all__ = ["EmbeddedBrokerTransaction", "EmbeddedBrokerTransactions"]

_NOTE_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Positions:
    group: str
    membership: Membership
    positions: Mapping[TopicPartition, Committed]


class EmbeddedBrokerTransactions:
    """The owner of a transactional id, from its opening until a newer one opens the same id."""

    def __init__(
        self,
        database: Database,
        topics: Topics,
        commits: GroupCommit,
        transactional_id: str,
        forget: Callable[[object], None],
    ) -> None:
        self.transactional_id = transactional_id
        self._database = database
        self._topics = topics
        self._commits = commits
        self._forget = forget
        self._open: EmbeddedBrokerTransaction | None = None
        self._closed = False
        self._epoch = database.write(self._take_over, announce=False)

    def _take_over(self, connection: sqlite3.Connection) -> int:
        row = connection.execute(
            "INSERT INTO producers (transactional_id, epoch) VALUES (?, 1) "
            "ON CONFLICT (transactional_id) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
            (self.transactional_id,),
        ).fetchall()
        return int(row[0][0])

    def begin(self) -> BrokerTransaction:
        """Begin the next one. `Fenced` when a newer owner opened the id."""
        if self._closed:
            raise NotOpen(f"broker transactions of {self.transactional_id!r} are closed")
        assert self._open is None or self._open.ended, "the broker transaction before has not ended"
        rows = self._database.rows("SELECT epoch FROM producers WHERE transactional_id = ?", (self.transactional_id,))
        if not rows or rows[0][0] != self._epoch:
            raise self.outdated()
        self._open = EmbeddedBrokerTransaction(self, self._database, self._topics, self._commits)
        return self._open

    def check(self, connection: sqlite3.Connection) -> None:
        """`Fenced` unless this is still the newest owner; inside the write transaction."""
        row = connection.execute(
            "SELECT epoch FROM producers WHERE transactional_id = ?", (self.transactional_id,)
        ).fetchone()
        if row is None or row[0] != self._epoch:
            raise self.outdated()

    def outdated(self) -> Fenced:
        return Fenced(f"transactional id {self.transactional_id!r}: a newer owner has opened it; nothing was done")

    def close(self) -> None:
        """Abort what is open and let go. Idempotent; does not touch the file."""
        self._closed = True
        if self._open is not None:
            self._open.abort()
        self._forget(self)

    def abandon(self) -> None:
        """The same as `close`: there is nothing at the broker to leave behind."""
        self.close()


class EmbeddedBrokerTransaction:
    """Messages and positions that become visible together, in one durable write. Used by one thread."""

    def __init__(
        self,
        owner: EmbeddedBrokerTransactions,
        database: Database,
        topics: Topics,
        commits: GroupCommit,
    ) -> None:
        self._owner = owner
        self._database = database
        self._topics = topics
        self._commits = commits
        self._messages: list[tuple[Envelope, int | None]] = []
        self._positions: list[_Positions] = []
        self.ended = False

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        """Add a message, in memory. What is wrong with it comes out of `commit`."""
        self._check_running()
        self._messages.append((envelope, partition))

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        """Add positions; `commit` checks that the member of ``membership`` still owns them all."""
        self._check_running()
        for where, committed in positions.items():
            if len(committed.note) > _NOTE_MAX:
                raise MessageRefused(f"note of {len(committed.note)} characters at {where}; the limit is {_NOTE_MAX}")
        self._positions.append(_Positions(group, membership, dict(positions)))

    def commit(self) -> None:
        """Write it all at once, durable on return; after any error nothing of it is visible, but
        for `CommitUnknown` (the disk did not confirm the write)."""
        self._check_running()
        self.ended = True
        busy_s = self._database.options.busy_timeout_s
        size = sum(len(envelope.payload) for envelope, _ in self._messages)
        try:
            pending = self._commits.submit(self._write, size)
            if not self._commits.drive(pending, 2 * busy_s):
                if self._commits.withdraw(pending):
                    raise StepAborted(f"{self._database.label}: other writers were busy for {2 * busy_s} s")
                # It is being written at this moment, which is bounded by the disk alone.
                if not self._commits.drive(pending, busy_s):
                    raise CommitUnknown(f"{self._database.label}: still being written after {3 * busy_s} s")
            pending.outcome()
        except SendUnknown as exc:
            raise CommitUnknown(str(exc)) from exc
        except BackendUnavailable as exc:
            raise StepAborted(str(exc)) from exc

    def _write(self, writer: RecordWriter) -> None:
        """Everything that can be refused comes before the first change."""
        connection = writer.connection
        self._owner.check(connection)
        moves: list[tuple[str, int, Committed]] = []
        for entry in self._positions:
            moves += self._owned_moves(connection, entry)
        places = [writer.place(envelope, partition) for envelope, partition in self._messages]
        for place in places:
            writer.add(place)
        for group, ident, committed in moves:
            move_position(connection, group, ident, committed, back=True)

    def _owned_moves(self, connection: sqlite3.Connection, entry: _Positions) -> list[tuple[str, int, Committed]]:
        token = entry.membership.token
        idents = {
            where: self._topics.need(where.topic, connection).partition(where.partition) for where in entry.positions
        }
        if isinstance(token, Token) and token.group == entry.group:
            epochs = {ident: token.epochs.get(ident, -1) for ident in idents.values()}
            now_s = self._database.ports.clock.monotonic_s()
            fenced = set(fenced_of(connection, token.group, token.member, epochs, now_s))
        else:
            fenced = set(idents.values())
        if fenced:
            names = ", ".join(str(where) for where, ident in sorted(idents.items()) if ident in fenced)
            raise Fenced(f"group {entry.group!r}: {names} not owned by this membership any more; nothing was committed")
        return [(entry.group, idents[where], committed) for where, committed in entry.positions.items()]

    def _check_running(self) -> None:
        if self.ended:
            raise NotOpen(f"this broker transaction of {self._owner.transactional_id!r} has ended")

    def abort(self) -> None:
        """Forget it. Idempotent."""
        self.ended = True
        self._messages.clear()
        self._positions.clear()
