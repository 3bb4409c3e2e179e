"""A checker that looks for what only this very try can have written: its message's id, in the order's row."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Envelope, Outcome, TxbusError
from txbus_sim.simulation import Simulation

tables = sa.MetaData()
order_table = sa.Table(
    "orders",
    tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("message_id", sa.String, unique=True),
)


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())

    @bus.checker(topic)
    def is_there(envelope: Envelope, check: int) -> Outcome:
        with engine.connect() as connection:
            found = connection.scalar(sa.select(order_table.c.id).where(order_table.c.message_id == envelope.id))
        if found is not None:
            return Outcome.COMMITTED
        return Outcome.ROLLED_BACK if check > 1 else Outcome.UNKNOWN

    def is_placed(order: shop.OrderPlaced) -> bool:
        with engine.connect() as connection:
            return connection.scalar(sa.select(order_table.c.id).where(order_table.c.id == order.id)) is not None

    with bus:
        for order in shop.WANTED:
            while not is_placed(order):
                try:
                    with bus.transaction("shop") as tx:
                        message_id = tx.send(topic, order)
                        tx.connection.execute(sa.insert(order_table).values(id=order.id, message_id=message_id))
                except TxbusError as error:
                    if not error.retryable:
                        raise
        shop.for_ever()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=tables.create_all)
    sim.process("orders", main, database.url, sim.broker_url)
    stock = shop.with_stock_service(sim)
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")
