"""Halves in a half log, written as senders and relays write them."""

from __future__ import annotations

from tests.integration.cli.conftest import App
from txbus import Bus, Envelope, Outcome
from txbus._halflog.records import HalfEntry, encode, half_partition, half_topic, split
from txbus._halves import Half, HalfId
from txbus._wire import SendOptions
from txbus.stores.contract import LedgerRow


def write_half(
    app: App,
    tx_id: str,
    *,
    number: int = 1,
    attempt: int = 1,
    parked: str | None = None,
    age_s: float = 0.0,
    ledger_id: str | None = None,
) -> int:
    """An H (or H′ with the parked flag) whose sender died before its COMMIT; returns its partition."""
    bus = app.bus()
    with bus.open(relay="outside"):
        topic = next(t for t in bus.topics if t.name == "placed")
        key = str(number)
        identity = ledger_id or bus.opened.databases["shop"].identity()
        envelope = bus.opened.make_envelope(topic, topic.model(number=number), SendOptions())
        created_s = bus.ports.clock.wall_s() - age_s
        half = Half(HalfId(tx_id, attempt), identity, "shop", created_s, (envelope,))
        partition = half_partition(key, bus.settings.half_partitions)
        first = (0, 0) if parked is not None else None
        record = encode([HalfEntry(half, first=first, parked=parked)])
        append(bus, partition, record)
    return partition


def write_ledger(app: App, tx_id: str, outcome: Outcome, *, age_s: float = 0.0, messages: int = 1) -> None:
    """A committed ledger row."""
    bus = app.bus()
    (database,) = bus.make_databases().values()
    created_s = bus.ports.clock.wall_s() - age_s
    assert database.decide(LedgerRow(HalfId(tx_id, 1), outcome, "shop", messages, created_s)) is outcome
    database.close()


def ledger(app: App, tx_id: str) -> dict[int, Outcome]:
    """The outcomes of a local transaction, by attempt."""
    (database,) = app.bus().make_databases().values()
    rows = {row.id.attempt: row.outcome for row in database.attempts_of(tx_id)}
    database.close()
    return rows


def write_wide_half(app: App, tx_id: str) -> set[int]:
    """An undecided half with a message in each half partition; returns the partitions."""
    bus = app.bus()
    with bus.open(relay="outside"):
        topic = next(t for t in bus.topics if t.name == "placed")
        envelopes = tuple(bus.opened.make_envelope(topic, topic.model(number=n), SendOptions()) for n in range(20))
        identity = bus.opened.databases["shop"].identity()
        parts = split(Half(HalfId(tx_id, 1), identity, "shop", bus.ports.clock.wall_s(), envelopes), 2)
        for partition, entry in parts.items():
            append(bus, partition, encode([entry]))
    return set(parts)


def write_damaged(app: App) -> None:
    """A record that nobody can read, in half partition 0."""
    bus = app.bus()
    with bus.open(relay="outside"):
        append(bus, 0, b"TXH1 and then nothing good")


def append(bus: Bus, partition: int, record: bytes) -> None:
    sender = bus.opened.backend.sender("shop")
    sender.append(Envelope(half_topic("shop"), record), partition).result(30)
    sender.close()
