"""Runs plain functions as simulated processes over a world of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from txbus_sim import _interpose, _memory
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.errors import NotModelled
from txbus_sim.faults import Faults
from txbus_sim.history import Logged
from txbus_sim.schedule import Address, Deviation

S = 1_000_000_000
Main = Callable[[], object] | str


class Run:
    """One run; the world is kept open until `end`, so that checks see it as it was."""

    def __init__(self, schedule: str = "", seed: int = 0, steps_max: int = 20_000) -> None:
        deviations = {one.address: one for one in map(Deviation.parse, schedule.strip().splitlines())}

        def tape(process: str, label: str, number: int, faults: Faults) -> Deviation | None:
            return deviations.get(Address(process, label, number))

        self.world = World(tape, seed=seed, limits=Limits(settle_ns=100 * S, steps_max=steps_max, raises_max=0))
        self.reason: StopReason | None = None

    def __call__(self, **mains: Main) -> Run:
        """Run these as processes by name; what one of them raised comes out."""
        self.run(mains)
        for process in self.world.processes:
            if process.error is not None:
                raise process.error
        return self

    def run(self, mains: Mapping[str, Main]) -> None:
        NotModelled.raised.clear()
        with _interpose.installed():
            self._run(mains)

    def _run(self, mains: Mapping[str, Main]) -> None:
        for name, main in mains.items():
            self.world.start(ProcessSpec(name, partial(_memory.live, main, (), {})))
        try:
            self.reason = self.world.run()
        finally:
            self.world.close()
            self.world.free()

    @property
    def logged(self) -> list[tuple[str, str, str, str]]:
        """Process, level, logger, text."""
        return [(one.process, one.level, one.logger, one.text) for one in self.world.history if type(one) is Logged]


def run(schedule: str = "", *, seed: int = 0, **mains: Main) -> Run:
    return Run(schedule, seed)(**mains)


def result(main: Callable[[], Any], schedule: str = "", seed: int = 0) -> Any:
    """What a function returns within a simulated process."""
    results: list[Any] = []
    run(schedule, seed=seed, main=lambda: results.append(main()))
    assert len(results) == 1, "it did not come to its end"
    return results[0]


def error(main: Callable[[], Any]) -> BaseException:
    """What a function raises within a simulated process."""
    made = Run()
    made.run({"main": main})
    found = made.world.processes[0].error
    assert found is not None, "nothing was raised"
    return found


def all_of(*calls: Callable[[], object]) -> list[object]:
    """Call them one after another; their results."""
    return [call() for call in calls]


__all__ = ["Process", "Run", "S", "all_of", "error", "result", "run"]
