"""What ``txbus sim`` does; loaded by its first command, because it loads the simulator."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from txbus.errors import ConfigurationError
from txbus_sim import _html, exploration
from txbus_sim._brokers import Broker
from txbus_sim._conduct import End
from txbus_sim._decorators import scenario_of
from txbus_sim._loading import load
from txbus_sim._runner import Runner, RunnerOptions
from txbus_sim.exploration import ExplorationResult
from txbus_sim.report import Told, look, render_exploration, render_failure
from txbus_sim.schedule import Schedule

__all__ = ["matrix", "replay", "run", "show"]


def run(
    scenario: str,
    broker: Broker | None,
    budget: int | None,
    seed: int,
    jobs: int,
    html: Path | None,
    save: Path | None,
) -> int:
    """Explore; the exit code."""
    function = load(scenario)
    name = _broker(broker, function)
    with Runner(scenario_of(function), RunnerOptions(broker=name)) as runner:
        if budget is None:
            result = exploration.crash_everywhere(runner, jobs=jobs, failures_max=1, progress=sys.stderr)
        else:
            result = exploration.explore(runner, budget, seed=seed, jobs=jobs, failures_max=1, progress=sys.stderr)
        _show(runner, result, scenario, name, html, save)
    return _exit_code(result)


def _broker(asked: str | None, function: Callable[..., object]) -> Broker:
    """The broker that was asked for, else the one that the test's decorator names."""
    name = asked or getattr(function, "txbus_sim_broker", "kafka")
    for known in get_args(Broker):
        if name == known:
            found: Broker = known
            return found
    raise ConfigurationError(f"broker {name!r} is not simulated: {', '.join(get_args(Broker))}")


def _exit_code(result: ExplorationResult) -> int:
    """1 for a failure, 130 for Ctrl-C before one was found."""
    if result.verdict is not None:
        return 1
    return 130 if result.end is End.INTERRUPTED else 0


def _show(
    runner: Runner, result: ExplorationResult, scenario: str, broker: str, html: Path | None, save: Path | None
) -> None:
    width, colour = look(sys.stdout)
    told = Told()
    if result.schedule is not None and result.verdict is not None:
        verdict = result.verdict
        file = save or Path(f"tests/schedules/{verdict.name.replace(':', '-')}.sched")
        told = Told(file=file, kept=save is not None)
        if save is not None:
            note = f"{verdict.sentence}\nscenario: {scenario}\nbroker: {broker}"
            save.write_text(str(Schedule(result.schedule.deviations, note)), encoding="utf-8")
    if html is not None:
        html.write_text(_html.render_exploration(result, runner, told), encoding="utf-8")
    print(render_exploration(result, told, width=width, colour=colour))


def replay(file: Path, scenario: str, broker: Broker | None, html: Path | None) -> int:
    """Run one schedule; the exit code."""
    schedule = Schedule.parse(file.read_text(encoding="utf-8"))
    noted = dict(line.split(": ", 1) for line in schedule.note.splitlines() if ": " in line)
    where = scenario or noted.get("scenario", "")
    if not where:
        raise ConfigurationError(f"{file} names no scenario; say which: txbus sim replay {file} package.module:name")
    function = load(where)
    name = _broker(broker or noted.get("broker"), function)
    with Runner(scenario_of(function), RunnerOptions(broker=name)) as runner:
        result = runner.replay(schedule, note_sites=True)
    told = Told(file=file, kept=True)
    width, colour = look(sys.stdout)
    if html is not None:
        html.write_text(_html.render_html(result, told), encoding="utf-8")
    if result.verdict is None:
        print(f"{file}: passes; {result.steps:,} operations, {result.virtual_ns / 1e9:.1f} s of virtual time")
        return 0
    print(render_failure(result, told, width=width, colour=colour))
    return 1


def matrix(scenario: str, broker: Broker | None, jobs: int, html: Path | None) -> int:
    """Crash at every operation; the exit code."""
    function = load(scenario)
    name = _broker(broker, function)
    with Runner(scenario_of(function), RunnerOptions(broker=name)) as runner:
        result = exploration.crash_everywhere(runner, jobs=jobs, second_faults=False, progress=sys.stderr)
        for cell in result.matrix:
            what = "passes" if cell.verdict is None else cell.verdict.name
            site = cell.site or "(no line of the application)"
            print(f"{what:<24} {cell.deviation.fault.value:<14} {cell.deviation.address}  {site}")
        if html is not None:
            html.write_text(_html.render_exploration(result, runner), encoding="utf-8")
    return _exit_code(result)


def show(file: Path) -> None:
    """Say what a schedule does."""
    schedule = Schedule.parse(file.read_text(encoding="utf-8"))
    for line in schedule.note.splitlines():
        print(f"# {line}")
    for deviation in schedule:
        address = deviation.address
        name, _, again = address.process.partition("+")
        who = f"process {name}" + (f", started anew {again} time{'' if again == '1' else 's'}" if again else "")
        print(f"{deviation}\n    {who}: at the {_ordinal(address.number)} {address.label}: {deviation.fault.value}")


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
