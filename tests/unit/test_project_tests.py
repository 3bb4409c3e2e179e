"""Tests are in the folder that tests/README.md says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
BESIDE = {"Popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "multiprocessing", "ProcessPoolExecutor"}
"""What starts a process that works beside the test; `subprocess.run` of an interpreter that answers does not."""


def beside(source: str) -> list[str]:
    """What a module uses of these, as ``line: name``."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [part for alias in node.names for part in alias.name.split(".")]
        found += [f"{getattr(node, 'lineno', 0)}: {name}" for name in names if name in BESIDE]
    return found


def test_no_unit_test_starts_a_process_that_works_beside_it() -> None:
    """Those are in integration/, where their patience and their cost are expected."""
    found = {str(path.relative_to(TESTS)): beside(path.read_text("utf-8")) for path in (TESTS / "unit").rglob("*.py")}
    assert {path: uses for path, uses in found.items() if uses} == {}
    assert any(beside(path.read_text("utf-8")) for path in (TESTS / "integration").rglob("*.py"))


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess\nsubprocess.Popen(['x'])",
        "from subprocess import Popen as start",
        "import os\nos.fork()",
        "import multiprocessing.pool",
        "from concurrent.futures import ProcessPoolExecutor",
    ],
)
def test_the_check_finds_each_way(source: str) -> None:
    """Under another name too."""
    assert beside(source)


def test_the_check_leaves_a_fresh_interpreter_alone() -> None:
    """It answers and is gone."""
    assert beside("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1)'])") == []
