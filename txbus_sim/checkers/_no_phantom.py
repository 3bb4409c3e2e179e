"""no-phantom: no message tells of what no local transaction ever committed."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Message, columns_of, normal, quoted, seconds
from txbus_sim.checkers._vocabulary import Books, Finding, Given, Pair

__all__ = ["no_phantom"]


def no_phantom(evidence: Evidence, given: Given) -> Finding:
    """Premise: a message became visible that a row or a ledger row must stand behind."""
    found = Finding("no-phantom")
    for pair in given.pairs:
        found.applies = True
        _of_pair(evidence, given.books, pair, found)
    _of_ledger(evidence, found)
    return found


def _of_pair(evidence: Evidence, books: Books, pair: Pair, found: Finding) -> None:
    if pair.publishes_first and not evidence.calm:
        return  # the row may still be on its way
    book = evidence.book(pair.table, pair.column)
    for value, messages in evidence.by_field(pair.topic, pair.field).items():
        found.spoke(len(messages))
        if value not in book.first and not _in_file(books, pair, value):
            message = messages[0]
            found.accuse(
                f"a phantom message: {message} of topic {pair.topic} became visible at "
                f"{seconds(message.record.at_ns)}, and no row of {pair.table} with {pair.column}={value} was ever "
                "committed",
                *_sending(evidence, message),
                message.line(),
                f"expected: {pair}",
            )


def _in_file(books: Books, pair: Pair, value: str) -> bool:
    """Whether the row was there before the run began."""
    database, _, table = pair.table.partition(".")
    if pair.column not in columns_of(books, database, table):
        return False
    rows = books.rows(database, f"SELECT {quoted(pair.column)} FROM {quoted(table)}")
    return any(normal(one) == value for (one,) in rows)


def _sending(evidence: Evidence, message: Message) -> list[str]:
    """Who sent it, and the rollbacks of that process around it."""
    sender = evidence.sender_of(message)
    lines = [
        f"{seconds(intended.at_ns)}  {intended.process} sent {intended.message_id} to {intended.topic}"
        for intended, _ in evidence.intents_of.get(message.id, ())
        if message.id
    ]
    lines += [
        f"{seconds(one.at_ns)}  a local transaction of {one.process} rolled back in {one.database} ({one.why})"
        for one, _ in evidence.rolled_back
        if one.process == sender
    ]
    ended = evidence.ended.get(sender)
    if ended is not None and ended[0].how != "over":
        lines.append(f"{seconds(ended[0].at_ns)}  process {sender} {ended[0].how}")
    return lines


def _of_ledger(evidence: Evidence, found: Finding) -> None:
    for message_id, intents in evidence.intents_of.items():
        messages = evidence.by_id.get(message_id)
        if not messages or any(not intended.tx_id for intended, _ in intents):
            continue  # sent plainly as well, or never seen
        if not evidence.rows_noted and not evidence.ledger:
            continue  # nobody knows any ledger
        found.spoke()
        if any(_committed(evidence, intended.database, intended.tx_id, intended.attempt) for intended, _ in intents):
            continue
        intended, message = intents[0][0], messages[0]
        rows = evidence.ledger.get((intended.database, intended.tx_id), ())
        word = "was rolled back by its ledger row" if rows else "never committed a ledger row"
        found.accuse(
            f"a phantom message: {message} of topic {message.record.topic} became visible at "
            f"{seconds(message.record.at_ns)}, and local transaction {intended.tx_id} of process {intended.process}, "
            f"which sent it, {word}",
            *_sending(evidence, message),
            *(row.event.line() for row in rows),
            message.line(),
        )


def _committed(evidence: Evidence, database: str, tx_id: str, attempt: int) -> bool:
    rows = evidence.ledger.get((database, tx_id), ())
    return any(row.committed and attempt in (0, row.attempt) for row in rows)
