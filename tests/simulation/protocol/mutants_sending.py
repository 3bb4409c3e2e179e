"""Mutants of the sending side and of the ledger (rules 1 to 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import pytest

from tests.simulation.protocol.mutants import Breaks, mutant
from txbus import _open
from txbus._checkback import Answer, LedgerAnswers, Question
from txbus._halflog import index as index_module
from txbus._halflog.index import OpenHalf
from txbus._halflog.sender import HalfLogSender
from txbus._halves import Half, HalfId
from txbus._message import Receipt
from txbus._nativehalves import NativeHalves
from txbus._outcome import Outcome
from txbus._transactional import TransactionScope, _Sending
from txbus.errors import HalfFailed
from txbus.stores._sql_ledger import Ledger
from txbus.stores._sql_local import SqlTransaction
from txbus.stores.contract import Database, LedgerRow, LocalTransaction
from txbus.stores.sql import SqlDatabase

__all__: list[str] = []

LOSS, DOUBLE, ORDER, PHANTOM, STUCK = Breaks.LOSS, Breaks.DOUBLE, Breaks.ORDER, Breaks.PHANTOM, Breaks.STUCK


def _half_of(self: _Sending) -> Half:
    envelopes = tuple(self._outgoing.envelopes)
    return Half(self._half_id, self._database.identity(), self.database, self._clock.wall_s(), envelopes)


def _store(self: _Sending) -> None:
    assert self._parts.channel is not None
    self._half = _half_of(self)
    self._receipts = self._parts.channel.store(self._half, self._parts.budget.half_timeout_s)


def _insert_ledger(self: _Sending, local: LocalTransaction) -> None:
    half = _half_of(self)
    row = LedgerRow(half.id, Outcome.COMMITTED, half.database, len(half.envelopes), half.created_s)
    local.insert_ledger(row)
    self._in_ledger = True


def _half_first(patch: pytest.MonkeyPatch) -> None:
    """The half before the session is flushed, and so before any row lock of an ORM application."""
    leave = TransactionScope.__exit__

    def exit(
        self: TransactionScope,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if value is None:
            try:
                _store(self)
            except HalfFailed:
                self._open_local().rollback()
                self._rolled_back()
                raise
        leave(self, kind, value, trace)

    def before_commit(self: _Sending, local: LocalTransaction) -> None:
        local.flush()
        _insert_ledger(self, local)

    patch.setattr(TransactionScope, "__exit__", exit)
    patch.setattr(_Sending, "_before_commit", before_commit)


@mutant("1", "two_senders", ORDER, kafka=300, embedded=300)
def half_before_the_row_locks(patch: pytest.MonkeyPatch) -> None:
    _half_first(patch)


@mutant("1", "purge", LOSS, kafka=300)
def half_before_the_ledger_row(patch: pytest.MonkeyPatch) -> None:
    """An application that stands still commits after the tombstone of its half was purged."""
    _half_first(patch)


@mutant("1", "ledger", LOSS, kafka=300, embedded=300)
def half_after_the_commit(patch: pytest.MonkeyPatch) -> None:
    def before_commit(self: _Sending, local: LocalTransaction) -> None:
        local.flush()
        _insert_ledger(self, local)

    committed = _Sending._committed

    def after(self: _Sending) -> None:
        _store(self)
        committed(self)

    patch.setattr(_Sending, "_before_commit", before_commit)
    patch.setattr(_Sending, "_committed", after)


@mutant("1", "ledger", PHANTOM, kafka=300, rocketmq=300, embedded=300)
def outcome_told_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    before = _Sending._before_commit

    def before_commit(self: _Sending, local: LocalTransaction) -> None:
        before(self, local)
        self._tell(Outcome.COMMITTED)

    patch.setattr(_Sending, "_before_commit", before_commit)


@mutant("1", "ledger", LOSS, kafka=300, rocketmq=300, embedded=300)
def no_ledger_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlTransaction, "insert_ledger", lambda self, row: None)


@mutant("3", "several_keys", ORDER, kafka=300, embedded=300)
def held_by_the_first_key_only(patch: pytest.MonkeyPatch) -> None:
    def opened(**values: object) -> OpenHalf:
        keys = values["keys"]
        assert isinstance(keys, tuple)
        return OpenHalf(**{**values, "keys": keys[:1]})  # type: ignore[arg-type]

    patch.setattr(index_module, "OpenHalf", opened)


@mutant("3", "several_messages", LOSS, kafka=300, embedded=300)
def only_the_first_half_is_awaited(patch: pytest.MonkeyPatch) -> None:
    """Several keys, one record for each half partition: COMMIT after the first receipt."""

    def store(self: HalfLogSender, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        ticket = _ticket(self, half, timeout_s)
        try:
            if self._wait_for_turn(ticket):
                self._lead(ticket)
            return (self._await(ticket, next(iter(ticket.entries))),)
        except Exception as exc:
            raise HalfFailed(str(exc)) from exc

    patch.setattr(HalfLogSender, "store", store)


def _ticket(self: HalfLogSender, half: Half, timeout_s: float):  # type: ignore[no-untyped-def]
    from txbus._halflog.records import encode_entry, split
    from txbus._halflog.sender import _Ticket

    entries = {p: encode_entry(entry) for p, entry in split(half, self._partitions).items()}
    return _Ticket(entries, self._clock.monotonic_s() + timeout_s)


@mutant("4", "ledger", LOSS, kafka=300, embedded=300)
def a_half_of_unknown_fate_counts_as_stored(patch: pytest.MonkeyPatch) -> None:
    store = HalfLogSender.store

    def careless(self: HalfLogSender, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        try:
            return store(self, half, timeout_s)
        except HalfFailed:
            return ()

    patch.setattr(HalfLogSender, "store", careless)


@mutant("4", "ledger", LOSS, rocketmq=300)
def a_native_half_of_unknown_fate_counts_as_stored(patch: pytest.MonkeyPatch) -> None:
    store = NativeHalves.store

    def careless(self: NativeHalves, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        try:
            return store(self, half, timeout_s)
        except HalfFailed:
            return ()

    patch.setattr(NativeHalves, "store", careless)


@mutant("6", "ledger", LOSS, kafka=300, rocketmq=300, embedded=300)
def an_unclear_commit_counts_as_rolled_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Sending, "_settle_unknown", lambda self, error: False)


@mutant("6", "ledger", PHANTOM, kafka=300, rocketmq=300, embedded=300)
def an_unclear_commit_counts_as_committed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Sending, "_settle_unknown", lambda self, error: True)


@mutant("6", "named", DOUBLE, kafka=300, rocketmq=300, embedded=300)
def an_attempt_before_is_not_settled(patch: pytest.MonkeyPatch) -> None:
    """A block that is run again under its tx_id does not ask what became of it."""

    def reserve(self: SqlDatabase, tx_id: str, now_s: float, lock_wait_s: float) -> int:
        rows = self.attempts_of(tx_id)
        return rows[-1].id.attempt + 1 if rows else 1

    patch.setattr(SqlDatabase, "reserve", reserve)


@mutant("8", "wrong_copy", LOSS, kafka=300, embedded=300)
def a_name_is_identity_enough(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlDatabase, "identity", lambda self: "the only ledger")


@mutant("9", "two_databases", LOSS, kafka=300, embedded=300)
def a_database_that_is_not_here_counts_as_rolled_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_open, "check_all_databases", lambda service, databases: None)
    ask = LedgerAnswers._answer_database

    def answer(self: LedgerAnswers, name: str, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        if name not in self._databases:
            return [(Answer(q, Outcome.ROLLED_BACK), "not ours") for q in asked]
        return ask(self, name, asked)

    patch.setattr(LedgerAnswers, "_answer_database", answer)


@mutant("9", "two_databases", LOSS, kafka=300, embedded=300)
def a_foreign_half_is_fenced_in_any_database(patch: pytest.MonkeyPatch) -> None:
    """The half names its database; whoever is asked fences in the one that is at hand."""

    def answer(self: LedgerAnswers, name: str, asked: Sequence[Question]) -> list[tuple[Answer, str]]:
        return self._ask_ledger(next(iter(self._databases.values())), asked)

    patch.setattr(LedgerAnswers, "_answer_database", answer)


@mutant("10", "purge", LOSS, kafka=300, embedded=300)
def eager_purge(patch: pytest.MonkeyPatch) -> None:
    def purge(self: Ledger, created_before_s: float, limit: int) -> int:
        with self._gate.write("purging the ledger") as connection:
            return int(connection.exec_driver_sql("DELETE FROM txbus_ledger").rowcount)

    patch.setattr(Ledger, "purge", purge)


@mutant("26", "relays_outside", LOSS, kafka=300, embedded=300)
def a_checker_looks_and_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Ledger, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        found = self.look(ids)
        return {id: found[id].outcome if id in found else Outcome.ROLLED_BACK for id in ids}

    patch.setattr(Ledger, "settle", settle)


@mutant("26", "own_checker", LOSS, rocketmq=300)
def a_native_checker_looks_and_does_not_fence(patch: pytest.MonkeyPatch) -> None:
    a_checker_looks_and_does_not_fence(patch)


@mutant("27", "relays_outside", LOSS, kafka=300, embedded=300)
def no_answer_counts_as_rolled_back(patch: pytest.MonkeyPatch) -> None:
    """The row is locked by its open local transaction: so it will not commit, will it?"""
    fence = LedgerAnswers._fence

    def hasty(
        self: LedgerAnswers, database: Database, asked: Sequence[Question], deadline_s: float
    ) -> list[tuple[Answer, str]]:
        return [
            (Answer(one.question, Outcome.ROLLED_BACK), why) if one.outcome is Outcome.UNKNOWN else (one, why)
            for one, why in fence(self, database, asked, deadline_s)
        ]

    patch.setattr(LedgerAnswers, "_fence", hasty)


@mutant("own checker", "own_checker", LOSS, kafka=300, rocketmq=300, embedded=300)
def an_own_checkers_no_is_not_fenced(patch: pytest.MonkeyPatch) -> None:
    def no_fence(
        self: LedgerAnswers, database: Database, asked: Sequence[Question], deadline_s: float
    ) -> list[tuple[Answer, str]]:
        return [(Answer(q, Outcome.ROLLED_BACK), "") for q in asked]

    patch.setattr(LedgerAnswers, "_fence", no_fence)


@mutant("own checker", "parked", LOSS, kafka=300, embedded=300)
def an_own_checkers_unknown_counts_as_rolled_back(patch: pytest.MonkeyPatch) -> None:
    ask = LedgerAnswers._ask_own

    def settled(self: LedgerAnswers, q: Question) -> tuple[Answer, str]:
        answer, reason = ask(self, q)
        return (Answer(q, Outcome.ROLLED_BACK), reason) if answer.outcome is Outcome.UNKNOWN else (answer, reason)

    def no_fence(
        self: LedgerAnswers, database: Database, asked: Sequence[Question], deadline_s: float
    ) -> list[tuple[Answer, str]]:
        return [(Answer(q, Outcome.ROLLED_BACK), "") for q in asked]

    patch.setattr(LedgerAnswers, "_ask_own", settled)
    patch.setattr(LedgerAnswers, "_fence", no_fence)


@mutant("28", "parked", LOSS, kafka=300, embedded=300)
def an_operators_word_is_not_in_the_ledger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlDatabase, "decide", lambda self, row: row.outcome)


@mutant("local timeout", "local_timeout", Breaks.TIMEOUT, kafka=300, rocketmq=300, embedded=300)
def a_local_timeout_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Sending, "_check_in_time", lambda self: None)


@mutant("native checks", "ledger", LOSS, rocketmq=300)
def a_brokers_questions_are_not_answered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NativeHalves, "turn", lambda self, timeout_s: len(self._halves.checks(timeout_s)))
