"""The transaction coordinator: transactional ids, epochs, time-outs and markers (protocol V1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from txbus.spi import TopicPartition
from txbus_sim.dialects.kafka.codes import Code, Refusal
from txbus_sim.dialects.kafka.deadlines import Deadlines
from txbus_sim.errors import NotModelled

__all__ = ["BROKER", "Markers", "Owner", "TransactionCoordinator", "TransactionState"]

BROKER = "broker"
"""Who ends a broker transaction that nobody asked to end."""
_MS = 1_000_000
_EPOCH_MAX = 32_766
_TIMEOUT_NS_MAX = 900_000 * _MS
_MARKERS_AFTER_NS = 800_000
_MARKERS_AFTER_FAILOVER_NS = 2_000 * _MS


class TransactionState(Enum):
    """Of a transactional id at its coordinator."""

    EMPTY = auto()
    ONGOING = auto()
    PREPARE_COMMIT = auto()
    PREPARE_ABORT = auto()
    COMPLETE_COMMIT = auto()
    COMPLETE_ABORT = auto()


_PREPARED = (TransactionState.PREPARE_COMMIT, TransactionState.PREPARE_ABORT)


@dataclass(frozen=True, slots=True)
class Owner:
    """What init_transactions gives: the producer id and its epoch under a transactional id."""

    transactional_id: str
    producer_id: int
    epoch: int


@dataclass(slots=True)
class _Transactional:
    """One transactional id."""

    id: str
    producer_id: int
    epoch: int
    timeout_ns: int
    state: TransactionState = TransactionState.EMPTY
    began_ns: int = 0
    partitions: dict[TopicPartition, None] = field(default_factory=dict)
    groups: dict[str, None] = field(default_factory=dict)
    markers_due_ns: int = 0
    ended_by: str = BROKER
    number: int = 0
    """Of its broker transactions, so that a time-out finds out whether it is still about this one."""


class Markers(Protocol):
    """Where a transaction's outcome is written: the partitions' and the groups' logs."""

    def mark(self, where: TopicPartition, producer_id: int, epoch: int, commit: bool) -> None: ...

    def resolve(self, group: str, producer_id: int, commit: bool, by: str) -> None: ...


