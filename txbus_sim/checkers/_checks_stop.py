"""checks-stop-after-resolution: nobody is asked any more about a half that an answer has settled."""

from __future__ import annotations

from itertools import pairwise

from txbus.spi import Outcome
from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import seconds
from txbus_sim.checkers._vocabulary import Finding, Given
from txbus_sim.faults import Fault

__all__ = ["checks_stop_after_resolution"]

_ASKED_AGAIN = (
    Fault.CHECK_LATE,
    Fault.CHECK_DUPLICATE,
    Fault.MEMORY_LOST,
    Fault.FAILOVER,
    Fault.ANSWER_LOST,
    Fault.REQUEST_LOST,
)


def checks_stop_after_resolution(evidence: Evidence, given: Given) -> Finding:
    """Premise: the answer to a check settled a native half, or a half was asked about twice.

    Only an answer stops the checks: a producer's own word after the first round does not
    (RocketMQ 5.3.3), and a broker that lost its memory, or a question that was under way, asks again;
    both are allowed. Whoever is asked twice has to give the same answer: an outcome never changes.
    """
    found = Finding("checks-stop-after-resolution")
    disturbed = any(fault.fault in _ASKED_AGAIN for fault, _ in evidence.faults)
    for half, checks in evidence.checked.items():
        found.applies = True
        answers = [(one, seq) for one, seq in checks if one.answer not in (None, Outcome.UNKNOWN)]
        settled = evidence.settled.get(half, [])
        for (one, _), (other, _) in pairwise(answers):
            found.spoke()
            if one.answer is not other.answer:
                found.accuse(
                    f"the answer to a check changed: {one.process} answered {_word(one.answer)} about message "
                    f"{one.message_id}, and {other.process} {_word(other.answer)} in round {other.round}",
                    f"{seconds(one.at_ns)}  round {one.round}: {_word(one.answer)}",
                    f"{seconds(other.at_ns)}  round {other.round}: {_word(other.answer)}",
                )
        if not answers or not settled or settled[0][1] < answers[0][1]:
            continue
        found.spoke()
        resolved, at = settled[0]
        late = next((one for one, seq in checks if seq > at and one.round > answers[0][0].round), None)
        if late is not None and not disturbed:
            found.accuse(
                f"checks went on after the resolution: message {late.message_id} was settled as "
                f"{_word(resolved.outcome)} by an answer, and {late.process} was asked again in round {late.round}",
                f"{seconds(resolved.at_ns)}  settled: {_word(resolved.outcome)}",
                f"{seconds(late.at_ns)}  asked again, round {late.round}",
            )
    return found


def _word(outcome: Outcome | None) -> str:
    return outcome.value if outcome is not None else "nothing"
