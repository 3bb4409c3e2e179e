"""Broker transactions of the Kafka model: visibility, owners, time-outs, late and lost requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.kafka_bench import MS, NOBODY, Bench, P, Q, S, refused, shows
from txbus.spi import Committed
from txbus_sim.dialects.kafka import Code, Message, Owner, Producer, TransactionState
from txbus_sim.errors import NotModelled


@shows("open-is-invisible", "open-holds-back")
def test_an_open_one_hides_itself_and_what_comes_behind() -> None:
    """Neither its records nor later ones of others are readable until it ends; other partitions are."""
    bench = Bench()
    bench.send("before")
    owner = bench.init()
    bench.add(owner, "inside")
    bench.send("behind")
    bench.send("elsewhere", where=Q)
    assert bench.read() == ["before"] and bench.read(Q) == ["elsewhere"]
    bench.end(owner)
    assert bench.read() == ["before", "inside", "behind"]
    assert bench.told[-2:] == [("visible", "inside"), ("visible", "behind")]


@shows("marker-takes-an-offset", "aborted-is-never-visible")
def test_readers_pass_over_markers_and_aborted_records() -> None:
    """After an aborted and a committed one the next offset lies behind both markers."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "gone")
    bench.end(owner, commit=False)
    bench.add(owner, "kept")
    bench.end(owner)
    entries, following = bench.cluster.fetch(P, 0, 10, bench.now_ns)
    assert [entry.offset for entry in entries] == [2] and following == 4
    assert bench.cluster.fetch(P, 0, 1, bench.now_ns)[1] == 4
    assert bench.read() == ["kept"]


@shows("end-acked-before-markers")
def test_the_outcome_is_decided_before_it_is_visible() -> None:
    """EndTxn has answered, the records are not readable yet; the next transaction has to wait."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "a")
    bench.cluster.transactions.end(owner, True, "p", bench.now_ns)
    assert bench.outcomes == [("x", True, "p")] and bench.read() == []
    busy = refused(lambda: bench.cluster.transactions.add_partition(owner, P, bench.now_ns))
    assert busy is Code.CONCURRENT_TRANSACTIONS
    bench.pass_ns(MS)
    assert bench.read() == ["a"]


@shows("init-bumps-the-epoch", "init-aborts-the-open-one")
def test_init_takes_the_id_over() -> None:
    """The predecessor's open broker transaction is aborted first, then the epoch is higher."""
    bench = Bench()
    old = bench.init()
    bench.add(old, "open")
    asked = refused(lambda: bench.cluster.transactions.init("x", 60 * S, bench.now_ns))
    assert asked is Code.CONCURRENT_TRANSACTIONS
    began_ns = bench.now_ns
    new = bench.init()
    assert bench.now_ns - began_ns == 500 * MS
    assert new.producer_id == old.producer_id and new.epoch > old.epoch
    assert bench.outcomes == [("x", False, "broker")] and bench.read() == []
    bench.send("after")
    assert bench.read() == ["after"]


def _produce(bench: Bench, owner: Owner) -> object:
    producer = Producer(owner.producer_id, owner.epoch, 0, owner.transactional_id)
    return bench.cluster.produce(P, [Message("late", 10)], producer, "p", bench.now_ns)


REQUESTS: list[Callable[[Bench, Owner], object]] = [
    lambda bench, owner: bench.cluster.transactions.add_partition(owner, P, bench.now_ns),
    _produce,
    lambda bench, owner: bench.offsets(owner, NOBODY, 1),
    lambda bench, owner: bench.cluster.transactions.end(owner, True, "p", bench.now_ns),
    lambda bench, owner: bench.cluster.transactions.end(owner, False, "p", bench.now_ns),
]


@shows("fenced-everywhere")
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_former_owner_is_refused(request_: Callable[[Bench, Owner], object]) -> None:
    """Adding, producing, offsets, commit and abort: each is refused and changes nothing."""
    bench = Bench()
    old = bench.init()
    bench.add(old, "open")
    new = bench.init()
    assert refused(lambda: request_(bench, old)) is Code.PRODUCER_FENCED
    bench.add(new, "new")
    bench.end(new)
    assert bench.read() == ["new"]


