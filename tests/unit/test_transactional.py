"""The order of a local transaction that sends, and every way in which it is cut short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.halflog.ledger import ModelDatabase, ModelTransaction, Tables
from tests.unit.halflog.world import Chances, Process, World
from txbus._halves import Half, HalfId
from txbus._message import Envelope, Receipt, Topic
from txbus._outcome import Outcome
from txbus._transactional import AttachedScope, LocalBudget, LocalParts, TransactionScope
from txbus.errors import HalfFailed, LocalTimeout, NotOpen, OutcomeUnknown, StoreUnavailable, Superseded
from txbus.stores.contract import CommitResult, LedgerRow

NEVER = Chances(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
ANY: Topic[Any] = Topic("any", str)


class Channel:
    """A half channel that writes down what is asked of it."""

    def __init__(self, log: list[str], error: BaseException | None = None) -> None:
        self.log = log
        self.error = error
        self.told: list[Outcome] = []

    def check(self, half: Half) -> None:
        self.log.append("check")

    def store(self, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        self.log.append("half")
        if self.error is not None:
            raise self.error
        return ()

    def tell(self, half: Half, outcome: Outcome) -> None:
        self.log.append(f"tell {outcome.value}")
        self.told.append(outcome)


class Local(ModelTransaction):
    """A transaction that writes down its calls; ``fate`` is what becomes of its COMMIT."""

    def __init__(self, database: Recording) -> None:
        super().__init__(database)
        self._recording = database

    def flush(self) -> None:
        self._recording.log.append("flush")

    def insert_ledger(self, row: LedgerRow) -> None:
        super().insert_ledger(row)
        self._recording.log.append("ledger")

    def commit(self) -> CommitResult:
        self._recording.log.append("commit")
        fate = self._recording.fate
        if isinstance(fate, BaseException):
            raise fate
        if fate is CommitResult.UNKNOWN:
            self._error = StoreUnavailable("the connection broke in COMMIT")
            self.end(commit=self._recording.server_commits)
            return fate
        if fate is CommitResult.REFUSED:
            self._error = ValueError("a deferred constraint")
            self.end(commit=False)
            return fate
        return super().commit()

    def rollback(self) -> None:
        self._recording.log.append("rollback")
        super().rollback()


class Recording(ModelDatabase):
    def __init__(self, log: list[str]) -> None:
        super().__init__(Tables("one", "ledger-one"), World(1, NEVER), Process("app"))
        self.log = log
        self.fate: CommitResult | BaseException | None = None
        self.server_commits = False
        self.away = False

    def begin(self, local_timeout_s: float, hooks: Any = None) -> Local:
        return Local(self)

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Any:
        self.log.append("settle")
        if self.away:
            raise StoreUnavailable("away")
        return super().settle(ids, now_s, lock_wait_s)


def scope(database: Recording, channel: Channel, kind: type[Any] = TransactionScope, named: bool = False) -> Any:
    world = database.world
    parts = LocalParts(
        service="shop",
        database=database,
        channel=channel,
        make=lambda topic, payload, options: payload,
        ports=world.ports(database.process),
        emit=world.emit,
        heard=lambda kind: True,
        budget=LocalBudget(),
    )
    return kind(parts, "tx" if named else None)


def divided_by_zero(tx: TransactionScope) -> None:
    """A block that fails after it sent something."""
    tx.send(ANY, message())
    raise ZeroDivisionError


def message(number: int = 1) -> Envelope:
    return Envelope("a", b"x", "key", {"ce_id": f"m{number}"})


@pytest.fixture
def log() -> list[str]:
    return []


def test_rule_01_flush_then_ledger_then_half_then_commit_then_outcome(log: list[str]) -> None:
    """The half is sent when the ledger insert has returned, and COMMIT when the half is durable."""
    with scope(Recording(log), Channel(log)) as tx:
        tx.send(ANY, message())
    steps = [step for n, step in enumerate(log) if step not in log[:n]]
    assert steps == ["flush", "check", "ledger", "half", "commit", "tell committed"]
    assert tx.outcome is Outcome.COMMITTED


def test_rule_01_a_checker_that_was_first_stops_the_half(log: list[str]) -> None:
    """With a tombstone in the ledger nothing is sent: the insert fails and the block is rolled back."""
    database = Recording(log)
    transaction = scope(database, Channel(log))
    database.settle([HalfId(transaction.id, 1)], 0.0, 0.0)
    with pytest.raises(Superseded), transaction as tx:
        tx.send(ANY, message())
    assert "half" not in log and "commit" not in log
    assert not database.tables.business


def test_rule_05_a_half_that_failed_rolls_back_and_tells_so(log: list[str]) -> None:
    """HalfFailed leaves the block, COMMIT is never sent, and D(ROLLED_BACK) follows the half."""
    channel = Channel(log, HalfFailed("late"))
    with pytest.raises(HalfFailed), scope(Recording(log), channel) as tx:
        tx.send(ANY, message())
    assert log[-2:] == ["rollback", "tell rolled_back"] and "commit" not in log
    assert tx.outcome is Outcome.ROLLED_BACK


def test_rule_06_an_exception_in_the_block_needs_no_word_to_anybody(log: list[str]) -> None:
    """Nothing was sent, so nothing is told."""
    channel = Channel(log)
    tx = scope(Recording(log), channel)
    with pytest.raises(ZeroDivisionError), tx:
        divided_by_zero(tx)
    assert log == ["rollback"] and tx.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize("committed", [True, False])
def test_rule_06_an_unclear_commit_is_settled_by_the_fence(log: list[str], committed: bool) -> None:
    """The ledger's answer counts, whatever the connection said, and only then is the outcome told."""
    database, channel = Recording(log), Channel(log)
    database.fate, database.server_commits = CommitResult.UNKNOWN, committed
    error: Exception | None = None
    try:
        with scope(database, channel) as tx:
            tx.send(ANY, message())
    except StoreUnavailable as exc:
        error = exc
    assert log.index("settle") < next(n for n, step in enumerate(log) if step.startswith("tell"))
    assert channel.told == [Outcome.COMMITTED if committed else Outcome.ROLLED_BACK]
    assert (error is None) is committed


