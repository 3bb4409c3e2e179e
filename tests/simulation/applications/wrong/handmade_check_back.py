"""Half messages made by hand, with a checker that looks: no row yet, so it drops what commits a moment later."""

from __future__ import annotations

import time

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Topic
from txbus_sim.checkers import Pair
from txbus_sim.simulation import Simulation

PREPARED = Topic("prepared", shop.OrderPlaced)
CHECK_AFTER_S = 3.0


def main(database_url: str, broker_url: str) -> None:
    """Prepared before the commit, so that no crash loses it."""
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="shop", topics=[PREPARED], **shop.quick())
    with bus:
        for order in shop.WANTED:
            if shop.is_placed(engine, order):
                continue
            bus.send(PREPARED, order)
            with engine.begin() as connection:
                connection.execute(sa.insert(shop.order_table).values(**order.model_dump()))
        shop.for_ever()


def checker(database_url: str, broker_url: str) -> None:
    """Passes on what is in the books after a time, and drops what is not."""
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="checker", topics=[shop.ORDERS], **shop.quick("outside"))

    @bus.on(PREPARED, scope="check", database=None)
    def check(order: shop.OrderPlaced) -> None:
        time.sleep(CHECK_AFTER_S)
        if shop.is_placed(engine, order):
            bus.send(shop.ORDERS, order, message_id=f"order-{order.id}")

    bus.run()


def scenario(sim: Simulation) -> None:
    """Which of the two topics tells of an order has to be declared: the first does so before the commit."""
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("prepared", 1)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
    sim.process("checker", checker, database.url, sim.broker_url)
    sim.expect(Pair("shop.orders", "id", "orders", "id"))
