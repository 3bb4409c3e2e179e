"""Looks at a half log without taking part: every unsettled half, from the relays' position on.

Reads only. What it shows is what a new owner would know at the readable end; outcomes that a relay
has from the ledger and has not written yet are not in the log, so such a half shows as undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.records import NewerRecord, decode, half_topic
from txbus._halflog.relay import relay_group
from txbus._message import TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Clock
from txbus.errors import DecodeError
from txbus.spi import Backend, Log

__all__ = ["SurveyedHalf", "survey", "waits_for_a_relay"]

_RECORDS_AT_ONCE = 1_000
_READ_S = 5.0


@dataclass(frozen=True, slots=True)
class SurveyedHalf:
    """An unsettled half in one half partition; times in seconds.

    ``created_s`` and ``age_s`` are by the sender's wall clock. ``keys`` are (topic, key).
    ``outcome`` is known and not carried out yet, or None; ``parked`` is the reason why it was set
    aside. ``behind``: later halves that wait for its keys. ``offset``: the record that holds it.
    """

    tx_id: str
    attempt: int
    database: str
    ledger_id: str
    created_s: float
    age_s: float
    topics: tuple[str, ...]
    keys: tuple[tuple[str, str], ...]
    messages: int
    outcome: Outcome | None
    parked: str | None
    released: bool
    behind: int
    partition: int
    offset: int

    @property
    def state(self) -> str:
        """``"parked"``, ``"undecided"``, or its outcome."""
        if self.parked is not None:
            return "parked"
        return "undecided" if self.outcome is None else self.outcome.value


def survey(
    backend: Backend, service: str, clock: Clock, skipped: Callable[[str], None] = lambda _: None
) -> tuple[SurveyedHalf, ...]:
    """Every unsettled half of a service, oldest first. Raises BackendError, and NewerRecord for a log
    that a newer txbus writes. ``skipped`` is told of each damaged record.

    Costs one reading of the log between the relays' position and its end; payloads are not kept.
    """
    topic = half_topic(service)
    admin = backend.admin()
    try:
        if admin.describe([topic])[topic] is None:
            return ()
        status = admin.group_status(relay_group(service), [topic])
    finally:
        admin.close()
    log = backend.log(topic)
    try:
        found = [half for row in status for half in _partition(log, row.where, row.committed, clock, skipped)]
    finally:
        log.close()
    return tuple(sorted(found, key=lambda half: (half.created_s, half.tx_id, half.attempt, half.partition)))


def waits_for_a_relay(halves: Sequence[SurveyedHalf]) -> bool:
    """Is one of these left to a relay? Not so a parked one, nor one behind it: an operator decides."""
    held = {key for half in halves if half.parked is not None and not half.released for key in half.keys}
    return any(half.parked is None and held.isdisjoint(half.keys) for half in halves)


def _partition(
    log: Log, where: TopicPartition, committed: int | None, clock: Clock, skipped: Callable[[str], None]
) -> Iterator[SurveyedHalf]:
    index = HalfIndex()
    start = log.start(where.partition)
    offset = start if committed is None else max(start, committed)
    end = log.end(where.partition)
    while offset < end:
        records, upto = log.read(where.partition, offset, _RECORDS_AT_ONCE, _READ_S)
        for received in records:
            try:
                entries = decode(received.envelope.payload)
            except NewerRecord:
                raise
            except DecodeError as exc:
                skipped(f"{where} at {received.position.offset} skipped: {exc}")
                continue
            for number, entry in enumerate(entries):
                index.apply(entry, received.position.offset, number, 0.0)
        index.drop_payloads(0)
        if upto <= offset:
            break
        offset = upto
    for half in index.in_order():
        yield _surveyed(index, half, where, clock.wall_s())


def _surveyed(index: HalfIndex, half: OpenHalf, where: TopicPartition, now_s: float) -> SurveyedHalf:
    about = half.entry.half
    return SurveyedHalf(
        tx_id=half.id.tx_id,
        attempt=half.id.attempt,
        database=about.database,
        ledger_id=about.ledger_id,
        created_s=about.created_s,
        age_s=now_s - about.created_s,
        topics=tuple(sorted(half.topics)),
        keys=half.keys,
        messages=half.messages,
        outcome=half.outcome,
        parked=half.parked,
        released=half.released,
        behind=index.behind(half),
        partition=where.partition,
        offset=half.offset,
    )
