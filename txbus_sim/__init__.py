"""The simulator: the application's own blocking code, crashed at every step.

::

    from txbus_sim import Simulation, crash_everywhere

    @crash_everywhere(broker="kafka")                # a pytest test
    def test_shop(sim: Simulation) -> None:
        db = sim.database("shop", schema=create_tables)
        sim.process("orders", order_service, db.url, sim.broker_url, replicas=2)
        sim.process("stock", "shop.stock:main", sim.broker_url)
        sim.at_end(books_balance)

Public surface: this module, `txbus_sim.checkers` (which rows and messages belong together),
`txbus_sim.history`, `txbus_sim.faults`, `txbus_sim.schedule`, `txbus_sim.result`, `txbus_sim.errors`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from txbus_sim._decorators import SimulationFailed, crash_everywhere, explore, replay
    from txbus_sim.checkers import Attempts, Effect, Pair
    from txbus_sim.errors import NotModelled
    from txbus_sim.schedule import Schedule
    from txbus_sim.simulation import Simulation

__all__ = [
    "Attempts",
    "Effect",
    "NotModelled",
    "Pair",
    "Schedule",
    "Simulation",
    "SimulationFailed",
    "crash_everywhere",
    "explore",
    "replay",
]

_HOMES = {
    "_decorators": ("SimulationFailed", "crash_everywhere", "explore", "replay"),
    "checkers": ("Attempts", "Effect", "Pair"),
    "errors": ("NotModelled",),
    "schedule": ("Schedule",),
    "simulation": ("Simulation",),
}


def __getattr__(name: str) -> object:
    """Loads on first use: everybody who installs txbus loads this package with its pytest plugin."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
