"""A handler whose effect is a sum: only its inbox tells whether a message is in it."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation

FULL = 100

tables = sa.MetaData()
level_table = sa.Table("levels", tables, sa.Column("sku", sa.String, primary_key=True), sa.Column("n", sa.Integer))


def fill(engine: sa.Engine) -> None:
    tables.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(level_table).values(sku="cup", n=FULL))


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", databases={"stock": engine}, **shop.quick("outside"))

    @bus.on(shop.orders_topic(broker_url), scope="take", database="stock")
    def take(order: shop.OrderPlaced, connection: sa.Connection) -> None:
        left = connection.scalar(sa.select(level_table.c.n).where(level_table.c.sku == "cup")) or 0
        connection.execute(sa.update(level_table).where(level_table.c.sku == "cup").values(n=left - order.quantity))

    bus.run()


def counted(stock: SimDatabase) -> None:
    """Everything that was ordered was taken, once."""
    assert stock.rows("SELECT n FROM levels") == [(FULL - sum(order.quantity for order in shop.WANTED),)]


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=fill)
    sim.process("stock", main, stock.url, sim.broker_url)
    sim.at_end(partial(counted, stock), "counted")
