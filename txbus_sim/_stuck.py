"""Who waits for whom when nothing goes on any more."""

from __future__ import annotations

from types import FrameType

from txbus_sim._sites import is_library
from txbus_sim._world import Strand, World
from txbus_sim.result import Verdict, VerdictKind

__all__ = ["deadlock", "who_waits"]


def deadlock(world: World) -> Verdict | None:
    """A verdict if strands wait for one another in a circle, for ever."""
    for start in _waiting(world):
        path: list[Strand] = []
        strand: Strand | None = start
        while strand is not None and strand not in path and strand.wait is not None and not strand.ended:
            path.append(strand)
            strand = strand.wait.owner
        if strand is not None and strand is start and path:
            circle = " -> ".join(f"{one.process.key}:{one.name}" for one in (*path, start))
            return Verdict(
                VerdictKind.STUCK,
                "deadlock",
                f"{len(path)} threads wait for one another for ever: {circle}",
                tuple(_line(one) for one in path),
            )
    return None


def who_waits(world: World) -> Verdict:
    """Everybody waits and nobody is left who could wake them."""
    waiting = _waiting(world)
    names = ", ".join(f"{one.process.key}:{one.name}" for one in waiting[:3])
    return Verdict(
        VerdictKind.STUCK,
        "stuck",
        f"nothing can go on: {names}{' and others' if len(waiting) > 3 else ''} wait for ever",
        tuple(_line(one) for one in waiting),
    )


def _waiting(world: World) -> list[Strand]:
    return [
        strand
        for process in world.processes
        if process.alive
        for strand in process.strands
        if strand.wait is not None and not strand.ended
    ]


def _line(strand: Strand) -> str:
    wait = strand.wait
    assert wait is not None
    owner = f", held by {wait.owner.process.key}:{wait.owner.name}" if wait.owner is not None else ""
    return f"{strand.process.key}:{strand.name} waits for {wait.what}{owner} at {_place(strand.frame)}"


def _place(frame: FrameType | None) -> str:
    """The innermost line of the application, else of anybody."""
    innermost = frame
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = frame.f_back
    shown = frame or innermost
    return f"{shown.f_code.co_filename}:{shown.f_lineno}" if shown is not None else "an unknown place"
