"""Starts the services of the shop, kills them as planned, and starts them again."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from txbus.errors import TxbusError
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.plan import KillPlan
from txbus.examples.shop.windows import KillOrder, Role, Window

__all__ = ["ServiceFailed", "Supervisor", "Tally"]

_TICK_S = 0.1
_STOP_S = 8.0
_FAILURES_MAX = 5
_PAUSE_S = 2.5 * PACE["lease_s"]


class ServiceFailed(TxbusError):
    """A service ended by itself, again and again; the message has the end of its log."""


@dataclass(slots=True)
class Tally:
    """What was done to the services. ``failures``: deaths that nobody ordered."""

    windows: Counter[Window] = field(default_factory=Counter)
    random: int = 0
    pauses: int = 0
    starts: int = 0
    failures: int = 0

    @property
    def kills(self) -> int:
        return self.windows.total() + self.random


class _Service:
    """One process, and the thread that reads what it prints."""

    def __init__(self, role: Role, number: int, command: list[str], log: Path, said: queue.SimpleQueue[_Said]) -> None:
        self.role = role
        self.number = number
        with log.open("ab") as errors:
            # A session of its own: Ctrl-C is for the supervisor, which stops its children in order.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        self._said = said
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"reads {role.value}")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(_Said(self, line.decode().strip()))
        self.process.wait()
        self._said.put(_Said(self, None))

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.process.kill()
        self.process.wait()

    def let_go(self) -> None:
        """Close the pipes of a dead process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self._reader.join(5.0)
        self.process.stdout.close()


@dataclass(frozen=True, slots=True)
class _Said:
    """A line that a service printed; None when it ended."""

    service: _Service
    line: str | None


class Supervisor:
    """Runs one shop. One thread; `close` leaves no process behind.

    A process gets the next window of its plan on its command line. It dies there, is started anew
    at once, and gets the one after it. The order service ends by itself when the file is done.
    With ``replicas`` there are as many of each other process; the plan's windows are for the first.
    """

    def __init__(self, place: Place, plan: KillPlan, *, naive: bool, replicas: int = 1) -> None:
        self._place = place
        self._naive = naive
        self._replicas = replicas
        self._orders = {role: list(orders) for role, orders in plan.orders.items()}
        self._random = sorted(plan.random, key=lambda kill: kill.share)
        self._pauses = sorted(plan.pauses, key=lambda pause: pause.share)
        self._paused: list[tuple[float, _Service]] = []
        self._said: queue.SimpleQueue[_Said] = queue.SimpleQueue()
        self._running: dict[tuple[Role, int], _Service] = {}
        self._roles = [role for role in Role if role in plan.orders]
        self.tally = Tally()
        self.orders_done = False

    def start(self) -> None:
        """Start every service."""
        for role in self._roles:
            for number in range(1 if role is Role.ORDERS else self._replicas):
                self._start(role, number)

    def run(self, share_done: Callable[[], float], settled: Callable[[], bool]) -> None:
        """Kill and restart until the order service is done and ``settled`` says so.

        ``share_done`` is asked several times a second for the share of the work that is done; both run
        in this thread. Raises `ServiceFailed`.
        """
        while True:
            share = share_done()
            if self._random and share >= self._random[0].share:
                self._kill_at_random(self._random.pop(0).role)
            if self._pauses and share >= self._pauses[0].share:
                self._pause(self._pauses.pop(0).role)
            self._wake(time.monotonic())
            if self.orders_done and settled():
                return
            self._listen(time.monotonic() + _TICK_S)

    def _listen(self, until_s: float) -> None:
        """Do what the services' lines ask for, until a time."""
        while True:
            try:
                said = self._said.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                return
            service = said.service
            if self._running.get((service.role, service.number)) is not service:
                continue
            if said.line is None:
                self._ended(service)
            elif said.line.startswith("at "):
                service.kill()
                self.tally.windows[Window[said.line.removeprefix("at ")]] += 1
                self._orders[service.role].pop(0)
                self._restart(service)

    def _kill_at_random(self, role: Role) -> None:
        service = self._alive(role)
        if service is not None:
            service.kill()
            self.tally.random += 1
            self._restart(service)

    def _pause(self, role: Role) -> None:
        service = self._alive(role)
        if service is not None and all(service is not paused for _, paused in self._paused):
            service.process.send_signal(signal.SIGSTOP)
            self.tally.pauses += 1
            self._paused.append((time.monotonic() + _PAUSE_S, service))

    def _wake(self, now_s: float) -> None:
        """Let those go on whose pause is over. A dead one gets no signal."""
        for due_s, service in self._paused:
            if due_s <= now_s:
                service.process.send_signal(signal.SIGCONT)
        self._paused = [paused for paused in self._paused if paused[0] > now_s]

    def _alive(self, role: Role) -> _Service | None:
        """The last replica of it, or of the stock service where the order service is done with the file."""
        for each in (role, Role.STOCK):
            services = [s for s in self._running.values() if s.role is each and s.process.poll() is None]
            if services:
                return max(services, key=lambda service: service.number)
        return None

    def _ended(self, service: _Service) -> None:
        """It ended without being killed."""
        status = service.process.returncode
        if service.role is Role.ORDERS and status == 0:
            service.let_go()
            del self._running[Role.ORDERS, 0]
            self.orders_done = True
            return
        self.tally.failures += 1
        if self.tally.failures > _FAILURES_MAX:
            log = self._place.log(service.role.value)
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ServiceFailed(
                f"the {service.role.value} service ended {self.tally.failures} times without being killed, "
                f"with status {status}; the end of {log}:\n{tail}"
            )
        self._restart(service)

    def _restart(self, service: _Service) -> None:
        service.let_go()
        self._start(service.role, service.number)

    def _start(self, role: Role, number: int) -> None:
        command = [sys.executable, "-m", "txbus.examples.shop.process", role.value, str(self._place.folder)]
        if self._naive:
            command.append("--naive")
        if self._replicas > 1:
            command += ["--replica", str(number)]
        next_kill: KillOrder | None = next(iter(self._orders[role]), None)
        if next_kill is not None and number == 0:
            command += ["--kill", str(next_kill)]
        log = self._place.log(role.value)
        self._running[role, number] = _Service(role, number, command, log, self._said)
        self.tally.starts += 1

    @property
    def left(self) -> Mapping[Role, tuple[KillOrder, ...]]:
        """The kills of the plan that have not happened yet."""
        return {role: tuple(orders) for role, orders in self._orders.items() if orders}

    def close(self) -> None:
        """Ask all to stop, kill what does not. Idempotent; a second Ctrl-C kills at once."""
        running, self._running = list(self._running.values()), {}
        try:
            self._wake(float("inf"))
            for service in running:
                service.process.send_signal(signal.SIGTERM)
            deadline_s = time.monotonic() + _STOP_S
            for service in running:
                try:
                    service.process.wait(max(0.0, deadline_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    service.kill()
        except BaseException:
            for service in running:
                service.kill()
            raise
        finally:
            for service in running:
                service.let_go()
