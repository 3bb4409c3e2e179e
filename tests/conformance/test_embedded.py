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
