"""Two services over the simulated RocketMQ, run under any schedule, with their books checked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pydantic
import sqlalchemy as sa

from txbus import Bus, Topic
from txbus.errors import TxbusError
from txbus_sim import _interpose
from txbus_sim._database import Databases, SimDatabase
from txbus_sim._rocketmq.server import SIMULATED, RocketmqServer
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.dialects.rocketmq import Rules
from txbus_sim.faults import Faults
from txbus_sim.history import History, Visible
from txbus_sim.schedule import Address, Deviation, Schedule

__all__ = ["Shop", "ShopRun"]

_S = 1_000_000_000


class Placed(pydantic.BaseModel):
    number: int


class Billed(pydantic.BaseModel):
    number: int


PLACED = Topic("placed", Placed, partitions=2)
BILLED = Topic("billed", Billed, partitions=1)
meta = sa.MetaData()
ORDERS = sa.Table("orders", meta, sa.Column("number", sa.Integer, primary_key=True))
BILLS = sa.Table(
    "bills", meta, sa.Column("number", sa.Integer, primary_key=True, autoincrement=True), sa.Column("of", sa.Integer)
)


def tables(engine: sa.Engine) -> None:
    """The schema of each database: its business tables, and those of txbus."""
    from txbus._registry import adapt_database
    from txbus._system import system_ports

    meta.create_all(engine)
    adapt_database("shop", engine, system_ports(), lambda event: None).create_schema()


def order_service(database: str, url: str, orders: int) -> None:
    """Places orders until there are enough, then stays to answer the broker."""
    engine = sa.create_engine(database)
    bus = Bus(url, service="orders", databases={"shop": engine}, topics=[PLACED, BILLED], poll_s=2.0)
    with bus:
        while True:
            with engine.connect() as connection:
                number = connection.execute(sa.select(sa.func.count()).select_from(ORDERS)).scalar_one()
            if number >= orders:
                break
            try:
                with bus.transaction("shop") as tx:
                    tx.connection.execute(ORDERS.insert().values(number=number))
                    tx.send(PLACED, Placed(number=number))
                    tx.send(BILLED, Billed(number=number))
            except (TxbusError, sa.exc.SQLAlchemyError):
                time.sleep(0.5)  # whether it is there is looked up
        # Somebody of the service has to be there as long as the broker may ask.
        bus.run_relay()


def answering_service(database: str, url: str) -> None:
    """Another process of the order service, which only answers the broker."""
    with Bus(url, service="orders", databases={"shop": sa.create_engine(database)}, topics=[PLACED, BILLED]) as bus:
        bus.run_relay()


def bill_service(database: str, url: str) -> None:
    """Writes a bill for each order, once."""
    engine = sa.create_engine(database)
    bus = Bus(url, service="bills", databases={"bills": engine}, poll_s=2.0, lease_s=5.0)

    @bus.on(PLACED, scope="bill", database="bills")
    def bill(placed: Placed, connection: sa.Connection) -> None:
        connection.execute(BILLS.insert().values(of=placed.number))

    bus.open()
    bus.run()


@dataclass(frozen=True, slots=True)
class ShopRun:
    """What a run came to; ``wrong`` is empty if the books balance."""

    wrong: tuple[str, ...]
    reason: StopReason
    history: History
    steps: int
    unreached: tuple[str, ...] = ()


class Shop:
    """The scenario, run as often as asked."""

    def __init__(self, orders: int = 2, rules: Rules = SIMULATED) -> None:
        self.orders = orders
        self.rules = rules
        self._databases = Databases()

    @contextmanager
    def installed(self) -> Iterator[Shop]:
        """Runs are possible inside of this."""
        with _interpose.installed():
            shop = self._databases.define("shop", tables)
            bills = self._databases.define("bills", tables)
            self._defined = (shop, bills)
            yield self
        self._databases.close()

    def run(self, schedule: Schedule | None = None) -> ShopRun:
        """One run; the books are checked when everything has come to rest."""
        found = {deviation.address: deviation for deviation in schedule or Schedule()}
        reached: set[Address] = set()

        def tape(process: str, label: str, number: int, faults: Faults) -> Deviation | None:
            deviation = found.get(Address(process, label, number))
            if deviation is not None:
                reached.add(deviation.address)
            return deviation

        world = World(tape, limits=Limits(settle_ns=60 * _S))
        self._databases.begin_run(world)
        server = RocketmqServer(world, self.rules)
        shop, bills = self._defined
        try:
            for name, main in (
                ("orders", lambda: order_service(shop.url, server.url, self.orders)),
                ("answers", lambda: answering_service(shop.url, server.url)),
                ("bills", lambda: bill_service(bills.url, server.url)),
            ):
                world.start(ProcessSpec(name, _interposed(main)))
            reason = world.run()
            world.close()
            wrong = tuple(self._wrong(world.history, shop, bills))
        finally:
            world.close()
            world.free()
            self._databases.end_run()
        unreached = tuple(str(address) for address in found if address not in reached)
        return ShopRun(wrong, reason, world.history, world.steps, unreached)

    def _wrong(self, history: History, shop: SimDatabase, bills: SimDatabase) -> Iterator[str]:
        placed = {number for (number,) in shop.rows("SELECT number FROM orders")}
        billed = Counter(of for (of,) in bills.rows('SELECT "of" FROM bills'))
        visible: dict[str, set[int]] = {"placed": set(), "billed": set()}
        for record in history:
            if isinstance(record, Visible) and record.topic in visible:
                visible[record.topic].add(Placed.model_validate_json(record.payload).number)
        if len(placed) != self.orders:
            yield f"{len(placed)} orders of {self.orders}"
        for topic, numbers in visible.items():
            if placed - numbers:
                yield f"lost in {topic}: {sorted(placed - numbers)}"
            if numbers - placed:
                yield f"phantom in {topic}: {sorted(numbers - placed)}"
        if set(billed) != placed:
            yield f"orders {sorted(placed)}, bills {sorted(billed)}"
        doubled = sorted(number for number, times in billed.items() if times > 1)
        if doubled:
            yield f"billed twice: {doubled}"


def _interposed(main: Callable[[], None]) -> Callable[[Process], object]:
    return lambda process: _interpose.run_main(process, main)
