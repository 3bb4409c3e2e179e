"""The unresolved halves of a service, as the command line shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from txbus._halflog.survey import SurveyedHalf, survey
from txbus.cli._look import Look
from txbus.cli._output import note, print_table, span

__all__ = ["HalfRow", "show_halves", "surveyed"]


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
    """Every unsettled half, oldest first. A damaged record is named and skipped, as the relay does."""
    found = survey(look.backend, look.bus.service, look.bus.ports.clock, lambda what: note(f"txbus: {what}"))
    return [_row(half) for half in found]


def _row(half: SurveyedHalf) -> HalfRow:
    return HalfRow(
        tx_id=half.tx_id,
        attempt=half.attempt,
        database=half.database,
        ledger_id=half.ledger_id,
        partition=half.partition,
        age_s=max(0.0, half.age_s),
        topics=half.topics,
        keys=tuple(sorted({key for _, key in half.keys})),
        messages=half.messages,
        state=half.state,
        reason=half.parked,
        behind=half.behind,
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
