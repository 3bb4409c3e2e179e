"""A bus of one service over SQLite files and ``memory://``, for tests of the bus as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, func, select

from txbus import Bus, Topic
from txbus.events import Event
from txbus.testing import TestBus, memory_url

metadata = MetaData()
sales = Table("sales", metadata, Column("id", Integer, primary_key=True), Column("sku", String, nullable=False))


class Order(pydantic.BaseModel):
    sku: str
    customer: str = "ada"


class Reserved(pydantic.BaseModel):
    sku: str


orders = Topic("orders", Order, key=lambda order: order.customer)
reserved = Topic("reserved", Reserved)


def engine_at(path: Path) -> Engine:
    """A SQLite file with the table of sales, in WAL mode."""
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")

    metadata.create_all(engine)
    return engine


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(sales)) or 0


@dataclass
class Floor:
    """An open bus with its engines, its events, and what drives it."""

    bus: Bus
    engines: dict[str, Engine]
    url: str
    events: list[Event] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return next(iter(self.engines.values()))

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @contextmanager
    def working(self) -> Iterator[TestBus]:
        with TestBus(self.bus) as test:
            yield test


@contextmanager
def floor(
    folder: Path,
    declare: Callable[[Bus], None] | None = None,
    databases: tuple[str, ...] = ("shop",),
    url: str | None = None,
    **settings: Any,
) -> Iterator[Floor]:
    """Open a bus of the service ``shop``; check-back is quick, so that tests do not wait for it."""
    engines = {name: engine_at(folder / f"{name}.db") for name in databases}
    url = url or memory_url()
    quick = {"create_schema": True, "check_after_s": 0.1, "check_interval_s": 0.05, "poll_s": 0.05, "lease_s": 2.0}
    bus = Bus(
        url,
        service="shop",
        databases=engines,
        topics=[orders, reserved],
        **{**quick, **settings},
    )
    made = Floor(bus, engines, url)
    bus.subscribe(made.events.append)
    if declare is not None:
        declare(bus)
    try:
        with bus:
            yield made
    finally:
        for engine in engines.values():
            engine.dispose()


def skus(engine: Engine) -> list[str]:
    """What was sold, in the order in which it was committed."""
    with engine.connect() as connection:
        return list(connection.execute(select(sales.c.sku).order_by(sales.c.id)).scalars())


def until(condition: Callable[[], object], patience_s: float = 20.0) -> None:
    """Wait until it holds; the patience is only there to end a broken test."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.005)
