"""Small services directly over a world, each with a bug that needs a number of faults, or with none."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, Tape, World
from txbus_sim.faults import COMMIT, CRASHES, REQUEST, Fault, Faults
from txbus_sim.history import FaultHappened, History
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Schedule
from txbus_sim.strategies import Replay

S = 1_000_000_000
MS = 1_000_000


@dataclass
class Disk:
    """What survives a crash."""

    rows: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    starts: int = 0
    owner: str = ""
    owned_until_ns: int = 0
    effects: list[str] = field(default_factory=list)


Main = Callable[[World, Disk, Process], object]
Check = Callable[[Disk], str]
"""What is wrong at the end, as ``name: sentence``; empty if nothing is."""


@dataclass(frozen=True)
class Toy:
    """A scenario: processes by name, what must hold, and what has to occur sometimes."""

    processes: dict[str, Main]
    check: Check
    sometimes: dict[str, Callable[[Disk], bool]] = field(default_factory=dict)
    premises: dict[str, Callable[[Disk], int]] = field(default_factory=dict)
    settle_ns: int = 5 * S
    states: bool = False


class ToyRunner:
    """Runs a toy; counts its runs. The protocol of `txbus_sim.exploration.RunOnce`."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.runs = 0

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult:
        self.runs += 1
        replay = Replay(schedule or ())
        disk = Disk()
        limits = Limits(settle_ns=self.toy.settle_ns, steps_max=2_000)
        world = World(tape or replay, limits=limits, note_sites=note_sites)
        world.services["disk"] = disk
        for name, main in self.toy.processes.items():
            world.start(ProcessSpec(name, partial(main, world, disk)))
        reason = world.run()
        world.close()
        verdict = self._verdict(world, reason, disk)
        result = RunResult(
            schedule or Schedule(),
            verdict,
            world.history,
            replay.unreached(),
            {name: int(true(disk)) for name, true in self.toy.sometimes.items()},
            {name: count(disk) for name, count in self.toy.premises.items()},
            # As a digest of a protocol's state would be: the operation's label says all there is.
            {p.address: p.label for p in world.history.points()} if self.toy.states else {},
            virtual_ns=world.now_ns,
            steps=world.steps,
        )
        world.free()
        return result

    def _verdict(self, world: World, reason: StopReason, disk: Disk) -> Verdict | None:
        if reason is StopReason.STEPS:
            return Verdict(VerdictKind.LIVELOCK, "livelock", "it goes on for ever")
        if reason is StopReason.STUCK:
            return Verdict(VerdictKind.STUCK, "stuck", "somebody waits for ever")
        if any(fault in one for one in happened(world.history) for fault in ("kill-before", "kill-after")):
            # What should happen in the end is nobody's duty any more.
            return None
        name, _, sentence = self.toy.check(disk).partition(": ")
        return Verdict(VerdictKind.PROPERTY, name, sentence) if name else None


def does(world: World, label: str, effect: Callable[[], object], faults: Faults = COMMIT) -> None:
    """An operation whose effect is durable."""
    fault = world.enter(label, faults)
    world.sleep_ns(MS)
    if fault is Fault.FAIL or fault is Fault.DROP or fault is Fault.REQUEST_LOST:
        raise OSError(f"{label}: {fault.value}")
    effect()
    world.progress()
    if fault is Fault.ANSWER_LOST:
        raise OSError(f"{label}: {fault.value}")
    world.leave(fault)


ORDERS = 3


def order_service(world: World, disk: Disk, process: Process, *, recovers: str) -> None:
    """Writes orders and tells of each; what it does about untold ones when it starts is its quality."""
    untold = [row for row in disk.rows if row not in disk.sent]
    if recovers == "at its second try at most":
        does(world, "sql.commit:starts", lambda: setattr(disk, "starts", disk.starts + 1), CRASHES)
        untold = untold if disk.starts < 4 else []
    for row in untold if recovers != "never" else []:
        if recovers == "once":
            if row in disk.marks:
                continue
            does(world, "sql.update:marks", partial(disk.marks.append, row), CRASHES)
        does(world, "broker.send:orders", partial(disk.sent.append, row), REQUEST)
    for row in range(ORDERS):
        if row not in disk.rows:
            does(world, "sql.commit:shop", partial(disk.rows.append, row))
            does(world, "broker.send:orders", partial(disk.sent.append, row), REQUEST)
        world.sleep_ns(S)


def nothing_lost(disk: Disk) -> str:
    lost = [row for row in disk.rows if row not in disk.sent]
    return f"no-loss: order {lost[0]} was never told" if lost else ""


def orders(recovers: str, **more: object) -> Toy:
    return Toy({"orders": partial(order_service, recovers=recovers)}, nothing_lost, **more)  # type: ignore[arg-type]


RIGHT = orders("always")
ONE_FAULT = orders("never")
"""It forgets what it wrote and did not tell."""
TWO_FAULTS = orders("once")
"""It marks what it is about to tell again, and never looks at what is marked."""
THREE_FAULTS = orders("at its second try at most")
"""It gives up where it has been started too often."""


def worker(world: World, disk: Disk, process: Process) -> None:
    """Works while it has a lease, and does not look at the clock before its effect."""
    for _ in range(4):
        if disk.owned_until_ns <= world.now_ns or disk.owner == process.key:
            disk.owner, disk.owned_until_ns = process.key, world.now_ns + 30 * S
            does(world, "sql.commit:lease", lambda: None, CRASHES)
            does(world, "sql.commit:effect", partial(_effect, disk, process), CRASHES)
        world.sleep_ns(40 * S)


def _effect(disk: Disk, process: Process) -> None:
    disk.effects.append(f"{process.key} {disk.owner}")


def only_owners(disk: Disk) -> str:
    wrong = [one for one in disk.effects if len(set(one.split())) > 1]
    return f"fencing: {wrong[0].split()[0]} worked on what was not its own" if wrong else ""


ZOMBIE = Toy({"left": worker, "right": worker}, only_owners, settle_ns=60 * S)


def racer(world: World, disk: Disk, process: Process) -> None:
    """Each writes once; the second to come overwrites what it did not read."""
    seen = len(disk.effects)
    fault = world.enter("sql.select:effects", (Fault.DELAY,))
    world.leave(fault)
    does(world, "sql.commit:effects", lambda: disk.effects.append(f"{seen}"), (Fault.DELAY,))


def _late_racer(world: World, disk: Disk, process: Process) -> None:
    world.sleep_ns(500 * MS)
    racer(world, disk, process)


def no_lost_update(disk: Disk) -> str:
    return "lost-update: both read before one wrote" if len(set(disk.effects)) < len(disk.effects) else ""


ORDER = Toy({"first": racer, "second": _late_racer}, no_lost_update)
"""Right as long as the first is half a second ahead."""


def _die(world: World, disk: Disk, process: Process) -> None:
    """A defect of an interpreter or a library: the second incarnation takes the worker with it."""
    if process.incarnation:
        os._exit(3)
    does(world, "sql.commit:shop", lambda: None, CRASHES)


DEADLY = Toy({"orders": _die}, lambda disk: "")


def happened(history: History) -> list[str]:
    """The faults that took place in a run."""
    return [f"{one.address} {one.fault.value}" for one in history if isinstance(one, FaultHappened)]
