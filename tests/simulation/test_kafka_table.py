"""The table of what the Kafka model does: each row has a test, and the reference page shows them all."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.simulation.kafka_bench import SHOWN
from txbus_sim.dialects import kafka
from txbus_sim.dialects.behaviours import table
from txbus_sim.dialects.kafka.behaviours import BEHAVIOURS

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "docs" / "reference" / "sim-kafka.md"


def test_every_behaviour_is_shown_by_a_test() -> None:
    """No row without a test that names it, no name without a row, and no id twice."""
    for path in sorted(HERE.glob("test_kafka_*.py")):
        importlib.import_module(f"tests.simulation.{path.stem}")
    ids = [behaviour.id for behaviour in BEHAVIOURS]
    assert len(set(ids)) == len(ids)
    assert sorted(SHOWN) == sorted(ids)


def test_the_reference_page_shows_the_table() -> None:
    """docs/reference/sim-kafka.md has exactly the rows of the dialect, and its list of what is missing."""
    page = REFERENCE.read_text()
    assert table(BEHAVIOURS) in page
    assert kafka.__doc__ is not None
    missing = kafka.__doc__[kafka.__doc__.index("- read_uncommitted") :].strip()
    assert missing in page
