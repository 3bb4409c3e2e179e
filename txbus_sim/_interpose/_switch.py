"""What changes hands when control passes from one strand to another.

All strands run in one thread of the operating system: what Python keeps per thread (see `_locals`) is
exchanged at each switch. So are the entries of ``sys.modules`` that belong to one incarnation of a
process, when control passes to another process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import greenlet

from txbus_sim._interpose._locals import Locals, thread_locals
from txbus_sim._world import Strand

__all__ = ["Modules", "Switch", "switch"]

_MODULES = "modules"


class Modules:
    """The application's modules of one incarnation of a process, by name."""

    __slots__ = ("loaded",)

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        """None: its import has begun."""


class Switch:
    """Follows every change of the running greenlet in the thread that installed it."""

    def __init__(self) -> None:
        self.current: Strand | None = None
        """The strand that is running, None for everything outside of simulated processes."""
        self.is_application: Callable[[str], bool] = lambda name: False
        self._outside: dict[object, Any] = {}
        self._locals: Locals | None = None
        self._modules: Modules | None = None
        self._hidden: dict[str, Any] = {}
        self._before: Any = None

    def install(self) -> None:
        self._locals = thread_locals()
        self._before = greenlet.settrace(self._switched)

    def uninstall(self) -> None:
        assert self.current is None, "uninstalled within a simulated process"
        greenlet.settrace(self._before)
        self._locals = self._before = None

    def _switched(self, event: str, greenlets: tuple[Any, Any]) -> None:
        new = greenlets[1] if type(greenlets[1]) is Strand else None
        old = self.current
        if new is not old:
            self.current = new
            outside = self._outside
            self._locals.exchange(  # type: ignore[union-attr]
                outside if old is None else old.values, outside if new is None else new.values
            )
            modules = None if new is None else new.process.memory.get(_MODULES)
            if modules is not self._modules:
                self._change_modules(modules)
        if self._before is not None:
            self._before(event, greenlets)

    def drop_locals(self) -> None:
        """The running thread is at its end: what it kept goes now, as part of it."""
        strand = self.current
        if strand is not None and strand.process.alive and not strand.process.world.closed:
            self._locals.exchange({}, {})  # type: ignore[union-attr]

    def begin_modules(self) -> Modules:
        """The running process gets modules of its own from here on."""
        assert self.current is not None
        modules = Modules()
        self.current.process.memory[_MODULES] = modules
        self._change_modules(modules)
        return modules

    @property
    def modules(self) -> Modules | None:
        """Those of the running process, None if it uses everybody's."""
        return self._modules

    def _change_modules(self, new: Modules | None) -> None:
        everybody, old = sys.modules, self._modules
        if old is None:
            self._hidden = {name: everybody[name] for name in list(everybody) if self.is_application(name)}
            for name in self._hidden:
                del everybody[name]
        else:
            old.loaded = {name: everybody.pop(name, None) for name in old.loaded}
        self._modules = new
        if new is None:
            everybody.update(self._hidden)
            self._hidden = {}
        else:
            everybody.update((name, module) for name, module in new.loaded.items() if module is not None)


switch = Switch()
"""Of this interpreter: greenlet has one trace function a thread."""
