"""A checker that looks for the order: it finds the row of the next try, and says COMMITTED of the first."""

from __future__ import annotations

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Envelope, Outcome
from txbus_sim.simulation import Simulation


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())

    @bus.checker(topic)
    def is_there(envelope: Envelope, check: int) -> Outcome:
        found = shop.is_placed(engine, topic.decode(envelope.payload))
        return Outcome.COMMITTED if found else Outcome.ROLLED_BACK

    with bus:
        for order in shop.WANTED:
            shop.place(bus, engine, topic, order)
        shop.for_ever()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
