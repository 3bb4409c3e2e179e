"""The example of a backend of one's own is registered as it says, and keeps what it declares."""

from __future__ import annotations

import importlib
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

from txbus.conformance import BoundCase, PluginHarness, cases
from txbus.spi import BackendPlugin, BackendURL, TopicSpec

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_backend"


def registered_plugin() -> BackendPlugin:
    """What the example's entry point names, without installing it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, attribute = project["entry-points"]["txbus.backends"]["dirbus"].partition(":")
    if str(EXAMPLE) not in sys.path:
        sys.path.append(str(EXAMPLE))
    plugin = getattr(importlib.import_module(module), attribute)
    assert isinstance(plugin, BackendPlugin)
    return plugin


class DirHarness(PluginHarness):
    """Clients of one directory. The clock leaps, so leases and check-back take no time."""

    check_after_s = 10.0
    attempts_max = 5
    deletes_by_age = False

    def __init__(self, directory: str) -> None:
        options = {"check_after_s": str(self.check_after_s), "attempts_max": str(self.attempts_max)}
        super().__init__(registered_plugin(), BackendURL("dirbus", directory, options))

    def dead_letter_topic(self, topic: str, group: str) -> str:
        client = self.backend()
        client.admin().create([TopicSpec(f"dead.{group}", 1)])
        client.close()
        return f"dead.{group}"


DIRECTORY = tempfile.TemporaryDirectory(prefix="txbus-dirbus-")


@pytest.mark.parametrize("case", cases(DirHarness(DIRECTORY.name)), ids=lambda case: case.name)
def test_case(case: BoundCase) -> None:
    """dirbus passes this case, or refuses what it does not declare."""
    case()


def test_the_entry_point_names_a_plugin_of_that_scheme() -> None:
    """The name of the entry point is the scheme of the plugin it names."""
    assert registered_plugin().schemes == ("dirbus",)
