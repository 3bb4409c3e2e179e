"""Real time that can leap: leases and delays end at once, and never by a slow machine."""

from __future__ import annotations

from txbus.spi import Clock, Ports

__all__ = ["LeapingClock"]


class LeapingClock:
    """A clock that runs like another one and can be moved forward. Thread-safe.

    For brokers that take their time from the ports: with leases of half a minute nothing expires
    because a test machine is slow, and `leap` still ends any of them in no time.
    """

    def __init__(self, ports: Ports) -> None:
        self._real: Clock = ports.clock
        self._lock = ports.runtime.lock()
        self._ahead_s = 0.0

    def leap(self, seconds: float) -> None:
        """Move the time of all who share this clock forward. Wakes nobody who waits."""
        with self._lock:
            self._ahead_s += seconds

    def monotonic_s(self) -> float:
        return self._real.monotonic_s() + self._ahead_s

    def wall_s(self) -> float:
        return self._real.wall_s() + self._ahead_s

    def sleep_s(self, seconds: float) -> None:
        self._real.sleep_s(seconds)
