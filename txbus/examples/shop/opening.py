"""What lies on the shelves and in the accounts before the first order, and what must become of it.

Both follow from the file of orders alone: about one order in twenty meets an empty shelf or an empty
account. So the books have a right answer that no service was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from txbus.examples.shop.orderfile import OrderRow

__all__ = ["Account", "Expected", "Opening", "decide", "open_shop"]

Account = tuple[str, str]
"""Owner and currency."""

K = TypeVar("K")
_REFUSED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Opening:
    """Pieces on the shelf by SKU, and hundredths in each customer's account."""

    shelves: Mapping[str, int]
    accounts: Mapping[Account, int]


@dataclass(frozen=True, slots=True)
class Expected:
    """Which orders are taken, and why the others are refused."""

    committed: frozenset[str]
    refused: Mapping[str, str]


def open_shop(rows: Sequence[OrderRow]) -> Opening:
    """Enough of everything for most, half of what is wanted of some SKUs and for some customers."""
    each = len(rows) * _REFUSED_SHARE / 2
    shelves = _openings(rows, lambda row: row.sku, lambda row: row.quantity, each)
    accounts = _openings(rows, lambda row: (row.customer, row.currency), lambda row: row.total_cents, each)
    return Opening(shelves, accounts)


def decide(rows: Iterable[OrderRow], opening: Opening) -> Expected:
    """What one order after the other leads to."""
    shelves, accounts = dict(opening.shelves), dict(opening.accounts)
    committed: list[str] = []
    refused: dict[str, str] = {}
    for row in rows:
        account = (row.customer, row.currency)
        if shelves[row.sku] < row.quantity:
            refused[row.order_id] = "stock"
        elif accounts[account] < row.total_cents:
            refused[row.order_id] = "balance"
        else:
            shelves[row.sku] -= row.quantity
            accounts[account] -= row.total_cents
            committed.append(row.order_id)
    return Expected(frozenset(committed), refused)


def _openings(
    rows: Sequence[OrderRow], group_of: Callable[[OrderRow], K], amount_of: Callable[[OrderRow], int], refusals: float
) -> dict[K, int]:
    """What each group wants in all; half of it for groups that refuse about ``refusals`` orders."""
    wanted: dict[K, list[int]] = {}
    for row in rows:
        wanted.setdefault(group_of(row), []).append(amount_of(row))
    found = {group: sum(amounts) for group, amounts in wanted.items()}
    left = refusals
    for group in sorted(wanted, key=_shuffled):
        short = found[group] // 2
        count = _refusals(wanted[group], short)
        if 0 < count <= left:
            found[group] = short
            left -= count
    return found


def _shuffled(group: object) -> bytes:
    return hashlib.blake2b(repr(group).encode(), digest_size=8).digest()


def _refusals(amounts: Iterable[int], have: int) -> int:
    count = 0
    for amount in amounts:
        if amount <= have:
            have -= amount
        else:
            count += 1
    return count