@shows("timeout-aborts-and-fences")
def test_a_time_out_aborts_and_fences() -> None:
    """Found by the scan that follows; its owner's commit is refused, others can read on."""
    bench = Bench()
    bench.pass_ns(3 * S)
    owner = bench.init(timeout_ns=5 * S)
    bench.add(owner, "open")
    bench.send("behind")
    due_ns = bench.cluster.transactions.times_out_ns("x")
    assert due_ns == 10 * S
    bench.pass_ns(due_ns - bench.now_ns - 1)
    assert bench.read() == []
    bench.pass_ns(MS)
    assert bench.outcomes == [("x", False, "broker")] and bench.read() == ["behind"]
    assert refused(lambda: bench.end(owner)) is Code.PRODUCER_FENCED
    assert bench.cluster.transactions.times_out_ns("x") is None


@shows("timeout-aborts-and-fences")
def test_a_time_out_belongs_to_one_broker_transaction() -> None:
    """One that began later is not ended when the former one's time would have been over."""
    bench = Bench()
    owner = bench.init(timeout_ns=9 * S)
    bench.add(owner, "a")
    bench.end(owner)
    bench.pass_ns(5 * S)
    bench.add(owner, "b")
    bench.pass_ns(8 * S)
    bench.end(owner)
    assert bench.read() == ["a", "b"]


@shows("timeout-above-the-maximum")
def test_a_time_out_above_the_maximum_is_refused() -> None:
    """900 s are allowed, more are not."""
    bench = Bench()
    assert refused(lambda: bench.init(timeout_ns=900 * S + MS)) is Code.INVALID_TRANSACTION_TIMEOUT
    assert bench.init(timeout_ns=900 * S).epoch == 0


@shows("end-again-is-answered")
def test_an_end_may_be_repeated() -> None:
    """The same outcome again is OK and adds no marker; the other outcome, or none to end, is refused."""
    bench = Bench()
    owner = bench.init()
    assert refused(lambda: bench.end(owner)) is Code.INVALID_TXN_STATE
    for commit in (True, False):
        bench.add(owner, "a")
        bench.cluster.transactions.end(owner, commit, "p", bench.now_ns)
        again = refused(lambda commit=commit: bench.cluster.transactions.end(owner, commit, "p", bench.now_ns))  # type: ignore[misc]
        assert again is Code.CONCURRENT_TRANSACTIONS
        bench.pass_ns(MS)
        end = bench.cluster.log(P).end
        bench.end(owner, commit)
        assert bench.cluster.log(P).end == end
        other = refused(lambda commit=commit: bench.end(owner, not commit))  # type: ignore[misc]
        assert other is Code.INVALID_TXN_STATE


@shows("late-end-ends-the-next")
def test_a_late_end_ends_the_next_one_of_the_same_epoch() -> None:
    """The owner gave up waiting for an abort and went on: the abort hits what it does now."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "first")
    bench.end(owner, commit=False)
    bench.add(owner, "second")
    bench.end(owner, commit=False)  # the first abort's copy, late
    assert bench.outcomes[-1] == ("x", False, "p")
    assert refused(lambda: bench.end(owner)) is Code.INVALID_TXN_STATE
    assert bench.read() == []


@shows("late-end-is-fenced-by-init")
def test_a_late_end_is_fenced_by_a_new_owner() -> None:
    """After init_transactions the former owner's late commit commits nothing."""
    bench = Bench()
    old = bench.init()
    bench.add(old, "old")
    new = bench.init()
    bench.add(new, "new")
    assert refused(lambda: bench.end(old)) is Code.PRODUCER_FENCED
    assert bench.cluster.transactions.state("x") is TransactionState.ONGOING


@shows("commit-unknown")
@pytest.mark.parametrize("arrived", [True, False])
def test_a_commit_without_an_answer_is_settled_by_the_next_init(arrived: bool) -> None:
    """It is completed if it arrived and aborted if not; the new owner is told the same in both cases."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "evidence")
    if arrived:
        bench.cluster.transactions.end(owner, True, "p", bench.now_ns)
    bench.init()
    assert bench.read() == (["evidence"] if arrived else [])


@shows("coordinator-failover")
def test_a_decided_outcome_survives_its_coordinator() -> None:
    """The markers come later, and they are those of the decision."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "a")
    bench.cluster.transactions.end(owner, True, "p", bench.now_ns)
    bench.cluster.transactions.move("x", bench.now_ns)
    bench.pass_ns(S)
    assert bench.read() == []
    bench.pass_ns(2 * S)
    assert bench.read() == ["a"] and len(bench.outcomes) == 1


