"""A handler without an inbox whose effect may be repeated: one row for each order, whoever wrote it."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation

tables = sa.MetaData()
reservation_table = sa.Table(
    "reservations", tables, sa.Column("order_id", sa.String, primary_key=True), sa.Column("quantity", sa.Integer)
)


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", **shop.quick("outside"))

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database=None)
    def reserve(order: shop.OrderPlaced) -> None:
        values = {"order_id": order.id, "quantity": order.quantity}
        with engine.begin() as connection:
            connection.execute(
                insert(reservation_table)
                .values(**values)
                .on_conflict_do_update(index_elements=["order_id"], set_={"quantity": order.quantity})
            )

    bus.run()


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=tables.create_all)
    sim.process("stock", main, stock.url, sim.broker_url)
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")
