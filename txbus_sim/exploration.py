"""Explores the runs of a scenario: every fault at every point, or random ones, and sums up what they show.

::

    result = crash_everywhere(runner, jobs=2)
    result = explore(runner, budget=2_000)
    assert result.verdict is None, result.summary()

Verdicts, counts and the first failure are the same for any number of jobs, and under any PYTHONHASHSEED.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple, TextIO, TypeVar

from txbus_sim._conduct import Conductor, Coverage, End, Failure, Over, Stage
from txbus_sim._probe import RunOnce, Summary, Wants, deviations_at
from txbus_sim._progress import progress_on
from txbus_sim.faults import Fault
from txbus_sim.history import Point
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Address, Deviation, Schedule
from txbus_sim.shrink import RUNS_MAX, Shrunk
from txbus_sim.strategies import KILLS, CrashLoop, Family, Fixed, Random, Strategy, family

__all__ = [
    "CRASHES_OF_A_LOOP",
    "Coverage",
    "CrashCell",
    "End",
    "ExplorationResult",
    "Failure",
    "RunOnce",
    "Stage",
    "crash_everywhere",
    "explore",
]

T = TypeVar("T")
CRASHES_OF_A_LOOP: Final = 4
_CRASHES: Final = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
_UNPRUNED_CHUNK: Final = 32
"""First faults whose second faults are run together, where all of them are: memory stays flat."""
_NEVER_SHOWN: Final = 8


class CrashCell(NamedTuple):
    """One crash of the matrix: the application's line (``file:line``, "" if the operation is no line of
    its), the crash, and the verdict of its run, None if it passed."""

    site: str
    deviation: Deviation
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class ExplorationResult:
    """What an exploration came to. Equal for equal explorations, whatever ``jobs`` was.

    ``failures``: the first of each identity, by number of the run; the first one is ``shrunk``, and
    ``run`` is the run of the shortest schedule, with the application's lines. Both are None if nothing
    failed; ``shrunk`` also after Ctrl-C. ``sometimes`` and ``premises`` are summed up over all runs.
    ``vacuous`` is decided only by an exploration that is complete and found nothing else.
    """

    kind: str
    seed: int
    end: End
    stages: tuple[Stage, ...]
    failures: tuple[Failure, ...]
    shrunk: Shrunk | None
    vacuous: tuple[Verdict, ...]
    coverage: Coverage
    sometimes: Mapping[str, int]
    premises: Mapping[str, int]
    matrix: tuple[CrashCell, ...] = ()
    run: RunResult | None = field(default=None, compare=False, repr=False)
    jobs: int = field(default=1, compare=False)
    seconds: float = field(default=0.0, compare=False)
    """Of real time, for display."""

    @property
    def enumerated(self) -> int:
        return sum(stage.enumerated for stage in self.stages)

    @property
    def pruned(self) -> int:
        return sum(stage.pruned for stage in self.stages)

    @property
    def executed(self) -> int:
        return sum(stage.executed for stage in self.stages)

    @property
    def failed(self) -> int:
        return sum(stage.failed for stage in self.stages)

    @property
    def passed(self) -> int:
        return self.executed - self.failed

    @property
    def verdict(self) -> Verdict | None:
        """Of the exploration: its first failure, else the first vacuous property; None if all is well."""
        if self.run is not None:
            return self.run.verdict
        if self.failures:
            return self.failures[0].verdict
        return self.vacuous[0] if self.vacuous else None

    @property
    def schedule(self) -> Schedule | None:
        """The shortest that fails; None if none does."""
        if self.shrunk is not None:
            return self.shrunk.schedule
        return self.failures[0].schedule if self.failures else None

    def summary(self) -> str:
        """A few lines for people: what was run, what failed, what was never reached."""
        rate = self.executed / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.kind}: {self.executed:,} runs in {self.seconds:.1f} s ({rate:,.0f}/s, {self.jobs} "
            f"job{'' if self.jobs == 1 else 's'}): {self.passed:,} passed, {self.failed:,} failed; "
            f"{self.enumerated:,} enumerated, {self.pruned:,} pruned"
        ]
        left = self.enumerated - self.pruned - self.executed
        if self.end is not End.COMPLETE:
            why = {
                End.ENOUGH: "ended at the failures it was asked for",
                End.CUT: "ended at the runs it was allowed",
                End.INTERRUPTED: "interrupted",
            }[self.end]
            lines.append(f"  {why}; {left:,} not run, and what follows from them not enumerated")
        for stage in self.stages:
            lines.append(f"  {stage.name}: {stage.executed:,} run, {stage.pruned:,} pruned, {stage.failed:,} failed")
        for failure in self.failures:
            verdict = failure.verdict
            first = f"first in run {failure.number}, {failure.stage}"
            lines.append(f"  {failure.times:,} failed so ({first}): {verdict.name}: {verdict.sentence}")
        lines += [f"  vacuous: {verdict.sentence}" for verdict in self.vacuous]
        never = self.coverage.never
        if never:
            shown = ", ".join(f"{label} {fault.value}" for label, fault in never[:_NEVER_SHOWN])
            more = f" and {len(never) - _NEVER_SHOWN:,} more" if len(never) > _NEVER_SHOWN else ""
            lines.append(f"  never placed: {shown}{more}")
        return "\n".join(lines)


def crash_everywhere(
    runner: RunOnce,
    *,
    without: Collection[Fault] = KILLS,
    prune: bool = True,
    second_faults: bool = True,
    crashes_of_a_loop: int = CRASHES_OF_A_LOOP,
    jobs: int = 1,
    runs_max: int | None = None,
    failures_max: int | None = None,
    shrink_runs_max: int = RUNS_MAX,
    progress: TextIO | None = None,
) -> ExplorationResult:
    """Run every single fault at every point of the run without faults, crashes first; crash loops; and
    a second fault at the points of the recovery that the first one caused.

    Of second faults that hit the same operation (its label, whether its process was started anew) with
    the same fault after the same sort of first fault at the same label, one is run; of those in the
    same state of the protocol, where the runner tells states. Of crash loops, those at the first and at
    the last operation with a label. ``prune`` False runs them all. Faults in ``without`` are placed
    nowhere. ``runs_max`` and ``failures_max``
    (different ones) end it early. Blocks; Ctrl-C ends it with what is known.
    """
    cells: list[CrashCell] = []

    def plan(conductor: Conductor) -> None:
        _Crashes(conductor, prune, second_faults, cells).run(crashes_of_a_loop)

    conductor = Conductor(
        runner,
        without=without,
        jobs=jobs,
        runs_max=runs_max,
        failures_max=failures_max,
        progress=progress_on(progress),
    )
    return _conduct("crash_everywhere", conductor, plan, 0, jobs, shrink_runs_max, cells)


def explore(
    runner: RunOnce,
    budget: int,
    *,
    seed: int = 0,
    without: Collection[Fault] = KILLS,
    jobs: int = 1,
    failures_max: int | None = None,
    shrink_runs_max: int = RUNS_MAX,
    progress: TextIO | None = None,
) -> ExplorationResult:
    """Run ``budget`` random schedules besides the run without faults; equal seeds give equal ones.

    How they are drawn: `txbus_sim.strategies.RandomTape`. A longer exploration begins with a shorter
    one of the same seed. Blocks; Ctrl-C ends it with what is known.
    """

    def plan(conductor: Conductor) -> None:
        strategies = (Random(seed, number) for number in range(1, budget + 1))
        _drain(conductor.run("random", strategies, budget))

    conductor = Conductor(
        runner, without=without, jobs=jobs, runs_max=None, failures_max=failures_max, progress=progress_on(progress)
    )
    return _conduct("explore", conductor, plan, seed, jobs, shrink_runs_max, [])


def _conduct(
    kind: str,
    conductor: Conductor,
    plan: Callable[[Conductor], None],
    seed: int,
    jobs: int,
    shrink_runs_max: int,
    cells: list[CrashCell],
) -> ExplorationResult:
    with conductor:
        reference = conductor.reference()
        tally = conductor.tally
        if reference.verdict is not None:
            # Whatever else fails then says nothing about faults.
            conductor.end = End.ENOUGH
        else:
            try:
                plan(conductor)
            except Over:
                pass
        failures = tuple(tally.failures.values())
        shrunk: Shrunk | None = None
        run: RunResult | None = None
        if failures:
            first = failures[0]
            run = conductor.replay(first.schedule, first.verdict)
            shrunk = conductor.shrink(first, shrink_runs_max)
            if shrunk is not None and shrunk.schedule != first.schedule:
                run = conductor.replay(shrunk.schedule, first.verdict)
        decided = conductor.end is End.COMPLETE and not failures
        return ExplorationResult(
            kind=kind,
            seed=seed,
            end=conductor.end,
            stages=conductor.stages,
            failures=failures,
            shrunk=shrunk,
            vacuous=tuple(_vacuous(conductor)) if decided else (),
            coverage=conductor.coverage(),
            sometimes=dict(tally.sometimes),
            premises=dict(tally.premises),
            matrix=tuple(cells),
            run=run,
            jobs=jobs,
            seconds=conductor.seconds,
        )


def _vacuous(conductor: Conductor) -> Iterator[Verdict]:
    tally = conductor.tally
    for name, count in tally.sometimes.items():
        if not count:
            yield Verdict(
                VerdictKind.VACUOUS, name, f"sometimes {name}: it was true in none of {tally.executed:,} runs"
            )
    for name, count in tally.premises.items():
        if not count:
            yield Verdict(
                VerdictKind.VACUOUS,
                name,
                f"{name} was never put to the test: its premise occurred in none of {tally.executed:,} runs",
            )


class _Sort(NamedTuple):
    """What second faults have in common of which one is run."""

    label: str
    fault: Fault
    amount: int
    state: str
    later: bool
    after: tuple[str, Family] | None


class _Crashes:
    """The plan of `crash_everywhere`."""

    def __init__(self, conductor: Conductor, prune: bool, second_faults: bool, cells: list[CrashCell]) -> None:
        self._conductor = conductor
        self._prune = prune
        self._second_faults = second_faults
        self._cells = cells
        self._met: set[_Sort] = set()
        self._seconds: list[Strategy] = []
        self._seconds_enumerated = 0

    def run(self, crashes_of_a_loop: int) -> None:
        points = self._conductor.guide.points
        crashes = [
            (point, deviation)
            for point in points
            for deviation in deviations_at(point.address, [fault for fault in point.faults if fault in _CRASHES])
        ]
        self._singles("crashes", crashes, matrix=True)
        others = [
            (point, deviation)
            for point in points
            for deviation in deviations_at(point.address, [fault for fault in point.faults if fault not in _CRASHES])
        ]
        self._singles("single faults", others, matrix=False)
        if crashes_of_a_loop > 1:
            self._loops(crashes, crashes_of_a_loop)
        self._run_seconds()

    def _singles(self, name: str, singles: list[tuple[Point, Deviation]], *, matrix: bool) -> None:
        wants = Wants.VERDICT if not self._second_faults else Wants.RECOVERY if self._prune else Wants.EVERY_POINT
        remaining = iter(singles)
        while chunk := list(islice(remaining, len(singles) if self._prune else _UNPRUNED_CHUNK)):
            strategies = (Fixed((deviation,)) for _, deviation in chunk)
            runs = self._conductor.run(name, strategies, len(chunk), wants=wants)
            for (point, deviation), summary in zip(chunk, runs, strict=True):
                if matrix:
                    self._cells.append(CrashCell(point.site, deviation, summary.verdict))
                self._enumerate_seconds(summary)
            if not self._prune:
                self._run_seconds()

    def _enumerate_seconds(self, summary: Summary) -> None:
        self._seconds_enumerated += summary.enumerated
        for at in summary.recovered:
            first = summary.placed[0]
            after = None if at.state else (first.address.label, family(first.fault))
            later = at.later and not at.state
            for second in deviations_at(Address(at.process, at.label, at.number), at.faults):
                sort = _Sort(at.label, second.fault, second.amount, at.state, later, after)
                if self._prune and sort in self._met:
                    continue
                self._met.add(sort)
                self._seconds.append(Fixed((first, second)))

    def _run_seconds(self) -> None:
        seconds, self._seconds = self._seconds, []
        enumerated, self._seconds_enumerated = self._seconds_enumerated, 0
        if enumerated:
            _drain(self._conductor.run("second faults", seconds, enumerated, pruned=enumerated - len(seconds)))

    def _loops(self, crashes: list[tuple[Point, Deviation]], times: int) -> None:
        """At the first and the last operation with a label: the others repeat what these do."""
        ends: dict[tuple[str, str, Fault], tuple[Deviation, ...]] = {}
        for point, deviation in crashes:
            sort = (point.process, point.label, deviation.fault)
            ends[sort] = (*ends.get(sort, ())[:1], deviation)
        chosen = [d for both in ends.values() for d in both] if self._prune else [d for _, d in crashes]
        strategies = (CrashLoop(deviation, times) for deviation in chosen)
        _drain(self._conductor.run("crash loops", strategies, len(crashes), pruned=len(crashes) - len(chosen)))


def _drain(runs: Iterable[T]) -> None:
    for _ in runs:
        pass
