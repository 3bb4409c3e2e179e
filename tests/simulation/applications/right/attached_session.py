"""A session of the application's own, and a rule of the business that rolls some orders back."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tests.simulation.applications import shop
from tests.simulation.applications.right.orm_session import Base, Order
from txbus import Bus, TxbusError
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation

MOST = 5
ASKED = (
    shop.WANTED[0],
    shop.OrderPlaced(id="o-samovar-9", customer="ada", quantity=MOST + 1),
    shop.WANTED[1],
)


class TooMany(Exception):
    pass


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())

    def place(order: shop.OrderPlaced) -> None:
        with Session(engine) as session, session.begin():
            if session.get(Order, order.id) is not None:
                return
            session.add(Order(**order.model_dump()))
            bus.attach(session).send(topic, order)
            taken = session.scalar(sa.select(sa.func.sum(Order.quantity)).where(Order.customer == order.customer))
            if taken is not None and taken > MOST:
                raise TooMany

    with bus:
        for order in ASKED:
            while True:
                try:
                    place(order)
                    break
                except TooMany:
                    break
                except TxbusError as error:
                    if not error.retryable:
                        raise
        shop.for_ever()


def placed(database: SimDatabase) -> None:
    """What the rule refuses is not there."""
    ids = sorted(row[0] for row in database.rows("SELECT id FROM orders"))
    assert ids == sorted(order.id for order in shop.WANTED), ids


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=Base.metadata.create_all)
    sim.process("orders", main, database.url, sim.broker_url)
    stock = shop.with_stock_service(sim)
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")
    sim.at_end(partial(placed, database), "placed")
