"""The core's ports inside of a simulated process: virtual time, the process's chance, strands as threads."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from types import TracebackType

from txbus.spi import Condition, Local, Lock, Ports, Task
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, Strand, Wait, current_process, current_strand, nanoseconds
from txbus_sim.errors import ProcessIsDead
from txbus_sim.faults import CRASHES, Fault, Faults
from txbus_sim.history import Logged

__all__ = ["world_ports"]

_S = 1_000_000_000
_SLEEP: Faults = (*CRASHES, Fault.CLOCK_STEP)


def world_ports() -> Ports:
    """Ports of the calling simulated process; they die with it.

    Points: ``clock.sleep`` and ``thread.start``. Reading a clock, drawing, and locks that are free are
    no points: nothing of them is seen by anybody else. AssertionError outside of a simulated process.
    """
    process = current_process()
    assert process is not None, "world_ports() outside of a simulated process"
    return Ports(clock=_Clock(process), entropy=_Entropy(process), runtime=_Runtime(process))


class _Clock:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    def monotonic_s(self) -> float:
        return self._world.now_ns / _S

    def wall_s(self) -> float:
        return (BEGAN_AT_WALL_NS + self._world.now_ns + self._process.wall_skew_ns) / _S

    def sleep_s(self, seconds: float) -> None:
        fault = self._world.enter("clock.sleep", _SLEEP)
        self._world.sleep_ns(nanoseconds(seconds))
        self._world.leave(fault)


class _Entropy:
    def __init__(self, process: Process) -> None:
        self._random = process.entropy

    def uniform(self) -> float:
        return self._random.random()

    def unique_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"


class _Task:
    def __init__(self, strand: Strand) -> None:
        self._strand = strand

    def join(self, timeout_s: float | None = None) -> bool:
        """In virtual time; True if it has ended."""
        strand, world = self._strand, self._strand.process.world
        deadline_ns = None if timeout_s is None else world.now_ns + nanoseconds(timeout_s)
        mine = current_strand()
        while not strand.ended and (deadline_ns is None or world.now_ns < deadline_ns):
            strand.joiners.append(mine)
            world.park(Wait("thread", f"the end of thread {strand.name}", strand), deadline_ns)
            if mine in strand.joiners:
                strand.joiners.remove(mine)
        return strand.ended


class _Lock:
    """As ``threading.Lock``, or as ``threading.RLock`` if ``again``: who waits first is served first."""

    __slots__ = ("_again", "_depth", "_process", "_queue", "_world", "owner")

    def __init__(self, process: Process, again: bool) -> None:
        self._process = process
        self._world = process.world
        self._again = again
        self._depth = 0
        self._queue: deque[Strand] = deque()
        self.owner: Strand | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        strand = current_strand()
        if self._depth == 0:
            self.owner, self._depth = strand, 1
            return True
        if self._again and self.owner is strand:
            self._depth += 1
            return True
        if not blocking or timeout == 0:
            return False
        deadline_ns = None if timeout < 0 else self._world.now_ns + nanoseconds(timeout)
        self._queue.append(strand)
        if self._world.park(Wait("lock", "a lock", self.owner), deadline_ns):
            # Whoever released it has handed it over, so that nobody overtakes.
            assert self.owner is strand
            return True
        if self.owner is strand:
            return True  # handed over at the very moment of the deadline
        self._queue.remove(strand)
        return False

    def release(self) -> None:
        if not self._process.alive:
            return  # a dead frame is being unwound; nobody waits any more
        if self._depth == 0 or (self._again and self.owner is not current_strand()):
            raise RuntimeError("release of a lock that is not held by the caller")
        self._depth -= 1
        if self._depth == 0:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._queue:
            self.owner = None
            return
        strand = self._queue.popleft()
        self.owner, self._depth = strand, 1
        for waiting in self._queue:
            if waiting.wait is not None:
                waiting.wait = Wait("lock", "a lock", strand)
        self._world.unpark(strand)

    def release_fully(self) -> int:
        """Let go, however often it is held; what `acquire_again` needs to take it back."""
        assert self.owner is current_strand(), "a condition is used without holding it"
        depth, self._depth = self._depth, 0
        self._hand_over()
        return depth

    def acquire_again(self, depth: int) -> None:
        self.acquire()
        self._depth = depth

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.release()


class _Condition:
    """As ``threading.Condition()``, with a lock that its owner may take again."""

    __slots__ = ("_lock", "_waiting", "_world")

    def __init__(self, process: Process) -> None:
        self._world = process.world
        self._lock = _Lock(process, again=True)
        self._waiting: deque[Strand] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        deadline_ns = None if timeout is None else self._world.now_ns + max(0, nanoseconds(timeout))
        strand = current_strand()
        depth = self._lock.release_fully()
        self._waiting.append(strand)
        notified = self._world.park(Wait("condition", "a condition to be notified"), deadline_ns)
        if not notified and strand in self._waiting:
            self._waiting.remove(strand)
        self._lock.acquire_again(depth)
        return notified

    def notify(self, n: int = 1) -> None:
        assert self._lock.owner is current_strand(), "notify without holding the condition"
        for _ in range(min(n, len(self._waiting))):
            self._world.unpark(self._waiting.popleft())

    def notify_all(self) -> None:
        self.notify(len(self._waiting))

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._lock.release()


class _Local:
    def get(self) -> object:
        return current_strand().values.get(self)

    def set(self, value: object) -> None:
        current_strand().values[self] = value


class _Runtime:
    def __init__(self, process: Process) -> None:
        self._process = process

    def spawn(self, function: Callable[[], None], name: str) -> Task:
        world = self._process.world
        fault = world.enter("thread.start", CRASHES)
        strand = self._process.spawn(lambda: _run(self._process, function, name), name)
        world.leave(fault)
        return _Task(strand)

    def lock(self) -> Lock:
        return _Lock(self._process, again=False)

    def condition(self) -> Condition:
        return _Condition(self._process)

    def local(self) -> Local:
        return _Local()

    def process_id(self) -> int:
        return self._process.pid


def _run(process: Process, function: Callable[[], None], name: str) -> None:
    """A thread that raises ends alone and leaves its traceback in the log, as the system's do."""
    try:
        function()
    except (ProcessIsDead, SystemExit):
        pass
    except BaseException as exc:
        if process.alive and not process.world.closed:
            text = f"Exception in thread {name}: " + "".join(traceback.format_exception(exc)).rstrip()
            process.world.history.add(Logged(process.world.now_ns, process.key, "ERROR", "threading", text))
