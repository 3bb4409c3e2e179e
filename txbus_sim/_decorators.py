"""What a test writes above a scenario: explore it, and fail with a report that can be replayed."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from txbus.errors import ConfigurationError
from txbus_sim import _html, exploration, pytest_plugin
from txbus_sim._conduct import End
from txbus_sim._runner import Runner, RunnerOptions, Scenario
from txbus_sim._workload import with_workload
from txbus_sim.exploration import ExplorationResult
from txbus_sim.report import Told, render_exploration, render_failure, with_proof
from txbus_sim.result import RunResult, VerdictKind
from txbus_sim.schedule import Schedule
from txbus_sim.simulation import Broker

__all__ = ["SimulationFailed", "crash_everywhere", "explore", "replay", "scenario_of"]

Test = TypeVar("Test", bound=Callable[..., object])
_Explore = Callable[[Runner, pytest_plugin.Session], ExplorationResult]


class SimulationFailed(AssertionError):
    """A scenario failed under a schedule. Its text is the report."""


def crash_everywhere(
    *,
    broker: Broker = "kafka",
    prune: bool = True,
    second_faults: bool = True,
    runs_max: int | None = None,
    jobs: int | None = None,
    workloads: int = 3,
) -> Callable[[Test], Test]:
    """A test that crashes its scenario at every point, and hits it with every fault there.

    The function's first parameter is the `Simulation`; fixtures and parameters follow. Every point
    of the run without faults suffers every fault of the catalogue, then every point of each recovery a
    second one. ``prune``: of points that are alike, one. ``runs_max``: at most so many runs.
    ``workloads``: how many of Hypothesis's examples `Simulation.draw` is given; none if it is not called.
    """

    def how(runner: Runner, session: pytest_plugin.Session) -> ExplorationResult:
        return exploration.crash_everywhere(
            runner,
            prune=prune,
            second_faults=second_faults,
            runs_max=runs_max,
            failures_max=1,
            jobs=jobs or session.jobs,
            progress=_stream(),
        )

    return functools.partial(_decorated, broker=broker, how=how, workloads=workloads)


@overload
def explore(
    scenario: None = None,
    /,
    *,
    broker: Broker = ...,
    budget: int | None = ...,
    seed: int | None = ...,
    jobs: int | None = ...,
    workloads: int = ...,
) -> Callable[[Test], Test]: ...
@overload
def explore(
    scenario: Scenario,
    /,
    *,
    broker: Broker = ...,
    budget: int | None = ...,
    seed: int | None = ...,
    jobs: int | None = ...,
    workloads: int = ...,
) -> ExplorationResult: ...
def explore(
    scenario: Scenario | None = None,
    /,
    *,
    broker: Broker = "kafka",
    budget: int | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    workloads: int = 3,
) -> Any:
    """Random schedules of a scenario: a storm of faults and delays, then calm.

    Above a test, ``@explore(budget=2_000)``, it fails with the report; given a scenario,
    ``result = explore(scenario, budget=2_000)``, it returns what was found. ``budget``: how many
    schedules (default: of the profile, 500 or 5,000). The same seed gives the same schedules.
    """

    def how(runner: Runner, session: pytest_plugin.Session) -> ExplorationResult:
        return exploration.explore(
            runner,
            session.budget_given or budget or session.budget,
            seed=session.seed if seed is None else seed,
            failures_max=1,
            jobs=jobs or session.jobs,
            progress=_stream(),
        )

    if scenario is None:
        return functools.partial(_decorated, broker=broker, how=how, workloads=workloads)
    with Runner(scenario_of(scenario), RunnerOptions(broker=broker)) as runner:
        return how(runner, pytest_plugin.current())


def replay(file: str | Path, *, broker: Broker = "kafka") -> Callable[[Test], Test]:
    """A test that runs its scenario under one saved schedule, and without faults.

    ``file``: relative to the working directory or to the test's own folder. An address of it that is
    never reached is a failure: the code has changed, and the schedule proves nothing any more.
    """

    def decorate(function: Test) -> Test:
        path = _found(Path(file), function)

        def body(scenario: Scenario, draw: Callable[[Any], Any]) -> None:
            __tracebackhide__ = True
            schedule = Schedule.parse(path.read_text(encoding="utf-8"))
            with Runner(scenario, RunnerOptions(broker=broker), draw) as runner:
                _require(runner.replay(schedule, note_sites=True), Told(file=path, kept=True, command=_command(path)))

        return _wrapper(function, body, 1)

    return decorate


def scenario_of(function: Callable[..., object]) -> Scenario:
    """The scenario of a decorated test, or the function itself."""
    found: Scenario = getattr(function, "txbus_sim_scenario", function)
    return found


def _decorated(function: Test, *, broker: Broker, how: _Explore, workloads: int) -> Test:
    def body(scenario: Scenario, draw: Callable[[Any], Any]) -> None:
        __tracebackhide__ = True
        session = pytest_plugin.current()
        with Runner(scenario, RunnerOptions(broker=broker), draw) as runner:
            if session.replay is not None:
                schedule = Schedule.parse(session.replay.read_text(encoding="utf-8"))
                told = Told(file=session.replay, kept=True, command=_command(session.replay))
                _require(runner.replay(schedule, note_sites=True), told)
                return
            for path in session.cached():
                _try_again(runner, session, path)
            result = how(runner, session)
            if result.end is End.INTERRUPTED and result.verdict is None:
                raise KeyboardInterrupt(f"interrupted; so far {result.summary()}")
            if result.verdict is not None:
                _fail(runner, session, result, broker, function)

    wrapped = _wrapper(function, body, workloads)
    wrapped.txbus_sim_broker = broker  # type: ignore[attr-defined]
    return wrapped


def _wrapper(function: Test, body: Callable[[Scenario, Callable[[Any], Any]], None], workloads: int) -> Test:
    """A test of the function's other parameters, which pytest and Hypothesis supply."""
    if getattr(function, "is_hypothesis_test", False):
        raise ConfigurationError(
            f"{function.__name__}: put @given above the simulation's decorator, so that each example is explored; "
            "for values within the scenario use sim.draw(strategy)"
        )
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise ConfigurationError(f"{function.__name__}: its first parameter has to be the Simulation")
    first, *others = parameters

    @functools.wraps(function)
    def test(*arguments: Any, **keywords: Any) -> None:
        __tracebackhide__ = True

        def scenario(simulation: Any) -> object:
            return function(simulation, *arguments, **keywords)

        with_workload(lambda draw: body(scenario, draw), workloads)

    test.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
    del test.__wrapped__  # whoever looks at the original would ask for a fixture `sim`
    test.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != first.name}
    test.txbus_sim = True  # type: ignore[attr-defined]
    test.txbus_sim_scenario = function  # type: ignore[attr-defined]
    return test  # type: ignore[return-value]


