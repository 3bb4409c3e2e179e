"""The decorators as a user meets them: in a pytest session, and from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVICES = """
import threading
import pydantic
from sqlalchemy import Column, MetaData, String, Table, create_engine, insert, select
from txbus import Bus, Topic


class Placed(pydantic.BaseModel):
    id: str


placed = Topic("placed", Placed)
metadata = MetaData()
orders = Table("orders", metadata, Column("id", String, primary_key=True))
IDS = ("order-ada", "order-bob")


def service(url, broker, repaired):
    engine = create_engine(url)
    bus = Bus(broker, service="shop", databases={"shop": engine}, topics=[placed], half_partitions=1)
    with bus:
        for id in IDS:
            with engine.connect() as connection:
                if connection.scalar(select(orders.c.id).where(orders.c.id == id)):
                    continue
            if repaired:
                with bus.transaction("shop") as tx:
                    tx.connection.execute(insert(orders).values(id=id))
                    tx.send(placed, Placed(id=id))
            else:
                with engine.begin() as connection:
                    connection.execute(insert(orders).values(id=id))
                bus.send(placed, Placed(id=id))
        threading.Event().wait()


def declare(sim, repaired):
    database = sim.database("shop", schema=metadata.create_all)
    sim.topic("placed", partitions=1)
    sim.settle_s = 12
    sim.process("orders", service, database.url, sim.broker_url, repaired)
    return database
"""

LOSING = """
from services import declare
from txbus_sim import crash_everywhere

@crash_everywhere(broker="kafka", second_faults=False, jobs=1)
def test_losing(sim):
    declare(sim, repaired=False)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with services, one of which loses messages."""
    (tmp_path / "services.py").write_text(SERVICES)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": "160", "CI": ""}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=200)


def pytest_run(project: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    (project / "test_it.py").write_text(test)
    return run(project, "pytest", "-q", "test_it.py", *options)


def test_failure_is_reported_kept_and_tried_first(project: Path) -> None:
    """A losing service fails with the report; the schedule is kept, tried first the next time, and
    forgotten once it passes."""
    done = pytest_run(project, LOSING)
    assert done.returncode == 1
    for told in (
        "no-loss: a message was lost",
        "The shortest schedule that fails so (1 deviation)",
        "executed without it",
        "Timeline",
        "crash-after",
        "--sim-replay",
    ):
        assert told in done.stdout, done.stdout
    (kept,) = (project / ".pytest_cache").rglob("*.sched")
    assert "orders/sql.commit:shop#" in kept.read_text()

    again = pytest_run(project, LOSING)
    assert again.returncode == 1
    assert "1 deviation" in again.stdout and "crash_everywhere:" not in again.stdout

    alone = pytest_run(project, LOSING, "--sim-replay", str(kept))
    assert alone.returncode == 1 and "crash_everywhere:" not in alone.stdout

    repaired = pytest_run(
        project, LOSING.replace("repaired=False", "repaired=True").replace("jobs=1", "runs_max=30, jobs=1")
    )
    assert repaired.returncode == 0, repaired.stdout
    assert not list((project / ".pytest_cache").rglob("*.sched"))


def test_pinned_schedule_fails_until_repaired_and_names_what_was_not_reached(project: Path) -> None:
    """@replay runs one schedule; an address that the run never comes to is a failure of its own."""
    (project / "lost.sched").write_text("txbus schedule 1\norders/sql.commit:shop#2 crash-after\n")
    (project / "gone.sched").write_text("txbus schedule 1\norders/sql.commit:shop#99 crash-after\n")
    done = pytest_run(
        project,
        """
from services import declare
from txbus_sim import replay

@replay("lost.sched")
def test_losing(sim):
    declare(sim, repaired=False)

@replay("lost.sched")
def test_repaired(sim):
    declare(sim, repaired=True)

@replay("gone.sched")
def test_gone(sim):
    declare(sim, repaired=True)
""",
        "-rA",
    )
    assert "FAILED test_it.py::test_losing" in done.stdout
    assert "PASSED test_it.py::test_repaired" in done.stdout
    assert "FAILED test_it.py::test_gone" in done.stdout
    assert "never came to orders/sql.commit:shop#99" in done.stdout


def test_fixtures_parameters_hypothesis_and_drawn_values_stack(project: Path) -> None:
    """The other parameters are pytest's and Hypothesis's; sim.draw draws the workload."""
    done = pytest_run(
        project,
        """
