"""Order and message in one local transaction, with its connection; the effect in the handler's."""

from __future__ import annotations

from functools import partial

from tests.simulation.applications import shop
from txbus_sim.simulation import Simulation


def scenario(sim: Simulation) -> None:
    shop.with_order_service(sim)
    stock = shop.with_stock_service(sim)
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")


def scenario_of_replicas(sim: Simulation) -> None:
    """Two of each, at the same time."""
    shop.with_order_service(sim, replicas=2)
    stock = shop.with_stock_service(sim, replicas=2)
    sim.at_end(partial(shop.reserved_once, stock), "reserved once")
