"""The history of a run on the embedded broker is what its file holds, and checkers can judge by it."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, create_engine, insert, select

from txbus import Bus, Topic
from txbus.embedded.log import EmbeddedLog
from txbus.embedded.plugin import plugin
from txbus.embedded.receiver import EmbeddedReceiver
from txbus.embedded.records import RecordWriter
from txbus.spi import Backend, BackendURL, Envelope, Ports, Subscription, TopicKind, TopicSpec
from txbus_sim import _interpose
from txbus_sim._ports import world_ports
from txbus_sim._runner import Runner, RunnerOptions, Scenario
from txbus_sim.checkers import Effect, Pair
from txbus_sim.exploration import crash_everywhere
from txbus_sim.faults import Fault
from txbus_sim.history import Acknowledged, Delivered, History, PositionCommitted, Read, Stored, Visible
from txbus_sim.result import RunResult
from txbus_sim.schedule import Deviation, Schedule
from txbus_sim.simulation import Broker, Simulation

T = TypeVar("T")


class Placed(pydantic.BaseModel):
    id: str
    customer: str


PLACED = Topic("placed", Placed, key=lambda placed: placed.customer)
SHOP, STOCK = MetaData(), MetaData()
ORDERS = Table("orders", SHOP, Column("id", String, primary_key=True))
RESERVED = Table("reserved", STOCK, Column("number", Integer, primary_key=True), Column("order_id", String))
WANTED = [Placed(id=f"o-{number}", customer=customer) for number, customer in enumerate(("ada", "bob", "ada"))]
FAST: dict[str, Any] = {
    "half_partitions": 2,
    "lease_s": 6.0,
    "send_timeout_s": 2.0,
    "half_timeout_s": 2.0,
    "broker_transaction_timeout_s": 5.0,
}


def place_orders(database: str, url: str, in_transaction: bool) -> None:
    """Places each order once; outside of a transaction it publishes after its commit, which is wrong."""
    engine = create_engine(database)
    with Bus(url, service="shop", databases={"shop": engine}, topics=[PLACED], **FAST) as bus:
        for order in WANTED:
            with engine.connect() as connection:
                if connection.execute(select(ORDERS).where(ORDERS.c.id == order.id)).first():
                    continue
            if in_transaction:
                with bus.transaction("shop") as tx:
                    tx.connection.execute(insert(ORDERS).values(id=order.id))
                    tx.send(PLACED, order)
                continue
            with engine.begin() as connection:
                connection.execute(insert(ORDERS).values(id=order.id))
            bus.send(PLACED, order)
        threading.Event().wait()


def reserve_stock(database: str, url: str) -> None:
    engine = create_engine(database)
    bus = Bus(url, service="stock", databases={"stock": engine}, relay="outside", **FAST)

    @bus.on(PLACED, scope="reserve", database="stock")
    def reserve(placed: Placed, connection: Connection) -> None:
        connection.execute(insert(RESERVED).values(order_id=placed.id))

    with bus:
        bus.run()


def shop(sim: Simulation) -> None:
    """Two services that are right."""
    database = sim.database("shop", SHOP.create_all)
    stock = sim.database("stock", STOCK.create_all)
    sim.topic("placed", 2)
    sim.settle_s = 15.0
    sim.process("orders", place_orders, database.url, sim.broker_url, True)
    sim.process("stock", reserve_stock, stock.url, sim.broker_url)
    if sim.broker == "embedded":
        sim.at_end(lambda: compare(sim.history, bus_file(sim)), "the history is the file")


def publishes_after_commit(sim: Simulation) -> None:
    """A service that loses messages."""
    database = sim.database("shop", SHOP.create_all)
    sim.settle_s = 15.0
    sim.process("orders", place_orders, database.url, sim.broker_url, False)


def bus_file(sim: Simulation) -> Path:
    return Path(sim.broker_url.removeprefix("embedded://").partition("?")[0])


def compare(history: History, path: Path) -> None:
    """Every record and every position of the file are in the history, and nothing else is."""
    file = sqlite3.connect(path)
    names = {
        ident: (topic, number)
        for ident, topic, number in file.execute(
            "SELECT p.id, t.name, p.number FROM partitions p JOIN topics t ON t.id = p.topic"
        )
    }
    held = {}
    for ident, key, headers, payload in file.execute("SELECT id, key, headers, payload FROM records"):
        told = json.loads(headers)
        held[*names[ident >> 40], ident & (1 << 40) - 1] = (told.get("ce_id", ""), key, payload, told)
    positions = {
        (group, *names[ident]): position
        for group, ident, position in file.execute("SELECT group_name, partition, position FROM positions")
    }
    file.close()
    visible = of(history, Visible)
    assert held == {
        (v.topic, v.partition, v.offset): (v.message_id, v.key, v.payload, dict(v.headers)) for v in visible
    }
    assert len(held) == len(visible)
    assert [(s.topic, s.partition, s.offset, s.message_id, s.key) for s in of(history, Stored)] == [
        (v.topic, v.partition, v.offset, v.message_id, v.key) for v in visible
    ]
    assert positions == {(p.group, p.topic, p.partition): p.offset for p in of(history, PositionCommitted)}


def of(history: History, kind: type[T]) -> list[T]:
    return [record for record in history if isinstance(record, kind)]


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    with _interpose.installed():
        yield


@pytest.fixture(scope="module")
def right() -> Iterator[Runner]:
    with Runner(shop, RunnerOptions(broker="embedded")) as runner:
        yield runner


def learned(broker: Broker) -> list[tuple[object, ...]]:
    with Runner(shop, RunnerOptions(broker=broker)) as runner:
        assert runner().passed
        found = runner._learned or ()
    pairs = [("pair", p.table, p.column, p.topic, p.field) for p in found if isinstance(p, Pair)]
    effects = [("effect", e.topic, e.field, e.table, e.column, e.rows, e.group) for e in found if isinstance(e, Effect)]
    return [*pairs, *effects]


def run_on_spi(main: Callable[[Backend, Ports], None]) -> RunResult:
    """One process that uses the broker by its SPI, topic ``t`` with one partition."""

    def process(url: str) -> None:
        location, _, _ = url.removeprefix("embedded://").partition("?")
        ports = world_ports()
        backend = plugin.create(BackendURL("embedded", location), ports)
        backend.open()
        backend.admin().create([TopicSpec("t", 1, TopicKind.PLAIN)])
        main(backend, ports)
        backend.close()

    def scenario(sim: Simulation) -> None:
        sim.process("one", process, sim.broker_url)

    return result_of(scenario)


def result_of(scenario: Scenario) -> RunResult:
    with Runner(scenario, RunnerOptions(broker="embedded")) as runner:
        result = runner()
    assert result.passed, result.verdict
    return result


def test_rows_and_messages_are_learned_as_on_kafka() -> None:
    """Of one shop, the same pair and the same effect are learned on both brokers."""
    found = learned("embedded")
    assert {kind for kind, *_ in found} == {"pair", "effect"}
    assert found == learned("kafka")


def test_history_is_the_file_under_crashes_at_every_commit(right: Runner) -> None:
    """Records and positions are told once, with or without the answer; what was not committed is not told."""
    points = [point for point in right().history.points() if point.label.startswith("embedded.commit")]
    stores = [point for point in points if point.label.rpartition(".")[2] in ("records", "positions")]
    assert len(stores) >= 8
    for point in stores:
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.FAIL):
            result = right(Schedule((Deviation(point.address, fault),)))
            assert result.passed, (point.address, fault, result.verdict)


def test_uncommitted_records_are_not_told(right: Runner) -> None:
    """A crash before the first commit of records leaves them out, one after it tells them."""
    first = next(p for p in right().history.points() if p.label == "embedded.commit:bus.records")
    told = {}
    for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
        history = right(Schedule((Deviation(first.address, fault),))).history
        told[fault] = [s.process for s in of(history, Stored) if s.process == first.process]
    assert not told[Fault.CRASH_BEFORE] and told[Fault.CRASH_AFTER]


def test_right_shop_is_not_accused(right: Runner) -> None:
    """A fault at the first occurrence of each operation of the broker's file is no verdict."""
    points = {(p.process, p.label): p for p in reversed(right().history.points()) if p.label.startswith("embedded.")}
    runs = 0
    for point in points.values():
        for fault in point.faults:
            amount = 90_000_000_000 if fault in (Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER) else 1_000_000_000
            amount = amount if fault in (Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY) else 0
            result = right(Schedule((Deviation(point.address, fault, amount),)))
            assert result.passed, (point.address, fault, result.verdict)
            runs += 1
    assert runs > 20


