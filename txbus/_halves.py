"""What the sending side and the half log agree on: a half, and the channel that stores it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from txbus._message import Envelope, Receipt
from txbus._outcome import Outcome

__all__ = ["Half", "HalfChannel", "HalfId"]


@dataclass(frozen=True, slots=True, order=True)
class HalfId:
    """A local transaction's id and attempt, counted from 1: what a ledger row is about."""

    tx_id: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.tx_id}#{self.attempt}"


@dataclass(frozen=True, slots=True)
class Half:
    """The messages of one local transaction, before its outcome is known.

    ``ledger_id`` is the identity of the ledger that knows the outcome, ``database`` its name in
    the service; ``created_s`` is the sender's wall clock.
    """

    id: HalfId
    ledger_id: str
    database: str
    created_s: float
    envelopes: tuple[Envelope, ...]


class HalfChannel(Protocol):
    """Stores halves and carries outcomes; the half log, or a broker's native half messages.

    Thread-safe: many callers at once.
    """

    def check(self, half: Half) -> None:
        """Refuse what could never be stored or published: sizes, held keys, and a destination that the
        broker itself would have to refuse. Before any lock is taken in the database. Raises
        MessageRefused, DestinationRefused, KeyHeld."""
        ...

    def store(self, half: Half, timeout_s: float) -> tuple[Receipt, ...]:
        """Make the half durable before the local COMMIT. HalfFailed when the time is over, its
        queueing included, or the broker refuses; the caller rolls back. Receipts of the halves."""
        ...

    def tell(self, half: Half, outcome: Outcome) -> None:
        """Carry the sender's word to the broker side. A hint: not awaited, never raises."""
        ...
