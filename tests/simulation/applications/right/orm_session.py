"""Orders as objects, with the local transaction's session."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.simulation.applications import shop
from txbus import Bus, Topic, TxbusError
from txbus_sim.simulation import Simulation


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    quantity: Mapped[int]


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **shop.quick())
    with bus:
        for order in shop.WANTED:
            place(bus, engine, topic, order)
        shop.for_ever()


def place(bus: Bus, engine: sa.Engine, topic: Topic[shop.OrderPlaced], order: shop.OrderPlaced) -> None:
    while True:
        with Session(engine) as session:
            if session.get(Order, order.id) is not None:
                return
        try:
            with bus.transaction("shop") as tx:
                tx.session.add(Order(**order.model_dump()))
                tx.send(topic, order)
        except TxbusError as error:
            if not error.retryable:
                raise


def scenario(sim: Simulation) -> None:
    database = sim.database("shop", schema=Base.metadata.create_all)
    sim.process("orders", main, database.url, sim.broker_url)
    stock = shop.with_stock_service(sim)
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")
