"""lost-write: a record that is durable, and of no aborted transaction, can be read in the end."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import seconds
from txbus_sim.checkers._vocabulary import Finding, Given

__all__ = ["lost_write"]


def lost_write(evidence: Evidence, given: Given) -> Finding:
    """Premise: a record was stored in a partition whose later records became visible.

    Jepsen's: what lies below something that was read must have been read. The last records of a
    partition may still wait, for a broker transaction before them or for their time.
    """
    found = Finding("lost-write")
    for where, stored in evidence.stored.items():
        seen = evidence.at.get(where)
        if not seen:
            continue
        readable = max(seen)
        for offset, kept in stored.items():
            if offset > readable or kept.state == "aborted":
                continue
            found.spoke()
            if offset not in seen:
                record = kept.record
                found.accuse(
                    f"a durable record was lost: message {record.message_id or 'without an id'} at {where}@{offset} "
                    f"never became visible, though {where}@{readable} did",
                    f"{seconds(record.at_ns)}  {record.process} stored it",
                    seen[readable].line(),
                )
    return found
