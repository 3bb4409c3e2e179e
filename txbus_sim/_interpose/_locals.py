"""What `threading.local` shows, of any class and whenever it was made, follows the running strand.

CPython keeps it in the state of the system's thread, and all strands run in one: until 3.12 in that
thread's dictionary, whose content is exchanged here; since 3.13 under a key whose pointer is. The
place of the pointer is looked for and tried out before it is used.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from typing import Any, Protocol, cast

from txbus_sim.errors import SimulationError

__all__ = ["Locals", "thread_locals"]

_KEPT = "thread-locals"
_WORD = ctypes.sizeof(ctypes.c_void_p)
_WORDS_MAX = 200


class Locals(Protocol):
    """Exchanges what the thread keeps."""

    def exchange(self, old: dict[object, Any], new: dict[object, Any]) -> None:
        """Put away what is there in ``old``, and put there what was put away in ``new``."""
        ...


def thread_locals() -> Locals:
    """Of the calling thread. SimulationError where an interpreter keeps them in a place unknown."""
    if sys.implementation.name == "cpython":
        made: Locals | None = _InDict() if sys.version_info < (3, 13) else _InKeys.found()
        if made is not None and _works(made):
            return made
    raise SimulationError(
        f"where threading.local is kept is not known for {sys.implementation.name} {sys.version.split()[0]}: "
        "simulate on CPython 3.11, 3.12 or 3.13"
    )


def _works(tried: Locals) -> bool:
    probe = threading.local()
    probe.value = 1
    mine: dict[object, Any] = {}
    other: dict[object, Any] = {}
    tried.exchange(mine, other)
    gone = not hasattr(probe, "value")
    probe.value = 2
    tried.exchange(other, mine)
    back = getattr(probe, "value", None) == 1
    tried.exchange(mine, other)
    kept = getattr(probe, "value", None) == 2
    tried.exchange(other, mine)
    return gone and back and kept


class _InDict:
    def __init__(self) -> None:
        call = ctypes.pythonapi.PyThreadState_GetDict
        call.restype = ctypes.c_void_p  # the reference is borrowed
        self._mine: dict[Any, Any] = ctypes.cast(call(), ctypes.py_object).value

    def exchange(self, old: dict[object, Any], new: dict[object, Any]) -> None:
        mine = self._mine
        if mine:
            saved = mine.copy()
            mine.clear()
            old[_KEPT] = saved
        found = new.pop(_KEPT, None)
        if found:
            mine.update(found)


class _Pair:
    """The key and the sentinel of a strand that is away; its locals go when it goes."""

    __slots__ = ("key", "sentinel")

    def __init__(self, key: int, sentinel: int) -> None:
        self.key = key
        self.sentinel = sentinel

    def __del__(self) -> None:
        for address in (self.key, self.sentinel):
            if address:
                _release(ctypes.c_void_p(address))


_release = ctypes.pythonapi.Py_DecRef
_release.argtypes = [ctypes.c_void_p]
_release.restype = None


class _InKeys:
    def __init__(self, address: int) -> None:
        self._words: Any = (ctypes.c_size_t * 2).from_address(address)

    @classmethod
    def found(cls) -> Locals | None:
        probe = threading.local()
        probe.value = 1
        dicts = [one for one in gc.get_referents(probe) if type(one) is dict]
        keys = [key for one in dicts for key in one if type(key).__name__ == "_localdummy"]
        if len(keys) != 1:
            return None
        state = ctypes.pythonapi.PyThreadState_Get
        state.restype = ctypes.c_void_p
        begin = cast(int, state())
        for number in range(_WORDS_MAX):
            address = begin + number * _WORD
            if ctypes.c_size_t.from_address(address).value == id(keys[0]):
                return cls(address)
        return None

    def exchange(self, old: dict[object, Any], new: dict[object, Any]) -> None:
        words = self._words
        key = words[0]
        if key:
            old[_KEPT] = _Pair(key, words[1])
        found = new.pop(_KEPT, None)
        if found is None:
            if key:
                words[0] = words[1] = 0
        else:
            words[0] = found.key
            words[1] = found.sentinel
            found.key = found.sentinel = 0
