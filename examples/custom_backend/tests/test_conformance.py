"""dirbus keeps what it declares and refuses what it does not."""

from __future__ import annotations

import tempfile

import pytest
from dirbus.plugin import plugin

from txbus.conformance import BoundCase, PluginHarness, cases
from txbus.spi import BackendURL, TopicSpec


class DirHarness(PluginHarness):
    """Clients of one directory. The clock leaps, so leases and check-back take no time."""

    check_after_s = 10.0
    attempts_max = 5
    deletes_by_age = False

    def __init__(self, directory: str) -> None:
        options = {"check_after_s": str(self.check_after_s), "attempts_max": str(self.attempts_max)}
        super().__init__(plugin, BackendURL("dirbus", directory, options))

    def dead_letter_topic(self, topic: str, group: str) -> str:
        """dirbus makes it with the first dead letter; a reader may come before that."""
        client = self.backend()
        client.admin().create([TopicSpec(f"dead.{group}", 1)])
        client.close()
        return f"dead.{group}"


DIRECTORY = tempfile.TemporaryDirectory(prefix="dirbus-")


@pytest.mark.parametrize("case", cases(DirHarness(DIRECTORY.name)), ids=lambda case: case.name)
def test_case(case: BoundCase) -> None:
    """dirbus passes this case, or refuses what it does not declare."""
    case()
