"""Time, chance and threads: the only way the core reaches them.

The system version is `txbus._system`; the simulator brings its own. Nothing else in the core
imports ``time``, ``random``, ``uuid`` or ``threading``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

__all__ = ["Clock", "Condition", "Entropy", "Local", "Lock", "Ports", "Runtime", "Task"]


class Clock(Protocol):
    """Time. Thread-safe."""

    def monotonic_s(self) -> float:
        """Seconds that never go back; shared by the processes of one machine since its boot."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch; may be stepped by an operator."""
        ...

    def sleep_s(self, seconds: float) -> None: ...


class Entropy(Protocol):
    """Chance. Thread-safe."""

    def uniform(self) -> float:
        """A number in [0, 1)."""
        ...

    def unique_id(self) -> str:
        """A fresh id of 32 lower-case hex digits, unique in the world."""
        ...


class Lock(Protocol):
    """Mutual exclusion, as ``threading.Lock``."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Condition(Protocol):
    """A lock with waiting, as ``threading.Condition``."""

    def wait(self, timeout: float | None = None) -> bool: ...

    def notify(self, n: int = 1) -> None: ...

    def notify_all(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Task(Protocol):
    """A running thread of control."""

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False when the time is over first."""
        ...


class Local(Protocol):
    """One value for each thread of control, None until set."""

    def get(self) -> object: ...

    def set(self, value: object) -> None: ...


class Runtime(Protocol):
    """Threads of control and what they wait on."""

    def spawn(self, function: Callable[[], None], name: str) -> Task:
        """Start a daemon thread of control. It ends with the process."""
        ...

    def lock(self) -> Lock: ...

    def condition(self) -> Condition: ...

    def local(self) -> Local: ...

    def process_id(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """The three ports as one argument."""

    clock: Clock
    entropy: Entropy
    runtime: Runtime
