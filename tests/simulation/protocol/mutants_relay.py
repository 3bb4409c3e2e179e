"""Mutants of the relay (rules 12 to 28)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.simulation.protocol.mutants import Breaks, mutant
from txbus._halflog import index as index_module
from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.partition import HalfPartition, Phase
from txbus._halflog.records import EncodedEntry, HalfEntry, join
from txbus._message import Envelope
from txbus._outcome import Outcome
from txbus.errors import BackendError, CommitUnknown, SendUnknown
from txbus.spi import BrokerTransaction, Membership

__all__: list[str] = []

LOSS, DOUBLE, ORDER, PHANTOM, STUCK = Breaks.LOSS, Breaks.DOUBLE, Breaks.ORDER, Breaks.PHANTOM, Breaks.STUCK


@mutant("13", "relays_outside", DOUBLE, STUCK, kafka=300, embedded=300)
def each_owner_has_its_own_transactional_id(patch: pytest.MonkeyPatch) -> None:
    made = HalfPartition.take_over

    def take_over(self: HalfPartition, membership: Membership) -> None:
        self._id = f"{self.where.topic}.{self.where.partition}.{self._entropy.unique_id()}"
        made(self, membership)

    patch.setattr(HalfPartition, "take_over", take_over)


@mutant("14", "ledger", DOUBLE, PHANTOM, STUCK, LOSS, kafka=300)
def no_repair_of_destinations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfPartition, "_repair_destinations", lambda self, topics: True)


@mutant("14", "ledger", DOUBLE, PHANTOM, STUCK, LOSS, ORDER, kafka=300)
def no_repair_of_the_half_partition(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfPartition, "_repair_own", lambda self, membership: None)


@mutant("15", "ledger", DOUBLE, LOSS, STUCK, kafka=300, embedded=300)
def messages_outside_of_the_broker_transaction(patch: pytest.MonkeyPatch) -> None:
    """Published by a plain sender first; S and the position follow."""
    fill = HalfPartition._fill

    def first(self: HalfPartition, opened: BrokerTransaction, step: Any, membership: Membership) -> None:
        sender = self._backend.sender("relay")
        for half in step.chosen:
            if half.outcome is Outcome.COMMITTED:
                sender.send(list(self.payloads(half)), 2.0)
        sender.close()
        fill(self, _NoMessages(opened, self.where.topic), step, membership)  # type: ignore[arg-type]

    patch.setattr(HalfPartition, "_fill", first)


class _NoMessages:
    def __init__(self, opened: BrokerTransaction, own: str) -> None:
        self._opened = opened
        self._own = own
        self.positions = opened.positions

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        if envelope.topic == self._own:
            self._opened.send(envelope, partition)


@mutant("15", "two_senders", DOUBLE, Breaks.EVIDENCE, kafka=300, embedded=300)
def steps_without_s(patch: pytest.MonkeyPatch) -> None:
    append = HalfPartition._append

    def without(self: HalfPartition, opened: BrokerTransaction, entries: Sequence[EncodedEntry]) -> None:
        kept = [entry for entry in entries if not entry.head.startswith(b'["S"')]
        if kept:
            append(self, opened, kept)

    patch.setattr(HalfPartition, "_append", without)


@mutant("16", "two_senders", LOSS, kafka=300, embedded=300)
def the_position_is_what_was_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfIndex, "position", lambda self, read_next, without=(): read_next)


@mutant("16", "small_log", LOSS, ORDER, kafka=300, embedded=300)
def the_position_runs_past_what_was_read(patch: pytest.MonkeyPatch) -> None:
    plan = HalfPartition._plan

    def past(self: HalfPartition) -> Any:
        step = plan(self)
        if step is None or not step.again or step.parking:
            return step
        return replace(step, position=self._log.end(self.where.partition))

    patch.setattr(HalfPartition, "_plan", past)


@mutant("17", "ledger", ORDER, kafka=300, embedded=300)
def nothing_holds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(index_module._Chain, "free", lambda self, half: True)


@mutant("18", "small_log", DOUBLE, kafka=300, embedded=300)
def a_zombie_appends_again(patch: pytest.MonkeyPatch) -> None:
    def append(self: HalfPartition, opened: BrokerTransaction, entries: Sequence[EncodedEntry]) -> None:
        envelope = Envelope(self.where.topic, join(entries))
        if any(entry.head.startswith(b'["H"') for entry in entries):
            try:
                self._backend.sender("relay").append(envelope, self.where.partition).result(1.0)
            except SendUnknown:
                opened.send(envelope, self.where.partition)
        else:
            opened.send(envelope, self.where.partition)

    patch.setattr(HalfPartition, "_append", append)


@mutant("18", "small_log", DOUBLE, ORDER, kafka=300, embedded=300)
def an_own_h_is_believed_after_its_s(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfIndex, "settled", HalfIndex._forget)


@mutant("19", "small_log", LOSS, ORDER, kafka=300, embedded=300)
def only_the_undecided_are_appended_again(patch: pytest.MonkeyPatch) -> None:
    in_order = HalfIndex.in_order

    def undecided(self: HalfIndex) -> Iterator[OpenHalf]:
        return (half for half in in_order(self) if half.outcome is None)

    patch.setattr(HalfIndex, "in_order", undecided)


@mutant("19", "small_log", LOSS, kafka=300, embedded=300)
def nothing_is_appended_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfIndex, "in_order", lambda self: iter(()))


@mutant("19", "small_log", ORDER, kafka=300, embedded=300)
def the_first_position_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    opened = HalfIndex._open

    def forgetful(self: HalfIndex, entry: HalfEntry, offset: int, index: int, now_s: float) -> None:
        if entry.first is not None:
            entry = replace(entry, first=(offset, index))
        opened(self, entry, offset, index, now_s)

    patch.setattr(HalfIndex, "_open", forgetful)


@mutant("20", "ledger", DOUBLE, ORDER, Breaks.EVIDENCE, kafka=300, embedded=300)
def acting_before_the_s_was_read(patch: pytest.MonkeyPatch) -> None:
    """A new owner acts with what it has read so far."""
    patch.setattr(HalfPartition, "_look_for_end", lambda self: self._activate())


@mutant("20", "ledger", LOSS, kafka=300, embedded=300)
def a_new_owner_begins_at_the_end(patch: pytest.MonkeyPatch) -> None:
    take_over = HalfPartition.take_over

    def late(self: HalfPartition, membership: Membership) -> None:
        take_over(self, membership)
        if self.phase is Phase.READING:
            self.read_next = self._log.end(self.where.partition)
            self._receiver.seek(self.where, self.read_next)

    patch.setattr(HalfPartition, "take_over", late)


@mutant("21", "ledger", DOUBLE, kafka=300, embedded=300)
def an_unknown_step_is_done_again(patch: pytest.MonkeyPatch) -> None:
    """Its commit got no answer: the clients are built anew, and the same step is done once more."""
    _after_an_unknown_commit(patch, lambda self, step, membership, attempt: attempt(self, step, membership))


@mutant("21", "ledger", LOSS, kafka=300, embedded=300)
def an_unknown_step_counts_as_committed(patch: pytest.MonkeyPatch) -> None:
    _after_an_unknown_commit(patch, lambda self, step, membership, attempt: self._done(step))


def _after_an_unknown_commit(patch: pytest.MonkeyPatch, then: Callable[..., object]) -> None:
    attempt = HalfPartition._attempt
    down = HalfPartition._go_down
    unknown: list[HalfPartition] = []

    def noted(self: HalfPartition, error: BackendError) -> None:
        if isinstance(error, CommitUnknown) and self.phase is Phase.ACTIVE:
            assert self._transactions is not None
            self._transactions.abandon()
            self._open = None
            self._transactions = self._backend.broker_transactions(self._id, self._budget.broker_transaction_timeout_s)
            unknown.append(self)
        else:
            down(self, error)

    def again(self: HalfPartition, step: Any, membership: Membership) -> bool:
        result = attempt(self, step, membership)
        if self in unknown:
            unknown.remove(self)
            then(self, step, membership, attempt)
        return result

    patch.setattr(HalfPartition, "_go_down", noted)
    patch.setattr(HalfPartition, "_attempt", again)


@mutant("22", "ledger", LOSS, kafka=300, embedded=300)
def an_aborted_step_counts_as_done(patch: pytest.MonkeyPatch) -> None:
    def failed(self: HalfPartition, step: Any, error: Exception) -> bool:
        self._done(step)
        return True

    patch.setattr(HalfPartition, "_failed", failed)


@mutant("23", "two_senders", LOSS, kafka=300, embedded=300)
def truncated_up_to_what_was_read(patch: pytest.MonkeyPatch) -> None:
    def truncate(self: HalfPartition, position: int) -> None:
        self._log.truncate(self.where.partition, self.read_next)

    patch.setattr(HalfPartition, "_truncate", truncate)


@mutant("28", "parked", LOSS, STUCK, kafka=300, embedded=300)
def an_operators_word_is_ignored(patch: pytest.MonkeyPatch) -> None:
    decide = HalfIndex.decide

    def ignore(self: HalfIndex, half: OpenHalf, outcome: Outcome, operator: bool) -> None:
        if not operator:
            decide(self, half, outcome, operator)

    patch.setattr(HalfIndex, "decide", ignore)
