"""The user's code does not change: within a simulated process, time, chance, threads are the simulation's.

::

    with installed():                       # once for an exploration
        with Watchdog(report):              # a real thread, where a hanging step is to be found
            ...                             # runs; each process's main goes through `run_main`

Everything dispatches on `_world.current_process()`; outside of simulated processes nothing changes but
the cost of a call (some tenths of a microsecond).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from txbus_sim._interpose._chance import patch_chance
from txbus_sim._interpose._clocks import patch_clocks
from txbus_sim._interpose._files import FileModel, patch_files
from txbus_sim._interpose._imports import outside, patch_imports
from txbus_sim._interpose._intents import patch_intents
from txbus_sim._interpose._locks import patch_locks
from txbus_sim._interpose._patches import Patches
from txbus_sim._interpose._refusals import patch_refusals
from txbus_sim._interpose._switch import switch
from txbus_sim._interpose._system import patch_system, run_main
from txbus_sim._interpose._threads import patch_threads
from txbus_sim._interpose._watchdog import Watchdog
from txbus_sim._world import current_process
from txbus_sim.errors import SimulationError

__all__ = ["FileModel", "Watchdog", "install", "installed", "outside", "run_main", "uninstall", "unreached"]

_patches = Patches()
_depth = 0
_thread = 0


def install() -> None:
    """Put the stand-ins in place, for the calling thread's runs. Re-entrant: count with `uninstall`.

    Costs some tenths of a second: every object is looked at for references that were taken before.
    """
    global _depth, _thread
    if current_process() is not None:
        raise SimulationError("a simulation within a simulated process is not possible")
    if _depth:
        if threading.get_ident() != _thread:
            raise SimulationError("another thread runs a simulation; run simulations in processes of their own")
        _depth += 1
        return
    _thread = threading.get_ident()
    try:
        switch.install()
        patch_clocks(_patches)
        patch_chance(_patches)
        patch_imports(_patches)
        patch_locks(_patches)
        patch_threads(_patches)
        patch_system(_patches)
        patch_refusals(_patches)
        patch_files(_patches)
        patch_intents(_patches)
        _patches.swap_references()
    except BaseException:
        _patches.undo()
        switch.uninstall()
        raise
    _depth = 1


def uninstall() -> None:
    """Put everything back, when it was called as often as `install`. Nothing happens before `install`."""
    global _depth
    if _depth:
        _depth -= 1
        if not _depth:
            _patches.undo()
            switch.uninstall()


@contextmanager
def installed() -> Iterator[None]:
    """`install`, and `uninstall` at the end."""
    install()
    try:
        yield
    finally:
        uninstall()


def unreached() -> tuple[str, ...]:
    """Kinds of objects that hold an original function and could not be given the stand-in."""
    return tuple(_patches.unreached)
