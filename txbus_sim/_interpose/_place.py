"""Says no to what is not simulated: what, where, and what to do instead."""

from __future__ import annotations

from typing import NoReturn

from txbus_sim._sites import application_line
from txbus_sim._world import current_strand
from txbus_sim.errors import NotModelled

__all__ = ["refuse"]


def refuse(what: str, instead: str) -> NoReturn:
    """NotModelled, from within a simulated process; a dead one is unwound, as by any other call."""
    strand = current_strand()
    process = strand.process
    if process.world.closed or not process.alive:
        process.world.inert(strand)
    where = application_line() or "a line of a library"
    raise NotModelled(f"{what} is not simulated (process {process.key}, at {where}): {instead}")
