"""order-per-key: messages of one key are published, and handled, in the order of their intents."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import Message, Where, base, seconds
from txbus_sim.checkers._vocabulary import Allowed, Finding, Given

__all__ = ["order_per_key"]


def order_per_key(evidence: Evidence, given: Given) -> Finding:
    """Premise: two messages of one key were sent one after the other, or handled in one scope.

    One after the other means: the first one's local transaction was committed (a plain one: it was
    stored) before the application handed over the second. Concurrent sends have no order, nor have
    transactional and plain ones among each other, nor those of two services. Allowed where the kind
    of topic lacks ``order_by_key``.
    """
    found = Finding("order-per-key")
    _of_sending(evidence, given.allowed, found)
    if not given.allowed.disorder:
        _of_handling(evidence, found)
    return found


def _of_sending(evidence: Evidence, allowed: Allowed, found: Finding) -> None:
    lanes: dict[tuple[str, str, bool, str], list[tuple[int, int, Message]]] = {}
    for message_id, intents in evidence.intents_of.items():
        intended, handed = intents[0]
        if intended.key is None or len(intents) > 1 or not message_id:
            continue
        if allowed.disorder_in_transactions if intended.tx_id else allowed.disorder:
            continue
        found.applies = True
        for message in evidence.by_id.get(message_id, ()):
            if message.record.topic == intended.topic:
                sure = _sure_at(evidence, message, intended.database, intended.tx_id)
                source = message.record.headers.get("ce_source") or base(intended.process)
                lane = (intended.topic, intended.key, bool(intended.tx_id), source)
                if sure >= 0:
                    lanes.setdefault(lane, []).append((handed, sure, message))
                break
    for (topic, key, _, _), sent in lanes.items():
        _compare(topic, key, sorted(sent, key=lambda one: one[0]), found)


def _sure_at(evidence: Evidence, message: Message, database: str, tx_id: str) -> int:
    """From when on a later message has to come behind this one; -1 if that is not known."""
    if tx_id:
        rows = [row for row in evidence.ledger.get((database, tx_id), ()) if row.committed]
        return rows[0].event.seq if len(rows) == 1 else -1
    where = Where(message.record.topic, message.record.partition)
    kept = evidence.stored.get(where, {}).get(message.record.offset)
    return kept.seq if kept is not None and kept.state == "plain" else -1


def _compare(topic: str, key: str, sent: list[tuple[int, int, Message]], found: Finding) -> None:
    """``sent`` in the order in which the application handed them over.

    It is enough to compare each with the latest readable one of those that were sure before it.
    """
    sure = sorted(sent, key=lambda one: one[1])
    last: Message | None = None
    nth = 0
    for handed, _, message in sent:
        while nth < len(sure) and sure[nth][1] < handed:
            if last is None or _after(sure[nth][2], last):
                last = sure[nth][2]
            nth += 1
        if last is None:
            continue
        found.spoke()
        if _after(last, message):
            found.accuse(
                f"out of order: of key {key} in topic {topic}, {message} was sent after {last} and is read before it",
                f"{message.line()}, handed over after the other was sure",
                last.line(),
            )


def _after(one: Message, other: Message) -> bool:
    """By offset within a partition, by time otherwise."""
    if one.record.partition == other.record.partition:
        return one.record.offset > other.record.offset
    return one.seq > other.seq


def _of_handling(evidence: Evidence, found: Finding) -> None:
    """A scope's inbox rows follow the offsets of each key."""
    for (database, scope), handled in evidence.handled.items():
        lanes: dict[tuple[str, int, str], Message] = {}
        # Rows are entered as they were committed, so their first ones are in that order.
        for (_, message_id), events in handled.items():
            seq, at_ns = events[0].seq, events[0].commit.at_ns
            message = next((one for one in evidence.by_id.get(message_id, ()) if _fed(evidence, scope, one)), None)
            if message is None or message.record.key is None or seq < 0:
                continue
            record = message.record
            lane = (record.topic, record.partition, record.key or "")
            before = lanes.get(lane)
            if before is None or before.record.offset < record.offset:
                lanes[lane] = message
            if before is None:
                continue
            found.spoke()
            if before.record.offset > record.offset:
                found.accuse(
                    f"handled out of order: scope {scope} in database {database} handled {before} before {message}, "
                    f"both of key {record.key}",
                    message.line(),
                    before.line(),
                    f"{seconds(at_ns)}  {message_id} was handled",
                )


def _fed(evidence: Evidence, scope: str, message: Message) -> bool:
    """Whether it was handed to a group of this scope: a copy in another topic is another message."""
    record = message.record
    return any(
        place.topic == record.topic and place.partition == record.partition and place.group.rpartition(".")[2] == scope
        for place in evidence.places
    )
