"""The embedded broker keeps what it declares, in a file and in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from txbus.conformance import BoundCase, PluginHarness, cases
from txbus.embedded.plugin import plugin
from txbus.spi import BackendURL

DIRECTORY = tempfile.TemporaryDirectory(prefix="txbus-embedded-")
FILE = PluginHarness(plugin, BackendURL("embedded", str(Path(DIRECTORY.name) / "bus.db")))
MEMORY = PluginHarness(plugin, BackendURL("memory", "conformance"))


@pytest.mark.parametrize("case", cases(FILE), ids=lambda case: case.name)
def test_file(case: BoundCase) -> None:
    """The embedded broker in a file passes this case, or refuses what it does not declare."""
    case()


@pytest.mark.parametrize("case", cases(MEMORY), ids=lambda case: case.name)
def test_memory(case: BoundCase) -> None:
    """The embedded broker in memory passes this case, or refuses what it does not declare."""
    case()


REAL_TIME = {
    "ownership.former_owner_is_fenced",
    "ownership.polling_keeps_the_lease",
    "positions.lost_partition_is_fenced",
    "receiving.unfinished_comes_again_after_a_crash",
    "redelivery.delayed_comes_in_its_time",
    "redelivery.redelivery_comes_after_the_delay",
}


class RealTime(PluginHarness):
    """The same file, the system's clock, and a lease that a busy machine does not miss."""

    def __init__(self) -> None:
        super().__init__(plugin, BackendURL("embedded", str(Path(DIRECTORY.name) / "real.db")), leaping=False)
        self.lease_s = 1.0


SELECTED = [case for case in cases(RealTime()) if case.name in REAL_TIME]


@pytest.mark.parametrize("case", SELECTED, ids=lambda case: case.name)
def test_real_time(case: BoundCase) -> None:
    """Leases and delays hold on the system's clock too, where nothing leaps."""
    assert len(SELECTED) == len(REAL_TIME)
    case()
