"""A worker that takes "somebody else settled this" for "somebody else did this", and confirms the order."""

from __future__ import annotations

import time

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import AlreadyCommitted, Bus
from txbus.errors import Fenced, Superseded
from txbus_sim.checkers import Pair
from txbus_sim.simulation import Simulation

PATIENCE_S = 8.0

confirmation_table = sa.Table("confirmations", shop.shop_tables, sa.Column("order_id", sa.String, primary_key=True))


def unconfirmed(engine: sa.Engine) -> list[shop.OrderPlaced]:
    with engine.connect() as connection:
        done = set(connection.scalars(sa.select(confirmation_table.c.order_id)))
    return [order for order in shop.WANTED if order.id not in done]


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())
    with bus:
        for order in unconfirmed(engine):
            try:
                with bus.transaction("shop", tx_id=f"place-{order.id}") as tx:
                    tx.connection.execute(sa.insert(shop.order_table).values(**order.model_dump()))
                    tx.send(topic, order)
            except (AlreadyCommitted, Fenced, Superseded):
                pass
            with engine.begin() as connection:
                connection.execute(sa.insert(confirmation_table).values(order_id=order.id))
        shop.for_ever()


def watchdog(database_url: str, broker_url: str) -> None:
    """Settles what takes too long, so that it can be tried again with a clean slate."""
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, **shop.quick("outside"))
    with bus:
        while True:
            time.sleep(PATIENCE_S)
            late = unconfirmed(engine)
            if not late:
                shop.for_ever()
            for order in late:
                bus.outcome(f"place-{order.id}")


def scenario(sim: Simulation) -> None:
    """What is confirmed wants its message: of the two tables that name an order, that has to be declared."""
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
    sim.process("watchdog", watchdog, database.url, sim.broker_url)
    sim.expect(Pair("shop.confirmations", "order_id", "orders", "id"))
