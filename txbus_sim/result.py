"""What one run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from txbus_sim.history import History
from txbus_sim.schedule import Address, Schedule

__all__ = ["RunResult", "Verdict", "VerdictKind"]


class VerdictKind(Enum):
    """What sort of failure. The first five are about the code under test."""

    ASSERTION = "assertion"
    """The user's own assertion, in a process or in a check."""
    PROPERTY = "property"
    """A checker's property does not hold."""
    STUCK = "stuck"
    """Somebody waits for ever: a deadlock, or a wake-up that never comes."""
    LIVELOCK = "livelock"
    """The step budget was used up without an end."""
    RAISED = "raised"
    """A process raised in a run without faults, or does so for ever after them."""
    SHARED_MEMORY = "shared-memory"
    """Simulated processes shared a module's global, which real ones could not."""
    NOT_MODELLED = "not-modelled"
    """The code asked for something that is not simulated."""
    MALFORMED = "malformed"
    """The history is impossible: a defect of a model."""
    UNREACHED = "unreached"
    """A replayed schedule names an address that was never reached."""
    VACUOUS = "vacuous"
    """Of an exploration: a property's premise, or a `sometimes`, never occurred."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One failure. ``name``: the property's, such as ``no-loss``; equal names of equal kinds are the
    same failure to exploration and shrinking. ``sentence`` says it in one sentence. ``details``: a
    line each. ``site``: ``file:line`` of the user's assertion, else "". ``assumed``: rows of a
    dialect's table that the verdict rests on and nobody verified."""

    kind: VerdictKind
    name: str
    sentence: str
    details: tuple[str, ...] = ()
    site: str = ""
    assumed: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, str]:
        return (self.kind.value, self.name)


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of a scenario under a schedule.

    ``verdict`` None: it passed. ``unreached``: the schedule's addresses that the run did not come
    to. ``sometimes`` and ``premises`` count what occurred, by name, zeros included.
    ``state`` maps each address reached to a digest of the protocol's state there, where asked for.
    """

    schedule: Schedule
    verdict: Verdict | None
    history: History
    unreached: tuple[Address, ...] = ()
    sometimes: Mapping[str, int] = field(default_factory=dict)
    premises: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[Address, str] = field(default_factory=dict)
    virtual_ns: int = 0
    steps: int = 0

    @property
    def passed(self) -> bool:
        return self.verdict is None
