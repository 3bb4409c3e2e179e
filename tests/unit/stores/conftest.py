"""Each test of the SQL store runs on a file in WAL mode and on one with a rollback journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.stores.shop import Shop
from txbus.stores.sql import SqlDatabase


@pytest.fixture(params=["WAL", "DELETE"])
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(tmp_path / "shop.db", request.param)
    yield shop
    shop.close()


@pytest.fixture
def database(shop: Shop) -> SqlDatabase:
    return shop.database()