import pytest
from hypothesis import given, settings, strategies as st
from txbus_sim import crash_everywhere, explore

seen = []

def count(number):
    assert number >= 0

@pytest.fixture
def three():
    return 3

@pytest.mark.parametrize("replicas", [1, 2])
@crash_everywhere(jobs=1)
def test_parameters(sim, replicas, three):
    assert three == 3
    sim.process("counter", count, three, replicas=replicas)

@settings(max_examples=3, deadline=None)
@given(number=st.integers(0, 3))
@crash_everywhere(jobs=1)
def test_hypothesis(sim, number):
    sim.process("counter", count, number)

@explore(budget=3, jobs=1)
def test_drawn(sim):
    value = sim.draw(st.integers(0, 1_000))
    seen.append(value)
    sim.process("counter", count, value)

def test_drawn_values_are_the_same_in_every_run():
    assert len(seen) > len(set(seen)) > 1

@explore(budget=3, jobs=1)
def test_user_assertion(sim):
    sim.process("counter", count, -1)

def test_given_below_is_refused():
    with pytest.raises(Exception, match="above the simulation's decorator"):
        @crash_everywhere()
        @given(number=st.integers())
        def test_wrong_way(sim, number): ...
""",
        "-rA",
    )
    assert "6 passed" in done.stdout and "1 failed" in done.stdout, done.stdout
    assert "FAILED test_it.py::test_user_assertion" in done.stdout
    assert "assert number >= 0" in done.stdout, "the user's own assertion, with its source"


def test_budget_seed_and_marker_are_options(project: Path) -> None:
    """--sim-budget overrules a test's own budget; simulations carry the marker sim."""
    test = """
from txbus_sim import explore

runs = []

def work():
    pass

@explore(budget=2, jobs=1)
def test_explored(sim):
    runs.append(1)
    sim.process("worker", work)

def test_runs():
    assert len(runs) > 20
"""
    assert pytest_run(project, test, "--sim-budget", "40", "--sim-jobs", "1").returncode == 0
    assert "1 failed" in pytest_run(project, test).stdout
    assert "1 passed, 1 deselected" in pytest_run(project, test, "-m", "sim").stdout


def test_plugin_loads_pytest_and_the_standard_library_only() -> None:
    """Everybody who installs txbus loads the plugin: it loads neither greenlet nor SQLAlchemy."""
    code = (
        "import sys, txbus_sim.pytest_plugin; "
        "heavy = ('greenlet', 'sqlalchemy', 'hypothesis', 'txbus._bus', 'pydantic'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tests_are_shared_out_by_xdist(project: Path) -> None:
    """With pytest-xdist the same tests fail in the same way."""
    done = pytest_run(project, LOSING, "-n", "2")
    assert done.returncode == 1
    assert "no-loss: a message was lost" in done.stdout


def test_shell_runs_saves_replays_and_shows(project: Path) -> None:
    """txbus sim run finds and saves; replay fails with the report; show tells; exit codes say it."""
    (project / "test_it.py").write_text(LOSING)
    code = "import sys; from txbus.cli.main import main; sys.exit(main(sys.argv[1:]))"

    def txbus(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(project), "COLUMNS": "160"}
        command = [sys.executable, "-c", code, "sim", *arguments]
        return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=200)

    found = txbus("run", "test_it:test_losing", "--jobs", "2", "--save", "lost.sched", "--html", "report.html")
    assert found.returncode == 1, found.stderr
    assert "no-loss" in found.stdout and "without faults" in found.stdout
    assert (project / "report.html").read_text().startswith("<!DOCTYPE html>")
    replayed = txbus("replay", "lost.sched")
    assert replayed.returncode == 1 and "a message was lost" in replayed.stdout
    shown = txbus("show", "lost.sched")
    assert shown.returncode == 0 and "process orders: at the" in shown.stdout
    missing = txbus("run", "test_it:nothing")
    assert missing.returncode == 2 and "has no 'nothing'" in missing.stderr
