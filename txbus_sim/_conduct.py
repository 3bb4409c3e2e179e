"""Conducts an exploration: makes its runs in order, counts them, and ends when it is to end."""

from __future__ import annotations

import gc
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import TracebackType

from txbus_sim._parallel import Crew, Interrupt, crew
from txbus_sim._probe import Item, Probe, RunOnce, Summary, Wants
from txbus_sim._progress import Progress
from txbus_sim.errors import SimulationError
from txbus_sim.faults import Fault
from txbus_sim.result import RunResult, Verdict
from txbus_sim.schedule import Schedule
from txbus_sim.shrink import Shrunk, shrink_with
from txbus_sim.strategies import Guide, Strategy

__all__ = ["Conductor", "Coverage", "End", "Failure", "Over", "Stage"]


class End(Enum):
    """Why an exploration ended."""

    COMPLETE = "complete"
    """Everything that was to be run was run."""
    ENOUGH = "enough"
    """It found as many different failures as it was asked for."""
    CUT = "cut"
    """It made as many runs as it was allowed."""
    INTERRUPTED = "interrupted"
    """Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of an exploration. ``enumerated``: schedules there are; ``pruned``: left to one that
    stands for them."""

    name: str
    enumerated: int
    pruned: int
    executed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The first failure of its identity. ``number`` of its run in the exploration, from 0 (the run
    without faults); the same for any number of jobs."""

    number: int
    stage: str
    verdict: Verdict
    schedule: Schedule
    times: int = 1
    """Runs that failed so, this one included."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often each fault was placed at each label that offers it, zeros included."""

    counts: Mapping[tuple[str, Fault], int]

    @property
    def never(self) -> tuple[tuple[str, Fault], ...]:
        """What could have been placed and never was."""
        return tuple(pair for pair, count in self.counts.items() if not count)


class Over(Exception):
    """The exploration is to end; not an error."""


@dataclass(slots=True)
class _Counts:
    name: str
    enumerated: int
    pruned: int
    executed: int = 0
    failed: int = 0


@dataclass(slots=True)
class Tally:
    """What is summed up over all runs that count."""

    executed: int = 0
    failed: int = 0
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    sometimes: dict[str, int] = field(default_factory=dict)
    premises: dict[str, int] = field(default_factory=dict)
    offered: dict[tuple[str, Fault], None] = field(default_factory=dict)
    placed: dict[tuple[str, Fault], int] = field(default_factory=dict)

    def take(self, summary: Summary, stage: str) -> None:
        self.executed += 1
        self.offered.update(dict.fromkeys(summary.offered))
        for deviation in summary.placed:
            pair = (deviation.address.label, deviation.fault)
            self.placed[pair] = self.placed.get(pair, 0) + 1
        for sums, counts in ((self.sometimes, summary.sometimes), (self.premises, summary.premises)):
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
        if summary.verdict is not None:
            self.failed += 1
            known = self.failures.get(summary.verdict.identity)
            self.failures[summary.verdict.identity] = (
                Failure(summary.number, stage, summary.verdict, Schedule(summary.placed))
                if known is None
                else replace(known, times=known.times + 1)
            )


