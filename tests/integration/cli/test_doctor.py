"""`txbus doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import txbus
from tests.integration.cli.conftest import Invoke, python
from tests.unit.test_registry import distribution

DOCTOR = "from txbus.cli.main import main\nsys.exit(main(['doctor', '--json']))"


def test_a_whole_installation_is_right(invoke: Invoke) -> None:
    """Versions, extras and plugins are listed and nothing is wrong."""
    done = invoke("doctor", "--json")
    found = json.loads(done.out)
    assert (done.code, found["problems"]) == (0, [])
    assert found["txbus"] == txbus.__version__
    assert {d["name"] for d in found["dependencies"]} >= {"pydantic", "pluggy", "sqlalchemy", "typer"}
    assert [e["complete"] for e in found["extras"] if e["name"] == "cli"] == [True]
    assert "embedded" in found["plugins"]["backends"]


def metadata(folder: Path, name: str, version: str, *lines: str) -> None:
    """Write the metadata of an installed distribution, which hides a later one of its name."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    text = "".join(f"{line}\n" for line in (f"Name: {name}", f"Version: {version}", *lines))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{text}")


def test_a_missing_extra_is_no_fault_and_has_its_command(tmp_path: Path) -> None:
    """Somebody who does not need it is not told off; the command is there all the same."""
    metadata(
        tmp_path,
        "txbus",
        "0.1.0",
        "Provides-Extra: loft",
        "Requires-Dist: pydantic>=2.7",
        "Requires-Dist: no-such-pigeon>=3; extra == 'loft'",
    )
    done = python(DOCTOR, tmp_path)
    found = json.loads(done.out)
    assert (done.code, found["problems"]) == (0, [])
    (row,) = found["extras"]
    assert row == {
        "name": "loft",
        "complete": False,
        "missing": ["no-such-pigeon>=3"],
        "install": 'pip install "txbus[loft]"',
    }


def test_a_missing_dependency_is_wrong(tmp_path: Path) -> None:
    """What txbus itself needs must be there."""
    metadata(tmp_path, "txbus", "0.1.0", "Requires-Dist: no-such-pigeon>=3")
    done = python(DOCTOR, tmp_path)
    assert done.code == 1
    assert "no-such-pigeon>=3 is not installed" in json.loads(done.out)["problems"][0]


@pytest.mark.parametrize(("version", "right"), [("1.9.9", False), ("2.10.1", True), ("2.7rc1", True)])
def test_a_dependency_that_is_too_old_is_wrong(tmp_path: Path, version: str, right: bool) -> None:
    """Versions are compared as numbers: 2.10 is newer than 2.7."""
    metadata(tmp_path, "pydantic", version)
    done = python(DOCTOR, tmp_path)
    assert done.code == (0 if right else 1)
    assert any(text.startswith("pydantic") for text in json.loads(done.out)["problems"]) is not right


def test_a_broken_plugin_is_wrong(tmp_path: Path) -> None:
    """What it raised is said, and the exit code is 1."""
    distribution(tmp_path, "storks", "raise RuntimeError('flown')\n", "[txbus.backends]\nstork = storks:plugin\n")
    done = python(DOCTOR, tmp_path)
    assert done.code == 1
    (problem,) = json.loads(done.out)["problems"]
    assert "stork" in problem and "RuntimeError: flown" in problem


def test_a_sub_command_under_one_of_our_names_is_wrong(tmp_path: Path) -> None:
    """Ours is run, and doctor tells that the other one is hidden."""
    module = "import typer\napp = typer.Typer()\n@app.command()\ndef coo(): print('coo')\n"
    distribution(tmp_path, "pigeons", module, "[txbus.commands]\ndoctor = pigeons:app\n")
    done = python(DOCTOR, tmp_path)
    assert done.code == 1
    assert "'doctor' of another package is hidden" in json.loads(done.out)["problems"][0]


@pytest.mark.parametrize(
    ("name", "value", "kind", "problem"),
    [
        ("TXBUS_LEASE_S", "5", "setting", None),
        ("TXBUS_LEASE_S", "-5", "setting", "must be seconds, more than 0"),
        ("TXBUS_LEASE", "5", "unknown", "the nearest known is TXBUS_LEASE_S"),
        ("TXBUS_DEMO_SPEED", "5", "no setting of a bus", None),
    ],
)
def test_variables_are_recognised(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str, value: str, kind: str, problem: str | None
) -> None:
    """A variable is a setting, unknown, or of other use; what is wrong with it decides the exit code."""
    monkeypatch.setenv(name, value)
    done = invoke("doctor", "--json")
    found = json.loads(done.out)
    (row,) = [v for v in found["variables"] if v["name"] == name]
    assert row["kind"] == kind
    assert done.code == (0 if problem is None else 1)
    assert (row["problem"] or "").endswith(problem or "") or (problem or "") in row["problem"]


def test_the_value_of_an_unknown_variable_is_not_shown(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a password under a misspelt name."""
    monkeypatch.setenv("TXBUS_PASWORD", "tOp5ecret")
    for arguments in (["doctor"], ["doctor", "--json"]):
        done = invoke(*arguments)
        assert done.code == 1
        assert "TXBUS_PASWORD" in done.out
        assert "tOp5ecret" not in done.out + done.err
