"""no-loss: what a local transaction committed has its messages in the end."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Ledgered, RowEvent, seconds
from txbus_sim.checkers._vocabulary import Finding, Given, Pair
from txbus_sim.history import Intended

__all__ = ["no_loss"]


def no_loss(evidence: Evidence, given: Given) -> Finding:
    """Premise: a row or a ledger row that wants a message was committed.

    Speaks about the end of a run only, and only where somebody is left who could still publish.
    """
    found = Finding("no-loss")
    if given.pairs or evidence.ledger_commits:
        found.applies = True
    if evidence.calm:
        for pair in given.pairs:
            _of_pair(evidence, pair, found)
        _of_ledger(evidence, found)
    return found


def _of_pair(evidence: Evidence, pair: Pair, found: Finding) -> None:
    book = evidence.book(pair.table, pair.column)
    messages = evidence.by_field(pair.topic, pair.field)
    for value, event in book.first.items():
        wanted = pair.emptied or book.live[value] > 0
        if not wanted or (event.seq in evidence.ledger_commits and not evidence.published_for(event.commit.process)):
            continue
        found.spoke()
        if value not in messages:
            found.accuse(
                f"a message was lost: process {event.commit.process} committed the row {pair.table} "
                f"{pair.column}={value} at {seconds(event.commit.at_ns)}, and no message of topic {pair.topic} with "
                f"{pair.field}={value} was ever visible",
                *_what_happened(evidence, event),
                f"expected: {pair}",
            )


def _what_happened(evidence: Evidence, event: RowEvent) -> list[str]:
    """The commit, and how its process ended after it."""
    lines = [event.line()]
    ended = evidence.ended.get(event.commit.process)
    if ended is not None and ended[1] > event.seq and ended[0].how != "over":
        lines.append(f"{seconds(ended[0].at_ns)}  process {ended[0].process} {ended[0].how} {ended[0].detail}".rstrip())
    return lines


def _of_ledger(evidence: Evidence, found: Finding) -> None:
    """Each COMMITTED ledger row counts its messages; the observer of the bus knows their ids."""
    intents: dict[tuple[str, str], list[Intended]] = {}
    for intended, _ in evidence.intended:
        if intended.tx_id:
            intents.setdefault((intended.database, intended.tx_id), []).append(intended)
    for key, mine in intents.items():
        for row in evidence.ledger.get(key, ()):
            if row.committed and row.messages and evidence.published_for(row.event.commit.process):
                _of_row(evidence, row, [one for one in mine if one.attempt in (0, row.attempt)], found)


def _of_row(evidence: Evidence, row: Ledgered, mine: list[Intended], found: Finding) -> None:
    missing = [one for one in mine if all(m.record.topic != one.topic for m in evidence.by_id.get(one.message_id, ()))]
    found.spoke()
    # Without the attempt's number, messages of an attempt that rolled back are among them.
    if len(mine) - len(missing) >= min(row.messages, len(mine)):
        return
    one = missing[-1]
    commit = row.event.commit
    found.accuse(
        f"a message was lost: local transaction {one.tx_id} of process {commit.process} committed at "
        f"{seconds(commit.at_ns)}, and its message {one.message_id} was never visible in topic {one.topic}",
        f"{seconds(one.at_ns)}  {one.process} sent {one.message_id} to {one.topic} inside of the local transaction",
        *_what_happened(evidence, row.event),
    )
