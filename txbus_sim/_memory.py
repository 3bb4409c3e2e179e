"""A process has its own memory: what the application keeps in module globals is not another process's.

All simulated processes share one interpreter. A process that is given by import string
(``"shop.stock:main"``) gets fresh copies of the application's modules in each incarnation. A process
that is given as a function shares its modules with the test and with every other one, so what it
changes there would survive its crash and be seen by its replicas: a module-level ``SEEN = set()`` would
look like a working dedupe. `Snapshot` finds such changes and undoes them.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from txbus import Bus
from txbus_sim._interpose import run_main
from txbus_sim._interpose._application import is_application, is_of_user
from txbus_sim._interpose._reach import Holder, instance_items, internal, is_engine, walk
from txbus_sim._interpose._switch import switch
from txbus_sim._world import Process
from txbus_sim.errors import SimulationError

__all__ = ["Change", "Snapshot", "live"]

Target = Callable[..., object] | str
_SCALARS = (int, float, complex, str, bytes, bool, type(None))
_ABSENT = object()
_ADDRESS = re.compile(r"id:\d+ ?")


def live(target: Target, arguments: tuple[Any, ...], keywords: Mapping[str, Any], process: Process) -> None:
    """The main function of a process: a function, or one that is found by import string.

    With an import string the application's modules are loaded anew, in this process. Arguments are
    given as they are: values of the application's own classes would be of another copy's.
    SimulationError if there is no such function.
    """

    def main() -> object:
        function = _load(target) if isinstance(target, str) else target
        return function(*arguments, **keywords)

    run_main(process, main)


def _load(target: str) -> Callable[..., object]:
    module_name, colon, path = target.partition(":")
    if not colon or not module_name or not path:
        raise SimulationError(f"{target!r} is no import string; write module:function, such as shop.stock:main")
    if not is_application(module_name):
        raise SimulationError(
            f"{target!r} is not the application's: only its own modules are loaded anew; give the function"
        )
    switch.begin_modules()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module_name}.".startswith(f"{exc.name}."):
            raise SimulationError(f"{target!r}: there is no module {exc.name}; is its folder on sys.path?") from exc
        raise
    for name in path.split("."):
        if not hasattr(found, name):
            raise SimulationError(f"{target!r}: {name!r} is not defined in {module_name}")
        found = getattr(found, name)
    if not callable(found):
        raise SimulationError(f"{target!r} is not callable")
    call: Callable[..., object] = found
    return call


@dataclass(frozen=True, slots=True)
class Change:
    """A place in a module's memory that a process changed. ``what``: how, for people."""

    module: str
    name: str
    what: str

    def __str__(self) -> str:
        return (
            f"{self.module}.{self.name} was changed by a simulated process ({self.what}): all processes of the "
            "simulation share it, and real ones could not; keep it in the database, or give the process by "
            f'import string ("{self.module}:main"), so that each has a copy of its own'
        )


class Snapshot:
    """The memory of the modules that functions reach, at one moment. Not thread-safe.

    Left out: what belongs to libraries (see `_interpose._reach`), and modules that are imported
    later. Taking one anew after `restore` costs a comparison.
    """

    _last: tuple[tuple[str, ...], int, Snapshot] | None = None

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self._kept = [(holder, _content(holder)) for holder in walk(modules)]
        self._environment = dict(os.environ)

    @classmethod
    def take(cls, functions: Iterable[Any]) -> Snapshot:
        """Of every module of the application that these functions (or partials, methods) reach."""
        names = tuple(sorted({name for function in functions if (name := _module_of(function)) is not None}))
        if cls._last is not None:
            last_names, count, last = cls._last
            if last_names == names and count == len(sys.modules) and last._is_current():
                return last
        made = cls(_reached(names))
        cls._last = (names, len(sys.modules), made)
        return made

    @classmethod
    def forget(cls) -> None:
        """Do not keep the last one any longer."""
        cls._last = None

    def changed(self) -> list[Change]:
        """What is different now, in the order of modules' names and definitions."""
        found: list[Change] = []
        for holder, before in self._kept:
            if not _same(holder, before):
                found.extend(_differences(holder, before))
        return found

    def restore(self) -> None:
        """Put everything back, the environment's variables included."""
        for holder, before in self._kept:
            if not _same(holder, before):
                _put_back(holder, before)
        if os.environ != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)

    def _is_current(self) -> bool:
        return os.environ == self._environment and not self.changed()


# which modules


def _module_of(function: Any) -> str | None:
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__func__"):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    name = getattr(function, "__module__", None) or type(function).__module__
    return name if name in sys.modules and is_of_user(name) else None


def _reached(names: Iterable[str]) -> list[ModuleType]:
    """These modules, their packages, and whatever of the application they refer to."""
    found: dict[str, ModuleType] = {}
    first = set(names)
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name in found or type(module) is not ModuleType or not is_of_user(name):
            continue
        if name not in first and name.rpartition(".")[2].startswith(("test_", "conftest")):
            continue  # another test's: nobody's production code
        found[name] = module
        waiting.append(name.rpartition(".")[0])
        for value in list(vars(module).values()):
            if isinstance(value, ModuleType):
                waiting.append(value.__name__)
            else:
                home = getattr(value, "__module__", None)
                waiting.append(home if isinstance(home, str) else type(value).__module__)
    return [found[name] for name in sorted(found)]


# what a holder holds


