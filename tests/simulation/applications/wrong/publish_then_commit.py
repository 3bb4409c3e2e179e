"""Publishes the order, then commits it: the customer's next try is another order, and the message a phantom."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", topics=[topic], **shop.quick())
    with bus:
        for wanted in shop.WANTED:
            with engine.connect() as connection:
                customers = sa.select(shop.order_table.c.id).where(shop.order_table.c.quantity == wanted.quantity)
                if connection.scalar(customers) is not None:
                    continue
            order = wanted.model_copy(update={"id": f"o-{uuid.uuid4()}"})
            bus.send(topic, order)
            with engine.begin() as connection:
                connection.execute(sa.insert(shop.order_table).values(**order.model_dump()))
        shop.for_ever()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
