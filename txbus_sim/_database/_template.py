"""A database's schema, made once in a simulated process of its own and copied for each run."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txbus.stores.plugin import plugin
from txbus_sim._database._file import SERVER, SimFile
from txbus_sim._database._rows import Shapes
from txbus_sim._ports import world_ports
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.errors import SimulationError
from txbus_sim.faults import Faults
from txbus_sim.schedule import Deviation

__all__ = ["Template", "make", "same"]


@dataclass(frozen=True, slots=True)
class Template:
    """The content of a file with its schema, and the tables that tell their changes."""

    content: bytes
    shapes: Shapes


def make(name: str, schema: Any, folder: Path, serve: Callable[[World, SimFile], None]) -> Template:
    """Run ``schema`` on an empty database; ``serve`` has a world connect to a file.

    In a simulated process, so that what it draws and when it writes is the same in every worker.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = str(folder / f"{name}.db")
    connection = sqlite3.Connection(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF").close()
    connection.execute("PRAGMA journal_mode = WAL").close()
    world = World(_no_fault, limits=Limits(steps_max=10_000_000))
    file = SimFile(name, path, world, SERVER, Shapes())
    serve(world, file)
    # Named after the database: each has a chance of its own, so that no two ledgers have one identity.
    spec = ProcessSpec(f"schema-of-{name}", lambda process: _create(process, name, schema), restart_after_ns=None)
    process = world.start(spec)
    try:
        reason = world.run()
    finally:
        world.close()
        world.free()
    if process.error is not None:
        raise process.error
    if reason is not StopReason.FINISHED:
        raise SimulationError(
            f"database {name!r}: its schema is never finished ({reason.value}); what does it wait for?"
        )
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
    connection.close()
    assert file.shapes is not None
    with open(path, "rb") as made:
        template = Template(made.read(), file.shapes)
    assert not os.path.exists(f"{path}-wal")
    shutil.rmtree(folder)
    return template


def _create(process: Process, name: str, schema: Any) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite+sim:///{name}")
    # What a deployment does before a service starts; `Bus.open` verifies it.
    store = plugin.adapt(name, engine, world_ports(), lambda event: None)
    assert store is not None
    store.create_schema()
    if schema is not None:
        create = schema if callable(schema) else schema.create_all
        create(engine)
    engine.dispose()


def same(one: Any, other: Any) -> bool:
    """Whether two schemas are one, declared again: a scenario declares its databases in every run."""
    if one is other or one == other:
        return True
    code = getattr(one, "__code__", None)
    return code is not None and code is getattr(other, "__code__", None)


def _no_fault(process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
    return None
