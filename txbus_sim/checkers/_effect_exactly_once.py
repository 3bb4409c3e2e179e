"""effect-exactly-once: a message that is done had its effect, and had it once."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Done, Message, Place, RowEvent, Where, seconds
from txbus_sim.checkers._vocabulary import Effect, Finding, Given

__all__ = ["effect_exactly_once"]

_DEAD_OF_BROKER = "%DLQ%"
"""How RocketMQ names the topic of a group's dead letters."""


def effect_exactly_once(evidence: Evidence, given: Given) -> Finding:
    """Premise: a message was handled, or given to a group whose effect is known."""
    found = Finding("effect-exactly-once")
    lost = Finding("effect-exactly-once")
    for effect in given.effects:
        found.applies = True
        _of_effect(evidence, given, effect, found, lost)
    _of_inbox(evidence, found, lost)
    found.premise += lost.premise
    found.applies = found.applies or lost.applies
    # Lost is worse than doubled, so it is told first.
    found.broken[:0] = lost.broken
    return found


def _of_effect(evidence: Evidence, given: Given, effect: Effect, doubled: Finding, lost: Finding) -> None:
    book = evidence.book(effect.table, effect.column)
    for value, messages in evidence.by_field(effect.topic, effect.field).items():
        doubled.spoke()
        events = book.inserts.get(value, [])
        wanted = effect.rows * _intents(evidence, given, effect, messages)
        if book.most.get(value, 0) > wanted:
            doubled.accuse(
                f"an effect happened twice: {messages[0]} of topic {effect.topic} has {book.most[value]} rows in "
                f"{effect.table} with {effect.column}={value}, not {wanted}",
                *(message.line() for message in messages),
                *_deliveries(evidence, effect, messages),
                *(event.line() for event in events),
                f"expected: {effect}",
            )
            continue
        least = wanted if effect.strict else effect.rows
        if len(events) >= least or (value in book.first and not effect.strict) or _excused(evidence, effect, messages):
            continue
        done = _done(evidence, effect, messages)
        if done is None and not (evidence.calm and _consumed(evidence, effect)):
            continue
        word = f"acknowledged at {seconds(done.record.at_ns)}" if done else "never handled until the end"
        lost.accuse(
            f"an effect was lost: {messages[0]} of topic {effect.topic} was {word}, and {effect.table} has "
            f"{len(events)} of {least} rows with {effect.column}={value}",
            *(message.line() for message in messages),
            *_deliveries(evidence, effect, messages),
            *([done.line()] if done else []),
            *(event.line() for event in events),
            f"expected: {effect}",
        )


def _intents(evidence: Evidence, given: Given, effect: Effect, messages: list[Message]) -> int:
    """How many things the messages tell of: the rows behind them where those are known, because one
    row told twice is one thing; else the messages that differ in their ids."""
    for pair in given.pairs:
        if pair.topic != effect.topic:
            continue
        book = evidence.book(pair.table, pair.column)
        values = dict.fromkeys(message.fields().get(pair.field) for message in messages)
        return sum(max(1, len(book.inserts.get(value, ()))) for value in values if value is not None)
    return len({message.id for message in messages if message.id}) + sum(not message.id for message in messages)


def _excused(evidence: Evidence, effect: Effect, messages: list[Message]) -> bool:
    """A dead letter was kept instead, or a message of equal payload had the effect."""
    ids = {message.id for message in messages}
    if any(letter.message_id in ids for letter in evidence.dead):
        return True
    if any(m.record.topic.startswith(_DEAD_OF_BROKER) for id in ids if id for m in evidence.by_id.get(id, ())):
        return True
    if effect.strict:
        return False
    book = evidence.book(effect.table, effect.column)
    payloads = {message.record.payload for message in messages}
    for other in evidence.messages.get(effect.topic, ()):
        value = other.fields().get(effect.field)
        if other.record.payload in payloads and value is not None and value in book.first:
            return True
    return False


