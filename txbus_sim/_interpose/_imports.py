"""Imports within a simulated process.

A library is loaded as if it had been imported before the simulation began: what it makes at import
time is everybody's, and real. A module of the application is loaded within the process if that has
modules of its own (`Switch.begin_modules`), from code that is compiled once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from txbus_sim._interpose._application import application_modules, forget, is_application, source_of, spec_of
from txbus_sim._interpose._patches import Patches
from txbus_sim._interpose._switch import switch
from txbus_sim._interpose._twins import Twins
from txbus_sim._world import Strand

__all__ = ["outside", "patch_imports"]

T = TypeVar("T")


def outside(call: Callable[[], T]) -> T:
    """Call as if no process were simulated, from wherever it is; the call must not wait for a strand."""
    if type(getcurrent()) is not Strand:
        return call()
    result: T = greenlet(call).switch()
    return result


def patch_imports(patches: Patches) -> None:
    forget()
    switch.is_application = is_application
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    patches.undo_with(lambda: sys.meta_path.remove(finder))
    twins = Twins()
    patches.undo_with(twins.undo)
    twins.convert(application_modules())
    bootstrap: Any = importlib._bootstrap
    find: Any = bootstrap._find_and_load
    find_unlocked: Any = bootstrap._find_and_load_unlocked

    def find_and_load(name: str, import_: Any) -> Any:
        if type(getcurrent()) is not Strand:
            return find(name, import_)
        if not is_application(name):
            return outside(lambda: find(name, import_))
        if switch.modules is None:
            return outside(lambda: load_for_all(name, import_))
        # The interpreter's locks of modules are by name, for all processes: each is alone with its own.
        found = sys.modules.get(name)
        if found is not None:
            return found
        switch.modules.loaded[name] = None
        return find_unlocked(name, import_)

    def load_for_all(name: str, import_: Any) -> Any:
        before = set(sys.modules)
        module = find(name, import_)
        twins.convert([one for one in application_modules() if one.__name__ not in before])
        return module

    patches.attribute(bootstrap, "_find_and_load", find_and_load)


class _Loader(SourceFileLoader):
    """Loads code that was compiled before."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType | None:
        return self._code


class _Finder:
    """Finds the application's modules for a process that has its own; each is looked for once."""

    of_simulation = True

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, CodeType, list[str] | None] | None] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if type(getcurrent()) is not Strand or switch.modules is None or not is_application(name):
            return None
        if name not in self._found:
            # What is not Python source (an extension, a namespace) is found by the interpreter.
            self._found[name] = outside(lambda: self._look(name, list(path) if path is not None else None))
        found = self._found[name]
        if found is None:
            return None
        file, code, folders = found
        spec = ModuleSpec(name, _Loader(name, file, code), origin=file, is_package=folders is not None)
        spec.has_location = True
        if folders is not None:
            spec.submodule_search_locations = list(folders)
        return spec

    def _look(self, name: str, path: list[str] | None) -> tuple[str, CodeType, list[str] | None] | None:
        spec = spec_of(name, path)
        file = source_of(spec) if spec is not None else None
        if spec is None or file is None or not file.endswith(".py"):
            return None
        code = SourceFileLoader(name, file).get_code(name)
        if code is None:
            return None
        folders = spec.submodule_search_locations
        return file, code, list(folders) if folders is not None else None
