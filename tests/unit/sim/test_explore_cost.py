"""What exploring costs besides the runs themselves, counted in calls, which no other load changes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

import txbus_sim
from tests.unit.sim.explore_toys import Disk, Toy, ToyRunner, does
from txbus_sim._world import Process, World
from txbus_sim.exploration import ExplorationResult, crash_everywhere, explore
from txbus_sim.faults import COMMIT

FOLDER = str(Path(txbus_sim.__file__).parent)
OURS = {"exploration.py", "strategies.py", "_conduct.py", "_probe.py", "_parallel.py", "_progress.py"}
POINTS = 100


def _main(world: World, disk: Disk, process: Process) -> None:
    for number in range(POINTS):
        does(world, f"sql.commit:{number % 10}", lambda: None, COMMIT)


def calls_of(search: Callable[[ToyRunner], ExplorationResult]) -> tuple[Counter[str], int, int]:
    """Python calls into the modules of exploration and into all others, and how many runs there were."""
    files: Counter[str] = Counter()
    cache: dict[str, str] = {}

    def seen(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            name = frame.f_code.co_filename
            files[cache.setdefault(name, Path(name).name if name.startswith(FOLDER) else "others")] += 1

    runner = ToyRunner(Toy({"p": _main}, lambda disk: ""))
    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        result = search(runner)
    finally:
        sys.setprofile(before)
    assert result.verdict is None
    ours = sum(count for name, count in files.items() if name in OURS)
    return files, ours, runner.runs


@pytest.mark.parametrize(
    "search",
    [
        partial(crash_everywhere, runs_max=300),
        partial(crash_everywhere, second_faults=False, runs_max=300),
        partial(explore, budget=300),
    ],
)
def test_exploring_costs_little_besides_the_runs(search: Callable[[ToyRunner], ExplorationResult]) -> None:
    """Three calls a point at most, the tape's included: a small part of what a run of nothing costs."""
    files, ours, runs = calls_of(search)
    assert runs >= 300
    assert set(files) >= OURS, "a module was renamed"
    assert files["strategies.py"] >= runs * POINTS / 2, "the calls of tapes are counted"
    assert ours / (runs * POINTS) < 3.0
    assert ours < 0.2 * sum(files.values())