def test_publishing_after_the_commit_is_found() -> None:
    """A message that a crash between the two commits loses is a verdict of ``no-loss``."""
    with Runner(publishes_after_commit, RunnerOptions(broker="embedded")) as runner:
        found = crash_everywhere(runner, second_faults=False, failures_max=1)
    assert found.verdict is not None and found.verdict.name == "no-loss", found.verdict


def test_receipts_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that answers with receipts and writes nothing has stored nothing."""

    def send(backend: Backend, ports: Ports) -> None:
        receipts = backend.sender("g").send([Envelope("t", b"x", None, {"ce_id": "1"})], 1.0)
        assert receipts[0].offset == 0

    assert [s.message_id for s in of(run_on_spi(send).history, Stored)] == ["1"]
    monkeypatch.setattr(RecordWriter, "flush", lambda self: None)
    assert not of(run_on_spi(send).history, Stored)


def test_delayed_message_is_told_when_it_is_moved() -> None:
    """It has no offset before its time; who sent it is its process, whoever moved it."""

    def send(url: str) -> None:
        with Bus(url, service="sender", topics=[PLACED]) as bus:
            bus.send(PLACED, WANTED[0], deliver_after_s=3.0)
            threading.Event().wait()

    def scenario(sim: Simulation) -> None:
        stock = sim.database("stock", STOCK.create_all)
        sim.process("sender", send, sim.broker_url)
        sim.process("stock", reserve_stock, stock.url, sim.broker_url)
        sim.at_end(lambda: compare(sim.history, bus_file(sim)))

    history = result_of(scenario).history
    (stored,) = of(history, Stored)
    assert stored.process == "sender" and 3_000_000_000 <= stored.at_ns < 4_000_000_000
    assert any(p.process == "stock" and p.label == "embedded.commit:bus.records" for p in history.points())


def test_position_stays_below_what_waits_for_redelivery() -> None:
    """The file's position passes a message that was given back; it is not done before it is acknowledged."""

    def give_back(backend: Backend, ports: Ports) -> None:
        backend.sender("g").send([Envelope("t", b"x", None, {"ce_id": str(n)}) for n in range(3)], 1.0)
        receiver = backend.receiver(Subscription("g", ("t",)))
        handed = [one for _ in range(2) for one in receiver.receive(10, 1.0).received]
        receiver.redeliver(handed[0], 1.0)
        receiver.ack(handed[1:])
        (again,) = [one for _ in range(3) for one in receiver.receive(10, 1.0).received]
        receiver.ack([again])
        receiver.close()

    history = run_on_spi(give_back).history
    told = [r for r in history if isinstance(r, (Delivered, Acknowledged, PositionCommitted))]
    assert [(type(r).__name__, r.offset) for r in told] == [
        *(("Delivered", offset) for offset in range(3)),
        ("PositionCommitted", 0),
        ("Acknowledged", 1),
        ("Acknowledged", 2),
        ("Delivered", 0),
        ("PositionCommitted", 3),
        ("Acknowledged", 0),
    ]
    assert [d.attempt for d in told if isinstance(d, Delivered)] == [1, 1, 1, 2]


