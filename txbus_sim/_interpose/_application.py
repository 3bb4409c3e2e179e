"""Which modules are the application's: neither Python's, nor installed, nor txbus itself."""

from __future__ import annotations

import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from types import ModuleType
from typing import Any

from txbus_sim._sites import is_library

__all__ = ["application_modules", "forget", "is_application", "is_of_user", "source_of", "spec_of"]

_NEVER = ("txbus", "txbus_", "pytest", "_pytest", "greenlet", "__main__", "__mp_main__")
_KNOWN: dict[str, bool] = {}


def forget() -> None:
    """Look at the file system again."""
    _KNOWN.clear()


def is_application(name: str) -> bool:
    """Whether a module belongs to a top-level package of the application."""
    top = name.partition(".")[0]
    found = _KNOWN.get(top)
    if found is None:
        found = _KNOWN[top] = _look(top)
    return found


def is_of_user(name: str) -> bool:
    """As `is_application`, and the script that is running, which has memory but is never loaded anew."""
    if name != "__main__":
        return is_application(name)
    file = getattr(sys.modules.get(name), "__file__", None)  # None: a prompt
    return file is None or not is_library(file)


def _look(top: str) -> bool:
    if top in sys.stdlib_module_names or top in _NEVER or top.startswith("txbus_"):
        return False
    module = sys.modules.get(top)
    spec = getattr(module, "__spec__", None) if module is not None else spec_of(top, None)
    if spec is None:
        file = getattr(module, "__file__", None)
        return file is not None and not is_library(file)
    place = source_of(spec)
    return place is not None and not is_library(place)


def source_of(spec: ModuleSpec) -> str | None:
    """The file of a module, or a folder of a namespace package."""
    if spec.has_location and spec.origin is not None:
        return spec.origin
    folders = list(spec.submodule_search_locations or ())
    return f"{folders[0]}/" if folders else None


def spec_of(name: str, path: Any) -> ModuleSpec | None:
    """What the interpreter's own finders say, in their order."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is None or finder in (BuiltinImporter, FrozenImporter) or getattr(finder, "of_simulation", False):
            continue
        spec: ModuleSpec | None = find(name, path, None)
        if spec is not None:
            return spec
    return None


def application_modules() -> list[ModuleType]:
    """Those loaded now, in the order of their names."""
    names = sorted(name for name in list(sys.modules) if is_of_user(name))
    return [module for name in names if type(module := sys.modules[name]) is ModuleType]
