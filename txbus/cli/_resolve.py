"""Carries an operator's word on a half into the ledger, then into the half log (rule 28)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from txbus._halflog.records import DecisionEntry, Entry, ReleaseEntry, encode, half_topic
from txbus._halves import HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome
from txbus.cli._halves import HalfRow, surveyed
from txbus.cli._look import Look
from txbus.errors import ConfigurationError
from txbus.stores.contract import Database, LedgerRow

__all__ = ["Resolution", "Wish", "resolve_half"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asks for. ``outcome`` None: only release the keys. ``foreign``: the ledger
    that the half names is gone, so the database of that name decides."""

    tx_id: str
    attempt: int | None
    outcome: Outcome | None
    release_key: bool
    foreign: bool


@dataclass(frozen=True, slots=True)
class Resolution:
    """What was done. ``stands``: the ledger's outcome afterwards, which is what the log was told."""

    tx_id: str
    attempt: int
    database: str
    asked: Outcome | None
    stands: Outcome | None
    released: bool
    partitions: tuple[int, ...]


def resolve_half(look: Look, wish: Wish) -> Resolution:
    """Settle an unresolved half; durable in ledger and half log on return.

    ConfigurationError, with nothing written, if no such half is unresolved or it belongs to a
    ledger that is not ours. StoreBusy while its local transaction is open, StoreUnavailable; after
    an error of the broker the ledger has the outcome, and running it again is right.
    """
    parts = _find(look, wish)
    half = parts[0]
    parked = any(part.state == "parked" for part in parts)
    if wish.outcome is None and not parked:
        raise ConfigurationError(
            f"{half.tx_id}#{half.attempt} is not parked ({half.state}): there is nothing to release"
        )
    entries: list[Entry] = []
    id = HalfId(half.tx_id, half.attempt)
    if wish.release_key and parked:
        # Before the decision: a half that is not parked any more has nothing to release.
        entries.append(ReleaseEntry(id))
    stands: Outcome | None = None
    if wish.outcome is not None:
        messages = sum(part.messages for part in parts)
        row = LedgerRow(id, wish.outcome, half.database, messages, look.bus.ports.clock.wall_s())
        stands = _ledger(look, half, wish.foreign).decide(row)
        entries.append(DecisionEntry(id, stands, operator=True))
    partitions = tuple(sorted(part.partition for part in parts))
    _write(look, partitions, entries)
    return Resolution(
        half.tx_id, half.attempt, half.database, wish.outcome, stands, wish.release_key and parked, partitions
    )


def _find(look: Look, wish: Wish) -> list[HalfRow]:
    """The half's parts, one for each half partition that has messages of it."""
    parts = [half for half in surveyed(look) if half.tx_id == wish.tx_id]
    attempts = sorted({half.attempt for half in parts})
    if not attempts:
        raise ConfigurationError(
            f"no unresolved half of tx {wish.tx_id!r} in the half log of {look.bus.service}: it is settled, or the "
            "id is wrong; `txbus unresolved list` shows them"
        )
    if wish.attempt is None and len(attempts) > 1:
        raise ConfigurationError(
            f"tx {wish.tx_id!r} has unresolved attempts {', '.join(map(str, attempts))}: name one with --attempt"
        )
    attempt = wish.attempt if wish.attempt is not None else attempts[0]
    if attempt not in attempts:
        raise ConfigurationError(
            f"attempt {attempt} of tx {wish.tx_id!r} is not unresolved; these are: {', '.join(map(str, attempts))}"
        )
    return [half for half in parts if half.attempt == attempt]


def _ledger(look: Look, half: HalfRow, foreign: bool) -> Database:
    database = look.databases.get(half.database)
    if database is None:
        known = ", ".join(sorted(look.databases)) or "none"
        raise ConfigurationError(
            f"the half belongs to database {half.database!r}, this bus has: {known}; add it to Bus(databases=...)"
        )
    identity = database.identity()
    if identity != half.ledger_id and not foreign:
        raise ConfigurationError(
            f"the half belongs to ledger {half.ledger_id}, database {half.database!r} is ledger {identity} (a restored "
            "backup, a copy?); if the half's own ledger is gone for good, say --foreign"
        )
    return database


def _write(look: Look, partitions: Sequence[int], entries: Sequence[Entry]) -> None:
    bus = look.bus
    sender = look.backend.sender(bus.service)
    try:
        record = Envelope(half_topic(bus.service), encode(entries))
        pending = [sender.append(record, partition) for partition in partitions]
        for one in pending:
            one.result(bus.settings.send_timeout_s)
    finally:
        sender.close()
