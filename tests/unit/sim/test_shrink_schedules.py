"""Shrinking: the shortest schedule that fails in the same way, and the proof of it."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sim.explore_toys import (
    MS,
    ONE_FAULT,
    RIGHT,
    THREE_FAULTS,
    TWO_FAULTS,
    ZOMBIE,
    Disk,
    S,
    Toy,
    ToyRunner,
    does,
)
from txbus_sim._world import Process, World
from txbus_sim.errors import SimulationError
from txbus_sim.faults import CRASHES, Fault
from txbus_sim.schedule import Address, Deviation, Schedule
from txbus_sim.shrink import shrink

NOISE = """
orders/sql.commit:shop#1 delay 1s
orders/broker.send:orders#1 delay 2s
orders+1/sql.commit:shop#1 delay 10ms
orders+1/broker.send:orders#2 pause-before 30s
orders+2/broker.send:orders#2 delay 40s
"""


def schedule(text: str) -> Schedule:
    return Schedule.parse(f"txbus schedule 1\n{text}")


def lines(found: Schedule) -> list[str]:
    return [str(one) for one in found]


def test_what_the_failure_does_not_need_is_dropped() -> None:
    """And each deviation that is left is needed: its run without it was executed and passed."""
    runner = ToyRunner(ONE_FAULT)
    found = shrink(runner, schedule(NOISE + "orders/sql.commit:shop#2 crash-after"))
    assert len(found.schedule) == 1 and found.complete
    assert runner(found.schedule).verdict == found.verdict
    assert [(one.without, one.outcome) for one in found.necessities] == [(Schedule(), None)]
    assert found.necessities[0].deviation == found.schedule.deviations[0]


def test_an_earlier_and_simpler_fault_is_taken() -> None:
    """The first order does as well as the third, and nobody need stay dead."""
    found = shrink(ToyRunner(ONE_FAULT), schedule("orders/sql.commit:shop#3 crash-after"))
    assert lines(found.schedule) == ["orders/sql.commit:shop#1 crash-after"]
    found = shrink(ToyRunner(ONE_FAULT), schedule("orders/broker.send:orders#3 crash-before"))
    assert lines(found.schedule) == ["orders/broker.send:orders#1 crash-before"]


def test_amounts_become_as_small_as_they_can_be() -> None:
    """To half of what is too much, and round where that does: the lease is for 30 s."""
    found = shrink(ToyRunner(ZOMBIE), schedule("left/sql.commit:lease#1 pause-after 400s"))
    (one,) = found.schedule
    assert one.fault is Fault.PAUSE_BEFORE
    assert 30 * S <= one.amount <= 60 * S


def test_a_chain_of_incarnations_closes_up() -> None:
    """Four crashes where three do: what hit the later incarnations moves up."""
    loop = "\n".join(
        f"{name}/sql.commit:shop#1 crash-before" for name in ("orders", "orders+1", "orders+2", "orders+3")
    )
    found = shrink(ToyRunner(THREE_FAULTS), schedule(f"{loop}\norders+4/sql.commit:shop#1 crash-after"))
    assert len(found.schedule) == 3
    assert [one.address.process for one in found.schedule] == ["orders", "orders+1", "orders+2"]
    assert [one.outcome for one in found.necessities] == [None, None, None]


def test_what_was_never_reached_had_no_part_in_it() -> None:
    """Addresses that the run does not come to are gone at once."""
    found = shrink(ToyRunner(ONE_FAULT), schedule("stock/broker.ack:x#9 fail\norders/sql.commit:shop#1 crash-after"))
    assert lines(found.schedule) == ["orders/sql.commit:shop#1 crash-after"]


def _two_bugs(world: World, disk: Disk, process: Process) -> None:
    """Each alone is another failure than the two together."""
    for name in ("first", "second"):
        fault = world.enter(f"sql.commit:{name}", (Fault.FAIL, Fault.DELAY))
        if fault is Fault.FAIL:
            disk.effects.append(name)
        world.leave(fault)


def _together(disk: Disk) -> str:
    return f"{'-and-'.join(disk.effects)}: failed" if disk.effects else ""


def test_the_same_failure_is_one_of_the_same_identity() -> None:
    """What fails otherwise without a deviation proves the deviation needed, and is told."""
    both = schedule("p/sql.commit:first#1 fail\np/sql.commit:second#1 fail")
    found = shrink(ToyRunner(Toy({"p": _two_bugs}, _together)), both)
    assert lines(found.schedule) == lines(both) and found.verdict.name == "first-and-second"
    assert [one.outcome.name if one.outcome else None for one in found.necessities] == ["second", "first"]


@pytest.mark.parametrize("toy", [ONE_FAULT, TWO_FAULTS, THREE_FAULTS])
def test_the_same_for_any_number_of_jobs(toy: Toy) -> None:
    """The number of runs too: what workers ran ahead does not count."""
    loop = "orders/broker.send:orders#1 crash-before\norders+1/broker.send:orders#1 crash-before"
    third = "\norders+2/sql.commit:shop#1 crash-before\norders+3/broker.send:orders#1 crash-before"
    noise = "\norders/sql.commit:shop#1 delay 1s\norders+2/broker.send:orders#1 delay 20s"
    whole = schedule(loop + third + noise)
    if ToyRunner(toy)(whole).verdict is None:
        whole = schedule("orders/sql.commit:shop#1 crash-after" + noise)
    if ToyRunner(toy)(whole).verdict is None:
        names = ("orders", "orders+1", "orders+2")
        crashes = "\n".join(f"{name}/sql.commit:starts#1 crash-after" for name in names)
        whole = schedule(crashes + "\norders+3/sql.commit:shop#1 crash-after" + noise)
    found = [shrink(ToyRunner(toy), whole, jobs=jobs) for jobs in (1, 2, 3)]
    assert found[0] == found[1] == found[2]


def test_a_small_budget_is_kept_and_the_result_is_minimal_all_the_same() -> None:
    """The proof is beyond the budget; what it shows to be superfluous is dropped."""
    runner = ToyRunner(ONE_FAULT)
    whole = schedule(NOISE + "orders/sql.commit:shop#2 crash-after")
    found = shrink(runner, whole, runs_max=2)
    assert not found.complete
    assert found.runs <= 2 + len(whole) * (len(whole) + 1)
    for one in found.necessities:
        without = runner(one.without).verdict
        assert without == one.outcome
        assert without is None or without.identity != found.verdict.identity
    assert len(found.necessities) == len(found.schedule) > 0


def test_a_schedule_that_passes_is_refused() -> None:
    """With the schedule."""
    with pytest.raises(SimulationError, match="nothing to shrink(?s:.*)sql.commit:shop#1 crash-after"):
        shrink(ToyRunner(RIGHT), schedule("orders/sql.commit:shop#1 crash-after"))


def test_a_failure_without_faults_has_the_empty_schedule() -> None:
    """Nothing is needed for it."""
    toy = Toy({"p": lambda world, disk, process: does(world, "a", lambda: None, CRASHES)}, lambda disk: "always: wrong")
    found = shrink(ToyRunner(toy), schedule("p/a#1 crash-before"))
    assert found.schedule == Schedule() and found.necessities == ()


LABELS = [f"step:{number}" for number in range(8)]


def _steps(world: World, disk: Disk, process: Process) -> None:
    for label in LABELS:
        began_ns = world.now_ns
        fault = world.enter(label, (Fault.DELAY, Fault.FAIL))
        if fault is Fault.FAIL or world.now_ns - began_ns >= 100 * MS:
            disk.effects.append(label)
        world.leave(fault)


def _all_of(needed: frozenset[str], disk: Disk) -> str:
    return "all: of them were hit" if needed <= set(disk.effects) else ""


@settings(max_examples=60, deadline=None)
@given(
    needed=st.frozensets(st.sampled_from(LABELS), min_size=1, max_size=5),
    more=st.frozensets(st.sampled_from(LABELS)),
    faults=st.lists(st.sampled_from([(Fault.FAIL, 0), (Fault.DELAY, 3 * S)]), min_size=8, max_size=8),
)
def test_exactly_what_is_needed_is_left(
    needed: frozenset[str], more: frozenset[str], faults: list[tuple[Fault, int]]
) -> None:
    """Whatever else was in the schedule, and whatever its size; delays are the shortest that do."""
    runner = ToyRunner(Toy({"p": _steps}, partial(_all_of, needed)))
    whole = Schedule.of(
        Deviation(Address("p", label, 1), *faults[place])
        for place, label in enumerate(LABELS)
        if label in needed | more
    )
    found = shrink(runner, whole)
    assert {one.address.label for one in found.schedule} == needed
    assert {one.amount for one in found.schedule} <= {0, 100 * MS}
    assert len(found.necessities) == len(needed) and found.complete
