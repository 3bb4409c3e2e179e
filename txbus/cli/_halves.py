"""The unresolved halves of a service, as the command line shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.records import NewerRecord, decode, half_topic
from txbus._halflog.relay import relay_group
from txbus.cli._look import Look
from txbus.cli._output import note, print_table, span
from txbus.errors import DecodeError
from txbus.spi import Log

__all__ = ["HalfRow", "show_halves", "surveyed"]

_RECORDS = 1_000
_READ_S = 5.0


@dataclass(frozen=True, slots=True)
class HalfRow:
    """An unsettled half in one half partition; times in seconds, ``age_s`` by the sender's clock.

    ``state``: ``"undecided"``, ``"parked"`` (for ``reason``), or ``"committed"`` or ``"rolled_back"``
    where its outcome is known and not carried out yet. ``behind``: halves that wait for its keys.
    """

    tx_id: str
    attempt: int
    database: str
    ledger_id: str
    partition: int
    age_s: float
    topics: tuple[str, ...]
    keys: tuple[str, ...]
    messages: int
    state: str
    reason: str | None
    behind: int


def surveyed(look: Look) -> Sequence[HalfRow]:
    """Every unsettled half, oldest first. Reads the half log from the relay's position to its end as
    of now; writes nothing. A damaged record is named and skipped, as the relay does."""
    topic, bus = half_topic(look.bus.service), look.bus
    admin = look.backend.admin()
    try:
        if admin.describe([topic])[topic] is None:
            return ()
        positions = {
            row.where.partition: row.committed for row in admin.group_status(relay_group(bus.service), [topic])
        }
    finally:
        admin.close()
    log = look.backend.log(topic)
    now_s = bus.ports.clock.wall_s()
    rows: list[HalfRow] = []
    try:
        for partition, position in sorted(positions.items()):
            index = _read(log, topic, partition, position)
            rows += (_row(half, index, partition, now_s) for half in index.in_order())
    finally:
        log.close()
    return sorted(rows, key=lambda row: -row.age_s)


def _read(log: Log, topic: str, partition: int, position: int | None) -> HalfIndex:
    index = HalfIndex()
    start, end = log.start(partition), log.end(partition)
    offset = start if position is None else max(start, position)
    while offset < end:
        records, offset = log.read(partition, offset, _RECORDS, _READ_S)
        for received in records:
            try:
                entries = decode(received.envelope.payload)
            except NewerRecord:
                raise
            except DecodeError as exc:
                note(f"txbus: {topic}/{partition} at {received.position.offset} skipped: {exc}")
                continue
            for number, entry in enumerate(entries):
                index.apply(entry, received.position.offset, number, 0.0)
        index.drop_payloads(0)
    return index


def _row(half: OpenHalf, index: HalfIndex, partition: int, now_s: float) -> HalfRow:
    about = half.entry.half
    state = "parked" if half.parked is not None else "undecided" if half.outcome is None else half.outcome.value
    return HalfRow(
        tx_id=half.id.tx_id,
        attempt=half.id.attempt,
        database=about.database,
        ledger_id=about.ledger_id,
        partition=partition,
        age_s=max(0.0, now_s - about.created_s),
        topics=tuple(sorted(half.topics)),
        keys=tuple(sorted({key for _, key in half.keys})),
        messages=half.messages,
        state=state,
        reason=half.parked,
        behind=index.behind(half),
    )


def show_halves(title: str, halves: Sequence[HalfRow]) -> None:
    """Print them as a table."""
    print_table(
        title,
        halves,
        {
            "tx": lambda h: h.tx_id,
            "attempt": lambda h: h.attempt,
            "state": lambda h: h.state,
            "age": lambda h: span(h.age_s),
            "database": lambda h: h.database,
            "partition": lambda h: h.partition,
            "topics": lambda h: h.topics,
            "keys": lambda h: h.keys,
            "messages": lambda h: h.messages,
            "behind": lambda h: h.behind,
            "reason": lambda h: h.reason,
        },
    )
