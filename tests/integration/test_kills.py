"""Real processes, real signals: what is in the databases and in the broker's file afterwards counts."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.integration.ledgerapp import create_tables, effects, engine_at, facts, facts_topic, make_bus
from txbus.testing import TestBus

PATIENCE_S = 60.0


class App:
    """One process of the small service. Ended by pid, never by name."""

    def __init__(self, role: str, folder: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.ledgerapp", role, str(folder), *options],
            stdout=subprocess.PIPE,
            text=True,
        )

    def said(self, line: str) -> None:
        """Wait until it has printed this line."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if text.strip() == line:
                return
        raise AssertionError(f"ended with {self.process.wait()} before it said {line!r}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)

    def stopped(self) -> bool:
        """Is it stopped by SIGSTOP?"""
        status = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return status == "T"


def stop_between_writes(app: App, *files: Path) -> None:
    """Stop a process that holds no write lock: SQLite has one for a file, and a process stopped with
    it would stop all the others, which is not what is tested."""

    def free(file: Path) -> bool:
        connection = sqlite3.connect(file, timeout=0.5)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True

    def stopped_and_free() -> bool:
        app.signal(signal.SIGSTOP)
        wait_for(app.stopped, "it is stopped")
        if all(free(file) for file in files):
            return True
        app.signal(signal.SIGCONT)
        return False

    wait_for(stopped_and_free, "it is stopped between two writes")


@contextmanager
def apps() -> Iterator[Callable[..., App]]:
    """Makes processes, and kills what is left of them at the end."""
    made: list[App] = []

    def make(role: str, folder: Path, *options: str) -> App:
        made.append(App(role, folder, *options))
        return made[-1]

    try:
        yield make
    finally:
        for app in made:
            if app.process.poll() is None:
                app.process.kill()
            app.process.wait()
            assert app.process.stdout is not None
            app.process.stdout.close()


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)


def committed(folder: Path) -> set[int]:
    engine = engine_at(folder / "sender.db")
    create_tables(engine)
    with engine.connect() as connection:
        numbers = set(connection.scalars(select(facts.c.number)))
    engine.dispose()
    return numbers


def visible(folder: Path) -> list[int]:
    """The facts published, partition by partition, in the order of each."""
    bus, engine = make_bus(folder, "sender", "outside")
    with bus:
        numbers = [fact.number for fact in TestBus(bus).sent(facts_topic)]
    engine.dispose()
    return numbers


def effected(folder: Path) -> list[int]:
    engine = engine_at(folder / "receiver.db")
    create_tables(engine)
    with engine.connect() as connection:
        numbers = list(connection.scalars(select(effects.c.number).order_by(effects.c.id)))
    engine.dispose()
    return numbers


def published_once(folder: Path) -> bool:
    return sorted(visible(folder)) == sorted(committed(folder))


@pytest.mark.parametrize("window", ["half", "commit"])
def test_a_sender_killed_before_or_after_its_commit_leaves_all_or_nothing(tmp_path: Path, window: str) -> None:
    """kill -9 between half and COMMIT, or between COMMIT and outcome: check-back settles it rightly."""
    with apps() as start:
        start("relay", tmp_path).said("relaying")
        for count in (1, 7, 15):
            sender = start("send", tmp_path, "--last", "40", "--window", window, "--count", str(count))
            assert sender.ended() == -signal.SIGKILL
            wait_for(lambda: published_once(tmp_path), "published exactly what is committed")
        assert start("send", tmp_path, "--last", "40").ended() == 0
        wait_for(lambda: published_once(tmp_path), "published exactly what is committed")
    assert committed(tmp_path) == set(range(40))


def test_a_relay_stopped_in_its_step_and_taken_over_publishes_nothing_twice(tmp_path: Path) -> None:
    """A zombie relay, stopped past its lease inside of its broker transaction, is fenced when it goes on."""
    with apps() as start:
        # In its first step: it has nothing to confirm yet, so it holds no lock of the database.
        zombie = start("relay", tmp_path, "--window", "step", "--count", "1", "--stop")
        zombie.said("relaying")
        assert start("send", tmp_path, "--last", "60").ended() == 0
        wait_for(zombie.stopped, "the first relay stopped in its step")
        start("relay", tmp_path).said("relaying")
        wait_for(lambda: set(visible(tmp_path)) == set(range(60)), "the second relay published all")
        zombie.signal(signal.SIGCONT)
        assert start("send", tmp_path, "--first", "60", "--last", "80").ended() == 0
        wait_for(lambda: len(visible(tmp_path)) >= 80, "what came later is published too")
    assert sorted(visible(tmp_path)) == list(range(80))


