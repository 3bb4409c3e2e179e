"""A scenario is run and judged: verdicts of every kind, each with a run that has none."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert, select, update

from txbus.errors import ConfigurationError
from txbus_sim import _interpose
from txbus_sim._runner import Runner, RunnerOptions, Scenario
from txbus_sim.history import LocalCommitted, Logged, ProcessStarted
from txbus_sim.result import RunResult, VerdictKind
from txbus_sim.schedule import Schedule
from txbus_sim.simulation import Simulation

metadata = MetaData()
counters = Table("counters", metadata, Column("name", String, primary_key=True), Column("value", Integer))
SEEN: set[str] = set()


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """The stand-ins once for all tests: putting them in place looks at every object."""
    with _interpose.installed():
        yield


def result_of(scenario: Scenario, schedule: str = "", **options: Any) -> RunResult:
    with Runner(scenario, RunnerOptions(**options)) as runner:
        return runner.replay(Schedule.parse(f"txbus schedule 1\n{schedule}"))


def verdict_of(scenario: Scenario, schedule: str = "", **options: Any) -> tuple[VerdictKind, str]:
    verdict = result_of(scenario, schedule, **options).verdict
    assert verdict is not None
    return verdict.kind, verdict.sentence


def one_process(main: Callable[..., object], *arguments: Any, **keywords: Any) -> Scenario:
    return lambda sim: sim.process("one", main, *arguments, **keywords)


def count_up(url: str, times: int) -> None:
    """Adds one, in local transactions that read and write."""
    engine = create_engine(url)
    for _ in range(times):
        with engine.begin() as connection:
            value = connection.scalar(select(counters.c.value))
            if value is None:
                connection.execute(insert(counters).values(name="c", value=1))
            elif value < times:
                connection.execute(update(counters).values(value=value + 1))


def test_run_that_keeps_everything_has_no_verdict() -> None:
    """A process that restarts from what is durable comes to the same end under a crash."""

    def scenario(sim: Simulation) -> None:
        database = sim.database("shop", schema=metadata.create_all)
        sim.process("one", count_up, database.url, 3)
        sim.at_end(lambda: database.rows("SELECT value FROM counters") == [(3,)], "three")

    for schedule in ("", "one/sql.commit:shop#2 crash-after", "one/sql.commit:shop#2 crash-before"):
        result = result_of(scenario, schedule)
        assert result.passed, result.verdict
        values = [
            r.rows[0].after["value"]
            for r in result.history
            if isinstance(r, LocalCommitted) and r.rows and r.rows[0].after
        ]
        assert values == [1, 2, 3]


def test_assertion_at_the_end_names_its_line() -> None:
    """The user's own check fails with its own words and its source line."""

    def scenario(sim: Simulation) -> None:
        def two() -> None:
            assert database.rows("SELECT value FROM counters") == [(2,)], "there are not two"

        database = sim.database("shop", schema=metadata.create_all)
        sim.process("one", count_up, database.url, 3)
        sim.at_end(two)

    verdict = result_of(scenario).verdict
    assert verdict is not None
    assert (verdict.kind, verdict.name, verdict.sentence) == (VerdictKind.ASSERTION, "two", "two: there are not two")
    assert verdict.site.rsplit(":", 1)[0].endswith("test_runner.py")


def test_assertion_within_a_process_ends_the_run() -> None:
    """An AssertionError in a process is the user's own verdict."""

    def main() -> None:
        time.sleep(1)
        assert time.monotonic() < 1, "too late"

    kind, sentence = verdict_of(one_process(main))
    assert kind is VerdictKind.ASSERTION and "too late" in sentence


def test_always_is_asked_after_every_durable_change() -> None:
    """A state that is wrong for one moment only is found, and it is a verdict even if the end is right."""

    def scenario(sim: Simulation) -> None:
        database = sim.database("shop", schema=metadata.create_all)
        sim.process("one", count_up, database.url, 3)
        sim.always(lambda: database.rows("SELECT value FROM counters") != [(2,)], "never two")
        sim.at_end(lambda: database.rows("SELECT value FROM counters") == [(3,)])

    assert verdict_of(scenario) == (VerdictKind.ASSERTION, "never two does not hold")


def test_sometimes_is_counted() -> None:
    """How often a state was there is counted by name, zeros included."""

    def scenario(sim: Simulation) -> None:
        database = sim.database("shop", schema=metadata.create_all)
        sim.process("one", count_up, database.url, 3)
        sim.sometimes(lambda: database.rows("SELECT value FROM counters") == [(2,)], "two")
        sim.sometimes(lambda: False, "never")

    result = result_of(scenario)
    assert result.sometimes == {"two": 1, "never": 0}


