"""`txbus run` and `txbus relay`: real processes, real signals."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.cli.conftest import App, Invoke, start
from txbus.cli._loading import load_bus

PATIENCE_S = 60.0


@pytest.fixture
def shop(app: App, invoke: Invoke) -> App:
    """The application with its tables made."""
    assert invoke("schema", "create", app.name).code == 0
    return app


def place(app: App, *numbers: int) -> None:
    """Send one message per number with a local transaction, and leave publishing to a relay."""
    bus = load_bus(app.name)
    with bus.open(relay="outside"):
        for number in numbers:
            with bus.transaction("shop") as tx:
                topic = next(t for t in bus.topics if t.name == "placed")
                tx.send(topic, topic.model(number=number))


def effects(app: App) -> list[int]:
    connection = sqlite3.connect(app.folder / "shop.db", timeout=30)
    try:
        return [number for (number,) in connection.execute("SELECT number FROM effects ORDER BY number")]
    finally:
        connection.close()


@contextmanager
def running(app: App, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The installed script in the background; killed if the test leaves it behind."""
    process = start(app.folder, *arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for_line(process: subprocess.Popen[str], text: str) -> list[str]:
    """Lines of stderr up to and with the one that contains a text."""
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return seen
    raise AssertionError(f"{text!r} is not in {''.join(seen)}")


def wait_for_file(path: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def wait_for_effects(app: App, wanted: list[int]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while effects(app) != wanted:
        assert time.monotonic() < deadline_s, effects(app)
        time.sleep(0.02)


def test_until_idle_handles_everything_and_says_how_much(shop: App, script: Invoke) -> None:
    """What was committed before is published by the relay inside, handled once, and counted."""
    place(shop, 1, 2, 3)
    done = script("run", shop.name, "--until-idle", "0.3")
    assert (done.code, done.out) == (0, ""), done.err
    assert effects(shop) == [1, 2, 3]
    assert "stopped: 3 deliveries handled" in done.err


def test_the_first_lines_say_what_runs(shop: App, script: Invoke) -> None:
    """Service, bus, handlers with scope, topic, database and group, and where the relay is."""
    done = script("run", shop.name, "--until-idle", "0.1", "--workers", "2")
    for text in (
        "service   shop",
        f"bus       embedded://{shop.folder}/bus.db?sync=***",
        "databases shop",
        "relay     inside this process; group txbus.relay.shop",
        "handler   count: topic placed, database shop, group shop.count",
        "workers   2 threads",
    ):
        assert text in done.err


def test_credentials_in_the_url_are_not_shown(app: App, script: Invoke) -> None:
    """Neither the lines at the beginning nor the error of an unknown backend shows a password."""
    source = (app.folder / f"{app.module}.py").read_text()
    app.write(source.replace("embedded://", "pigeon://ann:secret@"))
    done = script("run", app.name)
    assert done.code == 2
    assert "pigeon" in done.err
    assert "secret" not in done.err + done.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_in_order(shop: App, number: signal.Signals, code: int) -> None:
    """SIGTERM and Ctrl-C finish what is in hand; 130 tells a shell that it was Ctrl-C."""
    with running(shop, "run", shop.name) as process:
        wait_for_line(process, "running;")
        place(shop, *range(5))
        wait_for_effects(shop, list(range(5)))
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert "stopped: 5 deliveries handled" in err
    assert "Traceback" not in err


def test_a_delivery_in_hand_is_finished(shop: App, script: Invoke) -> None:
    """A handler that is at work when SIGTERM comes commits and acknowledges before the process ends."""
    source = (shop.folder / f"{shop.module}.py").read_text()
    slow = "    import time, pathlib\n    pathlib.Path('begun').touch()\n    time.sleep(1)\n"
    shop.write(source.replace("-> None:\n    connection", f"-> None:\n{slow}    connection"))
    place(shop, 7)
    with running(shop, "run", shop.name) as process:
        wait_for_file(shop.folder / "begun")
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "stopped: 1 delivery handled" in err
    assert effects(shop) == [7]
    assert "stopped: 0 deliveries" in script("run", shop.name, "--until-idle", "0.3").err


def test_max_messages_ends_it(shop: App, script: Invoke) -> None:
    """It ends by itself after as many deliveries, and the rest is handled by the next run."""
    place(shop, *range(30))
    done = script("run", shop.name, "--max-messages", "5", "--workers", "1")
    assert done.code == 0
    assert 5 <= len(effects(shop)) <= 30
    assert script("run", shop.name, "--until-idle", "0.3").code == 0
    assert effects(shop) == list(range(30))


def test_a_relay_outside_publishes_for_a_run_without_one(shop: App, script: Invoke) -> None:
    """With --no-relay nothing is published until `txbus relay` runs."""
    place(shop, 1, 2)
    done = script("run", shop.name, "--no-relay", "--until-idle", "0.3")
    assert "outside: txbus relay" in done.err
    assert (done.code, effects(shop)) == (0, [])
    done = script("relay", shop.name, "--until-idle", "0.2")
    assert done.code == 0, done.err
    assert script("run", shop.name, "--no-relay", "--until-idle", "0.3").code == 0
    assert effects(shop) == [1, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_relay_is_ended_in_order(shop: App, number: signal.Signals, code: int) -> None:
    """The relay alone reacts to signals as `run` does."""
    with running(shop, "relay", shop.name) as process:
        wait_for_line(process, "running;")
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "Traceback" in err) == (code, False), err
    assert err.strip().splitlines()[-1].startswith("stopped")


def test_a_second_signal_ends_it_at_once(shop: App) -> None:
    """Who does not want to wait for a delivery in hand asks twice; its effect is rolled back."""
    source = (shop.folder / f"{shop.module}.py").read_text()
    slow = "    import time, pathlib\n    pathlib.Path('begun').touch()\n    time.sleep(3600)\n"
    shop.write(source.replace("-> None:\n    connection", f"-> None:\n{slow}    connection"))
    place(shop, 7)
    with running(shop, "run", shop.name) as process:
        wait_for_file(shop.folder / "begun")
        process.terminate()
        deadline_s = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline_s:
            # Signals of one kind that come together count as one, so it is asked until it ends.
            process.terminate()
            time.sleep(0.05)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGTERM
    assert effects(shop) == []


def test_tables_that_are_missing_are_said_before_anything_runs(app: App, script: Invoke) -> None:
    """Exit code 2 with the command that makes them."""
    done = script("run", app.name, "--until-idle", "0.1")
    assert done.code == 2
    assert "SchemaMismatch" in done.err and "txbus schema create" in done.err


def test_nothing_to_run_is_a_usage_error(app: App, script: Invoke) -> None:
    """A bus without handlers and without a relay would wait for ever and do nothing."""
    app.write("from txbus import Bus\nbus = Bus('memory://x', service='x')\n")
    for arguments in (["run", app.name], ["relay", app.name], ["run", app.name, "--relay"]):
        done = script(*arguments)
        assert done.code == 2, done.err


def test_the_log_level_is_taken(shop: App, script: Invoke) -> None:
    """At `debug` the events are logged on stderr, at `error` they are not."""
    place(shop, 1)
    loud = script("run", shop.name, "--until-idle", "0.2", "--log-level", "debug")
    quiet = script("run", shop.name, "--until-idle", "0.2", "--log-level", "error")
    assert "DEBUG   txbus:" in loud.err or "INFO    txbus:" in loud.err
    assert "txbus: " not in quiet.err


def test_an_application_s_own_log_is_kept(shop: App, script: Invoke) -> None:
    """Handlers made at import stay the only ones; the level that was asked for holds for txbus."""
    source = (shop.folder / f"{shop.module}.py").read_text()
    shop.write(f"import logging\nlogging.basicConfig(filename='own.log', level='ERROR')\n{source}")
    place(shop, 1)
    done = script("run", shop.name, "--until-idle", "0.2", "--log-level", "debug")
    assert done.code == 0
    assert "DEBUG" not in done.err
    assert "DEBUG:txbus:" in (shop.folder / "own.log").read_text()
