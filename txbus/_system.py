"""The ports of a real process: system clocks, the system's randomness, threads.

The one core module that may import ``time``, ``random``, ``os.urandom`` and ``threading``.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

from txbus._ports import Condition, Local, Lock, Ports, Task

__all__ = ["system_ports"]


class _Clock:
    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)


class _Entropy:
    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def uniform(self) -> float:
        return self._random.random()

    def unique_id(self) -> str:
        return os.urandom(16).hex()


class _Task:
    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread

    def join(self, timeout_s: float | None = None) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


class _Local:
    def __init__(self) -> None:
        self._values = threading.local()

    def get(self) -> object:
        return getattr(self._values, "value", None)

    def set(self, value: object) -> None:
        self._values.value = value


class _Runtime:
    def spawn(self, function: Callable[[], None], name: str) -> Task:
        thread = threading.Thread(target=function, name=name, daemon=True)
        thread.start()
        return _Task(thread)

    def lock(self) -> Lock:
        return threading.Lock()

    def condition(self) -> Condition:
        return threading.Condition()

    def local(self) -> Local:
        return _Local()

    def process_id(self) -> int:
        return os.getpid()


def system_ports() -> Ports:
    """The ports every `Bus` uses unless it is given others."""
    return Ports(clock=_Clock(), entropy=_Entropy(), runtime=_Runtime())
