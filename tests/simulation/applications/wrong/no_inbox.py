"""A handler that commits its effect itself, at least once: the redelivery after a crash has it again."""

from __future__ import annotations

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", **shop.quick("outside"))

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database=None)
    def reserve(order: shop.OrderPlaced) -> None:
        with engine.begin() as connection:
            values = {"order_id": order.id, "quantity": order.quantity}
            connection.execute(sa.insert(shop.reservation_table).values(**values))

    bus.run()


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=shop.stock_tables.create_all)
    sim.process("stock", main, stock.url, sim.broker_url)
