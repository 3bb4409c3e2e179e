"""A clock that moves when somebody sleeps or waits, with real threads and locks."""

from __future__ import annotations

import threading
from types import TracebackType

from txbus._system import system_ports
from txbus.spi import Condition, Local, Lock, Ports, Task


class ManualClock:
    """Monotonic and wall time that only `sleep_s` and `advance` move. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.monotonic = 1_000.0
        self.wall = 1_700_000_000.0

    def monotonic_s(self) -> float:
        return self.monotonic

    def wall_s(self) -> float:
        return self.wall

    def sleep_s(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self.monotonic += seconds
            self.wall += seconds


class ManualCondition:
    """Waits a moment for a real notification; if none comes, the time waited for has passed.

    Only the thread that made the runtime moves the clock: a background thread waits really.
    """

    def __init__(self, clock: ManualClock, driver: int) -> None:
        self._clock = clock
        self._driver = driver
        self._real = threading.Condition()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is None or threading.get_ident() != self._driver:
            return self._real.wait(timeout)
        if self._real.wait(0.05 if timeout > 1.0 else 0.0003):
            return True
        self._clock.advance(timeout)
        return False

    def notify(self, n: int = 1) -> None:
        self._real.notify(n)

    def notify_all(self) -> None:
        self._real.notify_all()

    def __enter__(self) -> bool:
        return self._real.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._real.__exit__(kind, value, trace)


class ManualRuntime:
    """The system's threads with conditions that move the clock, and a process id to change."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._system = system_ports().runtime
        self._driver = threading.get_ident()
        self.pid = self._system.process_id()

    def spawn(self, function: object, name: str) -> Task:
        assert callable(function)
        return self._system.spawn(function, name)

    def lock(self) -> Lock:
        return self._system.lock()

    def condition(self) -> Condition:
        return ManualCondition(self._clock, self._driver)

    def local(self) -> Local:
        return self._system.local()

    def process_id(self) -> int:
        return self.pid


def manual_ports() -> tuple[Ports, ManualClock, ManualRuntime]:
    clock = ManualClock()
    runtime = ManualRuntime(clock)
    return Ports(clock=clock, entropy=system_ports().entropy, runtime=runtime), clock, runtime
