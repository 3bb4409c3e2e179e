"""The audit of the demo's books finds what is wrong with them, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import Table, delete, insert, select, update

from txbus.examples.shop.books import Books, Published, audit
from txbus.examples.shop.generate import sample
from txbus.examples.shop.messages import MailWanted, OrderPlaced
from txbus.examples.shop.opening import Expected, Opening, decide, open_shop
from txbus.examples.shop.orderfile import OrderRow, read_orders
from txbus.examples.shop.orders import enter, note_refusal, order_placed
from txbus.examples.shop.payment import move_money, payment_taken
from txbus.examples.shop.stock import stock_reserved, take_pieces
from txbus.examples.shop.tables import (
    ACCOUNTS,
    CHARGES,
    ORDERS,
    REFUSALS,
    RESERVATIONS,
    SHELVES,
    Databases,
    create_tables,
    engine_for,
)

ROWS = 300


@dataclass(slots=True)
class Shop:
    """A shop in which everything went well, as far as the databases and topics tell."""

    rows: tuple[OrderRow, ...]
    opening: Opening
    expected: Expected
    databases: Databases
    published: Published

    def audit(self, *, published_once: bool = True) -> Books:
        return audit(
            self.rows, self.opening, self.expected, self.databases, self.published, published_once=published_once
        )

    @property
    def taken(self) -> OrderRow:
        return next(row for row in self.rows if row.order_id in self.expected.committed)

    @property
    def refused(self) -> OrderRow:
        return next(row for row in self.rows if row.order_id in self.expected.refused)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    path = tmp_path / "orders.csv"
    path.write_text(sample(ROWS, seed=5))
    rows = read_orders(path).rows
    opening = open_shop(rows)
    expected = decide(rows, opening)
    databases = Databases(*(engine_for(tmp_path / f"{name}.db") for name in ("orders", "stock", "payment")))
    create_tables(databases, rows, opening)
    placed = _work(databases, rows, expected)
    reserved = [stock_reserved(order) for order in placed]
    yield Shop(
        rows,
        opening,
        expected,
        databases,
        Published(
            orders=placed,
            mails=[MailWanted(order_id=order.order_id, customer=order.customer) for order in placed],
            reserved=reserved,
            paid=[payment_taken(each) for each in reserved],
        ),
    )
    databases.close()


def _work(databases: Databases, rows: tuple[OrderRow, ...], expected: Expected) -> list[OrderPlaced]:
    """Do by the services' own functions what they would do, one after the other."""
    placed = []
    for seq, row in enumerate(rows, 1):
        if row.order_id in expected.refused:
            note_refusal(databases.orders, seq, row, expected.refused[row.order_id])
            continue
        with databases.orders.begin() as connection:
            assert enter(connection, seq, row) is None
        order = order_placed(row)
        with databases.stock.begin() as connection:
            take_pieces(connection, order)
        with databases.payment.begin() as connection:
            move_money(connection, stock_reserved(order))
        placed.append(order)
    return placed


def test_books_that_are_right_are_found_right(shop: Shop) -> None:
    """Nothing is reported of a shop in which everything happened once."""
    books = shop.audit()
    assert books.in_order and books.balanced
    assert books.committed == books.stock_effects == books.payment_effects == len(shop.expected.committed)
    assert books.refused == len(shop.expected.refused) > 0
    assert books.messages_of_refused == 0
    assert set(books.published.values()) == {books.committed}
    assert set(books.balances) == {"EUR", "GBP", "PLN", "SEK"}


@pytest.mark.parametrize("topic", ["orders", "mails", "reserved", "paid"])
def test_a_message_that_is_missing_is_lost(shop: Shop, topic: str) -> None:
    """In any topic, for the order that it was about."""
    messages = getattr(shop.published, topic)
    shop.published = replace(shop.published, **{topic: messages[1:]})
    books = shop.audit()
    assert [(f.about, f.where) for f in books.lost] == [(messages[0].order_id, f"topic {topic}")]
    assert not (books.phantom or books.doubled or books.wrong)


def test_an_effect_that_is_missing_is_lost(shop: Shop) -> None:
    """A reservation and a charge that were never made, their shelf and accounts untouched."""
    row = shop.taken
    with shop.databases.stock.begin() as connection:
        connection.execute(delete(RESERVATIONS).where(RESERVATIONS.c.order_id == row.order_id))
        connection.execute(
            update(SHELVES).where(SHELVES.c.sku == row.sku).values(on_hand=SHELVES.c.on_hand + row.quantity)
        )
    books = shop.audit()
    assert [(f.about, f.where) for f in books.lost] == [(row.order_id, "effect in stock")]
    assert not (books.phantom or books.doubled or books.wrong)


