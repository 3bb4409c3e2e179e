"""G1a, aborted read: what a broker transaction wrote that was aborted is never read."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Where, seconds
from txbus_sim.checkers._vocabulary import Finding, Given

__all__ = ["g1a"]


def g1a(evidence: Evidence, given: Given) -> Finding:
    """Premise: a broker transaction that had written a record was aborted."""
    found = Finding("G1a")
    handed = {
        (Where(place.topic, place.partition), one.record.offset): one.record
        for place, seen in evidence.places.items()
        for one in reversed(seen.deliveries)
    }
    for where, stored in evidence.stored.items():
        seen = evidence.at.get(where, {})
        for offset, kept in stored.items():
            if kept.record.producer:
                found.applies = True
            if kept.state != "aborted":
                continue
            found.spoke()
            message, given_to = seen.get(offset), handed.get((where, offset))
            if message is None and given_to is None:
                continue
            record = kept.record
            reader = f"{seconds(given_to.at_ns)}  {given_to.process} was given it" if given_to is not None else ""
            found.accuse(
                f"an aborted record was read: {where}@{offset} (message {record.message_id or 'without an id'}), "
                f"written by {record.producer} in a broker transaction that was aborted",
                f"{seconds(record.at_ns)}  {record.process} wrote it in a broker transaction of {record.producer}",
                *([message.line()] if message is not None else []),
                *([reader] if reader else []),
            )
    return found
