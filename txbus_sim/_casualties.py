"""What a crashed process leaves: what it had made durable, and what died with its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from txbus_sim import history as h
from txbus_sim.history import History

__all__ = ["Casualty", "casualties", "rows"]

_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Casualty:
    """Phrases for people. ``durable``: since this incarnation's start."""

    durable: tuple[str, ...]
    lost: tuple[str, ...]


class _Incarnation:
    """What one incarnation did so far, in order of first occurrence."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], int] = {}
        self.stored: dict[str, int] = {}
        self.open: dict[str, dict[str, int]] = {}
        self.halves = 0
        self.acknowledged = 0
        self.delivered: dict[tuple[str, str, int, int], str] = {}

    def saw(self, record: h.Record) -> None:
        match record:
            case h.LocalCommitted():
                for table, count in record.changed.items():
                    key = (record.database, table)
                    self.rows[key] = self.rows.get(key, 0) + count
            case h.Stored():
                held = self.open.setdefault(record.producer, {}) if record.producer else self.stored
                held[record.topic] = held.get(record.topic, 0) + 1
            case h.HalfStored():
                self.halves += 1
            case h.Delivered():
                place = (record.group, record.topic, record.partition, record.offset)
                self.delivered[place] = record.message_id
            case h.Acknowledged():
                self.acknowledged += 1
                self.delivered.pop((record.group, record.topic, record.partition, record.offset), None)
            case h.PositionCommitted():
                where = (record.group, record.topic, record.partition)
                for place in [one for one in self.delivered if one[:3] == where and one[3] < record.offset]:
                    del self.delivered[place]
            case _:
                pass

    def ended(self, record: h.BrokerTransactionEnded) -> None:
        held = self.open.pop(record.producer, {})
        if record.committed:
            for topic, count in held.items():
                self.stored[topic] = self.stored.get(topic, 0) + count

    def durable(self) -> tuple[str, ...]:
        found = [f"{rows(count)} of {database}.{table}" for (database, table), count in self.rows.items()]
        found += [f"{_records(count)} in {topic}" for topic, count in self.stored.items()]
        found += [f"{self.halves} half {_plural('message', self.halves)}"] if self.halves else []
        found += [f"{self.acknowledged} acknowledged"] if self.acknowledged else []
        return tuple(found)

    def lost(self) -> tuple[str, ...]:
        found = [
            f"the end of broker transaction {producer} with {_topics(held)}"
            for producer, held in self.open.items()
            if held
        ]
        waiting = list(self.delivered.values())
        if waiting:
            more = f" and {len(waiting) - _NAMED_MAX} more" if len(waiting) > _NAMED_MAX else ""
            found.append(f"the handling of {', '.join(waiting[:_NAMED_MAX])}{more}, to be delivered again")
        return tuple(found)


def casualties(history: History) -> Mapping[int, Casualty]:
    """For the number of each record that ends a process by a crash: what the crash meant.

    What was rolled back by it is noted after the end of the process.
    """
    alive: dict[str, _Incarnation] = {}
    found: dict[int, Casualty] = {}
    crashed: dict[str, int] = {}
    for number, record in enumerate(history):
        match record:
            case h.ProcessStarted():
                alive[record.process] = _Incarnation()
            case h.ProcessEnded(how="crashed"):
                mine = alive.pop(record.process, None) or _Incarnation()
                told = (record.detail,) if record.detail else ()
                found[number] = Casualty(mine.durable(), (*mine.lost(), *told))
                crashed[record.process] = number
            case h.ProcessEnded():
                alive.pop(record.process, None)
            case h.LocalRolledBack(why="crash") if record.process in crashed:
                end = crashed[record.process]
                was = found[end]
                found[end] = Casualty(was.durable, (f"what it had not committed to {record.database}", *was.lost))
            case h.BrokerTransactionEnded():
                for one in alive.values():
                    one.ended(record)
            case h.Point() | h.FaultHappened():
                pass
            case _:
                process = getattr(record, "process", "")
                if process in alive:
                    alive[process].saw(record)
    return found


def rows(count: int) -> str:
    return f"{count} {_plural('row', count)}"


def _records(count: int) -> str:
    return f"{count} {_plural('record', count)}"


def _topics(held: Mapping[str, int]) -> str:
    return ", ".join(f"{_records(count)} in {topic}" for topic, count in held.items())


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
