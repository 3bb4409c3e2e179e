"""The embedded broker runs as it is within simulated processes, on a file of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pydantic
import pytest
import sqlalchemy as sa

from tests.simulation.database_runs import S
from txbus import Bus, Topic
from txbus.embedded import hub
from txbus_sim import _interpose
from txbus_sim._database import Databases, SimDatabase, interposed
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.faults import Faults
from txbus_sim.schedule import Address, Deviation


class Placed(pydantic.BaseModel):
    number: int


PLACED = Topic("placed", Placed, partitions=2)
META = sa.MetaData()
ORDERS = sa.Table("orders", META, sa.Column("number", sa.Integer, primary_key=True))
BILLS = sa.Table("bills", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("number", sa.Integer))
ORDERS_MAX = 3


def place_orders(database: str, url: str) -> None:
    """Stores each order once, with a message; then relays for ever."""
    engine = sa.create_engine(database)
    with Bus(url, service="orders", databases={"shop": engine}, topics=[PLACED], poll_s=2.0) as bus:
        for number in range(ORDERS_MAX):
            with engine.connect() as connection:
                placed = connection.scalar(sa.select(ORDERS.c.number).where(ORDERS.c.number == number))
            if placed is None:
                with bus.transaction("shop") as tx:
                    tx.connection.execute(ORDERS.insert().values(number=number))
                    tx.send(PLACED, Placed(number=number))
        bus.run_relay()


def bill_orders(database: str, url: str) -> None:
    """Writes a bill for each message, under the inbox."""
    engine = sa.create_engine(database)
    bus = Bus(url, service="bills", databases={"bills": engine}, topics=[PLACED], poll_s=2.0, lease_s=5.0)

    @bus.on(PLACED, scope="bill", database="bills")
    def bill(placed: Placed, connection: sa.Connection) -> None:
        connection.execute(BILLS.insert().values(number=placed.number))

    bus.open()
    bus.run()


class Shop:
    """The two services over one bus file, run under any schedule."""

    def __init__(self, databases: Databases, scheme: str = "embedded") -> None:
        self._databases = databases
        self.shop: SimDatabase = databases.define("shop", META)
        self.bills: SimDatabase = databases.define("bills", META)
        self.url = f"embedded://{databases.folder}/bus.db?wake_poll_s=0.25"
        self.reached: list[Address] = []

    def run(self, schedule: str = "") -> tuple[list[int], list[int], World]:
        """The numbers ordered and those billed, when the run is at rest."""
        deviations = {one.address: one for one in map(Deviation.parse, schedule.strip().splitlines())}
        self.reached = []

        def tape(process: str, label: str, number: int, faults: Faults) -> Deviation | None:
            self.reached.append(Address(process, label, number))
            return deviations.get(self.reached[-1])

        world = World(tape, limits=Limits(settle_ns=30 * S))
        self._databases.begin_run(world)
        try:
            self._start(world, "orders", partial(place_orders, self.shop.url, self.url))
            self._start(world, "bills", partial(bill_orders, self.bills.url, self.url))
            reason = world.run()
            errors = [process.error for process in world.processes if process.error is not None]
            assert not errors or schedule, errors
            assert reason is StopReason.QUIET, reason
            world.close()
            placed = [number for (number,) in self.shop.rows("SELECT number FROM orders ORDER BY number")]
            billed = [number for (number,) in self.bills.rows("SELECT number FROM bills ORDER BY number")]
            return placed, billed, world
        finally:
            world.close()
            world.free()
            self._databases.end_run()

    def _start(self, world: World, name: str, main: Callable[[], None]) -> None:
        def life(process: Process) -> None:
            _interpose.run_main(process, main)

        world.start(ProcessSpec(name, life))


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with ExitStack() as stack:
        databases = Databases()
        stack.callback(databases.close)
        stack.enter_context(_interpose.installed())
        stack.enter_context(interposed())
        yield Shop(databases)


def test_orders_are_billed(shop: Shop) -> None:
    """Ledger, half log, relay, consumer and inbox over the embedded broker, with nothing changed."""
    placed, billed, _ = shop.run()
    assert placed == billed == list(range(ORDERS_MAX))


def test_its_points_are_what_it_makes_durable(shop: Shop) -> None:
    """A transaction of the broker is one point, named after what it stores; its reads are none, and a
    member's heartbeats don't keep a run from ending."""
    _, _, world = shop.run()
    labels = {point.label for point in world.history.points() if point.label.startswith("embedded.")}
    assert {"embedded.commit:bus.records", "embedded.commit:bus.positions", "embedded.commit:bus.topics"} <= labels
    assert all(label.startswith("embedded.commit:bus") for label in labels)
    assert world.now_ns < 60 * S


def test_crash_at_every_commit_of_the_broker_loses_and_doubles_nothing(shop: Shop) -> None:
    """Killed before or after each thing that the broker stores, and started anew: each order has its bill."""
    shop.run()
    addresses = [one for one in shop.reached if one.label.startswith("embedded.") and "members" not in one.label]
    assert len(addresses) >= 10
    for address in addresses:
        for word in ("crash-before", "crash-after", "fail"):
            placed, billed, _ = shop.run(f"{address} {word}")
            assert placed == billed == list(range(ORDERS_MAX)), (address, word)


def test_writer_that_holds_the_file_makes_others_retry(shop: Shop) -> None:
    """Its own retry loop runs in virtual time: busy comes at once, as its ``timeout=0`` asks."""
    shop.run()
    first = next(one for one in shop.reached if one.label == "embedded.commit:bus.records")
    placed, billed, world = shop.run(f"{first} delay 3s")
    assert placed == billed == list(range(ORDERS_MAX))
    sleeps = [one for one in world.history.points() if one.label == "clock.sleep" and one.process == "bills"]
    assert len(sleeps) > 1_000


def test_crashed_processes_leave_no_hub(shop: Shop) -> None:
    """The registry of hubs is empty after a run in which processes crashed with their bus open."""
    shop.run("bills/embedded.commit:bus.positions#1 crash-before")
    assert not hub._HUBS


def test_forgetting_a_process_keeps_the_others() -> None:
    """Only the hubs of the process that is gone are dropped; a living one finds its own again."""

    from txbus._system import system_ports

    runtime = system_ports().runtime
    mine = hub.enter_hub("some.db", runtime)
    try:
        hub.forget_process(mine.key[1] + 1)
        assert hub.enter_hub("some.db", runtime) is mine
        hub.forget_process(mine.key[1])
        other = hub.enter_hub("some.db", runtime)
        assert other is not mine
    finally:
        hub.forget_process(mine.key[1])


def test_same_run_twice(shop: Shop) -> None:
    """Two runs of one schedule have the same history, though they share an interpreter."""
    schedule = "orders/embedded.commit:bus.records#2 crash-after"
    first, second = shop.run(schedule)[2], shop.run(schedule)[2]
    assert list(map(str, first.history)) == list(map(str, second.history))
