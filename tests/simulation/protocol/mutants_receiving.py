"""Mutants of the receiving side: inbox, acknowledgement, attempts, dead letters, leases, atomic handlers."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.simulation.protocol.mutants import Breaks, mutant
from txbus._atomic_consumer import AtomicConsumer
from txbus._consumer_contract import Run
from txbus._consumer_lanes import Lanes, Work
from txbus._consumer_poll import Poller
from txbus._inbox import InboxHandler
from txbus._inbox_attempts import Attempts, Standing
from txbus.embedded import broker_transaction, receiver
from txbus.spi import Batch, BrokerTransaction, Membership, Received
from txbus.stores import _sql_inbox, _sql_local
from txbus.stores._sql_local import SqlTransaction

__all__: list[str] = []

LOSS, DOUBLE, ORDER, ATTEMPTS, TORN = Breaks.LOSS, Breaks.DOUBLE, Breaks.ORDER, Breaks.ATTEMPTS, Breaks.TORN


@mutant("inbox", "inbox", LOSS, kafka=300, rocketmq=300, embedded=300)
def the_inbox_row_in_a_transaction_of_its_own(patch: pytest.MonkeyPatch) -> None:
    def insert(self: SqlTransaction, scope: str, source: str, message_id: str, lock_wait_s: float) -> bool:
        values = _sql_inbox.message_key(scope, source, message_id) | {"handled_s": self._gate.clock.wall_s()}
        with self._gate.write("taking the message") as connection:
            return self._statements.inbox.take.run(connection, values) == 1

    patch.setattr(SqlTransaction, "insert_inbox", insert)


@mutant("inbox", "inbox", DOUBLE, kafka=300, rocketmq=300, embedded=300)
def no_inbox_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlTransaction, "insert_inbox", lambda self, scope, source, message_id, lock_wait_s: True)


@mutant("inbox", "inbox", LOSS, kafka=300, rocketmq=300, embedded=300)
def one_inbox_for_all_scopes(patch: pytest.MonkeyPatch) -> None:
    """The same message id in another scope is taken for handled."""
    key = _sql_inbox.message_key

    def without_scope(scope: str, source: str, message_id: str) -> dict[str, Any]:
        return key("", source, message_id)

    patch.setattr(_sql_inbox, "message_key", without_scope)
    patch.setattr(_sql_local, "message_key", without_scope)


@mutant("acknowledgement", "inbox", LOSS, kafka=300, rocketmq=300, embedded=300)
def acknowledged_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    accept = Poller._accept

    def at_once(self: Poller, batch: Batch, began_s: float) -> None:
        if batch.received and self._receiver is not None:
            self._receiver.ack(batch.received)
        accept(self, batch, began_s)

    def tell(self: Poller, receiver: Any) -> None:
        self._unacked = []
        self._unreturned = []

    patch.setattr(Poller, "_accept", at_once)
    patch.setattr(Poller, "_tell", tell)


@mutant("acknowledgement", "retry", LOSS, ATTEMPTS, kafka=300, rocketmq=300, embedded=300)
def a_handler_that_fails_is_acknowledged(patch: pytest.MonkeyPatch) -> None:
    from txbus._consumer_contract import Done

    patch.setattr(InboxHandler, "_failed", lambda self, job, attempts, number, counted, error: Done())


@mutant("order", "retry", ORDER, kafka=300)
def a_retry_does_not_hold_its_key(patch: pytest.MonkeyPatch) -> None:
    hold = Lanes.hold

    def passed(self: Lanes, work: Work, due_s: float) -> None:
        lane = work.lane
        if len(lane.works) > 1 and not (work.share.lost or work.share.closing):
            # Those behind it go first.
            lane.works.rotate(-1)
            self._stopped_out_of_order(work)  # type: ignore[attr-defined]
            self._ready.append(lane)
        else:
            hold(self, work, due_s)

    def stopped(self: Lanes, work: Work) -> None:
        work.share.running -= 1
        self.running -= 1

    patch.setattr(Lanes, "hold", passed)
    patch.setattr(Lanes, "_stopped_out_of_order", stopped, raising=False)


@mutant("attempts", "retry", ATTEMPTS, kafka=300, embedded=300)
def attempts_are_counted_after_the_handler(patch: pytest.MonkeyPatch) -> None:
    """A run that the process does not survive is never counted."""

    def reserve(self: Attempts, run: Run, source: str, message_id: str, number: int, standing: Standing) -> None:
        run.reserved = number

    patch.setattr(Attempts, "reserve", reserve)
    patch.setattr(Attempts, "free", lambda self, run: not (run.started or run.failed or run.reserved))


@mutant("attempts", "retry", ATTEMPTS, kafka=300, rocketmq=300, embedded=300)
def attempts_are_kept_in_memory(patch: pytest.MonkeyPatch) -> None:
    def standing(self: Attempts, run: Run, source: str, message_id: str) -> Standing:
        return Standing(run.attempts, 0.0, "", False)

    patch.setattr(Attempts, "standing", standing)
    patch.setattr(Attempts, "recorded", lambda self, source, message_id: 0)


@mutant("leases", "inbox", Breaks.FENCING, DOUBLE, LOSS, embedded=300)
def a_lease_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    def fenced_of(
        connection: sqlite3.Connection, group: str, member: str, epochs: Mapping[int, int], now_s: float
    ) -> list[int]:
        return []

    patch.setattr(broker_transaction, "fenced_of", fenced_of)
    patch.setattr(receiver, "fenced_of", fenced_of)


@mutant("atomic", "atomic", TORN, DOUBLE, kafka=300, embedded=300)
def positions_outside_of_the_broker_transaction(patch: pytest.MonkeyPatch) -> None:
    """What an atomic handler sends is committed, and its position afterwards."""

    def commit(
        self: AtomicConsumer, opened: BrokerTransaction, membership: Membership, done: Sequence[Received]
    ) -> None:
        assert self._receiver is not None
        opened.commit()
        self._receiver.ack(done)
        for received in done:
            self._pending[received.position.where].popleft()
        self._handled += len(done)

    patch.setattr(AtomicConsumer, "_commit", commit)


@mutant("atomic", "atomic", TORN, LOSS, kafka=300, embedded=300)
def a_scope_sends_at_once(patch: pytest.MonkeyPatch) -> None:
    """`bus.atomic` without a broker transaction: each message by itself."""
    from txbus._atomic import AtomicScope

    send = AtomicScope.send

    def at_once(self: AtomicScope, topic: Any, payload: Any, **options: Any) -> str:
        sent = send(self, topic, payload, **options)
        assert self._open is not None and self._transactions is not None
        self._open.commit()
        self._open = self._transactions.begin()
        return sent

    patch.setattr(AtomicScope, "send", at_once)
