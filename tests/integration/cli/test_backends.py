"""`txbus backends`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.cli.conftest import Invoke, python
from tests.unit.test_registry import PLUGIN, distribution

RUN = """
from txbus.cli.main import main
code = main(["backends", "--json"])
loaded = {"sqlite3", "sqlalchemy", "confluent_kafka", "loft"} & set(sys.modules)
print(code, sorted(loaded), file=sys.stderr)
"""


def test_promises_are_native_derived_or_conditional(invoke: Invoke) -> None:
    """The embedded broker has no half messages of its own; the core derives them from four others."""
    done = invoke("backends", "--json")
    assert done.code == 0
    (embedded,) = [row for row in json.loads(done.out)["backends"] if row["name"] == "embedded"]
    assert embedded["schemes"] == ["embedded", "memory"]
    assert embedded["installed"] is True
    assert {"broker_transaction", "log", "single_owner"} <= set(embedded["native"])
    assert "half_message" not in embedded["native"]
    assert "from broker_transaction" in embedded["derived"]["half_message"]
    assert embedded["limits"]["partitions_max"] == 1024


def test_the_table_has_every_promise(invoke: Invoke) -> None:
    """What a program reads in JSON, a person reads in the table."""
    (embedded,) = [row for row in json.loads(invoke("backends", "--json").out)["backends"] if row["name"] == "embedded"]
    table = invoke("backends").out
    for name in (*embedded["native"], *embedded["derived"], "embedded://", "memory://"):
        assert name in table


def test_listing_imports_no_client_library(tmp_path: Path) -> None:
    """Neither SQLite nor a missing client of another distribution is imported; the command that
    installs the latter is shown."""
    distribution(
        tmp_path,
        "pigeons",
        PLUGIN.format(extra="txbus-pigeons[loft]", missing="loft"),
        "[txbus.backends]\npigeon = pigeons:plugin\n",
    )
    done = python(RUN, tmp_path)
    assert done.err.strip() == "0 []"
    (pigeon,) = [row for row in json.loads(done.out)["backends"] if row["name"] == "pigeon"]
    assert (pigeon["installed"], pigeon["install"]) == (False, "pip install txbus-pigeons[loft]")
    assert "half_message" not in pigeon["derived"]


def test_a_broken_plugin_is_pointed_to(tmp_path: Path) -> None:
    """A backend that cannot be loaded is not silently absent."""
    distribution(tmp_path, "storks", "1 / 0\n", "[txbus.backends]\nstork = storks:plugin\n")
    done = python("from txbus.cli.main import main\nmain(['backends'])", tmp_path)
    assert "txbus doctor" in done.err
