"""One run of an exploration, reduced where it took place to what the exploration has to know of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from txbus_sim._world import Tape
from txbus_sim.faults import Fault, Faults
from txbus_sim.history import FaultHappened, Point
from txbus_sim.result import RunResult, Verdict
from txbus_sim.schedule import Address, Deviation, Schedule
from txbus_sim.strategies import Fixed, Guide, Strategy, amounts, left_of

__all__ = ["Item", "Probe", "Recovered", "RunOnce", "Summary", "Wants", "deviations_at", "tries"]

_KEPT_MAX = 10_000


class RunOnce(Protocol):
    """Runs a scenario once, under a schedule or a tape. The same choices give the same history."""

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult: ...


class Wants(Enum):
    """What is to be told of a run besides its verdict."""

    VERDICT = "verdict"
    RECOVERY = "recovery"
    """One operation of each sort that was reached after the first fault."""
    EVERY_POINT = "every-point"
    """All of them."""


@dataclass(frozen=True, slots=True)
class Item:
    """One run to be made."""

    number: int
    strategy: Strategy
    wants: Wants = Wants.VERDICT

    def __str__(self) -> str:
        if isinstance(self.strategy, Fixed):
            return f"run {self.number}, which has this schedule:\n{Schedule.of(self.strategy.deviations)}".rstrip()
        return f"run {self.number}, {self.strategy}"


class Recovered(NamedTuple):
    """An operation that was reached after the first fault. ``later``: in a process that was started
    anew. ``state``: the digest of the protocol's state there, "" if nobody takes any."""

    process: str
    label: str
    number: int
    faults: Faults
    later: bool
    state: str


@dataclass(frozen=True, slots=True)
class Summary:
    """What an exploration keeps of a run until it is counted. ``offered``: pairs of label and fault
    that the run without faults does not have."""

    number: int
    placed: tuple[Deviation, ...]
    verdict: Verdict | None
    sometimes: Mapping[str, int]
    premises: Mapping[str, int]
    offered: tuple[tuple[str, Fault], ...] = ()
    recovered: tuple[Recovered, ...] = field(default=(), repr=False)
    enumerated: int = 0
    """How many second faults there are, tried or not."""


def tries(faults: Iterable[Fault]) -> int:
    """How many deviations enumeration has for an operation."""
    return sum(len(amounts(fault)) for fault in faults)


class Probe:
    """Makes runs and reports on them; what workers do."""

    def __init__(self, runner: RunOnce, guide: Guide) -> None:
        self._runner = runner
        self._guide = guide
        self._known = set(guide.pairs)
        # By the identity of the tuples of faults: hashing a dozen faults for each point would cost more
        # than the point. The tuples are kept, so that no other gets their identity.
        self._nothing_new: dict[tuple[str, int], Faults] = {}
        self._offers: dict[int, tuple[Faults, Faults, int]] = {}

    def __call__(self, item: Item) -> Summary:
        tape = item.strategy.tape(self._guide)
        result = self._runner(tape=tape)
        recovered: tuple[Recovered, ...] = ()
        enumerated = 0
        if result.verdict is None and item.wants is not Wants.VERDICT:
            recovered, enumerated = self._recovered(result, item.wants is Wants.EVERY_POINT)
        return Summary(
            item.number,
            tuple(tape.placed),
            result.verdict,
            dict(result.sometimes),
            dict(result.premises),
            self._offered(result),
            recovered,
            enumerated,
        )

    def _offered(self, result: RunResult) -> tuple[tuple[str, Fault], ...]:
        known = self._nothing_new
        new: dict[tuple[str, Fault], None] = {}
        for record in result.history.records:
            if type(record) is Point and (record.label, id(record.faults)) not in known:
                pairs = [(record.label, fault) for fault in self._offer(record.faults)[1]]
                found = [pair for pair in pairs if pair not in self._known]
                if found:
                    new.update(dict.fromkeys(found))
                elif len(known) < _KEPT_MAX:
                    known[record.label, id(record.faults)] = record.faults
        return tuple(new)

    def _offer(self, faults: Faults) -> tuple[Faults, Faults, int]:
        """The faults themselves, those that may be placed, and how many deviations these are."""
        offer = self._offers.get(id(faults))
        if offer is None:
            left = left_of(faults, self._guide.without)
            offer = (faults, left, tries(left))
            if len(self._offers) < _KEPT_MAX:
                self._offers[id(faults)] = offer
        return offer

    def _recovered(self, result: RunResult, every: bool) -> tuple[tuple[Recovered, ...], int]:
        found: list[Recovered] = []
        met: set[tuple[str, bool, int, str]] = set()
        enumerated = 0
        hit = False
        for record in result.history.records:
            if type(record) is FaultHappened:
                hit = True
            elif hit and type(record) is Point:
                _, faults, weight = self._offers.get(id(record.faults)) or self._offer(record.faults)
                enumerated += weight
                state = result.states.get(record.address, "") if result.states else ""
                later = "+" in record.process
                sort = (record.label, later, id(record.faults), state)
                if every or sort not in met:
                    met.add(sort)
                    found.append(Recovered(record.process, record.label, record.number, faults, later, state))
        return tuple(found), enumerated


def deviations_at(address: Address, faults: Iterable[Fault]) -> list[Deviation]:
    """Every single deviation of enumeration at an operation."""
    return [Deviation(address, fault, amount) for fault in faults for amount in amounts(fault)]
