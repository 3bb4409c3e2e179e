"""precommitted-read: nobody can read a message before what it tells of is committed.

Jepsen's anomaly is that of a broker transaction that has not ended; the same is asked of the local
transaction whose row or ledger row stands behind the message. A restart that commits the row after
all does not heal it: whoever looked in between saw a phantom.
"""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Message, RowEvent, base, seconds
from txbus_sim.checkers._vocabulary import Finding, Given, Pair

__all__ = ["precommitted_read"]


def precommitted_read(evidence: Evidence, given: Given) -> Finding:
    """Premise: a message became visible whose broker transaction, ledger row or row committed."""
    found = Finding("precommitted-read")
    for pair in given.pairs:
        found.applies = True
        _of_pair(evidence, pair, found)
    _of_ledger(evidence, found)
    _of_broker(evidence, found)
    return found


def _of_pair(evidence: Evidence, pair: Pair, found: Finding) -> None:
    book = evidence.book(pair.table, pair.column)
    for value, messages in evidence.by_field(pair.topic, pair.field).items():
        event = book.first.get(value)
        if event is None:
            continue  # no-phantom's
        found.spoke()
        first = messages[0]
        if first.seq > event.seq or (pair.publishes_first and not _healed(evidence, first, event, messages)):
            continue
        found.accuse(
            f"a message was visible before its row was committed: {first} of topic {pair.topic} at "
            f"{seconds(first.record.at_ns)}, the row {pair.table} {pair.column}={value} only at "
            f"{seconds(event.commit.at_ns)}",
            first.line(),
            event.line(),
            f"expected: {pair}",
        )


def _healed(evidence: Evidence, first: Message, event: RowEvent, messages: list[Message]) -> bool:
    """Of an application that publishes first: whether its commit failed after the message was out, and
    another try made the row. Sent again under one and the same id, it is at-least-once on purpose."""
    if len(messages) > 1 and first.id and all(message.id == first.id for message in messages):
        return False
    sender = evidence.sender_of(first)
    if base(sender) != base(event.commit.process):
        return False
    failed = any(one.process == sender and first.seq < seq < event.seq for one, seq in evidence.rolled_back)
    return failed or sender != event.commit.process


def _of_ledger(evidence: Evidence, found: Finding) -> None:
    for message_id, intents in evidence.intents_of.items():
        messages = evidence.by_id.get(message_id)
        if not messages or any(not intended.tx_id for intended, _ in intents):
            continue
        rows = [
            row
            for intended, _ in intents
            for row in evidence.ledger.get((intended.database, intended.tx_id), ())
            if row.committed and intended.attempt in (0, row.attempt)
        ]
        if not rows:
            continue  # no-phantom's
        found.spoke()
        event = min((row.event for row in rows), key=lambda one: one.seq)
        if messages[0].seq < event.seq:
            found.accuse(
                f"a message was visible before its local transaction committed: {messages[0]} of topic "
                f"{messages[0].record.topic} at {seconds(messages[0].record.at_ns)}, the ledger row of "
                f"{intents[0][0].tx_id} only at {seconds(event.commit.at_ns)}",
                messages[0].line(),
                event.line(),
            )


def _of_broker(evidence: Evidence, found: Finding) -> None:
    for where, stored in evidence.stored.items():
        for offset, kept in stored.items():
            if not kept.record.producer:
                continue
            found.spoke()
            message = evidence.at[where].get(offset)
            if message is not None and not -1 < kept.ended < message.seq:
                found.accuse(
                    f"a message was readable before its broker transaction ended: {message}, written by "
                    f"{kept.record.producer}",
                    f"{seconds(kept.record.at_ns)}  {kept.record.process} wrote it in a broker transaction",
                    message.line(),
                )
