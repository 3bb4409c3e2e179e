"""Claims: the simulator reaches at least 200,000 bare scheduling points a second with its history on,
on one core; its memory stays flat over many runs; and an empty loop of sleeping tasks takes more steps
a second than under simloom (asyncio), side by side in one run.

A point is everything that a call of a model costs before the model itself: the address is counted,
the history noted, the tape asked, virtual time advanced, another strand resumed. ``--json`` prints
one object. simloom needs Python 3.12; without it, that comparison says so and is left out. Exits
with 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import resource
import statistics
import sys
import time

from txbus_sim._world import Limits, Process, ProcessSpec, World
from txbus_sim.faults import CRASHES, Faults
from txbus_sim.schedule import Deviation

POINTS_PER_S_MIN = 200_000
MEMORY_RATIO_MAX = 1.1


def no_fault(process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
    return None


def points_per_s(points: int, strands: int) -> float:
    """Every point is followed by a virtual wait, so that the strands really take turns."""
    world = World(no_fault, limits=Limits(steps_max=10 * points))

    def main(process: Process) -> None:
        for _ in range(points // strands):
            fault = world.enter("step", CRASHES)
            world.sleep_ns(1_000)
            world.leave(fault)

    for number in range(strands):
        world.start(ProcessSpec(f"p{number}", main))
    began = time.perf_counter()
    world.run()
    took = time.perf_counter() - began
    assert len(world.history.points()) == points // strands * strands
    world.close()
    world.free()
    return points / took


def memory_ratio(runs: int) -> float:
    """Resident memory after all runs against that after a tenth of them."""

    def one() -> None:
        world = World(no_fault)

        def main(process: Process) -> None:
            process.spawn(lambda: world.sleep_ns(10**12), "left over")
            for _ in range(5):
                world.leave(world.enter("step", CRASHES))
                world.sleep_ns(1_000)

        for number in range(3):
            world.start(ProcessSpec(f"p{number}", main))
        world.run()
        world.close()
        world.free()

    first = 0
    for number in range(runs):
        one()
        if number == runs // 10:
            gc.collect()
            first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / first


def sleeping_steps_per_s(tasks: int, sleeps: int) -> float:
    """Strands that do nothing but sleep, and a point before each sleep."""
    world = World(no_fault, limits=Limits(steps_max=10 * tasks * sleeps))

    def main(process: Process) -> None:
        def sleeper() -> None:
            for _ in range(sleeps):
                world.enter("sleep", CRASHES)
                world.sleep_ns(1_000_000)

        for number in range(tasks):
            process.spawn(sleeper, f"task{number}", daemon=False)

    world.start(ProcessSpec("p", main))
    began = time.perf_counter()
    world.run()
    took = time.perf_counter() - began
    world.close()
    world.free()
    return tasks * sleeps / took


def simloom_steps_per_s(tasks: int, sleeps: int) -> float:
    """The same tasks as coroutines under simloom, one universe."""
    import asyncio

    import simloom  # type: ignore[import-not-found]

    async def sleeper() -> None:
        for _ in range(sleeps):
            await asyncio.sleep(0.001)

    async def main() -> None:
        await asyncio.gather(*(sleeper() for _ in range(tasks)))

    began = time.perf_counter()
    simloom.run(main, seed=1)
    return tasks * sleeps / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=600_000)
    parser.add_argument("--runs", type=int, default=100_000, help="for the memory figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one object")
    arguments = parser.parse_args()
    figures: dict[str, float] = {
        "points_per_s": statistics.median(points_per_s(arguments.points, 3) for _ in range(arguments.rounds)),
        "memory_ratio": memory_ratio(arguments.runs),
    }
    if importlib.util.find_spec("simloom") is not None:
        pairs = [(sleeping_steps_per_s(10, 5_000), simloom_steps_per_s(10, 5_000)) for _ in range(arguments.rounds)]
        figures["steps_per_s"], figures["simloom_steps_per_s"] = map(statistics.median, zip(*pairs, strict=True))
        figures["steps_ratio"] = statistics.median(ours / theirs for ours, theirs in pairs)
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(f"points {figures['points_per_s']:,.0f}/s (at least {POINTS_PER_S_MIN:,})")
        print(
            f"memory after {arguments.runs:,} runs {figures['memory_ratio']:.3f} times that after a tenth of them "
            f"(at most {MEMORY_RATIO_MAX})"
        )
        if "steps_ratio" in figures:
            print(
                f"sleeping tasks: {figures['steps_per_s']:,.0f} steps/s, simloom "
                f"{figures['simloom_steps_per_s']:,.0f} steps/s, ratio {figures['steps_ratio']:.1f}"
            )
        else:
            print("sleeping tasks: simloom is not installed (pip install simloom, Python 3.12): not compared")
    kept = (
        figures["points_per_s"] >= POINTS_PER_S_MIN
        and figures["memory_ratio"] <= MEMORY_RATIO_MAX
        and figures.get("steps_ratio", 2.0) > 1.0
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
