"""The half messages that the core derives keep what native ones promise."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.conformance.halflog_adapter import AnswerBy, HalfLogHarness
from tests.conformance.test_sql_store import SqliteHarness
from txbus.conformance import BoundCase, PluginHarness, Status, cases
from txbus.embedded.plugin import plugin
from txbus.spi import BackendURL, Capability
from txbus.stores.contract import Database

HALF = Capability.HALF_MESSAGE
DIRECTORY = tempfile.TemporaryDirectory(prefix="txbus-half-log-")
SHOP = SqliteHarness(DIRECTORY.name)


def shop() -> Database:
    """A new client of the shop's database, with its tables."""
    database = SHOP.database()
    if database.verify():
        database.create_schema()
    return database


class DerivedHarness(HalfLogHarness):
    """The embedded broker, which has no half messages of its own."""

    derived = frozenset({HALF})

    def __init__(self, url: BackendURL, answer_by: AnswerBy) -> None:
        super().__init__(PluginHarness(plugin, url), shop, answer_by, lambda event: None)


URLS = {
    "memory": BackendURL("memory", "half-log"),
    "file": BackendURL("embedded", str(Path(DIRECTORY.name) / "bus.db")),
}
SELECTED = [
    pytest.param(case, id=f"{name}-{by.value}-{case.name}")
    for name, url in URLS.items()
    for by in AnswerBy
    for case in cases(DerivedHarness(url, by))
    if case.case.capability is HALF
]


@pytest.mark.parametrize("case", SELECTED)
def test_case(case: BoundCase) -> None:
    """The half log over the embedded broker passes this case of half messages."""
    assert case().status is Status.PASSED


def test_every_case_of_half_messages_is_run() -> None:
    """All fourteen, on both brokers and with both ways to answer."""
    assert len(SELECTED) == 14 * len(URLS) * len(AnswerBy)
