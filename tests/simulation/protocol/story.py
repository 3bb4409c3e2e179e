"""What a run of a protocol scenario showed: events of the bus from the logs, and the topics as they are."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from txbus import Bus
from txbus.events import (
    Alarm,
    CheckBack,
    CheckerFailed,
    DeadLettered,
    DuplicateSuppressed,
    Event,
    FencedOff,
    HalfParked,
    HandlerFailed,
    PartitionsChanged,
    Reconnected,
    TakeOver,
)
from txbus_sim.history import FaultHappened, Logged, ProcessStarted, Visible
from txbus_sim.simulation import Simulation

__all__ = ["Published", "Story", "published", "tell"]

_LOGGER = logging.getLogger("protocol")
_OFFSET_BITS = 40
_EMBEDDED = "embedded://"


def tell(bus: Bus) -> Bus:
    """Has the bus's events in the process's log, from where a `Story` reads them."""
    bus.subscribe(_log)
    return bus


def _log(event: Event) -> None:
    match event:
        case CheckBack():
            text = f"{event.outcome.value} {event.reason}"
        case TakeOver():
            text = f"unsettled={event.unsettled}"
        case HalfParked() | FencedOff() | Reconnected():
            text = event.reason
        case Alarm():
            text = f"{event.what}: {event.detail}"
        case HandlerFailed() | DeadLettered() | CheckerFailed():
            text = event.error
        case PartitionsChanged():
            text = f"{event.group} gained={len(event.gained)} lost={len(event.lost)}"
        case DuplicateSuppressed():
            text = event.message_id
        case _:
            return
    _LOGGER.warning("%s %s", type(event).__name__, text)


class Story:
    """Reads the history as it grows, once for all questions."""

    def __init__(self, sim: Simulation) -> None:
        self._history = sim.history
        self._read = 0
        self._told: dict[str, int] = {}
        self.restarts = 0
        self.faults = 0
        self._takeovers: dict[str, None] = {}

    def _catch_up(self) -> None:
        records = self._history.records
        for at in range(self._read, len(records)):
            record = records[at]
            if type(record) is Logged:
                for word in (record.text, record.text.partition(" ")[0]):
                    self._told[word] = self._told.get(word, 0) + 1
                if record.text.startswith("TakeOver"):
                    self._takeovers[record.process] = None
            elif type(record) is ProcessStarted and "+" in record.process:
                self.restarts += 1
            elif type(record) is FaultHappened:
                self.faults += 1
        self._read = len(records)

    def told(self, *beginnings: str, times: int = 1) -> Callable[[], bool]:
        """Whether a line of a log began so, so often."""

        def check() -> bool:
            self._catch_up()
            return (
                sum(count for text, count in self._told.items() if " " in text and text.startswith(beginnings)) >= times
            )

        return check

    def relays(self, least: int) -> Callable[[], bool]:
        """Whether so many processes have taken over a half partition."""

        def check() -> bool:
            self._catch_up()
            return len(self._takeovers) >= least

        return check

    def crashes(self) -> int:
        """Attempts that a crash cut short count."""
        self._catch_up()
        return self.restarts

    def restarted(self) -> bool:
        self._catch_up()
        return self.restarts > 0


@dataclass(frozen=True, slots=True)
class Published:
    """A readable message of a topic, where it is."""

    partition: int
    offset: int
    message_id: str
    key: str | None
    payload: bytes


def published(sim: Simulation, topic: str) -> list[Published]:
    """What consumers can read of a topic at the end of a run, in the order of each partition."""
    if sim.broker == "embedded":
        found = _of_file(sim.broker_url.removeprefix(_EMBEDDED).partition("?")[0], topic)
    else:
        found = [
            Published(record.partition, record.offset, record.message_id, record.key, record.payload)
            for record in sim.history
            if type(record) is Visible and record.topic == topic
        ]
    return sorted(found, key=lambda one: (one.partition, one.offset))


def _of_file(path: str, topic: str) -> list[Published]:
    """The embedded broker has no server that could tell: its file does."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute(
            "SELECT p.number, r.id, r.headers, r.key, r.payload FROM records r JOIN partitions p "
            f"ON p.id = r.id >> {_OFFSET_BITS} JOIN topics t ON t.id = p.topic WHERE t.name = ?",
            (topic,),
        ).fetchall()
    connection.close()
    low = (1 << _OFFSET_BITS) - 1
    return [
        Published(number, id & low, json.loads(headers).get("ce_id", ""), key, payload)
        for number, id, headers, key, payload in rows
    ]
