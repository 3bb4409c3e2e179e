"""A caller that runs the block again under its id when nobody knows whether the first try committed."""

from __future__ import annotations

import time
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tests.simulation.applications import shop
from tests.simulation.applications.wrong.retry_under_new_id import reporting
from txbus import AlreadyCommitted, Bus, OutcomeUnknown, TxbusError
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation

tables = sa.MetaData()
sale_table = sa.Table(
    "sales",
    tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("order_id", sa.String),
)
sa.Table("reports", tables, sa.Column("number", sa.Integer, primary_key=True))


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())
    with bus:
        for order in shop.WANTED:
            time.sleep(3.0)
            while True:
                try:
                    with bus.transaction("shop", tx_id=f"request-{order.id}") as tx:
                        tx.connection.execute(sa.insert(sale_table).values(order_id=order.id))
                        tx.send(topic, order)
                    break
                except AlreadyCommitted:
                    break
                except (OutcomeUnknown, OperationalError):
                    continue
                except TxbusError as error:
                    if not error.retryable:
                        raise
        shop.for_ever()


def sold(database: SimDatabase) -> None:
    """Everything once."""
    ids = sorted(row[0] for row in database.rows("SELECT order_id FROM sales"))
    assert ids == sorted(order.id for order in shop.WANTED), ids


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=tables.create_all)
    sim.process("orders", main, database.url, sim.broker_url)
    sim.process("reports", reporting, database.url)
    sim.topic("orders", 2)
    sim.settle_s = shop.SETTLE_S + 10.0
    sim.at_end(partial(sold, database), "sold")
