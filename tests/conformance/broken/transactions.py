"""Backends with broken broker transactions, logs or half messages. Each docstring names the defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.conformance.through import (
    ThroughBackend,
    ThroughHalves,
    ThroughLog,
    ThroughReceiver,
    ThroughTransaction,
)
from txbus.errors import TxbusError
from txbus.spi import (
    Batch,
    Check,
    Committed,
    Envelope,
    Membership,
    Outcome,
    TopicPartition,
)

# broker transactions


class ShowsAborted(ThroughTransaction):
    """Abort makes visible what was added."""

    def abort(self) -> None:
        try:
            self.inner.commit()
        except (TxbusError, AssertionError):
            self.inner.abort()


class ShowsOpen(ThroughTransaction):
    """What is added is visible at once."""

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        owner = self.client.inner.broker_transactions(f"at-once-{envelope.id}-{id(self)}", 60.0)
        transaction = owner.begin()
        transaction.send(envelope, partition)
        transaction.commit()
        owner.close()


class FencesNobody(ThroughBackend):
    """A newer owner of an id does not end the older one."""

    def transactional_id(self, transactional_id: str) -> str:
        self.world.ids += 1
        return f"{transactional_id}-{self.world.ids}"


class SharesIds(ThroughBackend):
    """All transactional ids are one: whoever opens one fences everybody."""

    def transactional_id(self, transactional_id: str) -> str:
        return "all"


class LosesCommits(ThroughTransaction):
    """Commit returns, and nothing is visible."""

    def commit(self) -> None:
        self.inner.abort()


class LosesNotes(ThroughTransaction):
    """The note beside a position is not stored."""

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        bare = {where: Committed(committed.offset) for where, committed in positions.items()}
        self.inner.positions(group, membership, bare)


class PositionsAtOnce(ThroughTransaction):
    """Positions are committed apart from the messages, before them."""

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        self.client.world.ids += 1
        owner = self.client.inner.broker_transactions(f"positions-{self.client.world.ids}", 60.0)
        transaction = owner.begin()
        transaction.positions(group, membership, positions)
        transaction.commit()
        owner.close()


class RemembersMemberships(ThroughReceiver):
    """Lets `AcceptsOutdated` know each group's newest snapshots."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        batch = self.inner.receive(max_messages, timeout_s)
        for where in batch.membership.partitions:
            self.client.world.newest[f"{self.subscription.group}/{where}"] = batch.membership
        return batch


class AcceptsOutdated(ThroughTransaction):
    """The snapshot is ignored: positions count for whoever owns the partition now."""

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        where = next(iter(positions))
        newest = self.client.world.newest.get(f"{group}/{where}", membership)
        self.inner.positions(group, newest, positions)


# the log


class EndsTooEarly(ThroughLog):
    """The readable end leaves out the last record."""

    def end(self, partition: int) -> int:
        return max(self.inner.start(partition), self.inner.end(partition) - 1)


class EndsTooLate(ThroughLog):
    """The readable end lies one above the truth."""

    def end(self, partition: int) -> int:
        return self.inner.end(partition) + 1


class TruncatesTooMuch(ThroughLog):
    """Truncation takes the record at its offset too."""

    def truncate(self, partition: int, before: int) -> None:
        self.inner.truncate(partition, min(before + 1, self.inner.end(partition)))


class TruncatesNothing(ThroughLog):
    """Truncation is accepted and without effect."""

    def truncate(self, partition: int, before: int) -> None:
        pass


# half messages


class ShowsHalves(ThroughHalves):
    """A half message is visible as soon as it is prepared."""

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        handle = self.inner.prepare(envelope, timeout_s)
        self.inner.finish(handle, Outcome.COMMITTED)
        return handle


class NeverAsks(ThroughHalves):
    """Nobody is ever asked about a half message."""

    def checks(self, timeout_s: float) -> Sequence[Check]:
        return ()


class TakesUnknownForNo(ThroughHalves):
    """The answer UNKNOWN rolls the half message back."""

    def answer(self, check: Check, outcome: Outcome) -> None:
        self.inner.answer(check, Outcome.ROLLED_BACK if outcome is Outcome.UNKNOWN else outcome)