def test_a_message_of_a_refused_order_is_a_phantom(shop: Shop) -> None:
    """What a rollback should have taken along, and what belongs to no order at all."""
    refused = order_placed(shop.refused)
    unknown = refused.model_copy(update={"order_id": "SO-none"})
    shop.published = replace(shop.published, orders=[*shop.published.orders, refused, unknown])
    books = shop.audit()
    assert {f.about for f in books.phantom} == {refused.order_id, "SO-none"}
    assert books.messages_of_refused == 1
    assert not (books.lost or books.doubled)


def test_an_effect_of_no_order_is_a_phantom(shop: Shop) -> None:
    """A charge for an order that was refused."""
    reserved = stock_reserved(order_placed(shop.refused))
    with shop.databases.payment.begin() as connection:
        move_money(connection, reserved)
    books = shop.audit()
    assert [(f.about, f.where) for f in books.phantom] == [(reserved.order_id, "effect in payment")]
    assert books.balanced


def test_an_effect_that_happened_twice_is_doubled(shop: Shop) -> None:
    """Pieces taken twice, and money moved twice, though every sum agrees with its rows."""
    order = order_placed(shop.taken)
    with shop.databases.stock.begin() as connection:
        take_pieces(connection, order)
    with shop.databases.payment.begin() as connection:
        move_money(connection, stock_reserved(order))
    books = shop.audit()
    assert [(f.about, f.where) for f in books.doubled] == [
        (order.order_id, "effect in payment"),
        (order.order_id, "effect in stock"),
    ]
    assert Books.about(books.doubled) == 1
    assert books.balanced and not (books.lost or books.phantom or books.wrong)


def test_a_message_that_is_visible_twice_is_doubled_where_publishing_is_promised_once(shop: Shop) -> None:
    """A broker without broker transactions may show it twice; its receivers suppress it."""
    twice = shop.published.mails[3]
    shop.published = replace(shop.published, mails=[*shop.published.mails, twice])
    assert [f.about for f in shop.audit().doubled] == [twice.order_id]
    assert shop.audit(published_once=False).in_order


def test_an_order_that_was_skipped_or_decided_twice_is_wrong(shop: Shop) -> None:
    """Each row of the file is decided once; an order without a row has no place."""
    with shop.databases.orders.begin() as connection:
        connection.execute(delete(REFUSALS).where(REFUSALS.c.order_id == shop.refused.order_id))
        connection.execute(insert(REFUSALS), {"seq": 9_001, "order_id": shop.taken.order_id, "reason": "stock"})
        connection.execute(insert(REFUSALS), {"seq": 9_002, "order_id": "SO-none", "reason": "stock"})
    details = {f.about: f.detail for f in shop.audit().wrong}
    assert details[shop.refused.order_id].startswith("decided 0 times")
    assert details[shop.taken.order_id].startswith("decided 2 times")
    assert details["SO-none"] == "is not in the file"


def test_a_refused_order_that_was_taken_is_wrong(shop: Shop) -> None:
    """The decision is compared with what the file alone leads to."""
    row = shop.refused
    with shop.databases.orders.begin() as connection:
        seq = connection.execute(select(REFUSALS.c.seq).where(REFUSALS.c.order_id == row.order_id)).scalar_one()
        connection.execute(delete(REFUSALS).where(REFUSALS.c.seq == seq))
        enter(connection, seq, row)
    assert any(f.about == row.order_id and "wrongly decided" in f.detail for f in shop.audit().wrong)


def test_money_that_appears_or_vanishes_changes_the_sum(shop: Shop) -> None:
    """One account changed by a cent: the sum of its currency, and the account, are found."""
    row = shop.taken
    with shop.databases.payment.begin() as connection:
        connection.execute(
            update(ACCOUNTS)
            .where(ACCOUNTS.c.owner == row.customer, ACCOUNTS.c.currency == row.currency)
            .values(balance_cents=ACCOUNTS.c.balance_cents - 1)
        )
    books = shop.audit()
    assert not books.balanced and not books.in_order
    before, after = books.balances[row.currency]
    assert before - after == 1
    assert [f.about for f in books.wrong] == [f"{row.customer} {row.currency}"]


@pytest.mark.parametrize(("table", "column"), [(ORDERS, "quantity"), (RESERVATIONS, "quantity"), (CHARGES, "cents")])
def test_a_row_that_says_something_else_than_the_file_is_wrong(shop: Shop, table: Table, column: str) -> None:
    """Amounts are compared with what was ordered, not only counted."""
    by_table = {ORDERS: shop.databases.orders, RESERVATIONS: shop.databases.stock, CHARGES: shop.databases.payment}
    with by_table[table].begin() as connection:
        changed = update(table).where(table.c.order_id == shop.taken.order_id)
        connection.execute(changed.values({column: table.c[column] + 1}))
    assert any(f.about == shop.taken.order_id and column in f.detail for f in shop.audit().wrong)
