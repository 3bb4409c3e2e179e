"""The shortest schedule that fails in the same way, with the proof that each deviation is needed.

Delta debugging over the deviations of a schedule: leave some out, make a fault simpler or shorter, let
it happen earlier. A candidate is taken if its run comes to a verdict of the same identity. The result
is 1-minimal: for each deviation left, the run without it was executed and did not fail so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, TypeAlias

from txbus_sim._parallel import Crew, crew
from txbus_sim._probe import Item, Probe, RunOnce, Summary
from txbus_sim.errors import SimulationError
from txbus_sim.faults import Fault
from txbus_sim.history import History, Point
from txbus_sim.result import Verdict
from txbus_sim.schedule import Address, Deviation, Schedule
from txbus_sim.strategies import Fixed, Guide

__all__ = ["RUNS_MAX", "Necessity", "Shrunk", "shrink"]

RUNS_MAX: Final = 500
"""Runs that shrinking makes unless it is told otherwise. The proof of minimality is beyond them."""
_EARLIER_MAX: Final = 24
_MS: Final = 1_000_000
_NICE: Final = tuple(_MS * 10**power for power in range(6))

_SIMPLER: Final[dict[Fault, tuple[Fault, ...]]] = {
    Fault.KILL_BEFORE: (Fault.CRASH_BEFORE,),
    Fault.KILL_AFTER: (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.KILL_BEFORE),
    Fault.CRASH_AFTER: (Fault.CRASH_BEFORE,),
    Fault.PAUSE_AFTER: (Fault.PAUSE_BEFORE,),
}

_Deviations: TypeAlias = tuple[Deviation, ...]


@dataclass(frozen=True, slots=True)
class Necessity:
    """The run without one deviation, executed. ``outcome`` None: it passed; else it failed otherwise."""

    deviation: Deviation
    without: Schedule
    outcome: Verdict | None


@dataclass(frozen=True, slots=True)
class Shrunk:
    """``schedule`` in the order in which its deviations happen; ``runs`` were made for it;
    ``complete``: the budget sufficed, so that no candidate was left untried."""

    schedule: Schedule
    verdict: Verdict
    necessities: tuple[Necessity, ...]
    runs: int
    complete: bool


def shrink(runner: RunOnce, schedule: Schedule, *, runs_max: int = RUNS_MAX, jobs: int = 1) -> Shrunk:
    """Shrink a failing schedule. The result does not depend on ``jobs``.

    SimulationError if the schedule does not fail. Blocks for at most ``runs_max`` runs, and those
    that prove what is left to be minimal.
    """
    with crew(Probe(runner, Guide()), jobs) as workers:
        return shrink_with(workers, lambda one: runner(one).history, schedule, runs_max)


def shrink_with(
    workers: Crew[Item, Summary], history_of: Callable[[Schedule], History], schedule: Schedule, runs_max: int
) -> Shrunk:
    """As `shrink`, with the workers of an exploration."""
    return _Shrinker(workers, history_of, schedule, runs_max).shrink()


class _Shrinker:
    def __init__(
        self,
        workers: Crew[Item, Summary],
        history_of: Callable[[Schedule], History],
        schedule: Schedule,
        runs_max: int,
    ) -> None:
        self._workers = workers
        self._history_of = history_of
        self._note = schedule.note
        self._runs_max = runs_max
        self._runs = 0
        self._cut = False
        self._known: dict[frozenset[Deviation], Summary] = {}
        self._been: set[frozenset[Deviation]] = set()
        self._pointed: tuple[_Deviations, list[Point]] | None = None
        first = self._run(tuple(schedule))
        if first.verdict is None:
            raise SimulationError(f"there is nothing to shrink: this schedule's run passes\n{schedule}")
        self._identity = first.verdict.identity
        self._now = self._taken(first)

    def shrink(self) -> Shrunk:
        while True:
            while not self._cut and self._pass():
                pass
            necessities = self._prove()
            if necessities is not None:
                break
        verdict = self._known[frozenset(self._now)].verdict
        assert verdict is not None
        return Shrunk(Schedule(self._now, self._note), verdict, necessities, self._runs, not self._cut)

    # runs

    def _run(self, deviations: _Deviations) -> Summary:
        """The run of these, made if it was not."""
        key = frozenset(deviations)
        if key not in self._known:
            (self._known[key],) = self._workers.map([Item(self._runs, Fixed(deviations))])
            self._runs += 1
        return self._known[key]

    def _first(self, candidates: Iterable[_Deviations]) -> bool:
        """Go on with the first candidate that fails as it should; False if none does.

        Runs that workers made ahead of it are forgotten, so that the count does not tell how many
        workers there are.
        """
        wanted = [one for one in dict.fromkeys(map(_ordered, candidates)) if frozenset(one) not in self._been]
        fresh = [one for one in wanted if frozenset(one) not in self._known]
        left = max(0, self._runs_max - self._runs)
        runs = self._workers.map([Item(number, Fixed(one)) for number, one in enumerate(fresh[:left], self._runs)])
        try:
            for one in wanted:
                key = frozenset(one)
                if key not in self._known:
                    made = next(runs, None)
                    if made is None:
                        self._cut = True
                        return False
                    self._known[key] = made
                    self._runs += 1
                made = self._known[key]
                if self._same(made) and frozenset(made.placed) not in self._been:
                    self._now = self._taken(made)
                    return True
        finally:
            runs.close()
        return False

    def _same(self, made: Summary) -> bool:
        return made.verdict is not None and made.verdict.identity == self._identity

    def _taken(self, made: Summary) -> _Deviations:
        """What happened of a schedule; what was never reached had no part in it."""
        key = frozenset(made.placed)
        self._known[key] = made
        self._been.add(key)
        return made.placed

    # candidates

    def _pass(self) -> bool:
        """One round over everything that could be tried; whether anything was taken."""
        changed = self._drop()
        for candidates in (self._simpler, self._shorter, self._earlier):
            for place in range(len(self._now)):
                if place < len(self._now) and self._first(candidates(place)):
                    changed = True
        return changed

    def _drop(self) -> bool:
        changed = False
        size = max(1, len(self._now) // 2)
        while len(self._now) > 0:
            if self._first(_without(self._now, size)):
                changed = True
                size = max(1, min(size, len(self._now) // 2))
            elif size == 1:
                break
            else:
                size //= 2
        return changed

    def _simpler(self, place: int) -> Iterator[_Deviations]:
        one = self._now[place]
        for fault in _SIMPLER.get(one.fault, ()):
            yield _put(self._now, place, Deviation(one.address, fault, one.amount))

    def _shorter(self, place: int) -> Iterator[_Deviations]:
        one = self._now[place]
        for amount in _amounts_below(one):
            yield _put(self._now, place, Deviation(one.address, one.fault, amount))

    def _earlier(self, place: int) -> Iterator[_Deviations]:
        """The same at an earlier operation with this label, or at the first of another label, of the
        same incarnation; the earliest first."""
        one = self._now[place]
        taken = {other.address for other in self._now}
        firsts: set[str] = set()
        found: list[Address] = []
        same: list[Address] = []
        points = [point for point in self._points() if point.process == one.address.process]
        for point in takewhile(lambda point: point.address != one.address, points):
            if point.address in taken or one.fault not in point.faults:
                continue
            if point.label == one.address.label:
                same.append(point.address)
            elif point.label not in firsts:
                firsts.add(point.label)
                found.append(point.address)
        order = {point.address: number for number, point in enumerate(points)}
        # Of many with the same label: the first, and halfway again and again.
        found += [
            same[at]
            for at in sorted({0, *(len(same) - len(same) // 2**power for power in range(1, 5))})
            if at < len(same)
        ]
        for address in sorted(found, key=order.__getitem__)[:_EARLIER_MAX]:
            yield _put(self._now, place, Deviation(address, one.fault, one.amount))

    def _points(self) -> list[Point]:
        """What the present schedule's run comes to."""
        if self._pointed is None or self._pointed[0] != self._now:
            self._pointed = (self._now, self._history_of(Schedule(self._now)).points())
        return self._pointed[1]

    # the proof

    def _prove(self) -> tuple[Necessity, ...] | None:
        """The run without each deviation; None if one of them fails in the same way after all."""
        necessities = []
        for place, one in enumerate(self._now):
            without = (*self._now[:place], *self._now[place + 1 :])
            made = self._run(without)
            if self._same(made):
                self._now = self._taken(made)
                return None
            necessities.append(Necessity(one, Schedule(without), made.verdict))
        return tuple(necessities)


