"""The windows in which the demo kills, and the way in which a process reports that it is in one.

A service prints ``at WINDOW`` and waits there; the supervisor reads it and kills it with SIGKILL.
The process cannot do anything in between: the thread that is in the window stands still in it.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from txbus.errors import ConfigurationError

__all__ = ["Deathbed", "KillOrder", "Role", "Window"]


class Window(enum.Enum):
    """A moment between two steps of the protocol; the value is how people call it."""

    HALF_STORED = "half stored, before COMMIT"
    COMMITTED = "COMMIT done, outcome not told"
    TOLD = "outcome told, not yet published"
    STEP_OPEN = "inside the relay's broker transaction"
    EFFECT = "effect committed, before the ack"

    @property
    def naively(self) -> str:
        """The corresponding moment of a shop that commits and then publishes."""
        return _NAIVELY[self]


_NAIVELY = {
    Window.HALF_STORED: "before COMMIT",
    Window.COMMITTED: "COMMIT done, nothing published",
    Window.TOLD: "all published",
    Window.STEP_OPEN: "one of two messages published",
    Window.EFFECT: "effect committed, before the ack",
}


class Role(enum.Enum):
    """A process of the shop."""

    ORDERS = "orders"
    RELAY = "relay"
    STOCK = "stock"
    PAYMENT = "payment"


@dataclass(frozen=True, slots=True)
class KillOrder:
    """Die in this window, the first time after ``progress`` orders have come through this process."""

    window: Window
    progress: int

    def __str__(self) -> str:
        return f"{self.window.name}:{self.progress}"

    @classmethod
    def parse(cls, text: str) -> KillOrder:
        name, _, progress = text.partition(":")
        if name not in Window.__members__ or not progress.isdigit():
            raise ConfigurationError(f"--kill {text!r} must be WINDOW:PROGRESS, for example {Window.TOLD.name}:100")
        return cls(Window[name], int(progress))


class Deathbed:
    """Where a process waits for its death. Thread-safe."""

    def __init__(self, order: KillOrder | None, progress: Callable[[], int], descriptor: int = 1) -> None:
        self._order = order
        self._progress = progress
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def reached(self, window: Window) -> None:
        """Called in every window; returns unless it is the one to die in."""
        order = self._order
        if order is None or order.window is not window:
            return
        with self._lock:
            if self._progress() < order.progress:
                return
            os.write(self._descriptor, f"at {window.name}\n".encode())
            # The lock stays held: no other thread of this process leaves this window either.
            threading.Event().wait()
