"""The mutants: one rule of the protocol at a time put back to its naive form, and what must come of it.

A mutant is a patch of the core while an exploration runs. It has to be found by the default exploration
(single faults in order, then random schedules of the default seed) within ``within`` schedules, by a
failure that shows the property it breaks. What survives, and why, is told in docs/explanation/proof.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import pytest

from tests.simulation.protocol.scenarios import BROKERS
from txbus_sim.result import Verdict
from txbus_sim.simulation import Broker

__all__ = ["MUTANTS", "Breaks", "Mutant", "Patch", "mutant"]

Patch = Callable[[pytest.MonkeyPatch], None]


class Breaks(Enum):
    """A property, by the words with which checks and checkers tell that it is broken."""

    LOSS = ("lost", "before its effect")
    DOUBLE = ("doubled", "twice")
    ORDER = ("disordered", "out of order")
    PHANTOM = ("phantom", "visible before", "G1a")
    ATTEMPTS = ("attempts", "handler ran", "dead letter")
    TIMEOUT = ("too late",)
    STUCK = ("livelock", "only")
    EVIDENCE = ("unconfirmed",)
    TORN = ("torn", "handed on")
    FENCING = ("fenced",)

    def told_by(self, verdict: Verdict) -> bool:
        text = f"{verdict.name}: {verdict.sentence}"
        return any(word in text for word in self.value)


@dataclass(frozen=True, slots=True)
class Mutant:
    """``rule``: of docs/explanation/protocol.md, or the safeguard in words. ``breaks``: one of these must
    be told. ``within``: schedules in which it is found on each of ``brokers``, about twice the measured
    number."""

    name: str
    rule: str
    scenario: str
    breaks: tuple[Breaks, ...]
    within: Mapping[Broker, int]
    patch: Patch

    def __str__(self) -> str:
        return self.name


MUTANTS: list[Mutant] = []


def mutant(rule: str, scenario: str, *breaks: Breaks, **within: int) -> Callable[[Patch], Patch]:
    """``within``: by the name of the broker."""
    unknown = set(within) - set(BROKERS)
    assert not unknown, unknown

    def add(patch: Patch) -> Patch:
        numbers = {broker: within[broker] for broker in BROKERS if broker in within}
        MUTANTS.append(Mutant(patch.__name__, rule, scenario, breaks, numbers, patch))
        return patch

    return add