class TransactionCoordinator:
    """Every transactional id of the cluster."""

    def __init__(
        self,
        deadlines: Deadlines,
        markers: Markers,
        ended: Callable[[str, int, bool, str], None],
        next_producer_id: Callable[[], int],
        scan_ns: int,
    ) -> None:
        self._deadlines = deadlines
        self._markers = markers
        self._ended = ended
        self._next_producer_id = next_producer_id
        self._scan_ns = scan_ns
        self._ids: dict[str, _Transactional] = {}

    # the owner

    def init(self, transactional_id: str, timeout_ns: int, now_ns: int) -> Owner:
        """Become the owner. While the predecessor's broker transaction is being ended it is refused
        with CONCURRENT_TRANSACTIONS, to be asked again; an open one is aborted by this."""
        if not 0 < timeout_ns <= _TIMEOUT_NS_MAX:
            raise Refusal(Code.INVALID_TRANSACTION_TIMEOUT, f"{timeout_ns // _MS} ms, at most 900000")
        one = self._ids.get(transactional_id)
        if one is None:
            one = _Transactional(transactional_id, self._next_producer_id(), -1, timeout_ns)
            self._ids[transactional_id] = one
        elif one.state is TransactionState.ONGOING:
            self._fence(one, now_ns)
        if one.state in _PREPARED:
            raise Refusal(Code.CONCURRENT_TRANSACTIONS, f"{transactional_id} is being ended")
        self._bump(one)
        one.timeout_ns, one.state = timeout_ns, TransactionState.EMPTY
        return Owner(transactional_id, one.producer_id, one.epoch)

    def _bump(self, one: _Transactional) -> None:
        if one.epoch >= _EPOCH_MAX:
            raise NotModelled(
                f"transactional id {one.id}: {_EPOCH_MAX} epochs are used up; a new producer id then is not modelled"
            )
        one.epoch += 1

    def _fence(self, one: _Transactional, now_ns: int) -> None:
        self._bump(one)
        self._decide(one, False, BROKER, now_ns)

    def check(self, owner: Owner) -> _Transactional:
        """Refuses an owner that is not the newest."""
        one = self._ids.get(owner.transactional_id)
        if one is None or one.producer_id != owner.producer_id:
            raise Refusal(Code.INVALID_PRODUCER_ID_MAPPING, owner.transactional_id)
        if owner.epoch != one.epoch:
            raise Refusal(Code.PRODUCER_FENCED, f"{owner.transactional_id}: epoch {owner.epoch}, current {one.epoch}")
        return one

    def state(self, transactional_id: str) -> TransactionState | None:
        """For tests and tools; None for an id that nobody has used."""
        one = self._ids.get(transactional_id)
        return one.state if one is not None else None

    def times_out_ns(self, transactional_id: str) -> int | None:
        """When the broker ends the open broker transaction of an id; None if none is open."""
        one = self._ids.get(transactional_id)
        return self._scan_after(one) if one is not None and one.state is TransactionState.ONGOING else None

    # broker transactions

    def add_partition(self, owner: Owner, where: TopicPartition, now_ns: int) -> None:
        """AddPartitionsToTxn: the first one begins the broker transaction."""
        one = self._begun(owner, now_ns)
        one.partitions[where] = None

    def add_offsets(self, owner: Owner, group: str, now_ns: int) -> None:
        """AddOffsetsToTxn: positions of a group will belong to the broker transaction."""
        one = self._begun(owner, now_ns)
        one.groups[group] = None

    def _begun(self, owner: Owner, now_ns: int) -> _Transactional:
        one = self.check(owner)
        if one.state in _PREPARED:
            raise Refusal(Code.CONCURRENT_TRANSACTIONS, f"{one.id} is being ended")
        if one.state is not TransactionState.ONGOING:
            one.state, one.began_ns = TransactionState.ONGOING, now_ns
            one.number += 1
            number = one.number
            self._deadlines.at(self._scan_after(one), lambda now: self._time_out(one, number, now))
        return one

    def verify(self, owner: Owner, where: TopicPartition | None = None, group: str = "") -> None:
        """A partition's or a group's leader asks whether this belongs to an ongoing transaction."""
        one = self.check(owner)
        known = where in one.partitions if where is not None else group in one.groups
        if one.state is not TransactionState.ONGOING or not known:
            raise Refusal(Code.INVALID_TXN_STATE, f"{one.id}: {where or group} is in no ongoing transaction")

    def end(self, owner: Owner, commit: bool, by: str, now_ns: int) -> None:
        """EndTxn V1: which of the id's transactions is meant, nobody can tell; the epoch alone counts.

        It answers when the outcome is decided; the markers follow."""
        one = self.check(owner)
        match one.state:
            case TransactionState.ONGOING:
                self._decide(one, commit, by, now_ns)
            case TransactionState.PREPARE_COMMIT | TransactionState.PREPARE_ABORT:
                if commit is not (one.state is TransactionState.PREPARE_COMMIT):
                    raise Refusal(Code.INVALID_TXN_STATE, f"{one.id} is {one.state.name}")
                raise Refusal(Code.CONCURRENT_TRANSACTIONS, f"{one.id} is being ended")
            case TransactionState.COMPLETE_COMMIT | TransactionState.COMPLETE_ABORT:
                if commit is not (one.state is TransactionState.COMPLETE_COMMIT):
                    raise Refusal(Code.INVALID_TXN_STATE, f"{one.id} is {one.state.name}")
            case TransactionState.EMPTY:
                raise Refusal(Code.INVALID_TXN_STATE, f"{one.id} has no transaction")

    def _decide(self, one: _Transactional, commit: bool, by: str, now_ns: int) -> None:
        one.state = TransactionState.PREPARE_COMMIT if commit else TransactionState.PREPARE_ABORT
        one.ended_by = by
        self._ended(one.id, one.epoch, commit, by)
        self._markers_later(one, now_ns + _MARKERS_AFTER_NS)

    def _markers_later(self, one: _Transactional, due_ns: int) -> None:
        one.markers_due_ns = due_ns
        self._deadlines.owe(due_ns, lambda now: self._write_markers(one, due_ns))

    def _write_markers(self, one: _Transactional, due_ns: int) -> None:
        if one.state not in _PREPARED or one.markers_due_ns != due_ns:
            return
        commit = one.state is TransactionState.PREPARE_COMMIT
        for where in one.partitions:
            self._markers.mark(where, one.producer_id, one.epoch, commit)
        for group in one.groups:
            self._markers.resolve(group, one.producer_id, commit, one.ended_by)
        self._complete(one)

    def _complete(self, one: _Transactional) -> None:
        commit = one.state is TransactionState.PREPARE_COMMIT
        one.state = TransactionState.COMPLETE_COMMIT if commit else TransactionState.COMPLETE_ABORT
        one.partitions.clear()
        one.groups.clear()

    # the broker's own doing

    def _scan_after(self, one: _Transactional) -> int:
        """The first scan for timed-out transactions that finds this one."""
        due_ns = one.began_ns + one.timeout_ns
        return -(-due_ns // self._scan_ns) * self._scan_ns

    def _time_out(self, one: _Transactional, number: int, now_ns: int) -> None:
        if one.number == number and one.state is TransactionState.ONGOING:
            self._fence(one, now_ns)

    def move(self, transactional_id: str, now_ns: int) -> None:
        """The coordinator dies, another broker loads its log: markers that were due are written later."""
        one = self._ids.get(transactional_id)
        if one is not None and one.state in _PREPARED:
            self._markers_later(one, now_ns + _MARKERS_AFTER_FAILOVER_NS)

    def abort_without_markers(self, transactional_id: str) -> Sequence[TopicPartition]:
        """The broker was down until the open broker transaction had timed out, and its first scan after
        the restart did not know the partitions' leaders: the transaction is complete, no marker is
        written, each partition and group keeps it open. The partitions that do."""
        one = self._ids.get(transactional_id)
        if one is None or one.state is not TransactionState.ONGOING:
            return ()
        left = tuple(one.partitions)
        self._bump(one)
        one.state = TransactionState.PREPARE_ABORT
        self._ended(one.id, one.epoch, False, BROKER)
        self._complete(one)
        return left
