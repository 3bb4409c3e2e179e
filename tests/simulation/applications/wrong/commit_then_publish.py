"""Commits the order, then publishes it: a crash in between loses the message for ever."""

from __future__ import annotations

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", topics=[topic], **shop.quick())
    with bus:
        for order in shop.WANTED:
            if shop.is_placed(engine, order):
                continue
            with engine.begin() as connection:
                connection.execute(sa.insert(shop.order_table).values(**order.model_dump()))
            bus.send(topic, order)
        shop.for_ever()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
