"""A handler that only queues the work for a thread: the message is acknowledged, and a crash loses its effect."""

from __future__ import annotations

import queue
import threading

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", **shop.quick("outside"))
    work: queue.Queue[shop.OrderPlaced] = queue.Queue()

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database=None)
    def reserve(order: shop.OrderPlaced) -> None:
        work.put(order)

    def reserving() -> None:
        while True:
            order = work.get()
            with engine.begin() as connection:
                values = {"order_id": order.id, "quantity": order.quantity}
                connection.execute(sa.insert(shop.reservation_table).values(**values))

    threading.Thread(target=reserving, daemon=True).start()
    bus.run()


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=shop.stock_tables.create_all)
    sim.process("stock", main, stock.url, sim.broker_url)
