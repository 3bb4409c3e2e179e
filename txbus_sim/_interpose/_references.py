"""Finds who holds an object and gives them another instead.

A function imported by name (``from time import sleep``), bound as a default argument, in a closure or
as a class attribute is a reference of its own; replacing the module's attribute does not change it.
The garbage collector knows every holder. Objects frozen by `gc.freeze`, and what C extensions hold
in memory the collector cannot see, are not found.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable
from types import (
    BuiltinFunctionType,
    CellType,
    ClassMethodDescriptorType,
    FrameType,
    FunctionType,
    GeneratorType,
    GenericAlias,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    TracebackType,
    WrapperDescriptorType,
)
from typing import Any

__all__ = ["Kept", "swap"]

_ROUNDS = 4
"""A tuple within a tuple within a default argument is as deep as anybody nests."""


class Kept:
    """Holds an object that `swap` is to leave alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


_LEFT_ALONE = (
    Kept,
    FrameType,
    GeneratorType,
    TracebackType,
    ModuleType,
    MethodType,
    BuiltinFunctionType,
    MethodDescriptorType,
    ClassMethodDescriptorType,
    WrapperDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MappingProxyType,
    GenericAlias,
    type,
)


def swap(olds: list[Any], news: list[Any], *, spared: Iterable[object] = (), back: bool = False) -> list[str]:
    """Give every holder of ``olds[i]`` ``news[i]``; what kinds of holders could not be changed.

    A set keeps the old one beside the new one (``back``: loses it), because membership is asked for
    either. ``spared`` containers are left as they are. Costs two passes over all objects (tenths of a
    second in a large program). Not thread-safe.
    """
    holding = {id(olds), id(news), *map(id, spared)}
    unchanged: set[str] = set()
    for _ in range(_ROUNDS):
        index = {id(old): new for old, new in zip(olds, news, strict=True)}
        holding.add(id(index))
        nested: list[tuple[Any, Any]] = []
        holding.add(id(nested))
        holders = gc.get_referrers(*olds)
        holding.add(id(holders))
        classes = _classes_of([one for one in holders if type(one) is dict and _like_a_class(one)], holding)
        for holder in holders:
            if id(holder) in holding or isinstance(holder, _LEFT_ALONE) or id(type(holder)) in index:
                continue
            kind = _give(holder, index, classes.get(id(holder)), nested, back)
            if kind:
                unchanged.add(kind)
        del holders
        if not nested:
            break
        olds, news = [old for old, _ in nested], [new for _, new in nested]
        holding |= {id(olds), id(news)}
    return sorted(unchanged)


def _like_a_class(names: dict[Any, Any]) -> bool:
    return "__module__" in names and "__doc__" in names


def _classes_of(dicts: list[dict[Any, Any]], holding: set[int]) -> dict[int, type]:
    """Which of these dicts are the namespaces of which classes."""
    if not dicts:
        return {}
    holding.add(id(dicts))
    wanted = {id(one) for one in dicts}
    found: dict[int, type] = {}
    for owner in gc.get_referrers(*dicts):
        if isinstance(owner, type):
            for held in gc.get_referents(owner):
                if id(held) in wanted:
                    found[id(held)] = owner
    return found


def _give(
    holder: Any, index: dict[int, Any], owner: type | None, nested: list[tuple[Any, Any]], back: bool
) -> str | None:
    """Change one holder; the name of its kind if that cannot be done."""
    if owner is not None:
        for name, value in list(holder.items()):
            if id(value) in index:
                # Through the type, so that its caches of attributes are told.
                type.__setattr__(owner, name, index[id(value)])
    elif isinstance(holder, dict):
        for key, value in list(holder.items()):
            if id(value) in index:
                dict.__setitem__(holder, key, index[id(value)])
    elif isinstance(holder, list):
        for number, value in enumerate(holder):
            if id(value) in index:
                holder[number] = index[id(value)]
    elif isinstance(holder, set):
        for value in [value for value in holder if id(value) in index]:
            if back:
                holder.discard(value)
            else:
                holder.add(index[id(value)])
    elif type(holder) is tuple:
        nested.append((holder, tuple(index.get(id(value), value) for value in holder)))
    elif isinstance(holder, CellType):
        holder.cell_contents = index[id(holder.cell_contents)]
    elif isinstance(holder, FunctionType):
        if id(holder.__defaults__) in index:
            holder.__defaults__ = index[id(holder.__defaults__)]
    elif isinstance(holder, (staticmethod, classmethod)):
        nested.append((holder, type(holder)(index[id(holder.__func__)])))
    elif isinstance(holder, functools.partial):
        _give_partial(holder, index)
    else:
        return _give_instance(holder, index)
    return None


def _give_partial(holder: Any, index: dict[int, Any]) -> None:
    arguments = index.get(id(holder.args), holder.args)
    state = (index.get(id(holder.func), holder.func), arguments, dict(holder.keywords), vars(holder) or None)
    holder.__setstate__(state)


def _give_instance(holder: Any, index: dict[int, Any]) -> str | None:
    """An object's attributes, wherever they are stored."""
    kind = type(holder)
    given = False
    try:
        names = object.__getattribute__(holder, "__dict__")
    except AttributeError:
        names = None
    if type(names) is dict:
        for name, value in list(names.items()):
            if id(value) in index:
                names[name] = index[id(value)]
                given = True
    for base in kind.__mro__:
        for slot in list(vars(base).values()):
            if type(slot) is MemberDescriptorType:
                try:
                    value = slot.__get__(holder)
                    if id(value) in index:
                        slot.__set__(holder, index[id(value)])
                        given = True
                except (AttributeError, TypeError):
                    # The slot is empty, or a read-only field of a C type.
                    continue
    return None if given else f"{kind.__module__}.{kind.__qualname__}"
