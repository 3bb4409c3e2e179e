"""The order service: takes orders from a file, each with its messages in one local transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine, func, insert, select, update

from txbus import Bus
from txbus.examples.shop.messages import MailWanted, OrderPlaced, Topics
from txbus.examples.shop.orderfile import OrderRow
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.tables import CREDITS, ORDERS, REFUSALS, SHELVES_SEEN, engine_for
from txbus.settings import SettingsArguments

__all__ = ["Refused", "bus", "enter", "handled", "make_bus", "note_refusal", "take_orders"]


_SETTINGS: SettingsArguments = {**PACE, "relay": "outside"}


class Refused(Exception):
    """Stock or balance do not suffice: the order is rolled back, and its messages with it."""


def make_bus(place: Place, engine: Engine) -> Bus:
    """The bus of the order service; its relay is a process of its own."""
    topics = place.topics
    return Bus(
        place.url,
        service=place.service("orders"),
        databases={"orders": engine},
        topics=[topics.orders, topics.mails],
        **_SETTINGS,
    )


def bus() -> Bus:
    """For the command line: ``txbus status txbus.examples.shop.orders:bus``."""
    place = Place.load()
    return make_bus(place, engine_for(place.orders_db))


def take_orders(bus: Bus, topics: Topics, engine: Engine, rows: Sequence[OrderRow], go_on: Callable[[], bool]) -> None:
    """Take every order that has not been taken or refused yet, in the order of the file."""
    done = handled(engine)
    for seq, row in enumerate(rows[done:], done + 1):
        if not go_on():
            return
        try:
            place_order(bus, topics, seq, row)
        except Refused as refusal:
            note_refusal(engine, seq, row, str(refusal))


def place_order(bus: Bus, topics: Topics, seq: int, row: OrderRow) -> None:
    """One order: its row and its two messages, both or neither."""
    with bus.transaction("orders") as tx:
        left = enter(tx.connection, seq, row)
        tx.send(topics.orders, order_placed(row))
        tx.send(topics.mails, MailWanted(order_id=row.order_id, customer=row.customer))
        # Refused only now, after the messages were handed over: nobody may ever see them.
        if left is not None:
            raise Refused(left)


def enter(connection: Connection, seq: int, row: OrderRow) -> str | None:
    """Write the order and take it off what is available; what does not suffice, or None."""
    connection.execute(
        insert(ORDERS),
        {
            "seq": seq,
            "order_id": row.order_id,
            "customer": row.customer,
            "sku": row.sku,
            "quantity": row.quantity,
            "cents": row.total_cents,
            "currency": row.currency,
        },
    )
    pieces = connection.execute(
        update(SHELVES_SEEN)
        .where(SHELVES_SEEN.c.sku == row.sku)
        .values(available=SHELVES_SEEN.c.available - row.quantity)
        .returning(SHELVES_SEEN.c.available)
    ).scalar_one()
    cents = connection.execute(
        update(CREDITS)
        .where(CREDITS.c.customer == row.customer, CREDITS.c.currency == row.currency)
        .values(available_cents=CREDITS.c.available_cents - row.total_cents)
        .returning(CREDITS.c.available_cents)
    ).scalar_one()
    if pieces < 0:
        return "stock"
    return "balance" if cents < 0 else None


def order_placed(row: OrderRow) -> OrderPlaced:
    return OrderPlaced(
        order_id=row.order_id,
        customer=row.customer,
        sku=row.sku,
        quantity=row.quantity,
        cents=row.total_cents,
        currency=row.currency,
    )


def note_refusal(engine: Engine, seq: int, row: OrderRow, reason: str) -> None:
    """Count a refused order, in a transaction of its own: the order's was rolled back."""
    with engine.begin() as connection:
        connection.execute(insert(REFUSALS), {"seq": seq, "order_id": row.order_id, "reason": reason})


def handled(engine: Engine) -> int:
    """How many rows of the file are taken or refused; they are so in the order of the file."""
    with engine.connect() as connection:
        last = (connection.execute(select(func.max(table.c.seq))).scalar_one() for table in (ORDERS, REFUSALS))
        return max(seq or 0 for seq in last)
