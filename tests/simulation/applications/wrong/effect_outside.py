"""A handler with an inbox whose effect goes to another database: the two commit apart."""

from __future__ import annotations

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation


def main(database_url: str, warehouse_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    warehouse = sa.create_engine(warehouse_url)
    bus = Bus(broker_url, service="stock", databases={"stock": engine}, **shop.quick("outside"))

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database="stock")
    def reserve(order: shop.OrderPlaced) -> None:
        with warehouse.begin() as connection:
            values = {"order_id": order.id, "quantity": order.quantity}
            connection.execute(sa.insert(shop.reservation_table).values(**values))

    bus.run()


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock")
    warehouse = sim.database("warehouse", schema=shop.stock_tables.create_all)
    sim.process("stock", main, stock.url, warehouse.url, sim.broker_url)
