"""The demo as people run it: processes, kill -9, books, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from txbus.errors import ConfigurationError
from txbus.examples.shop.demo import run_demo
from txbus.examples.shop.generate import sample
from txbus.examples.shop.place import Place

DEMO = [sys.executable, "-m", "txbus.examples.shop"]
LIMIT_S = 200


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A reduced demo, each window twice: its result and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [*DEMO, "--quick", "--json", "--seed", "11", "--workdir", str(folder)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), folder


def test_the_books_balance_although_every_window_was_hit(quick: tuple[dict[str, Any], Path]) -> None:
    """500 orders under kill -9: nothing is lost, phantom or doubled; check-back and inbox were needed."""
    result, _ = quick
    shop = result["txbus"]
    books, kills = shop["books"], shop["kills"]
    assert result["good"] and result["reasons"] == []
    assert books["committed"] + books["refused"] == 500 and books["refused"] > 10
    assert books["messages_of_refused"] == 0
    assert set(books["published"].values()) == {books["committed"]}
    assert books["stock_effects"] == books["payment_effects"] == books["committed"]
    assert (books["lost"], books["phantom"], books["doubled"], books["wrong"]) == ([], [], [], [])
    assert all(before == after for before, after in books["balances"].values())
    assert kills == {
        "half_stored": 2,
        "committed": 2,
        "told": 2,
        "step_open": 2,
        "effect": 2,
        "random": 1,
    }
    assert shop["failures"] == 0
    assert shop["events"]["CheckBack"] > 0 and shop["events"]["DuplicateSuppressed"] > 0


def test_the_naive_shop_loses_and_doubles_under_the_same_kills(quick: tuple[dict[str, Any], Path]) -> None:
    """The audit is able to find losses and doubles of real processes, and they are not rare."""
    result, _ = quick
    naive = result["naive"]
    assert naive["kills"] == result["txbus"]["kills"]
    assert naive["books"]["orders_lost"] > 0
    assert naive["books"]["orders_doubled"] > 0


def test_a_run_that_was_kept_can_be_looked_at_with_the_command_line(
    quick: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Databases and bus stay where --workdir says, and the shop's modules find them."""
    from txbus.examples.shop import orders, payment, stock

    _, folder = quick
    monkeypatch.setenv("TXBUS_DEMO_FOLDER", str(folder / "txbus"))
    for module in (orders, stock, payment):
        with module.bus() as bus:
            assert bus.health().handlers == ()
    assert len(Place.load(folder / "txbus").orders().rows) == 500


def test_orders_of_ones_own_are_taken_and_bad_rows_told(tmp_path: Path) -> None:
    """--orders FILE: bad rows are reported by line number, the others are the demo's."""
    own = tmp_path / "own.csv"
    own.write_text(sample(60, seed=9) + "SO-bad,C-1\n")
    command = [*DEMO, "--orders", str(own), "--no-naive", "--kills-per-window", "1", "--random-kills", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 orders from" in done.stdout
    assert f"line {len(own.read_text().splitlines())}: 2 columns, 8 are needed" in done.stdout
    assert "lost 0, phantom 0, doubled 0" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["own.csv"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_names_its_folder(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle: exit code 130, services gone, files there."""
    folder = tmp_path / "run"
    demo = _begin(folder)
    try:
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert str(folder) in errors and "Traceback" not in errors
    assert _services(folder) == []
    assert (folder / "txbus" / "orders.db").exists()


def test_services_do_not_outlive_a_killed_demo(tmp_path: Path) -> None:
    """kill -9 of the supervisor itself: its services notice and end."""
    folder = tmp_path / "run"
    demo = _begin(folder)
    demo.kill()
    demo.communicate(timeout=60)
    _wait_until(lambda: _services(folder) == [])


def test_a_workdir_that_is_in_use_and_figures_out_of_range_are_refused(tmp_path: Path) -> None:
    """Nothing of somebody else's is overwritten, and nothing is started."""
    (tmp_path / "theirs.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is not empty"):
        run_demo(workdir=tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        run_demo(workdir=tmp_path / "theirs.txt")
    with pytest.raises(ConfigurationError, match="kills_per_window=0"):
        run_demo(kills_per_window=0)
    with pytest.raises(ConfigurationError, match="lives in one process"):
        run_demo(broker="memory://shop")
    with pytest.raises(ConfigurationError, match="does not exist"):
        run_demo(tmp_path / "none.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.txt"]


def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """No traceback for what a person can put right."""
    done = subprocess.run([*DEMO, "--orders", str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 2
    assert done.stderr.startswith("ConfigurationError: orders file")
    assert len(done.stderr.splitlines()) == 1


def test_a_soak_without_room_for_its_kills_fails(tmp_path: Path) -> None:
    """One order is over after a few: the soak says how many there were, and how many were asked for."""
    orders = tmp_path / "orders.csv"
    orders.write_text(sample(1, seed=1))
    command = [sys.executable, "-m", "txbus.examples.shop.soak", "--kills", "40", "--pauses", "0", "--replicas", "1"]
    done = subprocess.run(
        [*command, "--orders", str(orders)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^  \d+ processes were killed, not 40;", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.soak
def test_the_shop_survives_200_kills() -> None:
    """5,000 orders under 200 seeded SIGKILLs, the books checked row by row."""
    soak = [sys.executable, "-m", "txbus.examples.shop.soak", "--kills", "200", "--seed", "1"]
    done = subprocess.run(soak, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _begin(folder: Path) -> subprocess.Popen[str]:
    """A demo that works, all of its services being up."""
    command = [*DEMO, "--workdir", str(folder), "--no-naive"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_until(lambda: len(_services(folder)) == 4)
    except BaseException:
        demo.kill()
        raise
    return demo


def _services(folder: Path) -> list[str]:
    """The services of a demo that are alive."""
    pids = {file.stem: file.read_text().strip() for file in (folder / "txbus").glob("*.pid")}
    return [role for role, pid in pids.items() if pid and _alive(int(pid))]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # An orphan that nobody has buried yet is dead all the same.
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about within a minute"
        time.sleep(0.05)
