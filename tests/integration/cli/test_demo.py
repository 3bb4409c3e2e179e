"""`txbus demo`: its options reach the shop. What the shop proves is tested with the shop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Invoke
from txbus.examples.shop.orderfile import sample_path

HEADER_ONLY = "order,when\n"


def test_a_small_run_balances_its_books(tmp_path: Path, script: Invoke) -> None:
    """The installed script runs a list of orders under kills in a folder that is kept; exit code 0."""
    (tmp_path / "some.csv").write_text("".join(sample_path().read_text().splitlines(keepends=True)[:151]))
    done = script(
        "demo", "--orders", "some.csv", "--kills", "1", "--random-kills", "0", "--no-naive", "--json",
        "--seed", "3", "--workdir", "kept",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)
    assert list((tmp_path / "kept").iterdir())
    assert "seed 3" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--orders", "nothing.csv"], "nothing.csv"),
        (["--kills", "0"], "--kills"),
        (["--broker", "pigeon://x", "--quick", "--no-naive"], "pigeon"),
        (["--workdir", "full", "--quick"], "not empty"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path: Path, script: Invoke, arguments: list[str], said: str) -> None:
    """Exit code 2 and the name of what is wrong; no service is started."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = script("demo", *arguments)
    assert done.code == 2, done.err
    assert said in done.err
    assert "Traceback" not in done.err


def test_orders_without_a_single_good_row_are_refused(tmp_path: Path, script: Invoke) -> None:
    """A file that is no list of orders is an error, not an empty success."""
    (tmp_path / "orders.csv").write_text(HEADER_ONLY)
    done = script("demo", "--orders", "orders.csv", "--no-naive")
    assert done.code == 2, done.out + done.err
    assert "orders.csv" in done.err
