"""Runs a scenario under one tape and says what came of it."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from txbus_sim import _interpose, _memory, _servers, _sites, checkers
from txbus_sim._database import Databases, interposed
from txbus_sim._stuck import deadlock, who_waits
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, Tape, World
from txbus_sim.errors import MalformedHistory, NotModelled
from txbus_sim.history import FaultHappened
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Address, Schedule
from txbus_sim.simulation import Broker, Check, DeclaredProcess, Simulation
from txbus_sim.strategies import Replay

__all__ = ["Runner", "RunnerOptions", "Scenario"]

Scenario = Callable[[Simulation], object]
_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Bounds of each run. ``seed`` decides what processes draw from their own randomness."""

    broker: Broker = "kafka"
    seed: int = 0
    steps_max: int = 200_000
    virtual_s_max: float = 3_600.0


@dataclass(slots=True)
class _Seen:
    """What the user's properties came to during a run."""

    broken: Verdict | None = None
    sometimes: dict[str, int] = field(default_factory=dict)


class Runner:
    """One scenario, run as often as asked. Keeps what runs share: the databases' schemas, the drawn
    workload, and which rows and messages belong together. Use as a context; not thread-safe."""

    def __init__(
        self,
        scenario: Scenario,
        options: RunnerOptions | None = None,
        draw: Callable[[Any], Any] | None = None,
    ) -> None:
        self.scenario = scenario
        self.options = options or RunnerOptions()
        self._databases = Databases()
        self._draw_new = draw
        self._drawn: list[Any] = []
        self._draws = 0
        self._learned: tuple[checkers.Expectation, ...] | None = None
        self._stack = ExitStack()
        self._watched_in = 0

    def __enter__(self) -> Runner:
        self._stack.enter_context(_interpose.installed())
        self._stack.enter_context(interposed())
        self._stack.callback(self._databases.close)
        self._stack.callback(gc.enable if gc.isenabled() else gc.disable)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def replay(self, schedule: Schedule, *, note_sites: bool = False) -> RunResult:
        """Run a schedule; an address that was never reached is a failure of its own."""
        result = self(schedule, note_sites=note_sites)
        if result.verdict is None and result.unreached:
            names = ", ".join(map(str, result.unreached))
            verdict = Verdict(
                VerdictKind.UNREACHED,
                "unreached",
                f"the run never came to {names}; the code has changed, so find the failure anew and save it",
            )
            return RunResult(schedule, verdict, result.history, result.unreached, virtual_ns=result.virtual_ns)
        return result

    def __call__(self, schedule: Schedule | None = None, tape: Tape | None = None, **how: Any) -> RunResult:
        """One run, of a schedule or of a tape that chooses as it goes."""
        if self._learned is None:
            # Which rows and messages belong together shows in the run without faults.
            self._learned = ()
            self._learned = self._run(Replay(Schedule()), Schedule(), learn=True)[1]
        replay = Replay(schedule or Schedule())
        return self._run(tape or replay, schedule or Schedule(), unreached=replay.unreached, **how)[0]

    def _run(
        self,
        tape: Tape,
        schedule: Schedule,
        *,
        learn: bool = False,
        note_sites: bool = False,
        unreached: Callable[[], tuple[Address, ...]] = tuple,
    ) -> tuple[RunResult, tuple[checkers.Expectation, ...]]:
        self._watch()
        NotModelled.raised.clear()
        gc.disable()
        world = World(tape, seed=self.options.seed, note_sites=note_sites)
        self._draws = 0
        server = _servers.SERVERS[self.options.broker](world, self._databases.folder)
        simulation = Simulation(self.options.broker, self._databases, server.url, self._draw)
        simulation.history = world.history
        self.scenario(simulation)
        world.limits = Limits(
            settle_ns=round(simulation.settle_s * _S),
            time_ns_max=round(self.options.virtual_s_max * _S),
            steps_max=self.options.steps_max,
        )
        seen = _Seen(sometimes={name: 0 for name, _ in simulation.properties.sometimes})
        try:
            self._databases.begin_run(world)
            server.begin(simulation.topics)
            self._observe(world, simulation, seen)
            snapshot = _memory.Snapshot.take([p.target for p in simulation.processes if callable(p.target)])
            for declared in simulation.processes:
                world.start(self._spec(declared, seen))
            try:
                reason = world.run()
            except NotModelled:
                reason = StopReason.STOPPED  # a step that never ends, say; noted in `NotModelled.raised`
            stuck = deadlock(world) or (who_waits(world) if reason is StopReason.STUCK else None)
            world.close()
            shared = snapshot.changed()
            snapshot.restore()
            learned: tuple[checkers.Expectation, ...] = ()
            if learn and reason in (StopReason.QUIET, StopReason.FINISHED):
                learned = checkers.learn(world.history, self._databases)
            report = checkers.CheckReport((), {})
            verdict = self._of_the_run(world, reason, stuck, shared, seen) or self._of_the_checks(simulation, world)
            if verdict is None or verdict.kind is VerdictKind.ASSERTION:
                report = self._check(simulation, world, server.capabilities_of)
                verdict = verdict or (report.verdicts[0] if report.verdicts else None)
        finally:
            world.close()
            world.free()
            self._databases.end_run()
        result = RunResult(
            schedule,
            verdict,
            world.history,
            unreached(),
            seen.sometimes,
            report.premises,
            virtual_ns=world.now_ns,
            steps=world.steps,
        )
        return result, learned

    def _watch(self) -> None:
        """A look from outside at steps that hang, in each process of the exploration."""
        if self._watched_in != os.getpid():
            self._watched_in = os.getpid()
            self._stack.enter_context(_interpose.Watchdog(_tell_slow_step))

    # processes

    def _spec(self, declared: DeclaredProcess, seen: _Seen) -> ProcessSpec:
        restart_s = declared.restart_after_s
        return ProcessSpec(
            declared.name,
            partial(_memory.live, declared.target, declared.arguments, declared.keywords),
            restart_after_ns=None if restart_s is None else round(restart_s * _S),
            raised=partial(_raised, seen),
        )

    def _draw(self, strategy: Any) -> Any:
        """The workload: drawn in the first run, the same in every other."""
        if self._draws == len(self._drawn):
            if self._draw_new is None:
                raise NotModelled("sim.draw needs Hypothesis: use @given's data(), or crash_everywhere in pytest")
            self._drawn.append(self._draw_new(strategy))
        self._draws += 1
        return self._drawn[self._draws - 1]

    def _observe(self, world: World, simulation: Simulation, seen: _Seen) -> None:
        properties = simulation.properties

        def look() -> None:
            for name, check in properties.sometimes:
                if check():
                    seen.sometimes[name] += 1
            for name, check in properties.always:
                if seen.broken is None:
                    seen.broken = _outcome(name, check)

        if properties.sometimes or properties.always:
            world.observers.append(look)

    # verdicts

    def _of_the_run(
        self,
        world: World,
        reason: StopReason,
        stuck: Verdict | None,
        shared: list[_memory.Change],
        seen: _Seen,
    ) -> Verdict | None:
        if NotModelled.raised:
            return Verdict(VerdictKind.NOT_MODELLED, "not-modelled", str(NotModelled.raised[0]))
        if seen.broken is not None:
            return seen.broken
        if stuck is not None:
            return stuck
        if reason in (StopReason.STEPS, StopReason.TIME):
            bound = f"{world.steps} operations" if reason is StopReason.STEPS else f"{world.now_ns / _S:.0f} s"
            return Verdict(
                VerdictKind.LIVELOCK,
                "livelock",
                f"after {bound} of virtual time the run had not come to rest",
                tuple(who_waits(world).details),
            )
        faultless = not any(type(record) is FaultHappened for record in world.history)
        for process in world.processes:
            if process.error is not None and (faultless or reason is StopReason.RAISING):
                return _raised_verdict(process, faultless)
        if shared:
            change = shared[0]
            return Verdict(VerdictKind.SHARED_MEMORY, "shared-memory", str(change), tuple(map(str, shared)))
        return None

    def _of_the_checks(self, simulation: Simulation, world: World) -> Verdict | None:
        for name, check in (*simulation.properties.at_end, *simulation.properties.eventually):
            verdict = _outcome(name, check)
            if verdict is not None:
                return verdict
        return None

    def _check(
        self, simulation: Simulation, world: World, capabilities: checkers.CapabilitiesOf
    ) -> checkers.CheckReport:
        expectations = tuple(simulation.expectations) or self._learned or ()
        try:
            return checkers.check(world.history, self._databases, expectations, capabilities)
        except MalformedHistory as exc:
            return checkers.CheckReport((Verdict(VerdictKind.MALFORMED, "malformed-history", str(exc)),), {})