def test_two_relays_share_a_service_and_one_may_die(tmp_path: Path) -> None:
    """Two relays of one service publish everything once, in order per key, also when one is killed."""
    with apps() as start:
        first = start("relay", tmp_path, "--window", "step", "--count", "5")
        first.said("relaying")
        start("relay", tmp_path).said("relaying")
        assert start("send", tmp_path, "--last", "200").ended() == 0
        wait_for(lambda: published_once(tmp_path), "published exactly what is committed")
    numbers = visible(tmp_path)
    assert sorted(numbers) == list(range(200))
    for key in range(10):
        of_key = [number for number in numbers if number % 10 == key]
        assert of_key == sorted(of_key)


def test_four_receivers_on_sixteen_partitions_have_each_effect_once(tmp_path: Path) -> None:
    """Killed, stopped past the lease and continued: each message has its effect once, in order per key."""
    with apps() as start:
        start("relay", tmp_path).said("relaying")
        receivers = [start("receive", tmp_path) for _ in range(4)]
        for receiver in receivers:
            receiver.said("receiving")
        sender = start("send", tmp_path, "--last", "400", "--keys", "40")
        wait_for(lambda: len(effected(tmp_path)) > 50, "effects begin")
        receivers[0].signal(signal.SIGKILL)
        stop_between_writes(receivers[1], tmp_path / "receiver.db", tmp_path / "bus.db")
        wait_for(lambda: len(effected(tmp_path)) > 150, "the others go on")
        receivers[1].signal(signal.SIGCONT)
        start("receive", tmp_path).said("receiving")
        assert sender.ended() == 0
        wait_for(lambda: len(set(effected(tmp_path))) == 400, "all effects are there")
    numbers = effected(tmp_path)
    assert [n for n, times in Counter(numbers).items() if times > 1] == []
    for key in range(40):
        of_key = [number for number in numbers if number % 40 == key]
        assert of_key == sorted(of_key)


def test_a_message_that_kills_its_process_runs_at_most_one_time_more_than_its_attempts(
    tmp_path: Path,
) -> None:
    """kill -9 in each run, three replicas: at most max_attempts + 1 runs, then a dead letter; the
    others are not harmed."""
    with apps() as start:
        start("relay", tmp_path).said("relaying")
        assert start("send", tmp_path, "--last", "30", "--keys", "30").ended() == 0
        options = ("--poison", "13", "--max-attempts", "3")
        replicas = [start("receive", tmp_path, *options) for _ in range(3)]

        def done() -> bool:
            for place, replica in enumerate(replicas):
                if replica.process.poll() is not None:
                    replicas[place] = start("receive", tmp_path, *options)
            return len(set(effected(tmp_path))) == 29 and dead(tmp_path) == ["fact-13"]

        wait_for(done, "29 effects and one dead letter")
        runs = (tmp_path / "runs").read_text().splitlines()
    assert 1 <= len(runs) <= 4, runs
    assert sorted(effected(tmp_path)) == [number for number in range(30) if number != 13]


def dead(folder: Path) -> list[str]:
    bus, engine = make_bus(folder, "receiver", "outside")
    with bus:
        letters = bus.opened.databases["receiver"].dead_letters(None, 100)
    engine.dispose()
    return [letter.message_id for letter in letters]


@pytest.mark.parametrize("too_late", [False, True])
def test_an_application_stopped_before_its_ledger_row_and_continued_after_a_purge(
    tmp_path: Path, too_late: bool
) -> None:
    """Purge, then SIGCONT: no business effect without its message; beyond its timeout, neither."""
    timeout_s = 1.5 if too_late else 60.0
    with apps() as start:
        start("relay", tmp_path).said("relaying")
        sender = start("send", tmp_path, "--last", "6", "--stop-inside", "3", "--local-timeout", str(timeout_s))
        sender.said("stopping")
        wait_for(sender.stopped, "the application is stopped")
        if too_late:
            time.sleep(timeout_s)  # the premise: its timeout passes while it is stopped
        bus, engine = make_bus(tmp_path, "sender", "outside")
        with bus:
            bus.opened.databases["sender"].purge_ledger(time.time() + 3_600, 1_000)
        engine.dispose()
        sender.signal(signal.SIGCONT)
        sender.ended()
        wait_for(lambda: published_once(tmp_path), "published exactly what is committed")
    assert (3 in committed(tmp_path)) is not too_late
