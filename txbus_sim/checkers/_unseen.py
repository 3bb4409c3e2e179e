"""unseen: a group that is there sees, in the end, whatever became visible since it came."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._vocabulary import Finding, Given

__all__ = ["unseen"]


def unseen(evidence: Evidence, given: Given) -> Finding:
    """Premise: a message became visible in a topic after a group had read there, and a member of the
    group that had read there was left at the end. Allowed: a topic with tags, where the broker filters by
    tags.
    """
    found = Finding("unseen")
    if not evidence.calm:
        return found
    groups: dict[tuple[str, str], int] = {}
    handed: dict[tuple[str, str], set[tuple[int, int]]] = {}
    members: dict[tuple[str, str], dict[str, None]] = {}
    for place, seen in evidence.places.items():
        key = (place.group, place.topic)
        for one in seen.deliveries:
            groups[key] = min(groups.get(key, one.seq), one.seq)
            handed.setdefault(key, set()).add((place.partition, one.record.offset))
            members.setdefault(key, {})[one.record.process] = None
    for (group, topic), since in groups.items():
        if topic.startswith("txbus.") or (given.allowed.filtered and topic in evidence.tagged):
            continue
        if not any(map(evidence.name_at_end, members[group, topic])):
            continue
        found.applies = True
        for message in evidence.messages.get(topic, ()):
            if message.seq < since:
                continue
            found.spoke()
            if (message.record.partition, message.record.offset) not in handed[group, topic]:
                found.accuse(
                    f"a message was never seen: {message} of topic {topic} was handed to nobody in group {group}, "
                    "which was reading there until the end",
                    message.line(),
                )
    return found
