"""nonmonotonic-poll: a reader goes forward only."""

from __future__ import annotations

from itertools import pairwise

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import seconds
from txbus_sim.checkers._vocabulary import Finding, Given
from txbus_sim.history import PositionCommitted

__all__ = ["nonmonotonic_poll"]


def nonmonotonic_poll(evidence: Evidence, given: Given) -> Finding:
    """Premise: a read of a log returned two records or more, or a member was handed a record after it
    had committed a position itself.

    Within one read offsets grow. Between polls of a group they may go back, to the group's position
    (Jepsen allows it under *subscribe*), but not below a position that the member itself committed
    and nobody changed since. Allowed where a partition may have several owners; a redelivery
    (attempt 2 and more) is none of its concern.
    """
    found = Finding("nonmonotonic-poll")
    for read, _ in evidence.reads:
        if len(read.offsets) < 2:
            continue
        found.spoke()
        if any(a >= b for a, b in pairwise(read.offsets)):
            found.accuse(
                f"a read went backwards: {read.process} read {read.topic}/{read.partition} from {read.start} and got "
                f"the offsets {', '.join(map(str, read.offsets))} in this order",
                f"{seconds(read.at_ns)}  {read.process} read up to {read.to}",
            )
    if given.allowed.several_owners:
        return found
    for place, seen in evidence.places.items():
        if place.topic.startswith("txbus."):
            continue  # the relay seeks
        positions = [done for done in seen.done if type(done.record) is PositionCommitted]
        nth = -1
        for one in seen.deliveries:
            while nth + 1 < len(positions) and positions[nth + 1].seq < one.seq:
                nth += 1
            if nth < 0 or one.record.attempt > 1 or positions[nth].record.process != one.record.process:
                continue
            found.spoke()
            if one.record.offset < positions[nth].record.offset:
                found.accuse(
                    f"a poll went backwards: {one.record.process} was handed {place.topic}/{place.partition}@"
                    f"{one.record.offset} in group {place.group} after it had committed the position "
                    f"{positions[nth].record.offset} itself, and nobody else had moved it",
                    positions[nth].line(),
                    f"{seconds(one.record.at_ns)}  {one.record.process} was handed offset {one.record.offset}",
                )
    return found
