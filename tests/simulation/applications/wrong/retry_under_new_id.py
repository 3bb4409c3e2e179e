"""A caller that runs the block again, as another local transaction, when nobody knows whether the first committed."""

from __future__ import annotations

import time
import uuid

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tests.simulation.applications import shop
from txbus import Bus, OutcomeUnknown, TxbusError
from txbus_sim.simulation import Simulation

TRIES = 5

report_table = sa.Table("reports", shop.shop_tables, sa.Column("number", sa.Integer, primary_key=True))


def is_taken(engine: sa.Engine, wanted: shop.OrderPlaced) -> bool:
    """Before a restart."""
    with engine.connect() as connection:
        taken = sa.select(shop.order_table.c.id).where(shop.order_table.c.quantity == wanted.quantity)
        return connection.scalar(taken) is not None


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())
    with bus:
        for wanted in shop.WANTED:
            if is_taken(engine, wanted):
                continue
            time.sleep(3.0)
            for _ in range(TRIES):
                order = wanted.model_copy(update={"id": f"o-{uuid.uuid4()}"})
                try:
                    with bus.transaction("shop") as tx:
                        tx.connection.execute(sa.insert(shop.order_table).values(**order.model_dump()))
                        tx.send(topic, order)
                    break
                except (OutcomeUnknown, OperationalError):
                    continue
                except TxbusError as error:
                    if not error.retryable:
                        raise
        shop.for_ever()


def reporting(database_url: str) -> None:
    """Keeps the database's write lock for a while, now and then, as a report or a backup does."""
    engine = sa.create_engine(database_url)
    for _ in range(2):
        time.sleep(5.0)
        with engine.begin() as connection:
            connection.execute(sa.insert(report_table).values())
            time.sleep(14.0)
    shop.for_ever()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S + 10.0
    sim.process("orders", main, database.url, sim.broker_url)
    sim.process("reports", reporting, database.url)