def test_reads_by_position_are_told() -> None:
    """A read names its begin, what it returned and where it goes on."""

    def read(backend: Backend, ports: Ports) -> None:
        backend.sender("g").send([Envelope("t", b"x", None, {})] * 3, 1.0)
        backend.log("t").read(0, 1, 10, 0.0)

    (told,) = of(run_on_spi(read).history, Read)
    assert (told.process, told.topic, told.partition, told.start, told.offsets, told.to) == (
        "one",
        "t",
        0,
        1,
        (1, 2),
        3,
    )


def test_classes_of_the_broker_are_as_they_were(right: Runner) -> None:
    """They are observed while a process of a run has the file open, and at no other time."""
    before = (EmbeddedReceiver.receive, EmbeddedReceiver.ack, EmbeddedLog.read)
    during = []
    right(tape=lambda process, label, number, faults: during.append(EmbeddedReceiver.receive))
    assert (EmbeddedReceiver.receive, EmbeddedReceiver.ack, EmbeddedLog.read) == before
    assert any(one is not before[0] for one in during)


def test_same_schedule_gives_the_same_history(right: Runner) -> None:
    """Two runs with a crash differ in nothing that is told."""
    schedule = Schedule.parse("txbus schedule 1\nstock/embedded.commit:bus.positions#1 crash-before\n")
    first, second = right(schedule).history, right(schedule).history
    assert list(map(str, first)) == list(map(str, second))
