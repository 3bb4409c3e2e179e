"""Explores a protocol scenario: single faults at the first operations of each sort, crash loops, then
random schedules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.simulation.protocol.scenarios import STALL_S, Scenario
from txbus_sim._conduct import Conductor, Failure, Over
from txbus_sim._probe import deviations_at
from txbus_sim._progress import Silent
from txbus_sim._runner import Runner, RunnerOptions
from txbus_sim._world import Tape
from txbus_sim.faults import Fault, Faults
from txbus_sim.history import Point
from txbus_sim.result import RunResult
from txbus_sim.schedule import Deviation, Schedule
from txbus_sim.simulation import Broker
from txbus_sim.strategies import KILLS, CrashLoop, Fixed, Random, Strategy

__all__ = ["SEED", "Explored", "ProtocolRunner", "every_single_fault", "explored", "open_runner", "single_faults"]

SEED: Final = 0
_S: Final = 1_000_000_000
FIRST_OF_A_LABEL: Final = 3
"""Operations of a process with one label that single faults hit; the later ones repeat these."""
SINGLES: Final = 250
"""Of the single faults of the default exploration; the others are left to chance, and to a soak."""
LOOPS: Final = 2
"""Crashes of a crash loop."""
DEVIATIONS_MAX: Final = 3
"""Of a random schedule: what a reader of a failure still follows."""


class ProtocolRunner:
    """Runs of a scenario in which no schedule has more than a few deviations.

    `Fault.MARKER_SKIPPED` is not placed where a broker transaction is ended: skipped at the relay's
    own repair of a take-over, it leaves the half partition stuck. What Kafka does there is still to be
    found out on the real broker; everywhere else the lost marker is explored.
    """

    def __init__(self, runner: Runner, stall_ns: int) -> None:
        self._runner = runner
        self.stall_ns = stall_ns

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult:
        if tape is None:
            return self._runner(schedule, note_sites=note_sites)
        return self._runner(schedule, _Bounded(tape, self.stall_ns), note_sites=note_sites)


class _Bounded:
    def __init__(self, tape: Tape, stall_ns: int) -> None:
        self._tape = tape
        self._stall_ns = stall_ns
        self._placed = 0

    def __call__(self, process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
        if self._placed >= DEVIATIONS_MAX:
            return None
        deviation = self._tape(process, label, number, possible(label, faults))
        if deviation is None:
            return None
        self._placed += 1
        return bounded(deviation, self._stall_ns)


def bounded(deviation: Deviation, stall_ns: int) -> Deviation:
    """The same fault, not longer than need be."""
    if deviation.fault in _STALLS and deviation.amount > stall_ns:
        return replace(deviation, amount=stall_ns)
    return deviation


_STALLS: Final = (Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY, Fault.LATE_END, Fault.CHECK_LATE)
_ENDS: Final = ("broker.abort:", "broker.commit:")


def possible(label: str, faults: Faults) -> Faults:
    """The faults of an operation without the one that is left out."""
    if label.startswith(_ENDS) and Fault.MARKER_SKIPPED in faults:
        return tuple(fault for fault in faults if fault is not Fault.MARKER_SKIPPED)
    return faults


@contextmanager
def open_runner(scenario: Scenario, broker: Broker) -> Iterator[ProtocolRunner]:
    with Runner(scenario, RunnerOptions(broker=broker, steps_max=20_000)) as runner:
        # A writer that stands still holds the embedded broker's file: the others only look at the lock.
        stall_s = min(scenario.stall_s, STALL_S) if broker == "embedded" else scenario.stall_s
        yield ProtocolRunner(runner, stall_s * _S)


def single_faults(points: Collection[Point], stall_ns: int, without: Collection[Fault] = KILLS) -> list[Deviation]:
    """Every fault at the first operations with each label of each process: first where something becomes
    durable, and there crashes first."""
    seen: dict[tuple[str, str], int] = {}
    found: list[Deviation] = []
    for point in points:
        times = seen[point.process, point.label] = seen.get((point.process, point.label), 0) + 1
        if times <= FIRST_OF_A_LABEL:
            faults = [fault for fault in possible(point.label, point.faults) if fault not in without]
            found += (bounded(one, stall_ns) for one in deviations_at(point.address, faults))
    return sorted(found, key=lambda one: (not _DURABLE.match(one.address.label), one.fault not in _CRASHES))


_CRASHES: Final = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
_DURABLE: Final = re.compile(
    r"sql\.commit:|embedded\.commit:bus\.(records|positions)|broker\."
    r"(append|report|send|prepare|finish|answer|ack|txn-send|positions|commit|abort)\b"
)


@dataclass(frozen=True, slots=True)
class Explored:
    """``executed`` counts every schedule, the one without faults included. ``sometimes`` and ``premises``:
    how often each occurred in all runs together."""

    scenario: str
    broker: Broker
    executed: int
    failures: tuple[Failure, ...]
    sometimes: Mapping[str, int]
    premises: Mapping[str, int]

    @property
    def never(self) -> list[str]:
        """Windows that no run reached."""
        return [name for name, times in self.sometimes.items() if not times]


def explored(
    scenario: Scenario,
    broker: Broker,
    schedules: int,
    *,
    jobs: int = 1,
    failures_max: int | None = None,
    seed: int = SEED,
) -> Explored:
    """The default exploration, with so many schedules: none, the first single faults, crash loops, and then
    random ones of the seed. A longer one begins with a shorter one. Ends at ``failures_max`` different
    failures."""
    with (
        open_runner(scenario, broker) as runner,
        Conductor(
            runner, without=KILLS, jobs=jobs, runs_max=schedules, failures_max=failures_max, progress=Silent()
        ) as conductor,
    ):
        reference = conductor.reference()
        alone = single_faults(reference.history.points(), runner.stall_ns)
        singles: list[Strategy] = [Fixed((one,)) for one in alone[:SINGLES]]
        loops: list[Strategy] = [CrashLoop(one, LOOPS) for one in alone if _worth_a_loop(one)]
        by_chance: list[Strategy] = [Random(seed, number) for number in range(1, schedules)]
        try:
            if reference.verdict is None:
                for name, strategies in (("single faults", singles), ("crash loops", loops), ("random", by_chance)):
                    _drain(conductor.run(name, strategies, len(strategies)))
        except Over:
            pass
        return _of(conductor, scenario, broker)


def every_single_fault(scenario: Scenario, broker: Broker, *, jobs: int, stride: int = 1) -> Explored:
    """Each of ``stride`` of all single faults."""
    with (
        open_runner(scenario, broker) as runner,
        Conductor(runner, without=KILLS, jobs=jobs, runs_max=None, failures_max=None, progress=Silent()) as conductor,
    ):
        alone = single_faults(conductor.reference().history.points(), runner.stall_ns)[::stride]
        _drain(conductor.run("single faults", [Fixed((one,)) for one in alone], len(alone)))
        return _of(conductor, scenario, broker)


def _of(conductor: Conductor, scenario: Scenario, broker: Broker) -> Explored:
    tally = conductor.tally
    return Explored(
        scenario.name,
        broker,
        tally.executed,
        tuple(tally.failures.values()),
        dict(tally.sometimes),
        dict(tally.premises),
    )


def _worth_a_loop(deviation: Deviation) -> bool:
    """At a statement of a handler's, or at a commit: the same crash in one incarnation after the other."""
    label, number = deviation.address.label, deviation.address.number
    return deviation.fault is Fault.CRASH_AFTER and number == 2 and label.startswith(("sql.insert:", "sql.commit:"))


def _drain(runs: Iterator[Any]) -> None:
    for _ in runs:
        pass
