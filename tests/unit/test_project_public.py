"""The public surface: what may be imported, from where, and what it says about itself."""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "txbus"


def public_modules() -> list[str]:
    """Modules without an underscore in any part of their name: promised import paths."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if "._" not in name and not name.startswith("txbus.examples"):
            names.append(name)
    return names


def empty(module: str) -> bool:
    """An empty package promises its folder and nothing else."""
    path = ROOT.parent / Path(*module.split(".")) / "__init__.py"
    return path.exists() and not path.read_text("utf-8").strip()


def exported(module: str) -> list[str]:
    return list(getattr(importlib.import_module(module), "__all__", []))


@pytest.mark.parametrize("module", public_modules())
def test_public_modules_say_what_they_promise(module: str) -> None:
    """A module without an underscore has `__all__`, sorted, without repetition, and each name is there."""
    source = importlib.import_module(module)
    names = getattr(source, "__all__", None)
    if names is None and empty(module):
        return
    assert names is not None, f"{module} has no __all__: name what is promised or underscore the module"
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(source, name)] == []


def test_each_name_is_public_in_one_place() -> None:
    """Two promised paths to one thing would drift apart; only `txbus` itself re-exports."""
    places: dict[int, list[str]] = defaultdict(list)
    for module in public_modules():
        if module == "txbus":
            continue
        for name in exported(module):
            thing = getattr(importlib.import_module(module), name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                places[id(thing)].append(f"{module}.{name}")
    assert [paths for paths in places.values() if len(paths) > 1] == []


def documented(thing: object) -> bool:
    """Has a docstring of its own; the signature that dataclasses and enums write is none."""
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else getattr(thing, "__doc__", None)
    name = getattr(thing, "__name__", "")
    return bool(doc and doc.strip()) and not str(doc).startswith(f"{name}(")


@pytest.mark.parametrize("module", public_modules())
def test_every_public_class_and_function_has_a_docstring(module: str) -> None:
    """What is promised says what it is."""
    source = importlib.import_module(module)
    things = [(name, getattr(source, name)) for name in exported(module)]
    silent = [n for n, t in things if (inspect.isclass(t) or inspect.isfunction(t)) and not documented(t)]
    assert silent == []
    assert empty(module) or (source.__doc__ or "").strip(), f"{module} has no docstring"


def test_a_generated_docstring_is_none() -> None:
    """Negative control: a dataclass without words of its own counts as silent."""
    from dataclasses import dataclass

    @dataclass
    class Silent:
        value: int

    @dataclass
    class Spoken:
        """It has a value."""

        value: int

    assert not documented(Silent)
    assert documented(Spoken)
    assert not documented(lambda: None)
