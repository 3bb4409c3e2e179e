"""Runs an open bus in the foreground: until a signal, until idle, until enough."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from txbus._open import OpenBus

__all__ = ["Runner"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_S = 0.5


class Runner:
    """The foreground of one open bus. `stop` from any thread and from a signal handler."""

    def __init__(self, bus: OpenBus) -> None:
        self._bus = bus
        self._clock = bus.ports.clock
        self._condition = bus.ports.runtime.condition()
        self._stopping = False

    def stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    def nudge(self) -> None:
        """Look now whether the handlers have ended."""
        with self._condition:
            self._condition.notify_all()

    def run(self, until_idle: float | None, max_messages: int | None, workers: int | None) -> int:
        consuming = self._bus.consuming
        before = consuming.handled
        with self._signals():
            consuming.start(workers, max_messages)
            try:
                self._wait(until_idle, consuming.finished)
            finally:
                consuming.stop(self._bus.settings.stop_timeout_s)
        if consuming.interrupt is not None:
            raise consuming.interrupt
        return consuming.handled - before

    def run_relay(self, until_idle: float | None) -> None:
        with self._signals():
            self._bus.start_relay()
            self._wait(until_idle, lambda: False)

    def _wait(self, until_idle: float | None, finished: Callable[[], bool]) -> None:
        """Wait for `stop`, for ``finished``, or for ``until_idle`` seconds without anything to do."""
        idle_since_s: float | None = None
        handled = self._bus.consuming.handled
        while True:
            with self._condition:
                if self._stopping:
                    return
                if not finished():
                    # A signal between the look above and this wait notifies nobody; hence no wait for ever.
                    self._condition.wait(_LOOK_S if until_idle is None else 0.02)
                if self._stopping:
                    return
            if finished():
                return
            if until_idle is None:
                continue
            now_s = self._clock.monotonic_s()
            if self._bus.idle(0.2) and handled == self._bus.consuming.handled:
                idle_since_s = now_s if idle_since_s is None else idle_since_s
                if now_s - idle_since_s >= until_idle:
                    return
            else:
                idle_since_s, handled = None, self._bus.consuming.handled

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while running, in the main thread only; a second one acts as
        if nobody handled it."""
        with self._condition:
            self._stopping = False
        before: dict[signal.Signals, Any] = {}

        def ask(number: int, frame: FrameType | None) -> None:
            for one, old in before.items():
                signal.signal(one, old)
            self.stop()

        try:
            for one in _SIGNALS:
                before[one] = signal.signal(one, ask)
        except ValueError:
            # Not the main thread: whoever owns the process decides how it is stopped.
            before.clear()
        try:
            yield
        finally:
            for one, old in before.items():
                signal.signal(one, old)
