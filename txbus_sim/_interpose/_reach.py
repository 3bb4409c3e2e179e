"""What a module of the application keeps in memory: every place where something could change.

Followed: globals, classes defined by the application (their attributes), functions (default
arguments, closures, attributes), containers, and instances of the application's classes and of
`txbus.Bus`. Not followed: what belongs to libraries (SQLAlchemy's tables and mappers, loggers,
pydantic's internals, functools' caches), which keep caches of their own.
"""

from __future__ import annotations

import enum
import functools
import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CellType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Literal

from txbus import Bus
from txbus_sim._interpose._application import is_of_user

__all__ = ["Holder", "HolderKind", "followed", "instance_items", "internal", "is_engine", "items", "walk"]

HolderKind = Literal[
    "module", "class", "instance", "dict", "list", "set", "deque", "bytes", "cell", "state", "function"
]
_SCALARS = (int, float, complex, str, bytes, bool, type(None))
_DEPTH_MAX = 12


@dataclass(frozen=True, slots=True)
class Holder:
    """An object whose content can change. ``name``: how the source reaches it from ``module``."""

    kind: HolderKind
    value: Any
    module: str
    name: str


def walk(modules: Iterable[ModuleType]) -> Iterator[Holder]:
    """Every holder that the modules reach, each once, in the order of their definitions."""
    seen: set[int] = set()
    waiting: deque[tuple[Any, str, str, int]] = deque()
    for module in modules:
        if id(module) not in seen:
            seen.add(id(module))
            holder = Holder("module", module, module.__name__, "")
            yield holder
            _enqueue(waiting, holder, 1)
    while waiting:
        value, module_name, name, depth = waiting.popleft()
        if isinstance(value, _SCALARS) or id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) in (tuple, frozenset):
            if depth < _DEPTH_MAX and type(value) is tuple:
                waiting.extend((one, module_name, f"{name}[{n}]", depth + 1) for n, one in enumerate(value))
            continue
        kind = followed(value)
        if kind is None:
            continue
        home = _home(value, kind) or module_name
        if home != module_name:
            name = value.__qualname__
        holder = Holder(kind, value, home, name)
        yield holder
        if depth < _DEPTH_MAX:
            _enqueue(waiting, holder, depth + 1)


def _enqueue(waiting: deque[tuple[Any, str, str, int]], holder: Holder, depth: int) -> None:
    for name, value in items(holder):
        waiting.append((value, holder.module, name, depth))


def followed(value: Any) -> HolderKind | None:
    """What kind of holder it is, None for what is not looked into."""
    if isinstance(value, type):
        return "class" if is_of_user(value.__module__) and not issubclass(value, enum.Enum) else None
    if isinstance(value, FunctionType):
        # By where it was written: what a library's decorator makes says that it is the application's.
        return "function" if is_of_user(value.__globals__.get("__name__", "")) else None
    if isinstance(value, dict):
        return "dict"
    if isinstance(value, list):
        return "list"
    if isinstance(value, set):
        return "set"
    if isinstance(value, deque):
        return "deque"
    if isinstance(value, bytearray):
        return "bytes"
    if isinstance(value, CellType):
        return "cell"
    if isinstance(value, (random.Random, itertools.count)) or is_engine(value):
        return "state"
    if isinstance(value, (Bus, functools.partial)) or is_of_user(type(value).__module__):
        return "instance"
    return None


def is_engine(value: Any) -> bool:
    """Whether it is a SQLAlchemy Engine: its pool keeps connections, which belong to one process."""
    kind = type(value)
    return kind.__name__ == "Engine" and kind.__module__.startswith("sqlalchemy.")


def _home(value: Any, kind: HolderKind) -> str | None:
    """The module that a class or function was written in."""
    if kind == "class":
        return str(value.__module__)
    return str(value.__globals__["__name__"]) if kind == "function" else None


def items(holder: Holder) -> list[tuple[str, Any]]:
    """What a holder holds now that may be a holder itself, with the name of each place."""
    value, name = holder.value, holder.name
    match holder.kind:
        case "module":
            return [(key, one) for key, one in list(vars(value).items()) if not internal(key)]
        case "class":
            return [(f"{name}.{key}", _unwrapped(one)) for key, one in list(vars(value).items()) if not internal(key)]
        case "instance":
            return [(f"{name}.{key}", one) for key, one in instance_items(value)]
        case "dict":
            return [(f"{name}[{_shown(key)}]", one) for key, one in list(value.items()) if not _scalar(one)]
        case "list" | "deque":
            return [(f"{name}[{number}]", one) for number, one in enumerate(list(value)) if not _scalar(one)]
        case "cell":
            try:
                return [(name, value.cell_contents)]
            except ValueError:  # empty
                return []
        case "function":
            return _of_function(value, name)
        case "set" | "bytes" | "state":
            return []


def instance_items(value: Any) -> list[tuple[str, Any]]:
    """An object's attributes, those in slots included; caches of properties are left out."""
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    found: list[tuple[str, Any]] = []
    kind = type(value)
    for key, one in list(_attributes(value).items()):
        if not internal(key) and not isinstance(getattr(kind, key, None), functools.cached_property):
            found.append((key, one))
    for base in kind.__mro__:
        for key, slot in vars(base).items():
            if type(slot) is MemberDescriptorType and not internal(key):
                try:
                    found.append((key, slot.__get__(value)))
                except AttributeError:  # empty
                    continue
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """Without asking ``__getattr__`` of a class that makes attributes up."""
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if isinstance(found, dict) else {}


def _scalar(value: object) -> bool:
    return isinstance(value, _SCALARS)


def _of_function(function: FunctionType, name: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [(f"{name}.{key}", one) for key, one in vars(function).items() if not internal(key)]
    defaults = function.__defaults__ or ()
    code = function.__code__
    names = code.co_varnames[: code.co_argcount][-len(defaults) :] if defaults else ()
    found.extend((f"{name}({key}=…)", one) for key, one in zip(names, defaults, strict=False))
    found.extend((f"{name}({key}=…)", one) for key, one in (function.__kwdefaults__ or {}).items())
    found.extend(
        (f"{key}, closed over by {name}", cell)
        for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=False)
    )
    return found


def internal(name: object) -> bool:
    """Python's, SQLAlchemy's and pydantic's own attributes; the last two start with these."""
    return isinstance(name, str) and (
        (name.startswith("_") and name.endswith("_")) or name.startswith(("_sa_", "__pydantic_", "_abc_", "@"))
    )


def _unwrapped(value: Any) -> Any:
    return value.__func__ if isinstance(value, (staticmethod, classmethod)) else value


def _shown(key: object) -> str:
    """A key as text that is the same in every run."""
    return repr(key) if isinstance(key, _SCALARS) else type(key).__name__