def _without(deviations: _Deviations, size: int) -> Iterator[_Deviations]:
    """Without each part of this size; the last ones first, because the first caused them."""
    for begin in reversed(range(0, len(deviations), size)):
        kept = (*deviations[:begin], *deviations[begin + size :])
        yield kept
        if size == 1 and kept:
            gone = deviations[begin]
            # A process that dies once less has one incarnation less: what hit the later ones moves up.
            moved = tuple(_moved_up(one, gone.address) for one in kept)
            if moved != kept and len({one.address for one in moved}) == len(moved):
                yield moved


def _moved_up(one: Deviation, gone: Address) -> Deviation:
    """The deviation in the incarnation before, if it was in one after the address."""
    address = one.address
    name, incarnation = _incarnation(address.process)
    gone_name, gone_incarnation = _incarnation(gone.process)
    if name != gone_name or incarnation <= gone_incarnation:
        return one
    process = f"{name}+{incarnation - 1}" if incarnation > 1 else name
    return Deviation(Address(process, address.label, address.number), one.fault, one.amount)


def _incarnation(process: str) -> tuple[str, int]:
    name, _, number = process.partition("+")
    return name, int(number or 0)


def _put(deviations: _Deviations, place: int, one: Deviation) -> _Deviations:
    return (*deviations[:place], one, *deviations[place + 1 :])


def _ordered(deviations: _Deviations) -> _Deviations:
    """A candidate under one name, whatever it came from."""
    return tuple(sorted(deviations, key=lambda one: (one.address, one.fault.value, one.amount)))


def _amounts_below(one: Deviation) -> list[int]:
    """Smaller amounts, the smallest first: round ones, and the half."""
    if not one.amount:
        return []
    if one.fault is Fault.TORN:
        return sorted({0, 1, one.amount // 2} - {one.amount})
    least = _NICE[0]
    found = {amount for amount in (*_NICE, one.amount // 2) if least <= amount < one.amount}
    return sorted(found)
