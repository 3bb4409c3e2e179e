"""The simulated Kafka keeps what it declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.halflog_adapter import AnswerBy, HalfLogHarness
from tests.conformance.sim_kafka import SimKafkaHarness, in_world
from tests.conformance.test_sql_store import SqliteHarness
from txbus.conformance import Case, Status
from txbus.conformance._suite import registered
from txbus.spi import Capability
from txbus.stores.contract import Database
from txbus_sim._kafka.capabilities import CAPABILITIES


@pytest.mark.parametrize("case", registered(), ids=lambda case: case.name)
def test_case(case: Case) -> None:
    """The simulated Kafka passes this case, or refuses what it does not declare."""
    result = in_world(case)
    assert result.status is not Status.FAILED, result.reason
    if case.capability is None or case.capability in CAPABILITIES:
        assert result.status in (Status.PASSED, Status.NOT_PROMISED), result


class DerivedHarness(HalfLogHarness):
    """The core's half log over the simulated Kafka; the ledger is a SQLite file."""

    derived = frozenset({Capability.HALF_MESSAGE})

    def __init__(self, directory: Path, answer_by: AnswerBy) -> None:
        self._shop = SqliteHarness(str(directory))
        super().__init__(SimKafkaHarness(), self._client, answer_by, lambda event: None)

    def _client(self) -> Database:
        database = self._shop.database()
        if database.verify():
            database.create_schema()
        return database


HALVES = [case for case in registered() if case.capability is Capability.HALF_MESSAGE]


@pytest.mark.parametrize("answer_by", AnswerBy)
@pytest.mark.parametrize("case", HALVES, ids=lambda case: case.name)
def test_half_log(case: Case, answer_by: AnswerBy, tmp_path: Path) -> None:
    """The half log of the core, unchanged, over the simulated Kafka passes this case of half messages."""
    assert len(HALVES) == 14
    result = in_world(case, lambda: DerivedHarness(tmp_path, answer_by))
    assert result.status is Status.PASSED, result.reason