def _tell_slow_step(process: str, stack: str) -> None:
    print(
        f"txbus_sim: a step of process {process} has taken more than a second of real time; it stands at\n{stack}",
        file=sys.stderr,
    )


def _raised(seen: _Seen, process: Process, error: BaseException) -> None:
    """In the strand that raised: an assertion of the user's ends the run."""
    if isinstance(error, AssertionError) and seen.broken is None:
        seen.broken = _assertion(process.key, error)
        process.world.stop(StopReason.STOPPED)


def _raised_verdict(process: Process, faultless: bool) -> Verdict:
    error = process.error
    assert error is not None
    last = "".join(traceback.format_exception_only(error)).strip()
    when = "in a run without faults" if faultless else "again and again after the last fault"
    return Verdict(
        VerdictKind.RAISED,
        f"raised:{type(error).__name__}",
        f"process {process.key} raised {when}: {last}",
        tuple("".join(traceback.format_exception(error)).splitlines()),
        _site(error),
    )


def _outcome(name: str, check: Check) -> Verdict | None:
    """A verdict if a check does not hold."""
    try:
        if check() is not False:
            return None
    except AssertionError as exc:
        return _assertion(name, exc)
    return Verdict(VerdictKind.ASSERTION, name, f"{name} does not hold")


def _assertion(name: str, error: AssertionError) -> Verdict:
    # The first line is the user's; pytest adds an explanation, which the details have.
    text = str(error).strip().partition("\n")[0] or _source(error) or "an assertion does not hold"
    details = tuple("".join(traceback.format_exception(error)).splitlines())
    return Verdict(VerdictKind.ASSERTION, name, f"{name}: {text}", details, _site(error))


def _site(error: BaseException) -> str:
    """``file:line`` of the innermost frame of the application."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _sites.is_library(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _source(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _sites.is_library(f.filename)]
    return (frames[-1].line or "") if frames else ""
