"""One run's world: virtual time, processes and their strands, and the points where they can crash.

Everything happens in one thread of the interpreter. A *strand* is a thread of control of a simulated
process, a greenlet; it runs until it waits, then the strand that became runnable first goes on, and
when none can, time jumps to the next timer. Nothing else chooses: what a run does follows from the
scenario and its schedule.

Models of brokers, databases and files, and the stand-ins of `time` and `threading`, are written
against four calls: `World.enter` and `World.leave` around an operation, `World.sleep_ns`, and
`World.park` with `World.unpark`.
"""

from __future__ import annotations

import random
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush
from types import FrameType
from typing import Any, Protocol

from greenlet import getcurrent, greenlet

from txbus_sim import _sites
from txbus_sim.errors import ProcessIsDead
from txbus_sim.faults import Fault, Faults
from txbus_sim.history import FaultHappened, History, Point, ProcessEnded, ProcessStarted
from txbus_sim.schedule import Deviation

__all__ = [
    "BEGAN_AT_WALL_NS",
    "Process",
    "ProcessSpec",
    "StopReason",
    "Strand",
    "Tape",
    "Wait",
    "World",
    "current_process",
    "current_strand",
    "nanoseconds",
]

BEGAN_AT_WALL_NS = 1_767_225_600 * 1_000_000_000
"""Every run begins at 2026-01-01T00:00:00Z."""
_INERT_CALLS_MAX = 1_000
_SAY_NS = 2_000_000_000
"""How long a main thread that has slept through the last durable change has to make one of its own."""
_FIRST_PID = 1_000


class Tape(Protocol):
    """Where every choice comes from. ``faults`` are those that the operation can be hit by."""

    def __call__(self, process: str, label: str, number: int, faults: Faults, /) -> Deviation | None: ...


class StopReason(Enum):
    """Why a run came to its end."""

    QUIET = "quiet"
    """Nothing durable happened for the settling time, and no fault or restart was pending."""
    FINISHED = "finished"
    """Every process has ended and nothing is to come."""
    STUCK = "stuck"
    """Somebody waits for ever, and nobody is left who could wake them."""
    STEPS = "steps"
    """The step budget was used up: a livelock, or a budget that is too small."""
    TIME = "time"
    """The limit of virtual time was reached while something durable still happened."""
    RAISING = "raising"
    """A process is started anew and raises, again and again, without a fault."""
    STOPPED = "stopped"
    """The simulation itself asked for it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a strand waits for: ``kind`` such as "lock", ``what`` for people, and who could end it."""

    kind: str
    what: str
    owner: Strand | None = None


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How a process is started, and started anew after a crash.

    ``main`` is called in the process's first strand with the process. ``restart_after_ns`` None:
    nobody starts it anew. ``raised`` is told what came out of ``main``, in that strand.
    """

    name: str
    main: Callable[[Process], object]
    restart_after_ns: int | None = 1_000_000_000
    raised: Callable[[Process, BaseException], None] | None = None


class Strand(greenlet):
    """A thread of control of a simulated process."""

    def __init__(self, process: Process, function: Callable[[], object], name: str, daemon: bool) -> None:
        super().__init__(self._body, process.world.hub)
        self.process = process
        self.name = name
        self.daemon = daemon
        self.ident = process.world.next_ident()
        self.wait: Wait | None = None
        self.ended = False
        self.asleep_ns = (0, 0)
        """Since when and until when, in its last sleep."""
        self.amount = 0
        self.values: dict[object, Any] = {}
        """Of this thread of control alone (`threading.local`)."""
        self.joiners: list[Strand] = []
        self._function = function
        self._ticket = 0
        self._woken = False

    def __repr__(self) -> str:
        return f"<Strand {self.process.key}:{self.name}>"

    @property
    def frame(self) -> FrameType | None:
        """Where it stands while it waits."""
        frame: FrameType | None = self.gr_frame
        return frame

    def _body(self) -> None:
        world = self.process.world
        try:
            self._function()
        except ProcessIsDead:
            pass
        finally:
            self.ended = True
            if self.process.alive and not world.closed:
                self.process.strands.remove(self)
                for joiner in self.joiners:
                    world.unpark(joiner)


class Process:
    """One incarnation of a simulated process, with what it holds in memory."""

    def __init__(self, world: World, spec: ProcessSpec, incarnation: int) -> None:
        self.world = world
        self.spec = spec
        self.incarnation = incarnation
        self.key = f"{spec.name}+{incarnation}" if incarnation else spec.name
        self.pid = world.next_pid()
        self.alive = True
        self.strands: list[Strand] = []
        self.counts: dict[str, int] = {}
        self.wall_skew_ns = 0
        self.thaws_at_ns = 0
        self.frozen: list[Strand] = []
        self.entropy = random.Random(f"{world.seed}/{self.key}")
        self.memory: dict[object, Any] = {}
        """What stand-ins keep for this incarnation; it dies with it."""
        self.at_death: list[Callable[[], None]] = []
        """What the operating system and the servers do when the process is gone, newest first.
        Called from the hub or another process's strand; must not wait."""
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Process {self.key}>"

    def spawn(self, function: Callable[[], object], name: str, daemon: bool = True) -> Strand:
        """A new strand, runnable at once, after those that are runnable already."""
        strand = Strand(self, function, name, daemon)
        self.strands.append(strand)
        self.world.make_ready(strand)
        return strand


