"""Tapes: what they place, and that every run becomes a schedule that replays to the same history."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from tests.unit.sim.explore_toys import ORDER, RIGHT, TWO_FAULTS, ZOMBIE, S, Toy, ToyRunner, happened
from txbus_sim.faults import COMMIT, CRASHES, REQUEST, Fault
from txbus_sim.history import Point
from txbus_sim.schedule import Address, Deviation, Schedule
from txbus_sim.strategies import (
    AMOUNTS,
    KILLS,
    CrashLoop,
    Fixed,
    Guide,
    Random,
    RandomTape,
    Replay,
    amounts,
    schedule_of,
)

COMMITTED = Deviation(Address("orders", "sql.commit:shop", 1), Fault.CRASH_AFTER)
TIMED = (Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY)
GUIDE = Guide([Point(0, "p", f"step:{n % 5}", n // 5 + 1, COMMIT if n % 2 else REQUEST) for n in range(40)])


def test_a_replay_knows_what_it_did_not_come_to() -> None:
    """In the schedule's order; what was placed is not among it."""
    never = Deviation(Address("orders+7", "sql.commit:shop", 1), Fault.CRASH_AFTER)
    tape = Replay(Schedule((never, COMMITTED)))
    assert tape.unreached() == (never.address, COMMITTED.address)
    assert tape("orders", "sql.commit:shop", 2, COMMIT) is None
    assert tape("orders", "sql.commit:shop", 1, COMMIT) is COMMITTED
    assert tape.unreached() == (never.address,)


def test_a_fault_that_the_operation_cannot_suffer_is_not_reached() -> None:
    """The model does not offer it any more: the schedule is about other code."""
    tape = Replay(Schedule((COMMITTED,)))
    assert tape("orders", "sql.commit:shop", 1, (Fault.DELAY,)) is None
    assert tape.unreached() == (COMMITTED.address,)


def record(result: object) -> list[str]:
    return [str(record) for record in result.history]  # type: ignore[attr-defined]


@pytest.mark.parametrize("toy", [RIGHT, TWO_FAULTS, ZOMBIE, ORDER])
def test_any_random_run_becomes_a_schedule_that_replays_to_the_same_history(toy: Toy) -> None:
    """Record by record; the schedule survives being written and read, and every address is reached."""
    runner = ToyRunner(toy)
    guide = Guide(runner().history.points())
    placed = 0
    for seed in range(60):
        tape = RandomTape(seed, guide)
        drawn = runner(tape=tape)
        schedule = Schedule.parse(str(schedule_of(tape)))
        replayed = runner(schedule)
        assert record(replayed) == record(drawn)
        assert replayed.unreached == ()
        assert [f"{one.address} {one.fault.value}" for one in schedule] == happened(drawn.history)
        placed += len(schedule)
    assert placed > 30


def places(seed: int | str, points: int = 400) -> list[tuple[int, Deviation]]:
    """What a tape places over a run that goes on for ever, with the place in it."""
    tape = RandomTape(seed, GUIDE)
    found = []
    for n in range(points):
        one = tape("p", f"step:{n % 5}", n // 5 + 1, COMMIT if n % 2 else REQUEST)
        if one is not None:
            found.append((n, one))
    assert [one for _, one in found] == list(tape.placed)
    return found


def test_equal_seeds_choose_equally_and_others_differ() -> None:
    """The negative control: two hundred seeds are not a few choices."""
    assert [places(seed) for seed in range(50)] == [places(seed) for seed in range(50)]
    assert len({str(places(seed)) for seed in range(200)}) > 150


def test_after_the_storm_it_is_calm() -> None:
    """Faults lie in the first part of a run, twice the length of the run without faults at most."""
    last = [found[-1][0] for seed in range(500) if (found := places(seed))]
    assert len(last) > 300
    assert max(last) <= 2 * len(GUIDE.points) + 1
    assert min(last) < 20


def test_faults_do_not_keep_a_run_waiting_for_an_hour() -> None:
    """Twenty minutes of pauses and delays in all: a run that is paused for ever would look like a livelock."""
    waits = [sum(one.amount for _, one in places(seed) if one.fault in TIMED) for seed in range(1_000)]
    assert 400 * S < max(waits) <= 1_200 * S


def test_a_swarm_leaves_kinds_out_and_all_of_them_together_leave_out_none() -> None:
    """Each fault that is offered somewhere is placed by some seed, and no seed of many places them all."""
    kinds = [Counter(one.fault for _, one in places(seed)) for seed in range(500)]
    offered = {fault for _, fault in GUIDE.pairs}
    assert set().union(*kinds) == offered
    assert max(map(len, kinds)) < len(offered)


def test_every_pair_of_label_and_fault_is_placed_by_some_seed() -> None:
    """In the first 2,000, of 5 labels and a dozen faults."""
    pairs = {(one.address.label, one.fault) for seed in range(2_000) for _, one in places(seed, 90)}
    assert pairs >= set(GUIDE.pairs)


def test_left_out_faults_are_never_placed() -> None:
    """A guide without kills gives tapes without kills."""
    guide = Guide(GUIDE.points, KILLS)
    tapes = [RandomTape(seed, guide) for seed in range(300)]
    for tape in tapes:
        for n in range(60):
            tape("p", f"step:{n % 5}", n // 5 + 1, CRASHES)
    placed = {one.fault for tape in tapes for one in tape.placed}
    assert not placed & KILLS
    assert Fault.CRASH_BEFORE in placed


def test_a_guide_without_points_gives_runs_without_faults() -> None:
    """A scenario that does nothing at all can be explored."""
    for seed in range(50):
        assert RandomTape(seed, Guide())("p", "step", 1, CRASHES) is None


def test_a_crash_loop_hits_each_incarnation_once_as_often_as_asked() -> None:
    """At the same operation of each; other processes are left alone."""
    tape = CrashLoop(COMMITTED, 3).tape(Guide())
    for process in ("orders", "stock", "orders+1", "orders+2", "orders+3"):
        for number in (1, 2, 1):
            tape(process, "sql.commit:shop", number, COMMIT)
    assert [one.address.process for one in tape.placed] == ["orders", "orders+1", "orders+2"]
    assert {(one.address.number, one.fault) for one in tape.placed} == {(1, Fault.CRASH_AFTER)}


@pytest.mark.parametrize("strategy", [Fixed((COMMITTED,)), CrashLoop(COMMITTED, 2), Random(1, 2)])
def test_strategies_can_be_sent_to_workers(strategy: object) -> None:
    """And are equal on the other side."""
    assert pickle.loads(pickle.dumps(strategy)) == strategy


def test_every_fault_that_takes_time_has_an_amount() -> None:
    """A pause of nothing would be no fault."""
    timed = [fault for fault in Fault if fault.value.startswith("pause") or fault in (Fault.DELAY, Fault.CLOCK_STEP)]
    assert all(amount > 0 for fault in timed for amount in AMOUNTS[fault])
    assert all(amounts(fault) for fault in Fault)
