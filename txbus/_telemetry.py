"""Events: one typed subscription point, a frozen record for each thing worth knowing.

A subscriber is called synchronously in the thread that saw the thing, at the very point where it
happened; it must be quick. What it raises is logged and goes no further.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

from txbus._outcome import Outcome

__all__ = [
    "Alarm",
    "CheckBack",
    "CheckerFailed",
    "DeadLettered",
    "DuplicateSuppressed",
    "EffectCommitted",
    "Emit",
    "Event",
    "Events",
    "FencedOff",
    "HalfParked",
    "HalfStored",
    "HandlerFailed",
    "Heard",
    "LocalBegan",
    "LocalCommitted",
    "LocalEnded",
    "OutcomeTold",
    "PartitionsChanged",
    "Reconnected",
    "StepCommitted",
    "StepOpen",
    "TakeOver",
]


@dataclass(frozen=True, slots=True)
class Event:
    """``service`` names the bus; ``trace_id`` is the W3C trace id where one is known, else empty."""

    service: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class LocalBegan(Event):
    """A local transaction was entered."""

    tx_id: str
    attempt: int
    database: str


@dataclass(frozen=True, slots=True)
class HalfStored(Event):
    """The half is durable; COMMIT has not been sent."""

    tx_id: str
    attempt: int
    database: str
    messages: int


@dataclass(frozen=True, slots=True)
class LocalCommitted(Event):
    """The database committed; the outcome has not been told."""

    tx_id: str
    attempt: int
    database: str
    messages: int


@dataclass(frozen=True, slots=True)
class OutcomeTold(Event):
    """The outcome was handed to the half channel (not awaited)."""

    tx_id: str
    attempt: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LocalEnded(Event):
    """A local transaction's block was left; ``seconds`` since it was entered."""

    tx_id: str
    attempt: int
    database: str
    outcome: Outcome
    messages: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepOpen(Event):
    """A relay's broker transaction holds ``messages`` and is about to commit."""

    partition: int
    messages: int
    halves: int


@dataclass(frozen=True, slots=True)
class StepCommitted(Event):
    """A relay's broker transaction is visible."""

    partition: int
    messages: int
    halves: int


@dataclass(frozen=True, slots=True)
class TakeOver(Event):
    """A relay owns a half partition from now on."""

    partition: int
    records_read: int
    unsettled: int


@dataclass(frozen=True, slots=True)
class CheckBack(Event):
    """A half without a word from its sender was asked about; ``age_s`` since this owner read it.

    UNKNOWN: no answer (``reason``). ``again``: nor was there one before; logged at DEBUG."""

    tx_id: str
    attempt: int
    database: str
    outcome: Outcome
    age_s: float
    reason: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class CheckerFailed(Event):
    """An application's own checker raised or answered something that is no outcome."""

    tx_id: str
    topic: str
    error: str


@dataclass(frozen=True, slots=True)
class HalfParked(Event):
    """A half was set aside for an operator."""

    tx_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class FencedOff(Event):
    """This process lost an ownership to another one."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class PartitionsChanged(Event):
    """A group member gained and lost partitions, as ``topic/partition``."""

    group: str
    gained: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EffectCommitted(Event):
    """A handler's effect and inbox row are committed; the delivery is not acknowledged yet."""

    scope: str
    message_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class DuplicateSuppressed(Event):
    """A delivery whose effect had happened already was acknowledged without one."""

    scope: str
    message_id: str


@dataclass(frozen=True, slots=True)
class HandlerFailed(Event):
    """A handler raised; it runs again after ``retry_after_s``."""

    scope: str
    message_id: str
    attempt: int
    error: str
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class DeadLettered(Event):
    """A delivery was given up on and kept."""

    scope: str
    message_id: str
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class Reconnected(Event):
    """A client was dropped and built anew."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alarm(Event):
    """Something an operator should look at."""

    what: str
    detail: str


Subscriber: TypeAlias = Callable[[Event], None]
Emit: TypeAlias = Callable[[Event], None]
Heard: TypeAlias = Callable[[type[Event]], bool]
"""Is anybody told of events of this class? What happens with every message asks before it makes one."""

_LEVELS: dict[type[Event], int] = {
    Alarm: logging.ERROR,
    CheckerFailed: logging.ERROR,
    DeadLettered: logging.ERROR,
    HalfParked: logging.ERROR,
    FencedOff: logging.WARNING,
    HandlerFailed: logging.WARNING,
    Reconnected: logging.WARNING,
    CheckBack: logging.INFO,
    DuplicateSuppressed: logging.INFO,
    PartitionsChanged: logging.INFO,
    TakeOver: logging.INFO,
}


class Events:
    """The subscription point. Subscribe from any thread; logging is the first subscriber."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("txbus")
        self._subscribers: tuple[Subscriber, ...] = (self._log,)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers = (*self._subscribers, subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self._subscribers = tuple(s for s in self._subscribers if s != subscriber)

    def heard(self, kind: type[Event]) -> bool:
        """Would `emit` tell anybody: a subscriber, or the log at its present level?"""
        return len(self._subscribers) > 1 or self._logger.isEnabledFor(_LEVELS.get(kind, logging.DEBUG))

    def emit(self, event: Event) -> None:
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except Exception:
                self._logger.exception("a subscriber failed on %s", type(event).__name__)

    def _log(self, event: Event) -> None:
        # A half that nobody can answer for is asked about every second, for as long as it takes.
        again = isinstance(event, CheckBack) and event.again
        level = logging.DEBUG if again else _LEVELS.get(type(event), logging.DEBUG)
        if self._logger.isEnabledFor(level):
            values = {f.name: getattr(event, f.name) for f in fields(event)}
            text = " ".join(f"{name}={value}" for name, value in values.items() if value not in ("", ()))
            self._logger.log(
                level, "%s %s", type(event).__name__, text, extra={f"txbus_{k}": v for k, v in values.items()}
            )