class Conductor:
    """A context: the workers live in it, and Ctrl-C asks for an end. Not inside of a run."""

    def __init__(
        self,
        runner: RunOnce,
        *,
        without: Collection[Fault],
        jobs: int,
        runs_max: int | None,
        failures_max: int | None,
        progress: Progress,
    ) -> None:
        self.tally = Tally()
        self.end = End.COMPLETE
        self.guide = Guide()
        """With the application's lines."""
        self._without = without
        self._runner = runner
        self._jobs = jobs
        self._runs_max = runs_max
        self._failures_max = failures_max
        self._progress = progress
        self._stages: dict[str, _Counts] = {}
        self._interrupt = Interrupt()
        self._workers: Crew[Item, Summary] | None = None
        self._began_s = time.monotonic()
        self._frozen = False

    def __enter__(self) -> Conductor:
        self._interrupt.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interrupt.ignore()
        try:
            if self._workers is not None:
                self._workers.close()
            self._progress.close()
        finally:
            if self._frozen:
                gc.unfreeze()
            self._interrupt.__exit__()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(s.name, s.enumerated, s.pruned, s.executed, s.failed) for s in self._stages.values())

    @property
    def seconds(self) -> float:
        """Of real time, for people."""
        return time.monotonic() - self._began_s

    def reference(self) -> RunResult:
        """The run without faults, twice: it is what everything else is compared with. Run 0."""
        self._progress.stage("without faults", 1)
        first = self._runner(Schedule())
        noted = self._runner(Schedule(), note_sites=True)
        _compare(first, noted)
        self.guide = Guide(noted.history.points(), self._without)
        self.tally.offered.update(dict.fromkeys(self.guide.pairs))
        summary = Summary(0, (), first.verdict, dict(first.sometimes), dict(first.premises))
        stage = self._stages["without faults"] = _Counts("without faults", 1, 0)
        self._count(summary, stage)
        # What all runs share lives as long as the exploration; the collector need not look at it.
        gc.collect()
        gc.freeze()
        self._frozen = True
        return noted

    def run(
        self,
        name: str,
        strategies: Iterable[Strategy],
        enumerated: int,
        *,
        pruned: int = 0,
        wants: Wants = Wants.VERDICT,
    ) -> Iterator[Summary]:
        """Make the runs of a stage; their summaries in order. Stages of one name are one stage.

        `Over` when the exploration is to end; what was run ahead of that does not count.
        """
        stage = self._stages.setdefault(name, _Counts(name, 0, 0))
        stage.enumerated += enumerated
        stage.pruned += pruned
        self._progress.stage(name, enumerated - pruned)
        begin = self.tally.executed
        items = (Item(number, strategy, wants) for number, strategy in enumerate(strategies, begin))
        self._look_for_end()
        runs = self.workers.map(items)
        try:
            for summary in runs:
                self._count(summary, stage)
                yield summary
                self._look_for_end()
        finally:
            runs.close()

    @property
    def workers(self) -> Crew[Item, Summary]:
        """Forked when they are first needed: the run without faults is known to them."""
        if self._workers is None:
            self._workers = crew(Probe(self._runner, self.guide), self._jobs)
        return self._workers

    def _count(self, summary: Summary, stage: _Counts) -> None:
        self.tally.take(summary, stage.name)
        stage.executed += 1
        stage.failed += summary.verdict is not None
        self._progress.ran(summary.verdict is not None)

    def _look_for_end(self) -> None:
        tally = self.tally
        if self._interrupt.asked:
            self.end = End.INTERRUPTED
        elif self._failures_max is not None and len(tally.failures) >= self._failures_max:
            self.end = End.ENOUGH
        elif self._runs_max is not None and tally.executed >= self._runs_max:
            self.end = End.CUT
        if self.end is not End.COMPLETE:
            raise Over

    # after the runs

    def shrink(self, failure: Failure, runs_max: int) -> Shrunk | None:
        """None after Ctrl-C: whoever asked for the end does not want to wait for it."""
        if self._interrupt.asked:
            return None
        self._progress.stage("shrinking", None)
        return shrink_with(self.workers, lambda one: self._runner(one).history, failure.schedule, runs_max)

    def replay(self, schedule: Schedule, verdict: Verdict) -> RunResult:
        """Run a failing schedule once more, with the application's lines, for its history.

        SimulationError if it comes to something else: then the run depends on something that the
        schedule does not decide.
        """
        result = self._runner(schedule, note_sites=True)
        if result.verdict is None or result.verdict.identity != verdict.identity:
            came = "it passed" if result.verdict is None else result.verdict.sentence
            raise SimulationError(
                f"the same schedule came to two verdicts, {verdict.sentence!r} and then: {came}. Something in "
                f"the scenario is not decided by its schedule, such as the order of a set:\n{schedule}"
            )
        return result

    def coverage(self) -> Coverage:
        tally = self.tally
        return Coverage({pair: tally.placed.get(pair, 0) for pair in tally.offered})


def _compare(first: RunResult, second: RunResult) -> None:
    """AssertionError would blame the simulator; a scenario that keeps something between its runs, or
    asks for what is not simulated, shows here first."""
    for number, (one, other) in enumerate(zip(first.history.points(), second.history.points(), strict=False), 1):
        if one[:4] != other[:4]:
            raise SimulationError(
                f"two runs without faults differ: operation {number} is {one.address} at {one.at_ns} ns in one, "
                f"{other.address} at {other.at_ns} ns in the other. Something in the scenario is not decided by "
                "the simulation: state kept between runs, the order of a set, a thread or a clock that is not simulated"
            )
    counts = [len(result.history.points()) for result in (first, second)]
    if counts[0] != counts[1]:
        raise SimulationError(
            f"two runs without faults differ: one has {counts[0]} operations, the other {counts[1]}. "
            "Something in the scenario is not decided by the simulation, such as state kept between runs"
        )
