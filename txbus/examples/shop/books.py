"""Audits a run row by row: databases and topics against the file of orders.

Nothing that a service says about itself is used: the file tells which orders there are, the three
databases what was done about each, and the topics what was published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Table, select

from txbus import Topic
from txbus.examples.shop.messages import Topics
from txbus.examples.shop.opening import Account, Expected, Opening
from txbus.examples.shop.orderfile import OrderRow
from txbus.examples.shop.tables import (
    ACCOUNTS,
    CHARGES,
    CREDITS,
    ORDERS,
    REFUSALS,
    RESERVATIONS,
    SHELVES,
    SHELVES_SEEN,
    SHOP_ACCOUNT,
    Databases,
)

__all__ = ["Books", "Finding", "Published", "audit", "read_published"]


class Payloads(Protocol):
    """Reads what is visible in a topic (`broker.BrokerView`)."""

    def payloads(self, topic: Topic[Any]) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Published:
    """The payloads visible in each topic."""

    orders: Sequence[Any]
    mails: Sequence[Any]
    reserved: Sequence[Any]
    paid: Sequence[Any]

    def counts(self) -> Mapping[str, int]:
        return {name: len(getattr(self, name)) for name in _TOPICS}


_TOPICS = ("orders", "mails", "reserved", "paid")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that is not as it must be, about one order (or a shelf, or an account)."""

    about: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class Books:
    """The result of an audit. ``balances`` maps a currency to hundredths before and after."""

    committed: int
    refused: int
    messages_of_refused: int
    published: Mapping[str, int]
    stock_effects: int
    payment_effects: int
    balances: Mapping[str, tuple[int, int]]
    lost: tuple[Finding, ...]
    phantom: tuple[Finding, ...]
    doubled: tuple[Finding, ...]
    wrong: tuple[Finding, ...]

    @property
    def balanced(self) -> bool:
        """Is the sum of all balances what it was, in each currency?"""
        return all(before == after for before, after in self.balances.values())

    @property
    def in_order(self) -> bool:
        return self.balanced and not (self.lost or self.phantom or self.doubled or self.wrong)

    @staticmethod
    def about(findings: Iterable[Finding]) -> int:
        """How many orders the findings are about."""
        return len({finding.about for finding in findings})


def read_published(view: Payloads, topics: Topics) -> Published:
    """Everything visible in the shop's topics."""
    return Published(*(tuple(view.payloads(getattr(topics, name))) for name in _TOPICS))


@dataclass(frozen=True, slots=True)
class _Rows:
    orders: Mapping[str, Any]
    refusals: Sequence[Any]
    reservations: Sequence[Any]
    charges: Sequence[Any]
    shelves: Mapping[str, int]
    shelves_seen: Mapping[str, int]
    accounts: Mapping[Account, int]
    credits: Mapping[Account, int]


def audit(
    rows: Sequence[OrderRow],
    opening: Opening,
    expected: Expected,
    databases: Databases,
    published: Published,
    *,
    published_once: bool = True,
) -> Books:
    """Compare everything with everything, order by order.

    ``published_once`` False: a broker without broker transactions may show a message twice, which its
    receivers suppress; then only effects count as doubled.
    """
    found = _read(databases)
    committed = set(found.orders)
    checks = _Checks(committed, published_once)
    for name in _TOPICS:
        checks.occurrences(f"topic {name}", (m.order_id for m in getattr(published, name)), effect=False)
    checks.occurrences("effect in stock", (r.order_id for r in found.reservations), effect=True)
    checks.occurrences("effect in payment", (r.order_id for r in found.charges), effect=True)
    wrong = [
        *_decisions(rows, expected, found),
        *_contents(rows, found, published),
        *_shelves(opening, found),
        *_accounts(opening, found),
    ]
    refused = set(expected.refused)
    return Books(
        committed=len(committed),
        refused=len(found.refusals),
        messages_of_refused=sum(m.order_id in refused for name in _TOPICS for m in getattr(published, name)),
        published=published.counts(),
        stock_effects=len(found.reservations),
        payment_effects=len(found.charges),
        balances=_sums(rows, opening, found),
        lost=tuple(sorted(checks.lost)),
        phantom=tuple(sorted(checks.phantom)),
        doubled=tuple(sorted(checks.doubled)),
        wrong=tuple(sorted(wrong)),
    )


class _Checks:
    """Each committed order occurs once everywhere, and nothing else does."""

    def __init__(self, committed: set[str], published_once: bool) -> None:
        self._committed = committed
        self._published_once = published_once
        self.lost: list[Finding] = []
        self.phantom: list[Finding] = []
        self.doubled: list[Finding] = []

    def occurrences(self, where: str, order_ids: Iterable[str], *, effect: bool) -> None:
        counts = Counter(order_ids)
        self.lost += [Finding(order, where, "missing") for order in self._committed - counts.keys()]
        self.phantom += [Finding(order, where, "of no order") for order in counts.keys() - self._committed]
        if effect or self._published_once:
            self.doubled += [Finding(o, where, f"{n} times") for o, n in counts.items() if n > 1]


