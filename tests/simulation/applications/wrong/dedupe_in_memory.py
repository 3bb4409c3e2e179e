"""A handler that remembers in a module's global what it has seen: a restart forgets it."""

from __future__ import annotations

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Delivery
from txbus_sim.simulation import Simulation

SEEN: set[str] = set()


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", **shop.quick("outside"))

    @bus.on(shop.orders_topic(broker_url), scope="reserve", database=None)
    def reserve(order: shop.OrderPlaced, delivery: Delivery) -> None:
        if delivery.message_id in SEEN:
            return
        with engine.begin() as connection:
            values = {"order_id": order.id, "quantity": order.quantity}
            connection.execute(sa.insert(shop.reservation_table).values(**values))
        SEEN.add(delivery.message_id)

    bus.run()


def scenario(sim: Simulation) -> None:
    """Each incarnation has the module anew."""
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=shop.stock_tables.create_all)
    sim.process("stock", f"{__name__}:main", stock.url, sim.broker_url)


def scenario_of_function(sim: Simulation) -> None:
    """All incarnations would share the set."""
    shop.with_order_service(sim)
    stock = sim.database("stock", schema=shop.stock_tables.create_all)
    sim.process("stock", main, stock.url, sim.broker_url)
