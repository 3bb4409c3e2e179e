"""Sends to the embedded broker, one commit for all that are waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from txbus.embedded.database import Database
from txbus.embedded.group_commit import GroupCommit, Pending
from txbus.embedded.records import RecordWriter
from txbus.errors import BackendUnavailable, NotOpen, SendUnknown
from txbus.spi import Envelope, PendingAppend, Receipt

__all__ = ["EmbeddedSender"]


class EmbeddedSender:
    """Sends and appends; thread-safe, and cheaper a message the more threads send at once."""

    def __init__(
        self,
        database: Database,
        commits: GroupCommit,
        maintain: Callable[[], None],
        forget: Callable[[object], None],
    ) -> None:
        self._database = database
        self._commits = commits
        self._maintain = maintain
        self._forget = forget
        self._closed = False

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        """All of them or none, durable on return.

        `BackendUnavailable`: none is stored. `SendUnknown` only if the time was over while they
        were being written. `MessageRefused`, `DestinationRefused` name the one at fault.
        """
        self._check_open()
        everything = tuple(envelopes)

        def work(writer: RecordWriter) -> tuple[Receipt, ...]:
            places = [writer.place(envelope) for envelope in everything]
            return tuple([writer.add(place) for place in places])

        pending: Pending[tuple[Receipt, ...]] = self._commits.submit(work, _size(everything))
        if not self._commits.drive(pending, timeout_s):
            if self._commits.withdraw(pending):
                raise BackendUnavailable(
                    f"{self._database.label}: other writers were busy for {timeout_s} s; nothing was sent, try again"
                )
            if not self._commits.drive(pending, 0.0):
                raise SendUnknown(
                    f"{self._database.label}: still being written after {timeout_s} s; it may or may not be stored"
                )
        self._maintain()
        return pending.outcome()

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        """Queue it for a partition; whoever asks for a result writes everything queued.

        What is wrong with it comes out of `result`. Written about ``append_flush_s`` later if
        nobody asks.
        """
        self._check_open()

        def work(writer: RecordWriter) -> Receipt:
            return writer.add(writer.place(envelope, partition))

        pending = self._commits.submit(work, _size((envelope,)))
        self._commits.flush_soon()
        return pending

    def _check_open(self) -> None:
        if self._closed:
            raise NotOpen(f"{self._database.label}: the sender is closed")

    def close(self) -> None:
        """Write what was appended, waiting ``busy_timeout_s`` at most. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._forget(self)
        self._commits.flush(self._database.options.busy_timeout_s)


def _size(envelopes: Sequence[Envelope]) -> int:
    return sum(len(envelope.payload) for envelope in envelopes)
