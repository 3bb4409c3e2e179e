"""A ready harness for a backend that takes its time from the ports: it proves itself in seconds."""

from __future__ import annotations

from dataclasses import replace

from txbus._system import system_ports
from txbus.conformance._clock import LeapingClock
from txbus.conformance._harness import Harness
from txbus.spi import Backend, BackendPlugin, BackendURL

__all__ = ["PluginHarness"]


class PluginHarness(Harness):
    """Clients of one URL, made by a backend's plugin.

    With ``leaping`` they share a `LeapingClock`: leases are long, so none expires by accident, and
    waiting for the end of one takes no time. Only for brokers that know no other clock than the
    ports'. Without it time is the system's, and ``lease_s`` is short.
    """

    patience_s = 5.0
    quiet_s = 0.03
    poll_s = 0.01

    def __init__(self, plugin: BackendPlugin, url: BackendURL, *, leaping: bool = True) -> None:
        ports = system_ports()
        self._clock = LeapingClock(ports) if leaping else None
        super().__init__(ports if self._clock is None else replace(ports, clock=self._clock))
        self.lease_s = 30.0 if leaping else 0.5
        self.transaction_timeout_s = 60.0 if leaping else 2.0
        self._plugin = plugin
        self._url = url

    def backend(self) -> Backend:
        backend = self._plugin.create(self._url, self.ports)
        backend.open()
        return backend

    def advance(self, seconds: float) -> None:
        if self._clock is None:
            super().advance(seconds)
        else:
            self._clock.leap(seconds)
