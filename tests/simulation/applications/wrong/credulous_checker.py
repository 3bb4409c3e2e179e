"""A checker that always says COMMITTED: the message of a local transaction that rolled back becomes a phantom."""

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
    def it_will_have(envelope: Envelope, check: int) -> Outcome:
        return Outcome.COMMITTED

    with bus:
        for order in shop.WANTED:
            shop.place(bus, engine, topic, order)
        shop.for_ever()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
