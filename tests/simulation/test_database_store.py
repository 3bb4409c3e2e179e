"""The SQL store keeps the store contract within simulated processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.conformance.test_sql_store import EFFECTS
from tests.simulation.database_runs import DatabaseRun, databases
from txbus.conformance import StoreHarness, store_cases
from txbus.stores.contract import Database, LocalTransaction
from txbus.stores.plugin import plugin
from txbus_sim._database import Databases, SimDatabase
from txbus_sim._ports import world_ports
from txbus_sim._world import Process


class SimHarness(StoreHarness):
    """Clients of one simulated database, each with an engine of its own; in a simulated process."""

    def __init__(self, url: str) -> None:
        super().__init__(world_ports())
        self._url = url

    def database(self) -> Database:
        database = plugin.adapt("shop", sa.create_engine(self._url), self.ports, lambda event: None)
        assert database is not None
        return database

    def write(self, transaction: LocalTransaction, effect: str) -> None:
        transaction.connection.execute(sa.insert(EFFECTS).values(effect=effect))

    def effects(self) -> frozenset[str]:
        with sa.create_engine(self._url).connect() as connection:
            return frozenset(connection.execute(sa.select(EFFECTS.c.effect)).scalars())


class _Nowhere(StoreHarness):
    """Only to learn the cases' names."""

    def __init__(self) -> None:
        pass

    def database(self) -> Database:
        raise AssertionError

    def write(self, transaction: LocalTransaction, effect: str) -> None:
        raise AssertionError

    def effects(self) -> frozenset[str]:
        raise AssertionError


NAMES = [case.name for case in store_cases(_Nowhere())]


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Databases, SimDatabase]]:
    with databases(EFFECTS.metadata) as made:
        yield made


@pytest.mark.parametrize("name", NAMES)
def test_case(shop: tuple[Databases, SimDatabase], name: str) -> None:
    """The SQL store over a simulated database keeps this promise of the store contract."""
    made, database = shop
    done: list[str] = []

    def main(process: Process) -> None:
        (case,) = [one for one in store_cases(SimHarness(database.url)) if one.name == name]
        case()
        done.append(case.name)

    with DatabaseRun(made) as run:
        run(store=main)
    assert done == [name]
