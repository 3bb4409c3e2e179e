"""A handler that sends on, in the local transaction of its effect."""

from __future__ import annotations

from functools import partial

import pydantic
import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Delivery, Topic
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation


class Reserved(pydantic.BaseModel):
    order_id: str


RESERVED = Topic("reserved", Reserved)

tables = sa.MetaData()
bill_table = sa.Table(
    "bills", tables, sa.Column("number", sa.Integer, primary_key=True), sa.Column("order_id", sa.String)
)


def stock_service(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", databases={"stock": engine}, topics=[RESERVED], **shop.quick())

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database="stock")
    def reserve(order: shop.OrderPlaced, delivery: Delivery, connection: sa.Connection) -> None:
        values = {"order_id": order.id, "quantity": order.quantity}
        connection.execute(sa.insert(shop.reservation_table).values(**values))
        delivery.send(RESERVED, Reserved(order_id=order.id))

    bus.run()


def billing_service(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="billing", databases={"billing": engine}, **shop.quick("outside"))

    @bus.on(RESERVED, scope="bill", database="billing")
    def bill(reserved: Reserved, connection: sa.Connection) -> None:
        connection.execute(sa.insert(bill_table).values(order_id=reserved.order_id))

    bus.run()


def billed(billing: SimDatabase) -> None:
    """Each order once."""
    bills = sorted(row[0] for row in billing.rows("SELECT order_id FROM bills"))
    assert bills == sorted(order.id for order in shop.WANTED), bills


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=shop.stock_tables.create_all)
    billing = sim.database("billing", schema=tables.create_all)
    sim.topic("reserved", 1)
    sim.process("stock", stock_service, stock.url, sim.broker_url)
    sim.process("billing", billing_service, billing.url, sim.broker_url)
    sim.at_end(partial(billed, billing), "billed")
