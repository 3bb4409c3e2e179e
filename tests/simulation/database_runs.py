"""Runs plain functions as simulated processes over simulated databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from txbus_sim._database import Databases, SimDatabase
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.errors import NotModelled
from txbus_sim.faults import Faults
from txbus_sim.history import LocalCommitted, LocalRolledBack
from txbus_sim.schedule import Address, Deviation

S = 1_000_000_000
Main = Callable[[Process], object]


class Base(DeclarativeBase):
    """What the tests' applications store."""


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    cents: Mapped[int]


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(sa.String(40))
    cents: Mapped[int]


def fill(engine: sa.Engine) -> None:
    """The tables, and two accounts."""
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(sa.insert(Account), [{"name": "ann", "cents": 100}, {"name": "bob", "cents": 0}])


class DatabaseRun:
    """One run over the databases that are defined. Open until the context ends, so that checks see it."""

    def __init__(self, databases: Databases, schedule: str = "") -> None:
        self._databases = databases
        self._deviations = {one.address: one for one in map(Deviation.parse, schedule.strip().splitlines())}
        self.reached: list[Address] = []
        self.world = World(self._tape, limits=Limits(settle_ns=100 * S, steps_max=50_000, raises_max=3))
        self.reason: StopReason | None = None

    def _tape(self, process: str, label: str, number: int, faults: Faults) -> Deviation | None:
        self.reached.append(Address(process, label, number))
        return self._deviations.get(self.reached[-1])

    def __call__(self, **mains: Main) -> DatabaseRun:
        """What a process raised comes out, unless the schedule has faults."""
        NotModelled.raised.clear()
        for name, main in mains.items():
            self.world.start(ProcessSpec(name, main))
        self.reason = self.world.run()
        self.world.close()
        if not self._deviations:
            for process in self.world.processes:
                if process.error is not None:
                    raise process.error
        return self

    def __enter__(self) -> DatabaseRun:
        self._databases.begin_run(self.world)
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()
        self.world.free()
        self._databases.end_run()

    @property
    def labels(self) -> list[str]:
        return [point.label for point in self.world.history.points()]

    @property
    def ended(self) -> list[LocalCommitted | LocalRolledBack]:
        return [one for one in self.world.history if isinstance(one, LocalCommitted | LocalRolledBack)]


@contextmanager
def databases(schema: Any = fill) -> Iterator[tuple[Databases, SimDatabase]]:
    """The databases of a test, with one named ``shop``."""
    made = Databases()
    try:
        yield made, made.define("shop", schema)
    finally:
        made.close()