def _of_group(evidence: Evidence, effect: Effect) -> list[Place]:
    return [
        place
        for place in evidence.places
        if place.topic == effect.topic and (not effect.group or place.group == effect.group)
    ]


def _done(evidence: Evidence, effect: Effect, messages: list[Message]) -> Done | None:
    """Who said that all of them were done; of a group that was handed them only."""
    places = _of_group(evidence, effect)
    last: Done | None = None
    for message in messages:
        record = message.record
        mine = (evidence.places[place].first_done() for place in places if place.partition == record.partition)
        last = next((done[record.offset] for done in mine if record.offset in done), None)
        if last is None:
            return None
    return last


def _consumed(evidence: Evidence, effect: Effect) -> bool:
    """Whether a member of the group was there at the end."""
    return any(
        evidence.name_at_end(one.record.process)
        for place in _of_group(evidence, effect)
        for one in evidence.places[place].deliveries
    )


def _deliveries(evidence: Evidence, effect: Effect, messages: list[Message]) -> list[str]:
    offsets = {(message.record.partition, message.record.offset) for message in messages}
    return [
        f"{seconds(one.record.at_ns)}  {one.record.process} was given {one.record.message_id} "
        f"({place.topic}/{place.partition}@{one.record.offset}, attempt {one.record.attempt})"
        for place in _of_group(evidence, effect)
        for one in evidence.places[place].deliveries
        if (place.partition, one.record.offset) in offsets
    ]


def _of_inbox(evidence: Evidence, doubled: Finding, lost: Finding) -> None:
    for (database, scope), handled in evidence.handled.items():
        for (_, message_id), events in handled.items():
            doubled.spoke()
            if len(events) > 1:
                doubled.accuse(
                    f"an effect happened twice: scope {scope} handled message {message_id} {len(events)} times in "
                    f"database {database}",
                    *(event.line() for event in events),
                )
        first = {message_id: events[0] for (_, message_id), events in handled.items()}
        for place in _groups_of(evidence, scope, first):
            _acknowledged(evidence, scope, place, first, lost)


def _groups_of(evidence: Evidence, scope: str, first: dict[str, RowEvent]) -> list[Place]:
    """The partitions of the groups that feed an inbox: those in which a message was handed to the very
    process that handled it next."""
    groups: dict[tuple[str, str], None] = {}
    for place, seen in evidence.places.items():
        if place.group.rpartition(".")[2] != scope:
            continue
        for one in seen.deliveries:
            event = first.get(one.record.message_id)
            if event is not None and event.seq > one.seq and event.commit.process == one.record.process:
                groups[place.group, place.topic] = None
                break
    return [place for place in evidence.places if (place.group, place.topic) in groups]


def _acknowledged(evidence: Evidence, scope: str, place: Place, first: dict[str, RowEvent], lost: Finding) -> None:
    seen = evidence.places[place]
    handed: dict[int, str] = {}
    for one in seen.deliveries:
        handed.setdefault(one.record.offset, one.record.message_id)
    dead = {letter.message_id: letter.seq for letter in reversed(evidence.dead)}
    done_at = seen.first_done()
    messages = evidence.at.get(Where(place.topic, place.partition), {})
    for offset, message_id in handed.items():
        message, done = messages.get(offset), done_at.get(offset)
        event = first.get(message_id)
        if not message_id or message is None or done is None or (event is None and place.topic in evidence.tagged):
            continue  # no identity in the inbox, not done yet, or perhaps not for this handler
        lost.spoke()
        if (event is not None and event.seq < done.seq) or dead.get(message_id, done.seq) < done.seq:
            continue
        word = "never handled it" if event is None else f"handled it only at {seconds(event.commit.at_ns)}"
        lost.accuse(
            f"acknowledged before its effect: {message} was acknowledged in group {place.group} at "
            f"{seconds(done.record.at_ns)}, and scope {scope} {word}",
            message.line(),
            done.line(),
            *([event.line()] if event is not None else []),
        )
