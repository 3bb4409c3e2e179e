"""An outbox made by hand: a row with the order, a process that sends it at least once, a receiver that dedupes."""

from __future__ import annotations

import time
import uuid
from functools import partial

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.checkers import Effect, Pair
from txbus_sim.simulation import Simulation

tables = sa.MetaData()
order_table = sa.Table(
    "orders",
    tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("customer", sa.String),
    sa.Column("quantity", sa.Integer),
)
outbox_table = sa.Table(
    "outbox",
    tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("message_id", sa.String),
    sa.Column("payload", sa.String),
)


def main(database_url: str) -> None:
    """Orders only: this service knows no broker."""
    engine = sa.create_engine(database_url)
    for order in shop.WANTED:
        with engine.begin() as connection:
            if connection.scalar(sa.select(order_table.c.id).where(order_table.c.id == order.id)) is not None:
                continue
            connection.execute(sa.insert(order_table).values(**order.model_dump()))
            row = {"message_id": uuid.uuid4().hex, "payload": order.model_dump_json()}
            connection.execute(sa.insert(outbox_table).values(**row))
    shop.for_ever()


def relay(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", topics=[topic], **shop.quick())
    with bus:
        while True:
            with engine.connect() as connection:
                rows = connection.execute(sa.select(outbox_table).order_by(outbox_table.c.number)).all()
            for row in rows:
                bus.send(topic, shop.OrderPlaced.model_validate_json(row.payload), message_id=row.message_id)
                with engine.begin() as connection:
                    connection.execute(sa.delete(outbox_table).where(outbox_table.c.number == row.number))
            time.sleep(3.0)


def scenario(sim: Simulation) -> None:
    """Who commits is not who sends, so that the pair has to be declared."""
    database = sim.database("shop", schema=tables.create_all)
    sim.process("orders", main, database.url)
    sim.process("relay", relay, database.url, sim.broker_url)
    stock = shop.with_stock_service(sim)
    sim.expect(
        Pair("shop.orders", "id", "orders", "id"),
        Pair("shop.outbox", "message_id", "orders", "ce_id", emptied=True),
        Effect("orders", "id", "stock.reservations", "order_id"),
    )
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")
