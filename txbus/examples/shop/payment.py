"""The payment service: moves the price of an order from the customer to the shop, once."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, insert, update

from txbus import Bus, Delivery, Retry
from txbus.examples.shop.messages import PaymentTaken, StockReserved
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.tables import ACCOUNTS, CHARGES, SHOP_ACCOUNT, engine_for

__all__ = ["SCOPE", "bus", "make_bus", "move_money"]

SCOPE = "charge"


def make_bus(place: Place, engine: Engine) -> Bus:
    """The bus of the payment service, with its handler and a relay inside."""
    topics = place.topics
    bus = Bus(
        place.url,
        service=place.service("payment"),
        databases={"payment": engine},
        topics=[topics.reserved, topics.paid],
        **PACE,
    )

    @bus.on(topics.reserved, scope=SCOPE, database="payment", retry=Retry(max_attempts=20, backoff_s=(0.1, 2.0)))
    def charge(reserved: StockReserved, delivery: Delivery, connection: Connection) -> None:
        move_money(connection, reserved)
        delivery.send(topics.paid, payment_taken(reserved))

    return bus


def bus() -> Bus:
    """For the command line: ``txbus status txbus.examples.shop.payment:bus``."""
    place = Place.load()
    return make_bus(place, engine_for(place.payment_db))


def move_money(connection: Connection, reserved: StockReserved) -> None:
    """The effect of an order on the accounts. Nothing here would notice a second one."""
    for owner, change in ((reserved.customer, -reserved.cents), (SHOP_ACCOUNT, reserved.cents)):
        connection.execute(
            update(ACCOUNTS)
            .where(ACCOUNTS.c.owner == owner, ACCOUNTS.c.currency == reserved.currency)
            .values(balance_cents=ACCOUNTS.c.balance_cents + change)
        )
    connection.execute(
        insert(CHARGES),
        {
            "order_id": reserved.order_id,
            "customer": reserved.customer,
            "currency": reserved.currency,
            "cents": reserved.cents,
        },
    )


def payment_taken(reserved: StockReserved) -> PaymentTaken:
    return PaymentTaken(
        order_id=reserved.order_id, customer=reserved.customer, cents=reserved.cents, currency=reserved.currency
    )