def test_rule_06_nothing_is_told_while_the_ledger_is_away(log: list[str]) -> None:
    """OutcomeUnknown carries the id; check-back will ask."""
    database, channel = Recording(log), Channel(log)
    database.fate, database.away = CommitResult.UNKNOWN, True
    with pytest.raises(OutcomeUnknown) as caught, scope(database, channel) as tx:
        tx.send(ANY, message())
    assert caught.value.tx_id == tx.id and channel.told == []


def test_rule_06_a_definite_refusal_needs_no_ledger(log: list[str]) -> None:
    """A COMMIT that was refused for certain is rolled back, told, and raised as it is."""
    database, channel = Recording(log), Channel(log)
    database.fate = CommitResult.REFUSED
    with pytest.raises(ValueError, match="deferred"), scope(database, channel) as tx:
        tx.send(ANY, message())
    assert "settle" not in log and channel.told == [Outcome.ROLLED_BACK]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug of the store")])
def test_rule_06_a_commit_that_was_interrupted_goes_through_the_ledger(log: list[str], error: BaseException) -> None:
    """Whoever does not know whether COMMIT was sent asks the fence."""
    database, channel = Recording(log), Channel(log)
    database.fate = error
    with pytest.raises(type(error)), scope(database, channel) as tx:
        tx.send(ANY, message())
    assert log[-3:] == ["rollback", "settle", "tell rolled_back"]


def test_an_interrupted_commit_without_a_row_tells_nothing_and_ends(log: list[str]) -> None:
    """A block without messages has no row to ask; the error is the caller's, the scope is closed."""
    database, channel = Recording(log), Channel(log)
    database.fate = RuntimeError("ended by the application")
    with pytest.raises(RuntimeError), scope(database, channel) as tx:
        pass
    assert log[-1] == "rollback" and tx.outcome is Outcome.UNKNOWN
    with pytest.raises(NotOpen):
        tx.send(ANY, message())


def test_too_late_is_rolled_back_before_anything_is_sent(log: list[str]) -> None:
    """A block beyond local_timeout_s raises, alarms, and has no effect."""
    database = Recording(log)
    tx = scope(database, Channel(log))
    with pytest.raises(LocalTimeout), tx:
        database.world.now_s += 31.0
    assert "half" not in log and database.world.alarms[0].what == "local timeout"


def test_a_session_that_sent_nothing_sees_its_own_commit_error(log: list[str]) -> None:
    """Attaching does not replace the database's error by one of ours where no row could tell."""
    database = Recording(log)
    attached: AttachedScope = scope(database, Channel(log), AttachedScope)
    local = database.begin(1.0)
    attached.attached()
    attached.before_commit(local)
    attached.commit_failed(local, ValueError("a deferred constraint"))
    assert "settle" not in log and attached.outcome is Outcome.UNKNOWN


def test_an_attached_commit_that_failed_is_settled_by_the_ledger(log: list[str]) -> None:
    """With messages there is a row, and the fence answers."""
    database, channel = Recording(log), Channel(log)
    attached: AttachedScope = scope(database, channel, AttachedScope)
    local = database.begin(1.0)
    attached.attached()
    attached.send(ANY, message())
    attached.before_commit(local)
    local.end(commit=True)
    attached.commit_failed(local, ValueError("the connection broke"))
    assert channel.told == [Outcome.COMMITTED]


def test_messages_of_a_rolled_back_savepoint_are_not_sent(log: list[str]) -> None:
    """Of two savepoints of one name the last one counts; an unknown name changes nothing."""
    database = Recording(log)
    attached: AttachedScope = scope(database, Channel(log), AttachedScope)
    local = database.begin(1.0)
    attached.attached()
    attached.savepoint(local, "s")
    attached.send(ANY, message(1))
    attached.savepoint(local, "s")
    attached.send(ANY, message(2))
    attached.savepoint_released(local, "s")
    attached.savepoint_rolled_back(local, "no such name")
    assert [e.id for e in attached._outgoing.envelopes] == ["m1", "m2"]
    attached.savepoint_rolled_back(local, "s")
    assert attached._outgoing.envelopes == []
