"""Every fault at every point: what is run, what is found, and what counts as never put to the test."""

from __future__ import annotations

import gc
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.unit.sim import explore_toys
from tests.unit.sim.explore_toys import (
    MS,
    ONE_FAULT,
    ORDER,
    RIGHT,
    THREE_FAULTS,
    TWO_FAULTS,
    ZOMBIE,
    Disk,
    Toy,
    ToyRunner,
    does,
)
from txbus_sim._world import Process, Tape, World
from txbus_sim.errors import SimulationError
from txbus_sim.exploration import End, crash_everywhere
from txbus_sim.faults import CRASHES, Fault
from txbus_sim.history import History
from txbus_sim.result import RunResult, VerdictKind
from txbus_sim.schedule import Schedule
from txbus_sim.strategies import amounts


def test_right_code_passes_every_fault_and_nothing_is_left_out() -> None:
    """What is enumerated is run or pruned; every single fault of every point is run."""
    runner = ToyRunner(RIGHT)
    result = crash_everywhere(runner, without=())
    assert result.verdict is None and result.end is End.COMPLETE
    assert result.failures == () and result.failed == 0 and result.passed == result.executed
    assert result.enumerated == result.executed + result.pruned
    stages = {stage.name: stage for stage in result.stages}
    points = runner().history.points()
    singles = sum(len(amounts(fault)) for point in points for fault in point.faults)
    assert stages["crashes"].executed == 2 * len(points)
    assert stages["crashes"].executed + stages["single faults"].executed == singles
    assert stages["crashes"].pruned == stages["single faults"].pruned == 0
    assert stages["second faults"].pruned > stages["second faults"].executed > 0


@pytest.mark.parametrize(
    ("toy", "name", "deviations", "stage"),
    [
        (ONE_FAULT, "no-loss", 1, "crashes"),
        (TWO_FAULTS, "no-loss", 2, "second faults"),
        (THREE_FAULTS, "no-loss", 3, "crash loops"),
        (ZOMBIE, "fencing", 1, "single faults"),
        (ORDER, "lost-update", 1, "single faults"),
    ],
)
def test_bugs_are_found_with_as_many_faults_as_they_need(toy: Toy, name: str, deviations: int, stage: str) -> None:
    """By the stage that is there for them, and shrunk to a schedule that still fails."""
    runner = ToyRunner(toy)
    result = crash_everywhere(runner)
    assert result.verdict is not None and result.verdict.name == name
    assert result.schedule is not None and len(result.schedule) == deviations
    stages = [one.name for one in result.stages if one.failed]
    assert stage in stages
    replayed = runner(result.schedule)
    assert replayed.verdict == result.verdict and replayed.unreached == ()
    assert result.run is not None and result.run.schedule == result.schedule
    assert result.shrunk is not None
    for necessity in result.shrunk.necessities:
        assert runner(necessity.without).verdict == necessity.outcome
        assert necessity.outcome is None


@pytest.mark.parametrize("toy", [RIGHT, ONE_FAULT, TWO_FAULTS, THREE_FAULTS])
def test_an_unpruned_run_finds_nothing_more(toy: Toy) -> None:
    """It runs all that is enumerated, and finds the same failures."""
    pruned = crash_everywhere(ToyRunner(toy))
    whole = crash_everywhere(ToyRunner(toy), prune=False)
    assert whole.pruned == 0 and whole.executed == whole.enumerated == pruned.enumerated
    assert whole.executed > 3 * pruned.executed
    assert [one.verdict.identity for one in whole.failures] == [one.verdict.identity for one in pruned.failures]


def test_states_of_the_protocol_prune_more_than_labels() -> None:
    """Where the runner tells states, one second fault per label, fault and state is run."""
    by_label = crash_everywhere(ToyRunner(TWO_FAULTS))
    by_state = crash_everywhere(ToyRunner(replace(TWO_FAULTS, states=True)))
    assert by_state.executed < by_label.executed and by_state.enumerated == by_label.enumerated
    assert [one.verdict.identity for one in by_state.failures] == [("property", "no-loss")]


