"""Time, chance and threads are reached through the ports and in no other way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "txbus"
EXEMPT = {
    "txbus._system": "it is the ports of a real process",
    "txbus.examples": "an application, with processes and clocks of its own",
}
MODULES = {"time", "random", "uuid", "secrets", "threading", "queue", "concurrent.futures"}
CALLS = {
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "os.urandom",
    "os.getrandom",
}


def violations(source: str) -> list[str]:
    """Forbidden imports and calls of a module's source, as ``line: what``.

    Names are followed through ``import x as y`` and ``from x import y as z``.
    """
    tree = ast.parse(source)
    names: dict[str, str] = {}
    found: list[str] = []
    for node in ast.walk(tree):
        for local, target in _imported(node):
            names[local] = target
            if target in CALLS or any(f"{target}.".startswith(f"{name}.") for name in MODULES):
                found.append(f"{getattr(node, 'lineno', 0)}: imports {target}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = _dotted(node)
            first, _, rest = dotted.partition(".")
            if f"{names.get(first, first)}.{rest}" in CALLS:
                found.append(f"{node.lineno}: uses {dotted}")
    return found


def _imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The local name and the dotted origin of everything that a statement imports."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname is None and "." in alias.name:
                yield alias.name.partition(".")[0], alias.name.partition(".")[0]
                yield alias.name, alias.name
            else:
                yield alias.asname or alias.name, alias.name
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"
    elif (
        isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and _dotted(node.func) in {"__import__", "importlib.import_module", "import_module"}
    ):
        yield node.args[0].value, node.args[0].value


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def core_modules() -> list[str]:
    """Every module of txbus that is not exempt by name."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if not any(name == exempt or name.startswith(f"{exempt}.") for exempt in EXEMPT):
            found.append(name)
    return found


def source_of(module: str) -> str:
    path = ROOT.parent / Path(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")


@pytest.mark.parametrize("module", core_modules())
def test_core_reaches_time_chance_and_threads_through_ports(module: str) -> None:
    """No module of the core imports or calls what the simulator must control."""
    assert violations(source_of(module)) == []


@pytest.mark.parametrize("module", sorted(EXEMPT))
def test_exempt_modules_exist_and_need_it(module: str) -> None:
    """An exemption that nothing needs any more is removed."""
    path = ROOT.parent / Path(*module.split("."))
    sources = list(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert any(violations(source.read_text("utf-8")) for source in sources)


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import time as clock",
        "import os, threading",
        "from time import monotonic",
        "from random import random as chance",
        "import concurrent.futures",
        "from concurrent import futures",
        "from concurrent.futures import ThreadPoolExecutor",
        "def f():\n    import uuid",
        "__import__('secrets')",
        "import importlib\nimportlib.import_module('queue')",
        "import datetime\nnow = datetime.datetime.now()",
        "import datetime as dt\nnow = dt.datetime.utcnow()",
        "from datetime import datetime\nnow = datetime.now(tz=None)",
        "from datetime import datetime as d\nnow = d.today",
        "from datetime import date\ntoday = date.today()",
        "import os\nos.urandom(8)",
        "import os as system\nsystem.urandom(8)",
        "from os import urandom",
    ],
)
def test_the_check_sees_each_way_around_it(source: str) -> None:
    """Negative control: every spelling of a forbidden import or call is found."""
    assert len(violations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import datetime, timezone\nx = datetime.fromtimestamp(0, timezone.utc)",
        "import timeit_like, os.path\nos.getpid()",
        "from txbus._ports import Clock\ndef now(clock: Clock) -> float: return clock.wall_s()",
        "class A:\n    def now(self): ...\nA().now()",
    ],
)
def test_the_check_lets_the_rest_pass(source: str) -> None:
    """Negative control of the control: what is allowed is not reported."""
    assert violations(source) == []
