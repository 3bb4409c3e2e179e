"""Several messages in two topics in one local transaction."""

from __future__ import annotations

from functools import partial

import pydantic
import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Topic, TxbusError
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation


class Packed(pydantic.BaseModel):
    parcel: str
    order_id: str


PARCELS = Topic("parcels", Packed)

tables = sa.MetaData()
parcel_table = sa.Table(
    "parcels",
    tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("parcel", sa.String),
    sa.Column("order_id", sa.String),
)


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic, PARCELS], **shop.quick())
    with bus:
        for order in shop.WANTED:
            while not shop.is_placed(engine, order):
                try:
                    with bus.transaction("shop") as tx:
                        tx.connection.execute(sa.insert(shop.order_table).values(**order.model_dump()))
                        tx.send(topic, order)
                        for number in range(order.quantity):
                            tx.send(PARCELS, Packed(parcel=f"parcel-{order.id}-{number}", order_id=order.id))
                except TxbusError as error:
                    if not error.retryable:
                        raise
        shop.for_ever()


def parcel_service(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="post", databases={"post": engine}, **shop.quick("outside"))

    @bus.on(PARCELS, scope="carry", database="post")
    def carry(packed: Packed, connection: sa.Connection) -> None:
        connection.execute(sa.insert(parcel_table).values(**packed.model_dump()))

    bus.run()


def carried(post: SimDatabase) -> None:
    """Each parcel once."""
    parcels = sorted(row[0] for row in post.rows("SELECT parcel FROM parcels"))
    assert parcels == sorted(f"parcel-{o.id}-{n}" for o in shop.WANTED for n in range(o.quantity)), parcels


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=shop.shop_tables.create_all)
    post = sim.database("post", schema=tables.create_all)
    sim.topic("orders", 2)
    sim.topic("parcels", 2)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", main, database.url, sim.broker_url)
    sim.process("post", parcel_service, post.url, sim.broker_url)
    sim.at_end(partial(carried, post), "carried")