def test_process_that_raises_without_faults_is_a_verdict() -> None:
    """What a process raises in a run without faults is a failure with its traceback."""

    def main() -> None:
        raise LookupError("no such shelf")

    kind, sentence = verdict_of(one_process(main))
    assert kind is VerdictKind.RAISED and "LookupError: no such shelf" in sentence


def test_process_may_raise_under_faults_if_it_recovers() -> None:
    """A refused statement may end a process; its supervisor starts it anew."""

    def scenario(sim: Simulation) -> None:
        database = sim.database("shop", schema=metadata.create_all)
        sim.process("one", count_up, database.url, 3)
        sim.at_end(lambda: database.rows("SELECT value FROM counters") == [(3,)])

    result = result_of(scenario, "one/sql.commit:shop#2 fail")
    assert result.passed, result.verdict
    assert [r.process for r in result.history if isinstance(r, ProcessStarted)] == ["one", "one+1"]


def test_deadlock_of_two_locks_is_named_with_its_lines() -> None:
    """Two threads that take two locks in different order are a verdict, with who waits where."""

    def main() -> None:
        first, second = threading.Lock(), threading.Lock()

        def other() -> None:
            with second:
                time.sleep(1)
                with first:
                    pass

        thread = threading.Thread(target=other, name="other")
        thread.start()
        with first:
            time.sleep(1)
            with second:
                pass

    verdict = result_of(one_process(main)).verdict
    assert verdict is not None and verdict.kind is VerdictKind.STUCK
    assert verdict.name == "deadlock" and "one:other" in verdict.sentence
    assert all("test_runner.py:" in line for line in verdict.details)


def test_busy_process_is_a_livelock() -> None:
    """A loop of operations without an end uses up the step budget."""

    def main() -> None:
        while True:
            time.sleep(0)

    kind, _ = verdict_of(one_process(main), steps_max=2_000)
    assert kind is VerdictKind.LIVELOCK


def test_shared_module_memory_is_found() -> None:
    """A module-level set that a process changes would survive its crash: that is a verdict."""

    def main() -> None:
        SEEN.add("one")

    kind, sentence = verdict_of(one_process(main))
    assert kind is VerdictKind.SHARED_MEMORY and "SEEN" in sentence
    assert not SEEN, "it is put back"


def test_import_string_has_fresh_memory_in_each_incarnation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas and incarnations that are given by import string share no module."""
    (tmp_path / "remembering.py").write_text(
        "import logging, time\nSEEN = []\n"
        "def main():\n    SEEN.append(1)\n    logging.getLogger('seen').warning('%d', len(SEEN))\n    time.sleep(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "remembering", raising=False)
    result = result_of(
        lambda sim: sim.process("one", "remembering:main", replicas=2), "one.1/clock.sleep#1 crash-before"
    )
    assert result.passed, result.verdict
    logged = [(r.process, r.text) for r in result.history if isinstance(r, Logged)]
    assert sorted(logged) == [("one.1", "1"), ("one.1+1", "1"), ("one.2", "1")]
    assert "remembering" not in sys.modules


def test_not_modelled_is_a_verdict_even_if_it_is_swallowed() -> None:
    """What the simulator does not know is never answered with a guess."""

    def main() -> None:
        import socket

        try:
            socket.create_connection(("127.0.0.1", 1))
        except Exception:
            pass

    kind, sentence = verdict_of(one_process(main))
    assert kind is VerdictKind.NOT_MODELLED and "socket" in sentence


def test_unreached_address_is_a_verdict_of_a_replay() -> None:
    """A saved schedule whose operation is gone proves nothing any more."""
    kind, sentence = verdict_of(one_process(lambda: None), "one/clock.sleep#1 crash-before")
    assert kind is VerdictKind.UNREACHED and "one/clock.sleep#1" in sentence


def test_declarations_are_checked_by_name() -> None:
    """Mistakes of a scenario are errors that name the value."""
    for wrong, text in (
        (lambda sim: sim.process("a b", count_up), "a b"),
        (lambda sim: sim.process("a", count_up, replicas=0), "replicas=0"),
        (lambda sim: (sim.process("a", count_up), sim.process("a", count_up)), "twice"),
        (lambda sim: sim.topic("t", partitions=0), "partitions=0"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            result_of(wrong)


def test_history_is_the_same_under_every_run() -> None:
    """Equal schedules give equal histories; another schedule gives another one."""

    def scenario(sim: Simulation) -> None:
        database = sim.database("shop", schema=metadata.create_all)
        sim.process("one", count_up, database.url, 2, replicas=2)

    with Runner(scenario) as runner:
        schedule = Schedule.parse("txbus schedule 1\none.1/sql.commit:shop#1 crash-after\n")
        first, second, other = runner(schedule), runner(schedule), runner()
    assert [str(record) for record in first.history] == [str(record) for record in second.history]
    assert [str(record) for record in first.history] != [str(record) for record in other.history]
