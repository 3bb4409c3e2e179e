"""The same shop as it is often written: commit, then publish; a handler without an inbox.

Every line of it looks harmless. ``reached`` marks the moments in which the demo kills it; they
correspond to those in which it kills the other shop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Engine

from txbus import Bus, Retry
from txbus.examples.shop.messages import MailWanted, OrderPlaced, StockReserved, Topics
from txbus.examples.shop.orderfile import OrderRow
from txbus.examples.shop.orders import Refused, enter, handled, note_refusal, order_placed
from txbus.examples.shop.payment import SCOPE as CHARGE
from txbus.examples.shop.payment import move_money, payment_taken
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.stock import SCOPE as RESERVE
from txbus.examples.shop.stock import stock_reserved, take_pieces
from txbus.examples.shop.windows import Window

__all__ = ["orders_bus", "payment_bus", "stock_bus", "take_orders"]

Reached = Callable[[Window], None]
_RETRY = Retry(max_attempts=20, backoff_s=(0.1, 2.0))


def orders_bus(place: Place) -> Bus:
    """A bus that knows of no database."""
    topics = place.topics
    return Bus(place.url, service=place.service("orders"), topics=[topics.orders, topics.mails], **PACE)


def take_orders(
    bus: Bus,
    topics: Topics,
    engine: Engine,
    rows: Sequence[OrderRow],
    go_on: Callable[[], bool],
    reached: Reached,
) -> None:
    """Take every order that is not in the database yet: commit, then publish."""
    done = handled(engine)
    for seq, row in enumerate(rows[done:], done + 1):
        if not go_on():
            return
        try:
            with engine.begin() as connection:
                left = enter(connection, seq, row)
                if left is not None:
                    raise Refused(left)
                reached(Window.HALF_STORED)
        except Refused as refusal:
            note_refusal(engine, seq, row, str(refusal))
            continue
        reached(Window.COMMITTED)
        bus.send(topics.orders, order_placed(row))
        reached(Window.STEP_OPEN)
        bus.send(topics.mails, MailWanted(order_id=row.order_id, customer=row.customer))
        reached(Window.TOLD)


def stock_bus(place: Place, engine: Engine, reached: Reached) -> Bus:
    """Effect, then publish, then ack."""
    topics = place.topics
    bus = Bus(place.url, service=place.service("stock"), topics=[topics.orders, topics.reserved], **PACE)

    @bus.on(topics.orders, scope=RESERVE, database=None, retry=_RETRY)
    def reserve(order: OrderPlaced) -> None:
        with engine.begin() as connection:
            take_pieces(connection, order)
            reached(Window.HALF_STORED)
        reached(Window.COMMITTED)
        bus.send(topics.reserved, stock_reserved(order))
        reached(Window.TOLD)
        reached(Window.EFFECT)

    return bus


def payment_bus(place: Place, engine: Engine, reached: Reached) -> Bus:
    """Effect, then publish, then ack."""
    topics = place.topics
    bus = Bus(place.url, service=place.service("payment"), topics=[topics.reserved, topics.paid], **PACE)

    @bus.on(topics.reserved, scope=CHARGE, database=None, retry=_RETRY)
    def charge(reserved: StockReserved) -> None:
        with engine.begin() as connection:
            move_money(connection, reserved)
            reached(Window.HALF_STORED)
        reached(Window.COMMITTED)
        bus.send(topics.paid, payment_taken(reserved))
        reached(Window.TOLD)
        reached(Window.EFFECT)

    return bus