@dataclass(slots=True)
class Limits:
    """Bounds of one run, in virtual nanoseconds and points."""

    settle_ns: int = 30_000_000_000
    time_ns_max: int = 3_600_000_000_000
    steps_max: int = 200_000
    raises_max: int = 20
    """Of processes that raise and are started anew, since the last fault."""


class World:
    """One run. Not thread-safe: one real thread, many strands."""

    def __init__(self, tape: Tape, *, seed: int = 0, limits: Limits | None = None, note_sites: bool = False) -> None:
        self.tape = tape
        self.seed = seed
        self.limits = limits or Limits()
        self.note_sites = note_sites
        self.now_ns = 0
        self.history = History()
        self.hub: greenlet = getcurrent()
        self.processes: list[Process] = []
        self.services: dict[str, Any] = {}
        """The models of this run's servers by name, for the adapters that processes open."""
        self.observers: list[Callable[[], None]] = []
        """Called after each durable change; must not wait."""
        self.closed = False
        self.steps = 0
        self.stop_reason: StopReason | None = None
        self.stop_error: BaseException | None = None
        self._ready: deque[Strand] = deque()
        self._timers: list[tuple[int, int, Strand | None, int, Callable[[], None] | None]] = []
        self._number = 0
        self._idents = 0
        self._pids = _FIRST_PID
        self._progress_ns = 0
        self._pending = 0
        self._raised_since_fault = 0
        self._faulty_until_ns = 0
        self._inert_calls = 0
        self._buried: list[Strand] = []

    # numbers

    def next_ident(self) -> int:
        self._idents += 1
        return self._idents

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    # processes

    def start(self, spec: ProcessSpec, incarnation: int = 0) -> Process:
        """Start a process; its first strand is runnable on return."""
        process = Process(self, spec, incarnation)
        self.processes.append(process)
        self.history.add(ProcessStarted(self.now_ns, process.key))
        process.spawn(lambda: self._live(process), "MainThread", daemon=False)
        return process

    def _live(self, process: Process) -> None:
        """The life of a process: its main function, then its other threads, as an interpreter ends."""
        how, detail = "returned", ""
        try:
            process.spec.main(process)
        except SystemExit:
            pass
        except ProcessIsDead:
            raise
        except BaseException as exc:
            process.error = exc
            if process.spec.raised is not None:
                process.spec.raised(process, exc)
            how, detail = "raised", "".join(traceback.format_exception_only(exc)).strip()
        mine = current_strand()
        while others := [one for one in process.strands if one is not mine and not one.daemon]:
            others[0].joiners.append(mine)
            self.park(Wait("thread", f"the end of thread {others[0].name}", others[0]))
        self._end(process, how, detail)
        if how == "raised":
            # Whoever stands still may hold a lock: the others fail until it goes on.
            self._raised_since_fault += self.now_ns >= self._faulty_until_ns
            if self._raised_since_fault > self.limits.raises_max:
                self.stop(StopReason.RAISING)
            self._restart_later(process)
        self._away()

    def crash(self, process: Process, *, restart: bool = True, lost: str = "") -> None:
        """End a process as kill -9 does. Does not return if it is the caller's own."""
        if not process.alive:
            return
        self._end(process, "crashed", lost)
        if restart:
            self._restart_later(process)
        if getattr(getcurrent(), "process", None) is process:
            self._away()

    def _end(self, process: Process, how: str, detail: str = "") -> None:
        process.alive = False
        self.history.add(ProcessEnded(self.now_ns, process.key, how, detail))
        self._buried.extend(process.strands)
        for call in reversed(process.at_death):
            call()
        process.at_death.clear()

    def _restart_later(self, process: Process) -> None:
        if process.spec.restart_after_ns is not None:
            self.pending_at(
                self.now_ns + process.spec.restart_after_ns,
                lambda: void(self.start(process.spec, process.incarnation + 1)),
            )

    def pause(self, process: Process, for_ns: int) -> None:
        """Stop every strand of a process for a time, as SIGSTOP and SIGCONT do."""
        process.thaws_at_ns = self.now_ns + for_ns
        self._faulty_until_ns = max(self._faulty_until_ns, process.thaws_at_ns)
        self.pending_at(process.thaws_at_ns, lambda: self._thaw(process))
        if getattr(getcurrent(), "process", None) is process:
            strand = current_strand()
            process.frozen.append(strand)
            self._away()

    def _thaw(self, process: Process) -> None:
        frozen, process.frozen = process.frozen, []
        self._ready.extend(frozen)

    # time and waiting

    def at(self, when_ns: int, call: Callable[[], None]) -> None:
        """Call from the hub at a time. The call must not wait."""
        self._number += 1
        heappush(self._timers, (when_ns, self._number, None, 0, call))

    def pending_at(self, when_ns: int, call: Callable[[], None]) -> None:
        """As `at`, and the run is not over before (a restart, the end of a fault)."""
        self._pending += 1

        def come() -> None:
            self._pending -= 1
            self.progress()
            call()

        self.at(when_ns, come)

    def progress(self) -> None:
        """Something durable happened: the run is not quiet yet."""
        self._progress_ns = self.now_ns
        for look in self.observers:
            # In a greenlet that is no strand: an observer is outside of every process.
            greenlet(look).switch()

    def sleep_ns(self, for_ns: int) -> None:
        """The calling strand goes on after a time; others run meanwhile."""
        when_ns = self.now_ns + max(0, for_ns)
        timers = self._timers
        if not self._ready and (not timers or timers[0][0] > when_ns) and not self.closed:
            # Nobody else can run before: time passes, and that is all.
            self.now_ns = when_ns
            return
        strand = self._living()
        strand.asleep_ns = (self.now_ns, when_ns)
        self._number += 1
        strand._ticket += 1
        heappush(timers, (when_ns, self._number, strand, strand._ticket, None))
        self._away()

    def give_way(self) -> None:
        """Everybody who can run now runs before the calling strand goes on."""
        self.make_ready(self._living())
        self._away()

    def park(self, wait: Wait, deadline_ns: int | None = None) -> bool:
        """Wait for `unpark`; False when the deadline (virtual time of the run) came first."""
        strand = self._living()
        strand._ticket += 1
        if deadline_ns is not None:
            self._number += 1
            heappush(self._timers, (deadline_ns, self._number, strand, strand._ticket, None))
        strand.wait, strand._woken = wait, False
        self._away()
        strand.wait = None
        return strand._woken

    def unpark(self, strand: Strand) -> None:
        """Make a parked strand runnable. Nothing happens if it is not parked, or dead."""
        if strand.wait is not None and not strand._woken and not strand.ended:
            strand._woken = True
            strand._ticket += 1
            self.make_ready(strand)

    def make_ready(self, strand: Strand) -> None:
        self._ready.append(strand)

    def _living(self) -> Strand:
        """The calling strand; ends here if its process is dead (its frames are being freed)."""
        strand = current_strand()
        if self.closed or not strand.process.alive:
            self.inert(strand)
        return strand

    def inert(self, strand: Strand) -> None:
        """A dead process's call has no effect: unwind it, or leave it for ever if it resists."""
        self._inert_calls += 1
        if self._inert_calls > _INERT_CALLS_MAX:
            self.hub.switch()
        raise ProcessIsDead

    def _away(self) -> None:
        """Let whoever is next run, until somebody lets the calling strand go on."""
        strand = self._next()
        if strand is None:
            self.hub.switch()
        elif strand is not getcurrent():
            strand.switch()

    def _next(self) -> Strand | None:
        """The strand that runs now, None if the hub has to act first."""
        ready = self._ready
        while True:
            while ready:
                strand = ready.popleft()
                process = strand.process
                if not process.alive or strand.ended:
                    continue
                if process.thaws_at_ns > self.now_ns:
                    process.frozen.append(strand)
                    continue
                return strand
            timers = self._timers
            if not timers:
                return None
            when_ns, _, sleeper, ticket, _ = timers[0]
            if sleeper is None:
                return None
            heappop(timers)
            if sleeper._ticket == ticket and not sleeper.ended and sleeper.process.alive:
                if when_ns > self.now_ns:
                    self.now_ns = when_ns
                sleeper._ticket += 1
                sleeper.wait = None  # its time is over: who wakes it now comes too late
                ready.append(sleeper)

    # the run

    def run(self) -> StopReason:
        """Run until nothing more is to happen; to be called from where the world was made."""
        assert getcurrent() is self.hub
        self.at(self.limits.settle_ns, self._look_if_quiet)
        while self.stop_reason is None:
            strand = self._next()
            if strand is not None:
                strand.switch()
                continue
            if not any(process.alive for process in self.processes) and not self._pending:
                self.stop_reason = StopReason.FINISHED
            elif self._timers:
                when_ns, _, _, _, call = heappop(self._timers)
                assert call is not None
                self.now_ns = max(self.now_ns, when_ns)
                call()
        if self.stop_error is not None:
            raise self.stop_error
        return self.stop_reason

    def stop(self, reason: StopReason, error: BaseException | None = None) -> None:
        """End the run now. ``error`` comes out of `run`. Does not return to a strand."""
        self.stop_reason, self.stop_error = reason, error
        if getcurrent() is not self.hub:
            self.hub.switch()

    def _look_if_quiet(self) -> None:
        if not self._pending and self._nobody_to_wake():
            self.stop_reason = StopReason.STUCK
            return
        # A main thread that has slept since has not had its say yet.
        asleep = [p.strands[0].asleep_ns for p in self.processes if p.alive and p.strands]
        woken_at_ns = [until_ns + _SAY_NS for since_ns, until_ns in asleep if since_ns <= self._progress_ns]
        quiet_at_ns = max([self._progress_ns + self.limits.settle_ns, *woken_at_ns])
        if self.now_ns >= quiet_at_ns and not self._pending:
            self.stop_reason = StopReason.QUIET
        elif self.now_ns >= self.limits.time_ns_max:
            self.stop_reason = StopReason.TIME
        else:
            self.at(max(quiet_at_ns, self.now_ns + self.limits.settle_ns // 4), self._look_if_quiet)

    def _nobody_to_wake(self) -> bool:
        """Whether no strand is runnable and none has a timer, though some are alive."""
        if self._ready or any(process.frozen for process in self.processes if process.alive):
            return False
        timed = any(
            strand is not None and strand._ticket == ticket and strand.process.alive and not strand.ended
            for _, _, strand, ticket, _ in self._timers
        )
        calls = any(call is not None for *_, call in self._timers)
        return not timed and not calls

    # operations

    def enter(self, label: str, faults: Faults) -> Fault | None:
        """The calling process begins an operation: a point where it can crash, wait or be hit.

        Returns the fault that the operation is to suffer, None almost always; the caller carries it
        out and gives it to `leave`. Does not return if the process dies here.
        """
        strand = getcurrent()
        assert type(strand) is Strand, f"{label}: outside of a simulated process"
        process = strand.process
        if self.closed or not process.alive:
            self.inert(strand)
        counts = process.counts
        number = counts[label] = counts.get(label, 0) + 1
        self.steps += 1
        if self.steps > self.limits.steps_max:
            self.stop(StopReason.STEPS)
        site = _sites.application_line() if self.note_sites else ""
        self.history.add(Point(self.now_ns, process.key, label, number, faults, site))
        deviation = self.tape(process.key, label, number, faults)
        if deviation is None:
            return None
        return self._suffer(process, deviation, faults)

    def leave(self, fault: Fault | None) -> None:
        """The operation is over; ``fault`` is what `enter` returned."""
        if fault is None:
            return
        process = current_strand().process
        if fault is Fault.CRASH_AFTER:
            self.crash(process)
        elif fault is Fault.KILL_AFTER:
            self.crash(process, restart=False)
        elif fault is Fault.PAUSE_AFTER:
            self.pause(process, self.amount)

    @property
    def amount(self) -> int:
        """Of the deviation that `enter` returned to the calling strand last; its unit is the fault's."""
        return current_strand().amount

    def _suffer(self, process: Process, deviation: Deviation, faults: Faults) -> Fault | None:
        fault, amount = deviation.fault, deviation.amount
        current_strand().amount = amount
        assert fault in faults, f"{deviation}: this operation cannot suffer it"
        self.history.add(FaultHappened(self.now_ns, deviation.address, fault))
        self._raised_since_fault = 0
        self.progress()
        match fault:
            case Fault.CRASH_BEFORE:
                self.crash(process)
            case Fault.KILL_BEFORE:
                self.crash(process, restart=False)
            case Fault.PAUSE_BEFORE:
                self.pause(process, amount)
            case Fault.DELAY:
                self._faulty_until_ns = max(self._faulty_until_ns, self.now_ns + amount)
                self.pending_at(self.now_ns + amount, nothing)
                self.sleep_ns(amount)
            case Fault.CLOCK_STEP:
                process.wall_skew_ns += amount
            case _:
                return fault
        return None

    # the end

    def close(self) -> None:
        """The run is over: every process ends, and whatever it can still reach is inert.

        Databases and brokers keep what was durable; checkers look at them now. Idempotent.
        """
        if self.closed:
            return
        for process in self.processes:
            if process.alive:
                self._end(process, "over")
        self.closed = True

    def free(self) -> None:
        """Unwind and forget the frames of dead processes; after `close` and the checkers."""
        assert self.closed and getcurrent() is self.hub
        buried, self._buried = self._buried, []
        for strand in buried:
            if not strand.dead:
                try:
                    strand.throw(ProcessIsDead)
                except BaseException:
                    # What a dead frame raises while it unwinds is nobody's business.
                    pass
            if not strand.dead:
                _RESISTING.append(strand)
        self._timers.clear()
        self._ready.clear()
        self.services.clear()


_RESISTING: list[Strand] = []
"""Frames that swallow `ProcessIsDead` for ever; kept, because collecting them would run them again."""


def current_strand() -> Strand:
    """The strand that is running. AssertionError outside of a simulated process."""
    strand = getcurrent()
    assert type(strand) is Strand, "outside of a simulated process"
    return strand


def current_process() -> Process | None:
    """The process that is running, None outside of a simulation."""
    strand = getcurrent()
    return strand.process if type(strand) is Strand else None


def nanoseconds(seconds: float) -> int:
    """A time to wait. Never rounded to nothing: who loops until a time has come would loop for ever."""
    return round(seconds * 1_000_000_000) or (1 if seconds > 0 else 0)


def void(_: object) -> None:
    """A call whose result nobody wants."""


def nothing() -> None:
    """A time that has come, and that is all."""