def _decisions(rows: Sequence[OrderRow], expected: Expected, found: _Rows) -> Iterator[Finding]:
    """Every order of the file is taken or refused, once, and rightly."""
    refusals = Counter(row.order_id for row in found.refusals)
    for row in rows:
        decided = (row.order_id in found.orders) + refusals[row.order_id]
        if decided != 1:
            yield Finding(row.order_id, "order service", f"decided {decided} times (line {row.line})")
        elif (row.order_id in found.orders) != (row.order_id in expected.committed):
            yield Finding(row.order_id, "order service", f"wrongly decided (line {row.line})")
    known = {row.order_id for row in rows}
    for order_id in (found.orders.keys() | refusals.keys()) - known:
        yield Finding(order_id, "order service", "is not in the file")


def _contents(rows: Sequence[OrderRow], found: _Rows, published: Published) -> Iterator[Finding]:
    """What is written and sent about an order is what the file says."""
    by_id = {row.order_id: row for row in rows}

    def differs(where: str, record: Any, *columns: tuple[str, Callable[[OrderRow], object]]) -> Iterator[Finding]:
        row = by_id.get(record.order_id)
        for name, of in columns:
            if row is not None and getattr(record, name) != of(row):
                detail = f"{name} is {getattr(record, name)!r}, ordered was {of(row)!r}"
                yield Finding(record.order_id, where, detail)

    customer: tuple[str, Callable[[OrderRow], object]] = ("customer", lambda row: row.customer)
    sku: tuple[str, Callable[[OrderRow], object]] = ("sku", lambda row: row.sku)
    quantity: tuple[str, Callable[[OrderRow], object]] = ("quantity", lambda row: row.quantity)
    cents: tuple[str, Callable[[OrderRow], object]] = ("cents", lambda row: row.total_cents)
    currency: tuple[str, Callable[[OrderRow], object]] = ("currency", lambda row: row.currency)
    everything = (customer, sku, quantity, cents, currency)
    for where, records, columns in (
        ("order service", found.orders.values(), everything),
        ("effect in stock", found.reservations, (sku, quantity)),
        ("effect in payment", found.charges, (customer, cents, currency)),
        ("topic orders", published.orders, everything),
        ("topic mails", published.mails, (customer,)),
        ("topic reserved", published.reserved, everything),
        ("topic paid", published.paid, (customer, cents, currency)),
    ):
        for record in records:
            yield from differs(where, record, *columns)


def _shelves(opening: Opening, found: _Rows) -> Iterator[Finding]:
    taken: Counter[str] = Counter()
    for reservation in found.reservations:
        taken[reservation.sku] += reservation.quantity
    sold: Counter[str] = Counter()
    for order in found.orders.values():
        sold[order.sku] += order.quantity
    for sku, count in opening.shelves.items():
        if found.shelves.get(sku) != count - taken[sku]:
            detail = f"{found.shelves.get(sku)} on hand, {count} less {taken[sku]} reserved"
            yield Finding(sku, "shelf", detail)
        if found.shelves_seen.get(sku) != count - sold[sku]:
            detail = f"{found.shelves_seen.get(sku)} available, {count} less {sold[sku]} sold"
            yield Finding(sku, "shelf as the order service sees it", detail)


def _accounts(opening: Opening, found: _Rows) -> Iterator[Finding]:
    charged: Counter[Account] = Counter()
    earned: Counter[str] = Counter()
    for charge in found.charges:
        charged[charge.customer, charge.currency] += charge.cents
        earned[charge.currency] += charge.cents
    owed: Counter[Account] = Counter()
    for order in found.orders.values():
        owed[order.customer, order.currency] += order.cents
    for account, cents in opening.accounts.items():
        if found.accounts.get(account) != cents - charged[account]:
            detail = f"balance {found.accounts.get(account)}, opened with {cents} less {charged[account]} charged"
            yield Finding(" ".join(account), "account", detail)
        if found.credits.get(account) != cents - owed[account]:
            detail = f"{found.credits.get(account)} available, {cents} less {owed[account]} ordered"
            yield Finding(" ".join(account), "account as the order service sees it", detail)
    for (owner, currency), cents in found.accounts.items():
        if owner == SHOP_ACCOUNT and cents != earned[currency]:
            yield Finding(f"{owner} {currency}", "account", f"balance {cents}, charges come to {earned[currency]}")


def _sums(rows: Sequence[OrderRow], opening: Opening, found: _Rows) -> Mapping[str, tuple[int, int]]:
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for (_, currency), cents in opening.accounts.items():
        before[currency] += cents
    for (_, currency), cents in found.accounts.items():
        after[currency] += cents
    return {currency: (before[currency], after[currency]) for currency in sorted({row.currency for row in rows})}


def _read(databases: Databases) -> _Rows:
    """All rows, each database in one read transaction."""
    with databases.orders.connect() as connection:
        orders = {row.order_id: row for row in _all(connection, ORDERS)}
        refusals = _all(connection, REFUSALS)
        shelves_seen = {row.sku: row.available for row in _all(connection, SHELVES_SEEN)}
        credit = {(row.customer, row.currency): row.available_cents for row in _all(connection, CREDITS)}
    with databases.stock.connect() as connection:
        reservations = _all(connection, RESERVATIONS)
        shelves = {row.sku: row.on_hand for row in _all(connection, SHELVES)}
    with databases.payment.connect() as connection:
        charges = _all(connection, CHARGES)
        accounts = {(row.owner, row.currency): row.balance_cents for row in _all(connection, ACCOUNTS)}
    return _Rows(orders, refusals, reservations, charges, shelves, shelves_seen, accounts, credit)


def _all(connection: Connection, table: Table) -> Sequence[Any]:
    return connection.execute(select(table)).all()