def _broken(world: World, disk: Disk, process: Process) -> None:
    does(world, "sql.commit:shop", partial(disk.rows.append, 1))


def test_a_failure_without_faults_is_the_first_and_only_one() -> None:
    """Run 0; whatever else failed would say nothing about faults."""
    result = crash_everywhere(ToyRunner(Toy({"orders": _broken}, explore_toys.nothing_lost)))
    assert result.executed == 1 and result.verdict is not None and result.verdict.name == "no-loss"
    assert [one.number for one in result.failures] == [0]
    assert result.schedule == Schedule() and result.shrunk is not None and result.shrunk.necessities == ()


def test_the_matrix_has_each_crash_at_its_line() -> None:
    """Of the application's source, before and after, with the verdict of its run."""
    result = crash_everywhere(ToyRunner(ONE_FAULT))
    source = Path(explore_toys.__file__).read_text("utf-8").splitlines()
    assert len(result.matrix) == 2 * len(ToyRunner(ONE_FAULT)().history.points())
    for cell in result.matrix:
        file, _, line = cell.site.rpartition(":")
        assert file == explore_toys.__file__
        assert "world.enter" in source[int(line) - 1]
    bad = {(cell.deviation.address.label, cell.deviation.fault) for cell in result.matrix if cell.verdict is not None}
    assert bad == {("sql.commit:shop", Fault.CRASH_AFTER), ("broker.send:orders", Fault.CRASH_BEFORE)}


def test_an_exploration_ends_at_as_many_failures_as_were_asked_for() -> None:
    """Different ones; the runs behind the last of them do not count."""
    result = crash_everywhere(ToyRunner(ONE_FAULT), failures_max=1)
    assert result.end is End.ENOUGH
    assert result.executed == result.failures[0].number + 1 and result.failed == 1
    assert result.failures[0] == replace(crash_everywhere(ToyRunner(ONE_FAULT)).failures[0], times=1)


def test_an_exploration_ends_after_the_runs_it_is_allowed() -> None:
    """And is not vacuous for what it did not come to."""
    toy = replace(RIGHT, sometimes={"never": lambda disk: False})
    result = crash_everywhere(ToyRunner(toy), runs_max=20)
    assert result.end is End.CUT and result.executed == 20
    assert result.verdict is None and result.vacuous == ()
    assert "allowed" in result.summary()


def test_processes_are_killed_for_ever_only_if_asked() -> None:
    """Nothing can be expected in the end of what is gone."""
    kills = {Fault.KILL_BEFORE, Fault.KILL_AFTER}
    assert not {fault for _, fault in crash_everywhere(ToyRunner(RIGHT)).coverage.counts} & kills
    coverage = crash_everywhere(ToyRunner(RIGHT), without=()).coverage
    assert all(coverage.counts["sql.commit:shop", fault] for fault in kills)
    assert coverage.never == ()


def test_what_was_never_reached_is_listed() -> None:
    """An operation that only a recovery comes to is covered by second faults, and by nothing without."""
    toy = explore_toys.orders("once")
    label = "sql.update:marks"
    with_seconds = crash_everywhere(ToyRunner(toy)).coverage
    assert with_seconds.counts[label, Fault.CRASH_AFTER] > 0
    without = crash_everywhere(ToyRunner(toy), second_faults=False, crashes_of_a_loop=1).coverage
    assert (label, Fault.CRASH_AFTER) in without.never and (label, Fault.CRASH_AFTER) not in with_seconds.never


