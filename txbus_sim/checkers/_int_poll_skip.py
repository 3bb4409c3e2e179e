"""int-poll-skip: a reader that goes on from a place leaves nothing out."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Place, Where, seconds
from txbus_sim.checkers._vocabulary import Finding, Given

__all__ = ["int_poll_skip"]


def int_poll_skip(evidence: Evidence, given: Given) -> Finding:
    """Premise: a log was read over visible records, or a member was handed two records of a partition
    one after the other.

    A read returns every record between its begin and its end that was visible then. A member that
    goes on in a partition, while nobody else was handed anything there, leaves out nothing that its
    group never sees. Allowed: a topic with tags, where the broker filters by tags. Half logs are judged by
    their reads only, from the first record on that is there.
    """
    found = Finding("int-poll-skip")
    offsets = {where: sorted(seen) for where, seen in evidence.at.items()}
    for read, seq in evidence.reads:
        where = Where(read.topic, read.partition)
        visible, returned = evidence.at.get(where, {}), {*read.offsets}
        there = offsets.get(where, [])
        # The beginning of a log of txbus's own may have been truncated: nobody needs it any more.
        start = min(read.offsets, default=read.to) if read.topic.startswith("txbus.") else read.start
        for offset in there[bisect_left(there, start) : bisect_left(there, read.to)]:
            if visible[offset].seq > seq:
                continue
            found.spoke()
            if offset not in returned:
                found.accuse(
                    f"a read left a record out: {read.process} read {where} from {read.start} to {read.to} without "
                    f"{visible[offset]}",
                    visible[offset].line(),
                    f"{seconds(read.at_ns)}  {read.process} read the offsets {', '.join(map(str, read.offsets))}",
                )
    for place in evidence.places:
        # The relay seeks over what it has read by position; a broker that filters may leave something out.
        if not place.topic.startswith("txbus.") and not (given.allowed.filtered and place.topic in evidence.tagged):
            _of_place(evidence, place, offsets.get(Where(place.topic, place.partition), []), found)
    return found


def _of_place(evidence: Evidence, place: Place, there: list[int], found: Finding) -> None:
    deliveries = evidence.places[place].deliveries
    visible = evidence.at.get(Where(place.topic, place.partition), {})
    handed = {one.record.offset for one in deliveries}
    for one, after in pairwise(deliveries):
        if one.record.process != after.record.process or after.record.offset <= one.record.offset:
            continue
        found.spoke()
        for offset in there[bisect_left(there, one.record.offset + 1) : bisect_left(there, after.record.offset)]:
            message = visible[offset]
            if offset in handed or message.seq > after.seq:
                continue
            found.accuse(
                f"a poll left a record out: {after.record.process} was handed {place.topic}/{place.partition}@"
                f"{one.record.offset} and then @{after.record.offset} in group {place.group}, and nobody there was "
                f"ever handed {message}",
                message.line(),
                f"{seconds(after.record.at_ns)}  {after.record.process} was handed offset {after.record.offset}",
            )