def _try_again(runner: Runner, session: pytest_plugin.Session, path: Path) -> None:
    """A schedule with which this test failed in a session before."""
    __tracebackhide__ = True
    schedule = Schedule.parse(path.read_text(encoding="utf-8"))
    again = runner.replay(schedule, note_sites=True)
    if again.verdict is None or again.verdict.kind is VerdictKind.UNREACHED:
        session.forget(path)
        return
    _require(again, Told(file=path, kept=True, command=_command(path)))


def _fail(
    runner: Runner, session: pytest_plugin.Session, result: ExplorationResult, broker: str, function: Any
) -> None:
    __tracebackhide__ = True
    verdict, schedule = result.verdict, result.schedule
    assert verdict is not None
    path = None
    if schedule is not None:
        note = f"{verdict.sentence}\nscenario: {function.__module__}:{function.__qualname__}\nbroker: {broker}"
        name = f"{verdict.name}-{broker}".replace(":", "-")
        path = session.keep(name, str(Schedule(schedule.deviations, note)))
    told = Told(file=path, kept=path is not None, command=_command(path))
    if session.html is not None:
        session.html.write_text(_html.render_exploration(result, runner, told), encoding="utf-8")
    if result.run is None:
        raise SimulationFailed(render_exploration(result, told))
    # The whole summary would push the report out of sight; `txbus sim run` shows it.
    raise SimulationFailed(f"{render_failure(result.run, with_proof(result, told))}\n{result.summary()}")


def _require(run: RunResult, told: Told) -> None:
    __tracebackhide__ = True
    if run.verdict is not None:
        raise SimulationFailed(render_failure(run, told))


def _command(path: Path | None) -> str:
    node = pytest_plugin.current().node
    if path is None or not node:
        return ""
    return f"pytest {node!r} --sim-replay {str(path)!r}"


def _stream() -> Any:
    """Where progress is shown: nowhere under pytest, which keeps the terminal to itself."""
    return None if pytest_plugin.current().node else sys.stderr


def _found(file: Path, function: Callable[..., object]) -> Path:
    beside = Path(inspect.getfile(function)).parent / file
    return file if file.exists() or not beside.exists() else beside
