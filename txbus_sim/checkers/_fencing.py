"""fencing: whoever lost its place to another has no effect any more."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Delivery, Done, Place, seconds
from txbus_sim.checkers._vocabulary import Finding, Given

__all__ = ["fencing"]


def fencing(evidence: Evidence, given: Given) -> Finding:
    """Premise: a transactional id had a newer owner, or a partition's deliveries went over to another
    member whose word was taken.

    A broker transaction of an older epoch never commits. A member whose partition went to another,
    and who was handed nothing there since, is not believed when it says that something there is done;
    the latter is allowed without ``single_owner``.
    """
    found = Finding("fencing")
    _of_epochs(evidence, found)
    if not given.allowed.several_owners:
        for place in evidence.places:
            _of_place(evidence, place, found)
    return found


def _of_epochs(evidence: Evidence, found: Finding) -> None:
    newest: dict[str, int] = {}
    for end, _ in evidence.ends:
        found.applies = True
        before = newest.setdefault(end.producer, end.epoch)
        if end.epoch > before:
            found.spoke()
            newest[end.producer] = end.epoch
        elif end.epoch < before and end.committed:
            found.accuse(
                f"a fenced owner committed: broker transaction of {end.producer} in epoch {end.epoch}, by {end.by}, "
                f"after epoch {before} had ended one",
                f"{seconds(end.at_ns)}  committed by {end.by}",
            )


def _of_place(evidence: Evidence, place: Place, found: Finding) -> None:
    seen = evidence.places[place]
    if seen.deliveries:
        found.applies = True
    handed: dict[str, Delivery] = {}
    proven: Done | None = None
    nth = 0
    for done in seen.done:
        while nth < len(seen.deliveries) and seen.deliveries[nth].seq < done.seq:
            handed[seen.deliveries[nth].record.process] = seen.deliveries[nth]
            nth += 1
        mine = handed.get(done.record.process)
        if mine is None:
            continue  # it settles what it read by position, or an operator does
        if proven is None or proven.record.process == done.record.process:
            proven = done
            continue
        its = handed[proven.record.process]
        if mine.seq > proven.seq:
            found.spoke()
            proven = done
        elif its.seq > mine.seq:
            found.accuse(
                f"a fenced member was believed: {done.record.process} had lost {place.topic}/{place.partition} of "
                f"group {place.group} to {proven.record.process}, and still moved what is done there",
                _handed(mine),
                _handed(its),
                proven.line(),
                done.line(),
            )


def _handed(one: Delivery) -> str:
    record = one.record
    return f"{seconds(record.at_ns)}  {record.process} was handed {record.topic}/{record.partition}@{record.offset}"
