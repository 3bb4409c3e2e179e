"""A handler that logs its exception and returns: the inbox takes the message for handled."""

from __future__ import annotations

import logging

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus
from txbus_sim.simulation import Simulation

log = logging.getLogger(__name__)


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", databases={"stock": engine}, **shop.quick("outside"))

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database="stock")
    def reserve(order: shop.OrderPlaced, connection: sa.Connection) -> None:
        try:
            values = {"order_id": order.id, "quantity": order.quantity}
            connection.execute(sa.insert(shop.reservation_table).values(**values))
        except Exception:
            log.exception("order %s was not reserved", order.id)

    bus.run()


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=shop.stock_tables.create_all)
    sim.process("stock", main, stock.url, sim.broker_url)
