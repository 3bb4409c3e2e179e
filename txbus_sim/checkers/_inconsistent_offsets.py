"""inconsistent-offsets: an offset holds one record for every reader, for ever."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Where, seconds
from txbus_sim.checkers._vocabulary import Finding, Given

__all__ = ["inconsistent_offsets"]


def inconsistent_offsets(evidence: Evidence, given: Given) -> Finding:
    """Premise: somebody was handed the record of an offset."""
    found = Finding("inconsistent-offsets")
    for message, kept in evidence.rewritten:
        found.spoke()
        found.accuse(
            f"an offset changed its record: {message} was readable, and after a failover of the broker its offset "
            f"holds message {kept.record.message_id}",
            message.line(),
            f"{seconds(kept.record.at_ns)}  {kept.record.process} stored the other one",
        )
    for place, seen in evidence.places.items():
        where = Where(place.topic, place.partition)
        held = {offset: kept.record.message_id for offset, kept in evidence.stored.get(where, {}).items()}
        held |= {offset: message.id for offset, message in evidence.at.get(where, {}).items()}
        for one in seen.deliveries:
            found.spoke()
            record = one.record
            if held.get(record.offset, record.message_id) != record.message_id:
                found.accuse(
                    f"readers disagree: {where}@{record.offset} holds message {held[record.offset]}, and "
                    f"{record.process} was handed message {record.message_id} there",
                    f"{seconds(record.at_ns)}  {record.process} was handed it in group {place.group}",
                )
    for where, visible in evidence.at.items():
        stored = evidence.stored.get(where, {})
        for offset, message in visible.items():
            if offset in stored and stored[offset].record.message_id != message.id:
                found.spoke()
                first = stored[offset].record
                found.accuse(
                    f"readers disagree: message {first.message_id} was stored at {where}@{offset}, and message "
                    f"{message.id} is read there",
                    f"{seconds(first.at_ns)}  {first.process} stored it",
                    message.line(),
                )
    return found