def test_what_never_occurred_makes_an_exploration_vacuous() -> None:
    """A `sometimes`, or a premise, that no run ever had; each by its name."""
    toy = replace(
        RIGHT,
        sometimes={"is restarted": lambda disk: disk.starts > 0, "sends": lambda disk: bool(disk.sent)},
        premises={"no-loss": lambda disk: len(disk.rows), "fencing": lambda disk: len(disk.effects)},
    )
    result = crash_everywhere(ToyRunner(toy))
    assert [(one.kind, one.name) for one in result.vacuous] == [
        (VerdictKind.VACUOUS, "is restarted"),
        (VerdictKind.VACUOUS, "fencing"),
    ]
    assert result.verdict == result.vacuous[0] and result.failures == ()
    assert result.premises["no-loss"] >= result.executed and result.sometimes["sends"] == result.executed


def test_what_occurs_in_one_run_alone_is_enough() -> None:
    """The sum over the exploration counts: a recovery is reached in the storm only."""
    toy = replace(THREE_FAULTS, sometimes={"is restarted often": lambda disk: disk.starts > 3})
    assert crash_everywhere(ToyRunner(toy), crashes_of_a_loop=5).vacuous == ()


class Forgetful(ToyRunner):
    """Keeps something between runs, which makes the second run longer."""

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult:
        count = self.runs + 1

        def main(world: World, disk: Disk, process: Process) -> None:
            for number in range(count):
                does(world, f"sql.commit:{number}", lambda: None, CRASHES)

        self.toy = Toy({"orders": main}, lambda disk: "")
        return super().__call__(schedule, tape, note_sites=note_sites)


def test_runs_that_differ_without_a_reason_are_no_exploration() -> None:
    """Two runs without faults are compared first."""
    with pytest.raises(SimulationError, match="two runs without faults differ"):
        crash_everywhere(Forgetful(RIGHT))


class Moody(ToyRunner):
    """Fails one run of all, whatever its schedule."""

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult:
        result = super().__call__(schedule, tape, note_sites=note_sites)
        if self.runs != 30:
            return result
        return replace(result, verdict=ToyRunner(ONE_FAULT)(Schedule.parse(LOSING)).verdict)


LOSING = "txbus schedule 1\norders/sql.commit:shop#1 crash-after\n"


def test_a_verdict_that_does_not_come_again_is_no_verdict() -> None:
    """It is said that the scenario is not deterministic, with the schedule."""
    with pytest.raises(SimulationError, match="two verdicts"):
        crash_everywhere(Moody(RIGHT))


class Watching(ToyRunner):
    """Counts the histories that are alive when a run begins."""

    most = 0

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult:
        if self.runs % 100 == 0:
            gc.collect()
            self.most = max(self.most, sum(type(one) is History for one in gc.get_objects()))
        return super().__call__(schedule, tape, note_sites=note_sites)


def test_histories_of_runs_are_dropped() -> None:
    """However many runs there were, passed or failed."""
    gc.collect()
    before = sum(type(one) is History for one in gc.get_objects())
    runner = Watching(TWO_FAULTS)
    assert crash_everywhere(runner, prune=False).executed > 1_000
    assert runner.most - before <= 3


def test_progress_is_told_in_lines_where_there_is_no_terminal() -> None:
    """None in a short exploration, and nothing of it changes the result."""
    stream = io.StringIO()
    assert crash_everywhere(ToyRunner(RIGHT), progress=stream) == crash_everywhere(ToyRunner(RIGHT))
    assert stream.getvalue().count("\n") < 5


def test_the_summary_names_what_failed_and_where_first() -> None:
    """In a few lines."""
    text = crash_everywhere(ToyRunner(TWO_FAULTS)).summary()
    assert "no-loss" in text and "first in run" in text and "pruned" in text
    assert text.count("\n") < 15


def test_a_single_operation_can_be_explored() -> None:
    """And one that has no fault to suffer."""

    def main(world: World, disk: Disk, process: Process) -> None:
        world.leave(world.enter("clock.sleep", ()))
        world.sleep_ns(MS)

    result = crash_everywhere(ToyRunner(Toy({"p": main}, lambda disk: "")))
    assert result.executed == 1 and result.verdict is None and result.end is End.COMPLETE
