"""What is changed while the simulation's stand-ins are installed, and how it is put back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from greenlet import getcurrent

from txbus_sim._interpose._references import Kept, swap
from txbus_sim._world import Strand

__all__ = ["Patches", "stand_in", "stand_in_class"]

_ABSENT = object()


def stand_in(call: Callable[..., Any], original: Callable[..., Any]) -> Any:
    """What stands where ``original`` stood: ``call(original, *arguments)``.

    A bound method: as a class attribute it does not take the instance for its first argument, which
    is how a function of C behaves, too.
    """
    return MethodType(call, original)


def stand_in_class(original: type, make: Callable[..., Any], kinds: tuple[type, ...], base: type = object) -> type:
    """What stands where the class ``original`` stood.

    Called within a simulated process it is ``make(*arguments)``, elsewhere ``original(*arguments)``;
    instances of ``original`` and of ``kinds`` are its instances. ``base``: of those who derive from it.
    """
    kept = Kept(original)

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls is not made:
                return super().__call__(*args, **kwargs)
            return make(*args, **kwargs) if type(getcurrent()) is Strand else kept.value(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            if cls is made:
                return isinstance(instance, (kept.value, *kinds))
            return super().__instancecheck__(instance)

        def __getattr__(cls, name: str) -> Any:
            return getattr(kept.value, name)

    made = Meta(original.__name__, (base,), {"__module__": original.__module__, "__doc__": original.__doc__})
    return made


def _dispatching(*args: Any, **kwargs: Any) -> Any:
    # The constant is replaced by what is to be called: the code then needs no global of its module.
    target: Any = "what is to be called"
    return target(*args, **kwargs)


class Patches:
    """Changes of an interpreter, put back in reverse. Not thread-safe."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._originals: list[Kept] = []
        self._stand_ins: list[Kept] = []
        self.unreached: list[str] = []
        """Kinds of objects that hold an original and could not be given the stand-in."""

    def attribute(self, owner: Any, name: str, new: Any) -> None:
        """Set an attribute of a class or module."""
        old = vars(owner).get(name, _ABSENT)
        setattr(owner, name, new)

        def undo() -> None:
            if vars(owner).get(name, _ABSENT) is not new:
                return  # somebody else has changed it since; it is theirs
            if old is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, old)

        self._undo.append(undo)

    def method(self, owner: type, name: str, call: Callable[..., Any]) -> None:
        """Have a method of a class call ``call(original, self, *arguments)``."""
        original = getattr(owner, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(original, self, *args, **kwargs)

        method.__name__ = name
        method.__qualname__ = f"{owner.__qualname__}.{name}"
        method.__doc__ = original.__doc__
        self.attribute(owner, name, method)

    def code(self, function: Any, call: Callable[..., Any]) -> None:
        """Have a function written in Python do ``call(original, *arguments)``, whoever holds it."""
        old = function.__code__
        original = FunctionType(old, function.__globals__, function.__name__, function.__defaults__)
        original.__kwdefaults__ = function.__kwdefaults__
        template = _dispatching.__code__
        target = MethodType(call, original)
        function.__code__ = template.replace(
            co_consts=tuple(target if one == "what is to be called" else one for one in template.co_consts),
            co_name=function.__name__,
        )

        def undo() -> None:
            function.__code__ = old

        self._undo.append(undo)

    def undo_with(self, call: Callable[[], None]) -> None:
        self._undo.append(call)

    def replace(self, original: Any, new: Any) -> None:
        """Give every holder of ``original`` ``new``, when `swap_references` is called."""
        self._originals.append(Kept(original))
        self._stand_ins.append(Kept(new))

    def function(self, original: Any, call: Callable[..., Any]) -> None:
        """Have a function of C do ``call(original, *arguments)`` for every holder found."""
        self.replace(original, stand_in(call, original))

    def swap_references(self) -> None:
        self.unreached = self._swap(self._originals, self._stand_ins)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._swap(self._stand_ins, self._originals, back=True)
        self._originals.clear()
        self._stand_ins.clear()

    def _swap(self, olds: list[Kept], news: list[Kept], back: bool = False) -> list[str]:
        # importlib writes its caches through the system's own module: that one stays as it is, and so
        # do those who make the stand-ins.
        spared = [
            vars(module)
            for name, module in list(sys.modules.items())
            if name in ("posix", "nt") or name.startswith(__package__)
        ]
        return swap([one.value for one in olds], [one.value for one in news], spared=spared, back=back)
