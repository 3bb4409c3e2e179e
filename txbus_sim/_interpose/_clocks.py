"""Virtual time for `time` and `datetime`.

Wall-clock functions and `datetime` are patched by time-machine, in C, so that every reference to them
follows, however it was made; its traveller asks us for the time of each call (0.4 µs for `time.time`,
1.5 µs for `datetime.now`; nothing per run). What it leaves alone (`sleep`, `monotonic`,
`perf_counter`, CPU time, `ctime`) has stand-ins of ours.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import time_machine
from greenlet import getcurrent

from txbus_sim._interpose._patches import Patches
from txbus_sim._world import BEGAN_AT_WALL_NS, Strand, nanoseconds
from txbus_sim.faults import CRASHES, Fault, Faults

__all__ = ["patch_clocks", "wall_ns"]

_S = 1_000_000_000
_SLEEP: Faults = (*CRASHES, Fault.CLOCK_STEP)


def wall_ns(strand: Strand) -> int:
    """The wall clock of a strand's process."""
    process = strand.process
    return BEGAN_AT_WALL_NS + process.world.now_ns + process.wall_skew_ns


def patch_clocks(patches: Patches) -> None:
    _travel(patches)
    for name in ("monotonic_ns", "perf_counter_ns", "process_time_ns", "thread_time_ns"):
        _replace(patches, name, _now_ns)
    for name in ("monotonic", "perf_counter", "process_time", "thread_time"):
        _replace(patches, name, _now_s)
    _replace(patches, "sleep", _sleep)
    _replace(patches, "ctime", _ctime)
    _replace(patches, "asctime", _asctime)
    _replace(patches, "clock_gettime", _clock_gettime)
    _replace(patches, "clock_gettime_ns", _clock_gettime_ns)


def _replace(patches: Patches, name: str, call: Callable[..., Any]) -> None:
    original = getattr(time, name, None)
    if original is not None:
        patches.function(original, call)


def _travel(patches: Patches) -> None:
    """Have time-machine ask us; outside of processes time goes on as it did, also if it travelled."""
    real_ns: Callable[[], int] = time_machine.escape_hatch.time.time_ns
    if time_machine.escape_hatch.is_travelling():
        real_ns = time_machine.traveller_stack[-1].time_ns
    generate = getattr(uuid, "_generate_time_safe", None)
    travel = time_machine.travel(0, tick=False)
    traveller: Any = travel.start()
    # time-machine takes uuid's generator of C away; ours stands before it (see _chance).
    uuid._generate_time_safe = generate  # type: ignore[attr-defined]

    def time_ns() -> int:
        strand = getcurrent()
        return wall_ns(strand) if type(strand) is Strand else real_ns()

    traveller.time_ns = time_ns
    patches.undo_with(travel.stop)


def _now_ns(original: Callable[[], int]) -> int:
    strand = getcurrent()
    if type(strand) is Strand:
        return strand.process.world.now_ns
    return original()


def _now_s(original: Callable[[], float]) -> float:
    strand = getcurrent()
    if type(strand) is Strand:
        return strand.process.world.now_ns / _S
    return original()


def _sleep(original: Callable[[float], None], seconds: float, /) -> None:
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(seconds)
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    world = strand.process.world
    fault = world.enter("clock.sleep", _SLEEP)
    world.sleep_ns(nanoseconds(seconds))
    world.leave(fault)
    return None


def _ctime(original: Callable[..., str], seconds: float | None = None, /) -> str:
    # C reads the clock itself here; handing it ours is right outside of processes, too.
    return original(time.time() if seconds is None else seconds)


def _asctime(original: Callable[..., str], *when: Any) -> str:
    return original(*when) if when else original(time.localtime())


def _clock_gettime(original: Callable[[int], float], clock: int, /) -> float:
    strand = getcurrent()
    if type(strand) is Strand and clock != time.CLOCK_REALTIME:
        return strand.process.world.now_ns / _S
    return original(clock)


def _clock_gettime_ns(original: Callable[[int], int], clock: int, /) -> int:
    strand = getcurrent()
    if type(strand) is Strand and clock != time.CLOCK_REALTIME:
        return strand.process.world.now_ns
    return original(clock)
