"""The SQL store keeps the store contract on a SQLite file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, insert, select

from txbus._system import system_ports
from txbus.conformance import BoundStoreCase, StoreHarness, store_cases
from txbus.stores.contract import Database, LocalTransaction
from txbus.stores.plugin import plugin

EFFECTS = Table("effects", MetaData(), Column("effect", String(200), primary_key=True))


class SqliteHarness(StoreHarness):
    """Each client has an engine of its own, as each process has."""

    def __init__(self, directory: str) -> None:
        super().__init__(system_ports())
        self._url = f"sqlite:///{Path(directory) / 'shop.db'}"
        self._engine = self._new_engine()
        EFFECTS.metadata.create_all(self._engine)

    def _new_engine(self) -> Engine:
        return create_engine(self._url)

    def database(self) -> Database:
        database = plugin.adapt("shop", self._new_engine(), self.ports, lambda event: None)
        assert database is not None, "the store does not recognise a SQLAlchemy engine"
        return database

    def write(self, transaction: LocalTransaction, effect: str) -> None:
        transaction.connection.execute(insert(EFFECTS).values(effect=effect))

    def effects(self) -> frozenset[str]:
        with self._engine.connect() as connection:
            return frozenset(connection.execute(select(EFFECTS.c.effect)).scalars())


DIRECTORY = tempfile.TemporaryDirectory(prefix="txbus-store-")


@pytest.mark.parametrize("case", store_cases(SqliteHarness(DIRECTORY.name)), ids=lambda case: case.name)
def test_case(case: BoundStoreCase) -> None:
    """The SQL store over a SQLite file keeps this promise of the store contract."""
    case()
