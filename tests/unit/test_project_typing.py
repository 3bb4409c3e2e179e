"""What the types accept and refuse: mypy --strict over tests/typing/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def mypy(*arguments: str) -> tuple[int, str]:
    """Run mypy with the project's own settings; its exit code and what it wrote."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout + done.stderr


def test_the_cases_are_accepted_and_refused_as_they_say() -> None:
    """Every case type-checks, and every marked mistake is one that mypy finds."""
    code, written = mypy("-p", "tests.typing")
    assert code == 0, written


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("Settings(lease_s='long')", "[arg-type]"),
        ("Settings(lease_s=1.0)  # type: ignore[arg-type]", "[unused-ignore]"),
        ("Settings(lease_s='long')  # type: ignore", "[ignore-without-code]"),
        ("assert_type(Settings().lease_s, int)", "[assert-type]"),
    ],
)
def test_a_lost_refusal_is_an_error(tmp_path: Path, line: str, finding: str) -> None:
    """Negative control: a mistake that is not marked, and a mark without its mistake, are reported."""
    case = tmp_path / "case.py"
    case.write_text(f"from typing import assert_type\n\nfrom txbus.settings import Settings\n\n{line}\n")
    code, written = mypy(str(case))
    assert code == 1
    assert finding in written


def test_each_marked_mistake_says_what_is_wrong() -> None:
    """The reason stands beside the ignore, for whoever meets the case later."""
    silent = [
        f"{path.name}:{number}"
        for path in sorted((ROOT / "tests" / "typing").glob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if "# type: ignore[" in line and "``" not in line and "]  # " not in line
    ]
    assert silent == []
