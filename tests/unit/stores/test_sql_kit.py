"""The SQL store on SQLite proves itself with the store kit."""

from __future__ import annotations

from tests.unit.stores.shop import EFFECTS, Shop
from txbus.conformance import StoreHarness, run_store
from txbus.stores.contract import Database, LocalTransaction


class ShopHarness(StoreHarness):
    """A client is a Database on an Engine of its own."""

    busy_s = 0.02

    def __init__(self, shop: Shop) -> None:
        super().__init__(shop.ports)
        self._shop = shop

    def database(self) -> Database:
        return self._shop.database()

    def write(self, transaction: LocalTransaction, effect: str) -> None:
        transaction.connection.execute(EFFECTS.insert(), {"name": effect})

    def effects(self) -> frozenset[str]:
        return frozenset(self._shop.effects())


def test_kit(shop: Shop) -> None:
    """Every case of the store kit holds on SQLite, in both journal modes."""
    report = run_store(ShopHarness(shop))
    report.raise_for_failures()
    assert len(report.results) >= 30
