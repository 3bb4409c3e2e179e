"""The stock service: takes the pieces of an order off the shelf, once, and says so."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, insert, update

from txbus import Bus, Delivery, Retry
from txbus.examples.shop.messages import OrderPlaced, StockReserved
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.tables import RESERVATIONS, SHELVES, engine_for

__all__ = ["SCOPE", "bus", "make_bus", "take_pieces"]

SCOPE = "reserve"


def make_bus(place: Place, engine: Engine) -> Bus:
    """The bus of the stock service, with its handler and a relay inside."""
    topics = place.topics
    bus = Bus(
        place.url,
        service=place.service("stock"),
        databases={"stock": engine},
        topics=[topics.orders, topics.reserved],
        **PACE,
    )

    @bus.on(topics.orders, scope=SCOPE, database="stock", retry=Retry(max_attempts=20, backoff_s=(0.1, 2.0)))
    def reserve(order: OrderPlaced, delivery: Delivery, connection: Connection) -> None:
        take_pieces(connection, order)
        delivery.send(topics.reserved, stock_reserved(order))

    return bus


def bus() -> Bus:
    """For the command line: ``txbus status txbus.examples.shop.stock:bus``."""
    place = Place.load()
    return make_bus(place, engine_for(place.stock_db))


def take_pieces(connection: Connection, order: OrderPlaced) -> None:
    """The effect of an order in the stock. Nothing here would notice a second one."""
    connection.execute(
        update(SHELVES).where(SHELVES.c.sku == order.sku).values(on_hand=SHELVES.c.on_hand - order.quantity)
    )
    connection.execute(insert(RESERVATIONS), {"order_id": order.order_id, "sku": order.sku, "quantity": order.quantity})


def stock_reserved(order: OrderPlaced) -> StockReserved:
    return StockReserved.model_validate(order.model_dump())
