"""What a dialect models, as data: one row for each behaviour, with where it is known from.

The rows are the reference page of the dialect (a test keeps them equal), each is named by a test of
the dialect, and a verdict that rests on an assumed one says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["Behaviour", "Status", "table"]


class Status(Enum):
    """How a behaviour is known."""

    VERIFIED = "verified on the real broker"
    FROM_SOURCE = "from source"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """``id``: short, unique in its dialect, such as ``check-after-commit``; never used again for
    another fact. ``sentence``: what can be observed. ``source``: file and version, KIP, issue, or
    facts page."""

    id: str
    sentence: str
    source: str
    status: Status


def table(behaviours: Iterable[Behaviour]) -> str:
    """The rows as a Markdown table that ends with a newline, in the order given."""
    rows = [("behaviour", "what is modelled", "source", "status"), ("---",) * 4]
    rows += [(f"`{b.id}`", b.sentence, b.source, b.status.value) for b in behaviours]
    return "".join(f"| {_cells(row)} |\n" for row in rows)


def _cells(row: Sequence[str]) -> str:
    return " | ".join(cell.replace("|", "\\|") for cell in row)
