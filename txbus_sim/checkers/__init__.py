"""Checkers: what a history must not show, named as Jepsen names it where it has a name.

They read the history event by event, because a restart heals a phantom before anybody looks at the
final state, and look into the databases' files; they never ask the code under test. Which rows and
messages belong together is declared (`Pair`, `Effect`, `Attempts`) or learned from the run without
faults (`learn`). Which anomalies a broker may show follows from its capabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from txbus_sim.checkers._checks_stop import checks_stop_after_resolution
from txbus_sim.checkers._dead_letter import dead_letter_iff_exhausted
from txbus_sim.checkers._duplicate import duplicate
from txbus_sim.checkers._effect_exactly_once import effect_exactly_once
from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._fencing import fencing
from txbus_sim.checkers._g1a import g1a
from txbus_sim.checkers._inconsistent_offsets import inconsistent_offsets
from txbus_sim.checkers._int_poll_skip import int_poll_skip
from txbus_sim.checkers._learn import learn
from txbus_sim.checkers._lost_write import lost_write
from txbus_sim.checkers._no_loss import no_loss
from txbus_sim.checkers._no_phantom import no_phantom
from txbus_sim.checkers._nonmonotonic_poll import nonmonotonic_poll
from txbus_sim.checkers._order_per_key import order_per_key
from txbus_sim.checkers._precommitted_read import precommitted_read
from txbus_sim.checkers._unseen import unseen
from txbus_sim.checkers._vocabulary import (
    Allowed,
    Attempts,
    Books,
    CapabilitiesOf,
    CheckReport,
    Effect,
    Expectation,
    Finding,
    Given,
    Pair,
    Repeat,
)
from txbus_sim.history import History

__all__ = [
    "PROPERTIES",
    "Attempts",
    "Books",
    "CapabilitiesOf",
    "CheckReport",
    "Effect",
    "Expectation",
    "Pair",
    "Repeat",
    "check",
    "learn",
]

_CHECKERS: dict[str, Callable[[Evidence, Given], Finding]] = {
    "no-loss": no_loss,
    "no-phantom": no_phantom,
    "precommitted-read": precommitted_read,
    "G1a": g1a,
    "effect-exactly-once": effect_exactly_once,
    "duplicate": duplicate,
    "order-per-key": order_per_key,
    "lost-write": lost_write,
    "inconsistent-offsets": inconsistent_offsets,
    "nonmonotonic-poll": nonmonotonic_poll,
    "int-poll-skip": int_poll_skip,
    "unseen": unseen,
    "fencing": fencing,
    "checks-stop-after-resolution": checks_stop_after_resolution,
    "dead-letter-iff-exhausted": dead_letter_iff_exhausted,
}

PROPERTIES: tuple[str, ...] = tuple(_CHECKERS)
"""The names of all properties, the most telling first."""


def check(
    history: History, books: Books, expectations: Iterable[Expectation], capabilities: CapabilitiesOf
) -> CheckReport:
    """Ask a finished run's history for every property.

    MalformedHistory: no correct dialect can have made it, so that nothing else can be said. Pure and
    deterministic; ``books`` is read only where a message seems to be a phantom, and where the commits
    do not tell their rows.
    """
    evidence = Evidence(history, books)
    given = Given.of(expectations, Allowed.by(capabilities), books)
    findings = [checker(evidence, given) for checker in _CHECKERS.values()]
    verdicts = tuple(verdict for finding in findings if (verdict := finding.verdict()) is not None)
    return CheckReport(verdicts, {one.name: one.premise for one in findings if one.applies})
