"""Buses for the tests of the embedded broker: in a file and in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.embedded.station import Station


@pytest.fixture(params=["embedded", "memory"])
def station(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Station]:
    """A bus in a file, then the same in memory."""
    location = str(tmp_path / "bus.db") if request.param == "embedded" else str(tmp_path)
    made = Station(request.param, location)
    yield made
    made.close()


@pytest.fixture
def file_station(tmp_path: Path) -> Iterator[Station]:
    """A bus in a file."""
    made = Station("embedded", str(tmp_path / "bus.db"))
    yield made
    made.close()