@shows("unregistered-produce-is-refused")
def test_a_record_outside_of_the_transaction_is_refused() -> None:
    """A partition that was not added, and one of a transaction that has ended."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "a")
    assert refused(lambda: bench.produce("b", where=Q, owner=owner)) is Code.INVALID_TXN_STATE
    bench.end(owner)
    assert refused(lambda: bench.produce("b", owner=owner)) is Code.INVALID_TXN_STATE


def test_a_failover_keeps_an_open_one_open() -> None:
    """The records that were replicated stay open, the others are gone from the transaction, too."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "a")
    bench.produce("b", owner=owner)
    bench.cluster.fail_over(P, bench.now_ns)
    bench.end(owner)
    bench.pass_ns(3 * S)
    assert bench.read() == ["a"]


def test_epochs_that_run_out_say_so() -> None:
    """A transactional id with more epochs than Kafka's counter has is not modelled."""
    bench = Bench()
    with pytest.raises(NotModelled, match="epochs are used up"):
        for _ in range(40_000):
            bench.init()


# lost abort markers


def _skipped() -> tuple[Bench, Owner]:
    """An open record of id x whose abort left no marker, one of another sender behind it, a new owner."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "aborted")
    assert bench.cluster.transactions.abort_without_markers("x") == (P,)
    bench.send("behind")
    return bench, bench.init()


@shows("marker-skipped-sticks")
def test_a_skipped_marker_leaves_readers_stuck() -> None:
    """The outcome is an abort; later records stay invisible, whatever time passes and whoever inits."""
    bench, owner = _skipped()
    assert bench.outcomes == [("x", False, "broker")]
    bench.pass_ns(600 * S)
    assert bench.read() == [] and bench.cluster.log(P).stable == 0
    other = bench.init("y")
    bench.add(other, "other")
    bench.end(other)
    bench.add(owner, "elsewhere", where=Q)
    bench.end(owner)
    assert bench.read() == [] and bench.read(Q) == ["elsewhere"]


@shows("marker-skipped-then-commit")
def test_the_next_commit_there_makes_the_aborted_records_visible() -> None:
    """The danger: what was aborted is read."""
    bench, owner = _skipped()
    bench.add(owner, "new")
    bench.end(owner)
    assert bench.read() == ["aborted", "behind", "new"]


@shows("marker-skipped-then-abort")
def test_an_abort_there_repairs_it() -> None:
    """The aborted records are gone for good, and what stood behind is readable."""
    bench, owner = _skipped()
    bench.add(owner, "touch")
    bench.end(owner, commit=False)
    assert bench.read() == ["behind"]
    bench.add(owner, "new")
    bench.end(owner)
    assert bench.read() == ["behind", "new"]


@shows("marker-skipped-then-delete")
def test_deleting_the_open_records_repairs_it() -> None:
    """Readers go on behind them, and a later commit brings nothing back."""
    bench, owner = _skipped()
    bench.cluster.delete_records(P, 1, bench.now_ns)
    assert bench.read() == ["behind"]
    bench.add(owner, "new")
    bench.end(owner)
    assert bench.read() == ["behind", "new"]


@shows("deleted-in-part")
def test_deleting_a_part_of_the_open_records_does_not() -> None:
    """What is left of them holds readers back."""
    bench = Bench()
    owner = bench.init()
    bench.add(owner, "first")
    bench.add(owner, "second")
    bench.cluster.transactions.abort_without_markers("x")
    bench.cluster.delete_records(P, 1, bench.now_ns)
    bench.send("behind")
    assert bench.read() == [] and bench.cluster.log(P).stable == 1


@shows("marker-skipped-for-positions")
@pytest.mark.parametrize("commit", [True, False])
def test_positions_are_skipped_with_the_markers(commit: bool) -> None:
    """They stay pending through a new init; the id's next commit in that group makes them count, an
    abort forgets them."""
    bench = Bench()
    owner = bench.init()
    bench.offsets(owner, NOBODY, 7, P)
    bench.cluster.transactions.abort_without_markers("x")
    owner = bench.init()
    assert refused(lambda: bench.cluster.groups.committed("g", P)) is Code.UNSTABLE_OFFSET_COMMIT
    bench.offsets(owner, NOBODY, 3, Q)
    bench.end(owner, commit)
    assert bench.cluster.groups.committed("g", P) == (Committed(7) if commit else None)


def test_without_an_open_one_no_marker_can_be_skipped() -> None:
    """The fault does nothing then."""
    bench = Bench()
    assert bench.cluster.transactions.abort_without_markers("x") == ()
    owner = bench.init()
    bench.add(owner, "a")
    bench.end(owner)
    assert bench.cluster.transactions.abort_without_markers("x") == ()
    assert bench.read() == ["a"]
