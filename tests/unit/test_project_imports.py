"""What an import of txbus brings along, and which way imports go."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "txbus"
PROJECT = Path(__file__).parents[2] / "pyproject.toml"
HEAVY = (
    "confluent_kafka",
    "greenlet",
    "importlib.metadata",
    "opentelemetry",
    "pydantic_settings",
    "rich",
    "sqlalchemy",
    "sqlite3",
    "typer",
)
SCRIPT = """
import sys
{statement}
print(" ".join(name for name in {names!r} if name in sys.modules))
"""


def loaded_by(statement: str, names: tuple[str, ...]) -> set[str]:
    """Which of these modules a fresh interpreter has after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(statement=statement, names=names)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import txbus",
        "from txbus import *",
        "import txbus.spi",
        "import txbus.errors",
        "import txbus.settings",
    ],
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    """A fresh `import txbus` loads no database, no client library, no command line; nor do its names.

    What `import pydantic, pluggy` loads by itself (importlib.metadata, with plugins for pydantic
    installed) is not counted.
    """
    base = loaded_by("import pydantic, pluggy", HEAVY)
    assert loaded_by(statement, HEAVY) <= base


def test_the_probe_sees_what_is_loaded() -> None:
    """Negative control: a heavy module that is imported is reported."""
    assert "sqlite3" in loaded_by("import txbus, sqlite3", HEAVY)


def layers() -> list[str]:
    """The modules named in import-linter's layers."""
    contracts = tomllib.loads(PROJECT.read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    layered = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [name for layers in layered for layer in layers for name in re.findall(r"[\w.]+", layer)]


def unplaced(modules: list[str], placed: list[str]) -> list[str]:
    """Modules that are in no layer, neither themselves nor by a package above them."""
    return [module for module in modules if not any(module == name or module.startswith(f"{name}.") for name in placed)]


def test_every_module_has_a_layer() -> None:
    """A new module must say which way its imports go, else import-linter would not look at it."""
    modules = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for root in (ROOT, ROOT.parent / "txbus_sim")
        for path in root.rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert unplaced(sorted(modules), [*layers(), "txbus._version"]) == []


def test_a_module_without_a_layer_is_seen() -> None:
    """Negative control: a module beside the layers is reported."""
    assert unplaced(["txbus.spi", "txbus.spinning"], layers()) == ["txbus.spinning"]
