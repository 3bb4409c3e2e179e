"""Random exploration: the same for equal seeds, and what it finds and covers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.sim.explore_toys import ONE_FAULT, ORDER, RIGHT, THREE_FAULTS, TWO_FAULTS, ZOMBIE, Toy, ToyRunner
from txbus_sim.exploration import End, explore
from txbus_sim.result import VerdictKind


@pytest.mark.parametrize(
    ("toy", "name", "within", "deviations"),
    [
        (ONE_FAULT, "no-loss", 50, 1),
        (TWO_FAULTS, "no-loss", 500, 2),
        (THREE_FAULTS, "no-loss", 1_000, 3),
        (ZOMBIE, "fencing", 50, 1),
        (ORDER, "lost-update", 50, 1),
    ],
)
def test_bugs_are_found_within_a_stated_number_of_runs(toy: Toy, name: str, within: int, deviations: int) -> None:
    """With the default seed; the shortest schedule has as many deviations as the bug needs."""
    result = explore(ToyRunner(toy), within, failures_max=1)
    assert result.verdict is not None and result.verdict.name == name
    assert result.schedule is not None and len(result.schedule) == deviations
    assert result.failures[0].number <= within


def test_right_code_passes() -> None:
    """And every pair of label and fault was placed."""
    result = explore(ToyRunner(RIGHT), 1_000)
    assert result.verdict is None and result.end is End.COMPLETE and result.executed == 1_001
    assert result.coverage.never == ()


def test_equal_seeds_explore_equally_and_others_do_not() -> None:
    """Everything but the real time is equal."""
    one, again, other = (explore(ToyRunner(TWO_FAULTS), 300, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.coverage != other.coverage


def test_a_longer_exploration_begins_with_the_shorter_one() -> None:
    """The first failure has the same number and the same schedule."""
    short = explore(ToyRunner(TWO_FAULTS), 300)
    long = explore(ToyRunner(TWO_FAULTS), 600)
    assert short.failures and short.failures[0].schedule == long.failures[0].schedule
    assert short.failures[0].number == long.failures[0].number
    assert long.failures[0].times > short.failures[0].times


def test_a_sometimes_that_never_was_is_vacuous() -> None:
    """As it is where every fault is placed."""
    result = explore(ToyRunner(replace(RIGHT, sometimes={"a miracle": lambda disk: False})), 20)
    assert result.verdict is not None
    assert (result.verdict.kind, result.verdict.name) == (VerdictKind.VACUOUS, "a miracle")


def test_without_faults_there_is_the_run_without_faults() -> None:
    """A budget of nothing runs it alone."""
    result = explore(ToyRunner(RIGHT), 0)
    assert result.executed == 1 and result.verdict is None
