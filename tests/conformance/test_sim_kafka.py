"""The simulated Kafka keeps what it declares."""

from __future__ import annotations

import pytest

from tests.conformance.sim_kafka import in_world
from txbus.conformance import Case, Status
from txbus.conformance._suite import registered
from txbus_sim._kafka import CAPABILITIES


@pytest.mark.parametrize("case", registered(), ids=lambda case: case.name)
def test_case(case: Case) -> None:
    """The simulated Kafka passes this case, or refuses what it does not declare."""
    result = in_world(case)
    assert result.status is not Status.FAILED, result.reason
    if case.capability is None or case.capability in CAPABILITIES:
        assert result.status in (Status.PASSED, Status.NOT_PROMISED), result
