"""duplicate: one send is one message."""

from __future__ import annotations

import json
from collections import defaultdict

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Ledgered, Message, seconds
from txbus_sim.checkers._vocabulary import MESSAGE_ID, Finding, Given, Repeat
from txbus_sim.history import Intended

__all__ = ["duplicate", "without"]


def duplicate(evidence: Evidence, given: Given) -> Finding:
    """Premise: a transactional send's message became visible; or a process that was never restarted
    sent what can be compared with the run without faults.

    A plain send may double when it is tried again, and a resend of one's own under the same id is
    for the receivers' inbox; both are allowed. So are doubles of one transactional send, where half
    messages are the broker's own: there the outcome may be taken twice.
    """
    found = Finding("duplicate")
    for repeat in given.repeats:
        _of_repeat(evidence, repeat, found)
    if given.allowed.duplicates:
        return found
    for message_id, messages in evidence.by_id.items():
        sends = evidence.intents_of.get(message_id, ())
        if len(sends) != 1 or not sends[0][0].tx_id:
            continue
        found.spoke()
        intended = sends[0][0]
        copies = [message for message in messages if message.record.topic == intended.topic]
        if len(copies) > 1:
            found.accuse(
                f"a message was published twice: {copies[0]} is in topic {intended.topic} {len(copies)} times, sent "
                f"once by local transaction {intended.tx_id} of process {intended.process}",
                f"{seconds(intended.at_ns)}  {intended.process} sent it inside of the local transaction",
                *(message.line() for message in copies),
            )
    return found


def _of_repeat(evidence: Evidence, repeat: Repeat, found: Finding) -> None:
    """A commit whose answer was lost stands; whoever sends the same again under a new id doubles it."""
    if all(row.event.commit.answered for rows in evidence.ledger.values() for row in rows):
        return
    said: dict[str, dict[str, tuple[Message, Intended, int, Ledgered]]] = defaultdict(dict)
    for message in evidence.messages.get(repeat.topic, ()):
        rest = without(message, repeat.identity)
        for intended, seq in evidence.intents_of.get(message.id, ()) if message.id and rest else ():
            for row in evidence.ledger.get((intended.database, intended.tx_id), ()):
                if rest and row.committed and intended.attempt in (0, row.attempt):
                    said[rest].setdefault(message.id, (message, intended, seq, row))
    for rest, sent in said.items():
        unseen = [one for one in sent.values() if not one[3].event.commit.answered]
        found.spoke(len(unseen))
        if len(sent) <= repeat.times.get(rest, 0):
            continue
        for first, intended, _, row in unseen:
            again = next(
                (
                    one
                    for one in sent.values()
                    if one[1].process == intended.process and one[1].tx_id != intended.tx_id and one[2] > row.event.seq
                ),
                None,
            )
            if again is not None:
                found.accuse(
                    f"a local transaction was run again under a new id: the commit of {intended.tx_id} was durable and "
                    f"its answer lost, and process {intended.process} said the same in {again[1].tx_id}: {first} and "
                    f"{again[0]}",
                    row.event.line(),
                    again[3].event.line(),
                    first.line(),
                    again[0].line(),
                    f"expected: {repeat}",
                )
                break


def without(message: Message, identity: str) -> str | None:
    """What a message says besides its identity, in one form; None if that is nothing to go by."""
    try:
        document = json.loads(message.record.payload)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    if identity != MESSAGE_ID:
        *outer, last = identity.split(".", 1)
        inner = document.get(outer[0]) if outer else document
        if isinstance(inner, dict):
            inner.pop(last, None)
    return json.dumps(document, sort_keys=True) if document else None
