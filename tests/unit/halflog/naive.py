"""Rules put back to their naive form, one at a time: each must break a schedule.

A variant patches the code that runs in `schedule`; the exploration then has to find the fault that
the rule prevents. This is what shows that the exploration can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.unit.halflog import schedule
from tests.unit.halflog.ledger import ModelDatabase, ModelTransaction
from tests.unit.halflog.world import Chances
from txbus._halflog import index as index_module
from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.partition import HalfPartition, Phase
from txbus._halflog.records import EncodedEntry, HalfEntry, join
from txbus._halflog.sender import HalfLogSender
from txbus._halves import Half, HalfId
from txbus._message import Envelope, Receipt
from txbus._outcome import Outcome
from txbus._transactional import TransactionScope
from txbus.errors import BackendError, CommitUnknown, SendUnknown
from txbus.spi import BrokerTransaction
from txbus.stores.contract import LedgerRow, LocalTransaction

__all__ = ["VARIANTS", "Variant"]

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Variant:
    """``breaks``: what the books must show, one of these at least."""

    rule: int
    name: str
    breaks: frozenset[str]
    patch: Patch
    chances: Chances
    actions: int


VARIANTS: list[Variant] = []


def variant(rule: int, breaks: str, chances: Chances | None = None, actions: int = 45) -> Callable[[Patch], Patch]:
    def add(patch: Patch) -> Patch:
        name = f"rule_{rule:02}_{patch.__name__}"
        VARIANTS.append(Variant(rule, name, frozenset(breaks.split()), patch, chances or Chances(), actions))
        return patch

    return add


SLEEPY = Chances(pause=0.12, long_wait=0.8, crash=0.004, wrong_database=0.0)


@variant(1, "lost", SLEEPY)
def half_before_the_ledger_insert(patch: pytest.MonkeyPatch) -> None:
    def before_commit(self: TransactionScope, local: LocalTransaction) -> None:
        envelopes = tuple(self._outgoing.envelopes)
        now_s = self._clock.wall_s()
        half = Half(self._half_id, self._database.identity(), self.database, now_s, envelopes)
        assert self._parts.channel is not None
        self._half = half
        self._receipts = self._parts.channel.store(half, self._parts.budget.half_timeout_s)
        local.insert_ledger(LedgerRow(self._half_id, Outcome.COMMITTED, self.database, len(envelopes), now_s))
        self._in_ledger = True

    patch.setattr(TransactionScope, "_before_commit", before_commit)


@variant(1, "disordered", Chances(pause=0.1))
def half_before_the_row_locks(patch: pytest.MonkeyPatch) -> None:
    waiting: dict[LocalTransaction, list[Envelope]] = {}
    stored = TransactionScope._before_commit

    def change(self: Any, local: ModelTransaction, message: Envelope) -> None:
        waiting.setdefault(local, []).append(message)

    def before_commit(self: TransactionScope, local: LocalTransaction) -> None:
        assert isinstance(local, ModelTransaction)
        stored(self, local)
        for message in waiting.pop(local, []):
            assert message.id is not None
            local.change(message.key, message.id)

    patch.setattr(schedule._App, "_change", change)
    patch.setattr(TransactionScope, "_before_commit", before_commit)


@variant(3, "disordered")
def held_by_the_first_key_only(patch: pytest.MonkeyPatch) -> None:
    def opened(**values: Any) -> OpenHalf:
        return OpenHalf(**{**values, "keys": values["keys"][:1]})

    patch.setattr(index_module, "OpenHalf", opened)


@variant(3, "lost", Chances(long_wait=0.9))
def confirmed_by_the_first_part(patch: pytest.MonkeyPatch) -> None:
    def confirm_parts(self: ModelDatabase, parts: Sequence[tuple[HalfId, int, int]], now_s: float) -> None:
        self.confirm([id for id, _, _ in parts], now_s)

    patch.setattr(ModelDatabase, "confirm_parts", confirm_parts)


@variant(4, "doubled", Chances(append_late=0.25, append_lost=0.0))
def an_h_of_unknown_fate_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    once = HalfLogSender._await

    def insist(self: HalfLogSender, ticket: Any, partition: int) -> Receipt:
        while True:
            try:
                return once(self, ticket, partition)
            except SendUnknown:
                self._append(ticket.records[partition])

    patch.setattr(HalfLogSender, "_await", insist)


@variant(6, "lost")
def an_unclear_commit_counts_as_rolled_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TransactionScope, "_settle_unknown", lambda self, error: False)


@variant(8, "lost", Chances(wrong_database=0.6))
def a_name_is_identity_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(schedule, "COPY_IDENTITY", "ledger-one")


@variant(10, "lost")
def eager_purge(patch: pytest.MonkeyPatch) -> None:
    def purge(self: ModelDatabase, created_before_s: float, limit: int) -> int:
        count = len(self.tables.rows)
        self.tables.rows.clear()
        return count

    patch.setattr(ModelDatabase, "purge_ledger", purge)


@variant(14, "doubled phantom stuck lost", Chances(marker_lost=0.9))
def no_repair_of_destinations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfPartition, "_repair_destinations", lambda self, topics: True)


@variant(14, "stuck lost doubled disordered", Chances(marker_lost=0.9, crash=0.03))
def no_repair_of_the_half_partition(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfPartition, "_repair_own", lambda self, membership: None)


@variant(15, "doubled")
def steps_without_s(patch: pytest.MonkeyPatch) -> None:
    fill = HalfPartition._fill

    def without(self: HalfPartition, opened: BrokerTransaction, step: Any, membership: Any) -> None:
        kept = list(step.chosen)
        settled = type(step).settled
        patch.setattr(type(step), "settled", lambda self: ())
        try:
            fill(self, opened, step, membership)
        finally:
            patch.setattr(type(step), "settled", settled)
            assert step.chosen == kept

    patch.setattr(HalfPartition, "_fill", without)


@variant(16, "lost")
def the_position_is_what_was_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfIndex, "position", lambda self, read_next, without=(): read_next)


@variant(16, "lost disordered")
def the_position_runs_past_what_was_read(patch: pytest.MonkeyPatch) -> None:
    plan = HalfPartition._plan

    def past(self: HalfPartition) -> Any:
        step = plan(self)
        if step is None or not step.again or step.parking:
            return step
        return replace(step, position=self._log.end(self.where.partition))

    patch.setattr(HalfPartition, "_plan", past)


@variant(17, "disordered")
def nothing_holds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(index_module._Chain, "free", lambda self, half: True)


@variant(18, "doubled", Chances(pause=0.08))
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


@variant(18, "doubled disordered")
def an_own_h_is_believed_after_its_s(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfIndex, "settled", HalfIndex._forget)


@variant(19, "lost disordered")
def only_the_undecided_are_appended_again(patch: pytest.MonkeyPatch) -> None:
    in_order = HalfIndex.in_order

    def undecided(self: HalfIndex) -> Iterator[OpenHalf]:
        return (half for half in in_order(self) if half.outcome is None)

    patch.setattr(HalfIndex, "in_order", undecided)


@variant(19, "disordered")
def the_first_position_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    opened = HalfIndex._open

    def forgetful(self: HalfIndex, entry: HalfEntry, offset: int, index: int, now_s: float) -> None:
        if entry.first is not None:
            entry = replace(entry, first=(offset, index))
        opened(self, entry, offset, index, now_s)

    patch.setattr(HalfIndex, "_open", forgetful)


@variant(20, "doubled disordered")
def acting_before_the_s_was_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HalfPartition, "_look_for_end", lambda self: self._activate())


@variant(20, "doubled disordered", Chances(position_lost=0.9))
def acting_at_once_without_a_position(patch: pytest.MonkeyPatch) -> None:
    look = HalfPartition._look_for_end

    def at_once(self: HalfPartition) -> None:
        if self._until_step == 0:
            self._activate()
        else:
            look(self)

    patch.setattr(HalfPartition, "_look_for_end", at_once)


@variant(21, "doubled", Chances(commit_unknown=0.15))
def an_unknown_step_counts_as_aborted(patch: pytest.MonkeyPatch) -> None:
    down = HalfPartition._go_down

    def careless(self: HalfPartition, error: BackendError) -> None:
        if isinstance(error, CommitUnknown) and self.phase is Phase.ACTIVE:
            assert self._transactions is not None
            opened, self._open = self._open, None
            assert opened is not None
            opened.abort()
            self._slow_down(error)
        else:
            down(self, error)

    patch.setattr(HalfPartition, "_go_down", careless)


@variant(23, "lost", Chances(crash=0.03))
def truncated_below_what_was_read(patch: pytest.MonkeyPatch) -> None:
    def truncate(self: HalfPartition, position: int) -> None:
        self._log.truncate(self.where.partition, self.read_next)

    patch.setattr(HalfPartition, "_truncate", truncate)


@variant(26, "lost", Chances(pause=0.08))
def a_checker_looks_and_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    def settle(
        self: ModelDatabase, ids: Sequence[HalfId], now_s: float, lock_wait_s: float
    ) -> Mapping[HalfId, Outcome]:
        rows = self.tables.rows
        return {id: rows[id].outcome if id in rows else Outcome.ROLLED_BACK for id in ids}

    patch.setattr(ModelDatabase, "settle", settle)


@variant(28, "lost disordered stuck", Chances(long_wait=0.9))
def an_operators_word_is_ignored(patch: pytest.MonkeyPatch) -> None:
    decide = HalfIndex.decide

    def ignore(self: HalfIndex, half: OpenHalf, outcome: Outcome, operator: bool) -> None:
        if not operator:
            decide(self, half, outcome, operator)

    patch.setattr(HalfIndex, "decide", ignore)
