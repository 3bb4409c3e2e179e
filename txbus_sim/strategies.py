"""Tapes: where the choices of a run come from, and the ways of choosing that explorations use.

A `Strategy` is a small value that can be sent to a worker; its tape serves one run and notes what it
placed, so that any run becomes a `Schedule` that replays to the same history.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, Protocol

from txbus_sim.faults import Fault, Faults
from txbus_sim.history import Point
from txbus_sim.schedule import Address, Deviation, Schedule

__all__ = [
    "AMOUNTS",
    "KILLS",
    "CrashLoop",
    "Family",
    "Fixed",
    "Guide",
    "LoopTape",
    "Random",
    "RandomTape",
    "RecordingTape",
    "Replay",
    "Strategy",
    "amounts",
    "family",
    "left_of",
    "schedule_of",
]

_MS = 1_000_000
_S = 1_000 * _MS

AMOUNTS: Final[Mapping[Fault, tuple[int, ...]]] = {
    # Beyond every session, lease, broker transaction and poll interval that has a default.
    Fault.PAUSE_BEFORE: (400 * _S,),
    Fault.PAUSE_AFTER: (400 * _S,),
    # Longer than a request, longer than a patience.
    Fault.DELAY: (100 * _MS, 45 * _S),
    Fault.CLOCK_STEP: (3_600 * _S,),
    Fault.LATE_END: (60 * _S,),
    Fault.CHECK_LATE: (60 * _S,),
    # All of what was not synced is lost; or it is torn.
    Fault.TORN: (0, 7),
}
"""What enumeration gives a fault that has an amount: nanoseconds, or bytes of a torn file."""

_LADDER: Final = tuple(step * unit for unit in (_MS, 10 * _MS, 100 * _MS, _S, 10 * _S, 100 * _S) for step in (1, 3))
_DRAWN: Final[Mapping[Fault, tuple[int, ...]]] = {
    Fault.PAUSE_BEFORE: (2 * _S, 20 * _S, 60 * _S, 400 * _S),
    Fault.PAUSE_AFTER: (2 * _S, 20 * _S, 60 * _S, 400 * _S),
    Fault.DELAY: _LADDER,
    Fault.CLOCK_STEP: (_S, 60 * _S, 3_600 * _S),
    Fault.LATE_END: (_S, 10 * _S, 60 * _S, 400 * _S),
    Fault.CHECK_LATE: (_S, 10 * _S, 60 * _S, 400 * _S),
    Fault.TORN: (0, 1, 7, 100, 1_000),
}


def amounts(fault: Fault) -> tuple[int, ...]:
    """The amounts with which enumeration tries a fault; one zero for a fault without."""
    return AMOUNTS.get(fault, (0,))


def left_of(faults: Faults, without: Collection[Fault]) -> Faults:
    """The faults that may be placed."""
    return tuple(fault for fault in faults if fault not in without)


KILLS: Final = frozenset((Fault.KILL_BEFORE, Fault.KILL_AFTER))
"""Left out unless they are asked for: of a process that is gone for ever nothing can be expected in the
end, so that every assertion about the end would fail."""


class Family(Enum):
    """What sort of trouble a fault is: what the others have to recover from."""

    DEATH = "death"
    STALL = "stall"
    CALL = "call"
    SERVER = "server"


_FAMILIES: Final[Mapping[Fault, Family]] = {
    **dict.fromkeys((Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.KILL_BEFORE, Fault.KILL_AFTER), Family.DEATH),
    **dict.fromkeys((Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY, Fault.CLOCK_STEP), Family.STALL),
    **dict.fromkeys(
        (Fault.REQUEST_LOST, Fault.ANSWER_LOST, Fault.DUPLICATE, Fault.FAIL, Fault.DROP, Fault.DISK_FULL), Family.CALL
    ),
}


def family(fault: Fault) -> Family:
    return _FAMILIES.get(fault, Family.SERVER)


# what is known before


class Guide:
    """The run without faults as strategies see it: which operations there are, and how often.

    ``without``: faults that are never to be placed; the points do not offer them.
    """

    def __init__(self, points: Iterable[Point] = (), without: Collection[Fault] = ()) -> None:
        self.points = tuple(point._replace(faults=left_of(point.faults, without)) for point in points)
        self.without = frozenset(without)
        self.counts: dict[str, int] = {}
        self.offered: dict[str, dict[Fault, None]] = {}
        self.firsts: dict[str, Point] = {}
        """Where each process begins, in the order of their beginning."""
        for point in self.points:
            self.counts[point.label] = self.counts.get(point.label, 0) + 1
            self.offered.setdefault(point.label, {}).update(dict.fromkeys(point.faults))
            self.firsts.setdefault(point.process, point)
        self.pairs: tuple[tuple[str, Fault], ...] = tuple(
            (label, fault) for label, faults in self.offered.items() for fault in faults
        )


class RecordingTape(Protocol):
    """A tape of one run that notes which deviations it placed, in order."""

    @property
    def placed(self) -> Sequence[Deviation]: ...

    def __call__(self, process: str, label: str, number: int, faults: Faults, /) -> Deviation | None: ...


class Strategy(Protocol):
    """A way of choosing for one run. Can be pickled; equal strategies choose equally."""

    def tape(self, guide: Guide, /) -> RecordingTape: ...


# schedules


class Replay:
    """The deviations of a schedule. What an operation can't suffer counts as not reached: the code,
    or a model, has changed since."""

    def __init__(self, schedule: Iterable[Deviation]) -> None:
        self.placed: list[Deviation] = []
        self._deviations = {(d.address.process, d.address.label, d.address.number): d for d in schedule}

    def __call__(self, process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
        deviation = self._deviations.get((process, label, number))
        if deviation is None or deviation.fault not in faults:
            return None
        self.placed.append(deviation)
        return deviation

    def unreached(self) -> tuple[Address, ...]:
        """The addresses that the run did not come to, in the schedule's order."""
        return tuple(one.address for one in self._deviations.values() if one not in self.placed)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A schedule as it is."""

    deviations: tuple[Deviation, ...] = ()

    def tape(self, guide: Guide, /) -> Replay:
        return Replay(self.deviations)


# crash loops


@dataclass(frozen=True, slots=True)
class CrashLoop:
    """The same fault at the same operation of each incarnation, ``times`` in all."""

    first: Deviation
    times: int

    def tape(self, guide: Guide, /) -> LoopTape:
        return LoopTape(self)


class LoopTape:
    """Hits the operation once in each incarnation of the process, as often as asked."""

    def __init__(self, loop: CrashLoop) -> None:
        self.placed: list[Deviation] = []
        self._first = loop.first
        self._times = loop.times
        self._name = _name(loop.first.address.process)
        self._incarnations: set[str] = set()

    def __call__(self, process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
        first = self._first
        address = first.address
        if (
            label != address.label
            or number != address.number
            or len(self.placed) >= self._times
            or _name(process) != self._name
            or process in self._incarnations
            or first.fault not in faults
        ):
            return None
        self._incarnations.add(process)
        deviation = Deviation(Address(process, label, number), first.fault, first.amount)
        self.placed.append(deviation)
        return deviation


def _name(process: str) -> str:
    """Of a process, without the number of its incarnation."""
    return process.partition("+")[0]


# random


@dataclass(frozen=True, slots=True)
class Random:
    """Random choices; equal seeds choose equally, whatever PYTHONHASHSEED is."""

    seed: int
    number: int

    def tape(self, guide: Guide, /) -> RandomTape:
        return RandomTape(f"{self.seed}/{self.number}", guide)


class _Way(Enum):
    SWARM = "swarm"
    TARGETS = "targets"
    ORDER = "order"
    MIXED = "mixed"


_WAYS: Final = (*[_Way.SWARM] * 4, *[_Way.TARGETS] * 3, *[_Way.ORDER] * 2, _Way.MIXED)
_EXPECTED: Final = (1, 1, 2, 2, 3, 5, 8)


_LOST_NS_MAX: Final = 1_200 * _S
"""How long a random run may be kept waiting by its faults: an hour of pauses would look like a run that
goes on for ever."""
_LOSES_TIME: Final = frozenset((Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY, Fault.LATE_END, Fault.CHECK_LATE))


class _Target(NamedTuple):
    fault: Fault
    at: int
    """The how manieth operation with its label in the whole run."""


class RandomTape:
    """Each run draws what can happen in it (a swarm), then it happens by chance.

    Four ways: some kinds of faults with a rate over the points or over the labels, for the first part
    of the run only (a storm, then calm); one to three chosen pairs of label and fault; other orders
    by delays at a few points (delay bounding), or by late beginnings and late threads (after PCT);
    delays together with a fault or two.
    """

    def __init__(self, seed: int | str, guide: Guide) -> None:
        self.placed: list[Deviation] = []
        self._random = random.Random(seed)
        self._guide = guide
        self._seen = 0
        self._left_ns = _LOST_NS_MAX
        self._storm_ends = 0
        self._placed_max = 0
        self._kinds: frozenset[Fault] = frozenset()
        self._rates: dict[str, float] = {}
        self._rate = 0.0
        self._delays: dict[tuple[str, str, int], int] = {}
        self._targets: dict[str, list[_Target]] = {}
        self._counts: dict[str, int] = {}
        way = self._random.choice(_WAYS)
        if way is _Way.TARGETS:
            self._aim()
        if way is _Way.SWARM:
            self._swarm(self._random.choice(_EXPECTED))
        if way in (_Way.ORDER, _Way.MIXED):
            self._order()
        if way is _Way.MIXED:
            self._swarm(self._random.choice((1, 2)))

    def __call__(self, process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
        self._seen += 1
        if self._delays and Fault.DELAY in faults:
            amount = self._delays.get((process, label, number))
            if amount is not None:
                return self._place(process, label, number, Fault.DELAY, amount)
        if self._targets and (targets := self._targets.get(label)) is not None:
            count = self._counts[label] = self._counts.get(label, 0) + 1
            for target in targets:
                if target.at == count and target.fault in faults:
                    return self._place(process, label, number, target.fault)
        if self._seen > self._storm_ends or self._random.random() >= self._rates.get(label, self._rate):
            return None
        possible = [fault for fault in faults if fault in self._kinds]
        if not possible or len(self.placed) >= self._placed_max:
            return None
        return self._place(process, label, number, self._random.choice(possible))

    def _place(
        self, process: str, label: str, number: int, fault: Fault, amount: int | None = None
    ) -> Deviation | None:
        if amount is None:
            amount = self._random.choice(_DRAWN.get(fault, (0,)))
        if fault in _LOSES_TIME:
            if amount > self._left_ns:
                return None
            self._left_ns -= amount
        deviation = Deviation(Address(process, label, number), fault, amount)
        self.placed.append(deviation)
        return deviation

    # what this run can suffer

    def _swarm(self, expected: int) -> None:
        chance, guide = self._random, self._guide
        known = dict.fromkeys(fault for _, fault in guide.pairs)
        kills = chance.random() < 0.2
        # Nobody starts a killed process anew: where that happens in each run, nothing recovers.
        can = [fault for fault in known if kills or fault not in KILLS]
        if not can:
            return
        kinds = [fault for fault in can if chance.random() < 0.5] or [chance.choice(can)]
        labels = [label for label in guide.counts if chance.random() < 0.5]
        if not labels or chance.random() < 0.5:
            labels = list(guide.counts)
        calm_after = chance.uniform(0.3, 2.0)
        self._kinds = frozenset(kinds)
        self._storm_ends = round(calm_after * len(guide.points)) + 1
        self._placed_max = 3 * expected
        hits = sum(guide.counts[label] for label in labels)
        self._rate = expected / hits / calm_after
        if chance.random() < 0.5:
            # Each label as often as any other, however often it is passed.
            self._rates = {label: expected / len(labels) / guide.counts[label] / calm_after for label in labels}
        if len(labels) < len(guide.counts):
            self._rates = {
                label: self._rates.get(label, self._rate) if label in labels else 0.0 for label in guide.counts
            }

    def _aim(self) -> None:
        chance, guide = self._random, self._guide
        for _ in range(chance.choice((1, 2, 2, 3)) if guide.pairs else 0):
            label, fault = chance.choice(guide.pairs)
            # Beyond what the run without faults has: a recovery passes some operations once more.
            at = chance.randint(1, guide.counts[label] + 2)
            self._targets.setdefault(label, []).append(_Target(fault, at))

    def _order(self) -> None:
        chance, guide = self._random, self._guide
        points = [point for point in guide.points if Fault.DELAY in point.faults]
        if not points:
            return
        late_ns = chance.choice(_LADDER)
        priorities = chance.random() < 0.5
        if priorities:
            firsts = list(guide.firsts.values())
            chance.shuffle(firsts)
            for place, point in enumerate(firsts[1:], 1):
                self._delays[point.process, point.label, point.number] = place * late_ns
        for point in chance.sample(points, min(len(points), chance.randint(1, 4))):
            self._delays[point.process, point.label, point.number] = (
                100 * _S if priorities else late_ns if chance.random() < 0.3 else chance.choice(_LADDER)
            )


def schedule_of(tape: RecordingTape) -> Schedule:
    """What a tape placed, as a schedule that replays to the same history."""
    return Schedule.of(tape.placed)