def _content(holder: Holder) -> Any:
    value = holder.value
    match holder.kind:
        case "module" | "class":
            return dict(vars(value))
        case "instance":
            return dict(instance_items(value))
        case "dict":
            return dict(value)
        case "list" | "deque":
            return list(value)
        case "set":
            return set(value)
        case "bytes":
            return bytes(value)
        case "cell":
            try:
                return value.cell_contents
            except ValueError:
                return _ABSENT
        case "function":
            return (value.__defaults__, dict(value.__kwdefaults__ or {}), dict(vars(value)))
        case "state":
            return _state(value)


def _state(value: Any) -> Any:
    if isinstance(value, random.Random):
        return value.getstate()
    return _ADDRESS.sub("", value.pool.status()) if is_engine(value) else repr(value)


def _same(holder: Holder, before: Any) -> bool:
    """Whether it certainly holds the same as before. Fast: identity is compared before equality."""
    now = vars(holder.value) if holder.kind in ("module", "class") else _content(holder)
    if now is before:
        return True
    if holder.kind == "cell":
        return _equal(before, now)
    try:
        return bool(now == before)
    except Exception:
        # What is compared here may be anything (an SQL expression has no truth value).
        return False


def _equal(before: Any, now: Any) -> bool:
    if before is now:
        return True
    return type(before) is type(now) and isinstance(now, _SCALARS) and bool(before == now)


def _differences(holder: Holder, before: Any) -> list[Change]:
    match holder.kind:
        case "module" | "class" | "instance":
            now = dict(vars(holder.value)) if holder.kind != "instance" else _content(holder)
            prefix = f"{holder.name}." if holder.name else ""
            return [
                Change(holder.module, f"{prefix}{key}", _described(holder, key, old, new))
                for key, old, new in _rebound(before, now)
                if not _uninteresting(holder, key, new)
            ]
        case "cell":
            now = _content(holder)
            return [] if _equal(before, now) else [Change(holder.module, holder.name, _between(before, now))]
        case "function":
            return [Change(holder.module, holder.name, "its default arguments or attributes")]
        case "state":
            what = "its pool has connections" if is_engine(holder.value) else f"the state of a {_kind(holder.value)}"
            return [Change(holder.module, holder.name, what)]
        case "dict" | "list" | "deque" | "set" | "bytes":
            size = f"{len(before)} -> {len(holder.value)} entries" if len(before) != len(holder.value) else "entries"
            return [Change(holder.module, holder.name, f"a {_kind(holder.value)}, {size}")]


def _rebound(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[tuple[str, Any, Any]]:
    keys = [*before, *(key for key in now if key not in before)]
    pairs = [(str(key), before.get(key, _ABSENT), now.get(key, _ABSENT)) for key in keys]
    return [(key, old, new) for key, old, new in pairs if not internal(key) and not _equal(old, new)]


def _uninteresting(holder: Holder, key: str, new: Any) -> bool:
    """A submodule that was imported; what a library hangs on a class (SQLAlchemy's attributes)."""
    if isinstance(new, ModuleType):
        return True
    kind = type(new)
    return (
        holder.kind == "class"
        and hasattr(kind, "__get__")
        and not is_of_user(kind.__module__)
        and not (hasattr(new, "__globals__"))
    )


def _described(holder: Holder, key: str, old: Any, new: Any) -> str:
    if isinstance(holder.value, Bus) and key == "_opened":
        return "a Bus was opened or closed"
    return _between(old, new)


def _between(old: Any, new: Any) -> str:
    return f"{_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    return repr(value)[:60] if isinstance(value, _SCALARS) else f"a {_kind(value)}"


def _kind(value: Any) -> str:
    return type(value).__name__


# putting back


def _put_back(holder: Holder, before: Any) -> None:
    value = holder.value
    match holder.kind:
        case "module":
            _put_names(before, vars(value), vars(value).__setitem__, vars(value).__delitem__)
        case "class":
            _put_names(
                before,
                dict(vars(value)),
                lambda key, one: type.__setattr__(value, key, one),
                lambda key: type.__delattr__(value, key),
                keep_descriptors=True,
            )
        case "instance":
            _put_names(
                before,
                _content(holder),
                lambda key, one: object.__setattr__(value, key, one),
                lambda key: object.__delattr__(value, key),
            )
        case "dict":
            value.clear()
            value.update(before)
        case "list":
            value[:] = before
        case "deque":
            value.clear()
            value.extend(before)
        case "set":
            value.clear()
            value.update(before)
        case "bytes":
            value[:] = before
        case "cell":
            if before is _ABSENT:
                del value.cell_contents
            else:
                value.cell_contents = before
        case "function":
            value.__defaults__, keywords, attributes = before
            value.__kwdefaults__ = keywords or None
            vars(value).clear()
            vars(value).update(attributes)
        case "state":
            _put_state(value, before)


def _put_names(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    put: Callable[[str, Any], object],
    remove: Callable[[str], object],
    keep_descriptors: bool = False,
) -> None:
    for key, old, new in _rebound(before, now):
        if isinstance(new, ModuleType) or (keep_descriptors and hasattr(type(new), "__get__")):
            continue
        if old is _ABSENT:
            remove(key)
        else:
            put(key, old)


def _put_state(value: Any, before: Any) -> None:
    if isinstance(value, random.Random):
        value.setstate(before)
    elif is_engine(value):
        # Its connections are a dead world's: forgotten, not closed.
        value.dispose(close=False)
