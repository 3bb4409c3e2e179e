"""The world that the half log's exploration runs in: chance, virtual time, processes that may die.

Everything is single-threaded. Whatever a process asks of broker or database is a *point*: there it
may be killed, or be paused while the rest of the world goes on (a zombie, once it wakes).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from txbus._ports import Condition, Local, Lock, Ports, Task
from txbus._telemetry import Alarm, Event

__all__ = ["Chances", "Crash", "Process", "World"]

WALL_S = 1_000_000_000.0


class Crash(BaseException):
    """A killed process never gets beyond the call it was killed in."""


@dataclass(slots=True)
class Process:
    """One operating system process. What it reaches is inert once it is dead."""

    name: str
    alive: bool = True
    busy: bool = False
    """Its stack is in use: it runs, or is paused inside of a call."""


@dataclass(frozen=True, slots=True)
class Chances:
    """How likely each fault is, at each point where it can happen."""

    crash: float = 0.012
    pause: float = 0.03
    unavailable: float = 0.01
    append_lost: float = 0.03
    append_late: float = 0.06
    commit_unknown: float = 0.06
    marker_lost: float = 0.5
    commit_answer_lost: float = 0.08
    roll_back: float = 0.15
    wrong_database: float = 0.15
    long_wait: float = 0.1
    position_lost: float = 0.1


@dataclass(slots=True, eq=False)
class World:
    """Chance and time of one schedule."""

    seed: int
    chances: Chances = field(default_factory=Chances)
    now_s: float = 0.0
    storm: bool = True
    depth: int = 0
    meanwhile: Callable[[], None] = lambda: None
    """Lets the rest of the world take one action."""
    alarms: list[Alarm] = field(default_factory=list)
    ids: int = 0
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def happens(self, probability: float) -> bool:
        return self.storm and self.chance.random() < probability

    def point(self, process: Process) -> None:
        """A process asks for something: it may die here, or fall asleep for a while."""
        if not process.alive:
            raise Crash
        if not self.storm:
            return
        drawn = self.chance.random()
        if drawn < self.chances.crash:
            process.alive = False
            raise Crash
        if drawn < self.chances.crash + self.chances.pause and self.depth < 2:
            self.depth += 1
            try:
                for _ in range(self.chance.randint(1, 12)):
                    self.meanwhile()
            finally:
                self.depth -= 1
            if not process.alive:
                raise Crash

    def emit(self, event: Event) -> None:
        if isinstance(event, Alarm):
            self.alarms.append(event)

    # ports

    def ports(self, process: Process) -> Ports:
        return Ports(_Clock(self, process), _Entropy(self), _Runtime())


class _Clock:
    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def monotonic_s(self) -> float:
        return self._world.now_s

    def wall_s(self) -> float:
        return WALL_S + self._world.now_s

    def sleep_s(self, seconds: float) -> None:
        self._world.now_s += seconds
        self._world.point(self._process)


class _Entropy:
    def __init__(self, world: World) -> None:
        self._world = world

    def uniform(self) -> float:
        return self._world.chance.random()

    def unique_id(self) -> str:
        self._world.ids += 1
        return f"{self._world.ids:032x}"


class _Condition:
    """Of a world with one thread: nobody is there to wait for."""

    def wait(self, timeout: float | None = None) -> bool:
        raise AssertionError("this would block for ever")

    def notify(self, n: int = 1) -> None: ...

    def notify_all(self) -> None: ...

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None: ...

    def __enter__(self) -> bool:
        return True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class _Task:
    def join(self, timeout_s: float | None = None) -> bool:
        return True


class _Local:
    def __init__(self) -> None:
        self._value: object = None

    def get(self) -> object:
        return self._value

    def set(self, value: object) -> None:
        self._value = value


class _Runtime:
    """Spawns nothing: the schedule takes the turns of each part itself."""

    def spawn(self, function: Callable[[], None], name: str) -> Task:
        return _Task()

    def lock(self) -> Lock:
        return _Condition()

    def condition(self) -> Condition:
        return _Condition()

    def local(self) -> Local:
        return _Local()

    def process_id(self) -> int:
        return 1
