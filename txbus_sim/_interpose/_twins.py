"""Locks, events and queues that the application made at import time: each process gets its own.

They were made before any process began, with real locks, and all processes of the interpreter would
share them. A lock is replaced, where the application holds it, by one that is a lock of its own in
each incarnation. A condition, event, semaphore, barrier, queue or pool of threads stays the object it
is; within a process it shows the attributes of a twin as it was at import time.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import BuiltinMethodType, ModuleType
from typing import Any

from greenlet import getcurrent

from txbus_sim._interpose._locks import REAL_LOCKS, SimLock, SimRLock
from txbus_sim._interpose._reach import Holder, instance_items, walk
from txbus_sim._world import Process, Strand

__all__ = ["Twins"]

_TWINNED = (
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.Barrier,
    queue.Queue,
    ThreadPoolExecutor,
)
_TWINS = "twins"
_SIMPLE_QUEUE = queue.SimpleQueue


class Twins:
    """What was converted, and how it is put back."""

    def __init__(self) -> None:
        self._locks: dict[int, tuple[Any, SimLock | SimRLock]] = {}
        self._places: list[tuple[Holder, Any, Any, Any]] = []
        self._objects: list[tuple[Any, type]] = []
        self._classes: dict[type, type] = {}

    def convert(self, modules: Iterable[ModuleType]) -> None:
        """Everything of these modules that processes would otherwise share. Idempotent."""
        for holder in list(walk(modules)):
            for key, value in _entries(holder):
                if type(value) in REAL_LOCKS:
                    self._place(holder, key, value, self._lock(value, f"{holder.module}: {holder.name}"))
                elif type(value) is _SIMPLE_QUEUE:
                    self._place(holder, key, value, _PerProcessQueue(value))
                elif isinstance(value, _TWINNED) and type(value) not in self._classes.values():
                    self._objects.append((value, type(value)))
                    value.__class__ = self._twinned(type(value))

    def _lock(self, real: Any, where: str) -> SimLock | SimRLock:
        found = self._locks.get(id(real))
        if found is None:
            kind = SimLock if type(real) is REAL_LOCKS[0] else SimRLock
            found = self._locks[id(real)] = (real, kind(None, (None, 0), real))
        return found[1]

    def _place(self, holder: Holder, key: Any, old: Any, new: Any) -> None:
        self._places.append((holder, key, old, new))
        _put(holder, key, new)

    def undo(self) -> None:
        while self._places:
            holder, key, old, new = self._places.pop()
            if any(value is new for at, value in _entries(holder) if at == key):
                _put(holder, key, old)
        while self._objects:
            value, kind = self._objects.pop()
            value.__class__ = kind
        self._locks.clear()

    def _twinned(self, kind: type) -> type:
        if kind not in self._classes:
            space: dict[str, Any] = {
                "__slots__": (),
                "__module__": kind.__module__,
                "__qualname__": kind.__qualname__,
                "__doc__": kind.__doc__,
                "__getattribute__": _get,
                "__setattr__": _set,
            }
            for name in ("__enter__", "__exit__"):
                if hasattr(kind, name):
                    space[name] = _special(kind, name)
            self._classes[kind] = type(kind.__name__, (kind,), space)
        return self._classes[kind]


class _PerProcessQueue:
    """Behind a `SimpleQueue` made at import time: one for each process."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        strand = getcurrent()
        if type(strand) is not Strand:
            return getattr(self._real, name)
        return getattr(_memo(strand.process, self, lambda: queue._PySimpleQueue()), name)  # type: ignore[attr-defined]


def _memo(process: Process, of: object, make: Any) -> Any:
    twins: dict[int, tuple[object, Any]] = process.memory.setdefault(_TWINS, {})
    found = twins.get(id(of))
    if found is None:
        found = twins[id(of)] = (of, make())
    return found[1]


def _get(self: Any, name: str) -> Any:
    strand = getcurrent()
    if type(strand) is not Strand or name == "__class__":
        return object.__getattribute__(self, name)
    return getattr(_twin(strand.process, self), name)


def _set(self: Any, name: str, value: Any) -> None:
    strand = getcurrent()
    if type(strand) is not Strand:
        object.__setattr__(self, name, value)
    else:
        setattr(_twin(strand.process, self), name, value)


def _special(kind: type, name: str) -> Any:
    original = getattr(kind, name)

    def call(self: Any, *args: Any) -> Any:
        strand = getcurrent()
        if type(strand) is not Strand:
            return original(self, *args)
        return original(_twin(strand.process, self), *args)

    call.__name__ = name
    return call


def _twin(process: Process, of: Any) -> Any:
    """What stands for an object in a process: as it was, but its locks and its waiters are new."""

    def make() -> Any:
        kind = type(of).__mro__[1]
        twin: Any = object.__new__(kind)
        process.memory.setdefault(_TWINS, {})[id(of)] = (of, twin)
        names: dict[str, Any] = object.__getattribute__(of, "__dict__")
        for name, value in names.items():
            object.__setattr__(twin, name, set() if name == "_threads" else _copied(process, value))
        return twin

    return _memo(process, of, make)


def _copied(process: Process, value: Any) -> Any:
    if type(value) in REAL_LOCKS:
        kind = SimLock if type(value) is REAL_LOCKS[0] else SimRLock
        return _memo(process, value, lambda: kind(process, (None, 0)))
    if isinstance(value, (SimLock, SimRLock)):
        return value  # converted already: one in each process
    if isinstance(value, BuiltinMethodType) and type(value.__self__) in REAL_LOCKS:
        return getattr(_copied(process, value.__self__), value.__name__)
    if type(value) is _SIMPLE_QUEUE:
        return _memo(process, value, lambda: queue._PySimpleQueue())  # type: ignore[attr-defined]
    if isinstance(value, _TWINNED):
        return _twin_of_part(process, value)
    if type(value) in (list, dict, set, deque):
        return value.copy()
    return value


def _twin_of_part(process: Process, value: Any) -> Any:
    """Of a condition within a queue: it has not been converted, and nobody else reaches it."""
    if vars(type(value)).get("__getattribute__") is _get:
        return _twin(process, value)

    def make() -> Any:
        twin: Any = object.__new__(type(value))
        for name, one in vars(value).items():
            setattr(twin, name, _copied(process, one))
        return twin

    return _memo(process, value, make)


def _entries(holder: Holder) -> list[tuple[Any, Any]]:
    """The places of a holder that can be written, by key."""
    value = holder.value
    match holder.kind:
        case "module" | "class":
            return list(vars(value).items())
        case "instance":
            return [(key, one) for key, one in instance_items(value) if key not in ("func", "args", "keywords")]
        case "dict":
            return list(value.items())
        case "list" | "deque":
            return list(enumerate(value))
        case "cell":
            try:
                return [(0, value.cell_contents)]
            except ValueError:
                return []
        case "function":
            return list(enumerate(value.__defaults__ or ()))
        case "set" | "bytes" | "state":
            return []


def _put(holder: Holder, key: Any, new: Any) -> None:
    value = holder.value
    match holder.kind:
        case "module":
            vars(value)[key] = new
        case "class":
            type.__setattr__(value, key, new)
        case "instance":
            object.__setattr__(value, key, new)
        case "dict" | "list" | "deque":
            value[key] = new
        case "cell":
            value.cell_contents = new
        case "function":
            value.__defaults__ = (*value.__defaults__[:key], new, *value.__defaults__[key + 1 :])
        case "set" | "bytes" | "state":
            raise AssertionError(f"{holder.kind} has no places")
