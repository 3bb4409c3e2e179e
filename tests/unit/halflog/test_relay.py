"""The relay as a whole: turn by turn in a world, and with threads on memory:// and SQLite. See also test_relay_stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Engine, create_engine, text

from tests.unit.halflog.broker import Broker, Connection
from tests.unit.halflog.builders import COMMITTED, NEVER, TOPIC, half
from tests.unit.halflog.ledger import ModelDatabase, Tables
from tests.unit.halflog.world import WALL_S, Process, World
from txbus import Bus, Topic
from txbus._halflog.ledgerdesk import OwnChecker
from txbus._halflog.partition import PartitionBudget
from txbus._halflog.records import DecisionEntry, HalfEntry, encode, half_topic
from txbus._halflog.relay import Relay, RelayBudget, relay_group
from txbus._halflog.survey import survey
from txbus._halves import Half, HalfId
from txbus._message import Envelope, TopicPartition
from txbus._outcome import Outcome
from txbus._system import system_ports
from txbus._telemetry import Alarm, CheckBack, Event, HalfParked
from txbus.errors import BackendUnavailable, ConfigurationError
from txbus.stores.contract import LedgerRow

LONG_S = 60.0


class Turns:
    """A service with one half partition, one database and one relay that is driven by hand."""

    def __init__(self, budget: RelayBudget | None = None, checkers: Mapping[str, OwnChecker] | None = None) -> None:
        self.world = World(1, NEVER)
        self.broker = Broker(self.world)
        self.broker.create(TOPIC, 1)
        self.broker.create("a", 1)
        self.tables = Tables("one", "ledger-one")
        self.process = Process("relay")
        self.database = ModelDatabase(self.tables, self.world, self.process)
        self.events: list[Event] = []
        self.held: list[dict[tuple[str, str], int]] = []
        self.relay = Relay(
            "shop",
            TOPIC,
            1,
            Connection(self.broker, self.process),
            {"one": self.database},
            checkers or {},
            self.world.ports(self.process),
            self.events.append,
            budget or RelayBudget(),
            lambda partition, held: self.held.append(dict(held)),
        )
        self.broker.rebalance(["relay"], [TopicPartition(TOPIC, 0)])

    def store(self, stored: Half) -> None:
        sender = Connection(self.broker, Process("app")).sender("shop")
        sender.append(Envelope(TOPIC, encode([HalfEntry(stored)])), 0)

    def row(self, tx_id: str, outcome: Outcome = COMMITTED) -> None:
        self.tables.rows[HalfId(tx_id, 1)] = LedgerRow(HalfId(tx_id, 1), outcome, "one", 1, WALL_S)

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.relay.turn()
            self.relay._desk.turn()

    def published(self) -> list[str]:
        return [e.id for p in self.broker.readable("a") for e in p if e.id is not None]

    def asked(self) -> list[CheckBack]:
        return [event for event in self.events if isinstance(event, CheckBack)]


def test_rule_25_the_age_is_counted_from_reading_by_our_own_clock() -> None:
    """A half of a sender whose clock is a day ahead or behind is asked about after check_after_s."""
    for skew_s in (-86_400.0, 0.0, 86_400.0):
        turns = Turns()
        about = half("A")
        turns.store(Half(about.id, about.ledger_id, about.database, WALL_S + skew_s, about.envelopes))
        turns.turn()
        turns.world.now_s += 1.9
        turns.turn()
        assert turns.asked() == []
        turns.world.now_s += 0.2
        turns.turn()
        assert [check.tx_id for check in turns.asked()] == ["A"]
        assert turns.asked()[0].age_s == pytest.approx(2.1)


def test_rule_26_an_answer_of_the_ledger_settles_at_once_and_s_records_it() -> None:
    """Without any D: the half is published by the answer, and not asked about again."""
    turns = Turns()
    turns.row("A")
    turns.store(half("A"))
    turns.turn()
    turns.world.now_s += 2.5
    turns.turn()
    assert turns.published() == ["A.0"] and len(turns.asked()) == 1
    assert turns.tables.rows[HalfId("A", 1)].confirmed_s is not None


def test_rule_26_questions_are_not_asked_in_the_polling_thread() -> None:
    """A turn of the relay leaves the database alone; the desk's turn asks it."""
    turns = Turns()
    turns.store(half("A"))
    turns.turn()
    turns.world.now_s += 2.5
    looked: list[int] = []
    turns.database.look = lambda ids: looked.append(len(ids)) or {}  # type: ignore[method-assign, func-returns-value]
    turns.relay.turn()
    assert looked == []
    turns.relay._desk.turn()
    assert looked == [1]


def test_rule_27_the_oldest_undecided_half_is_alerted_on() -> None:
    """Its age and number, once in alarm_after_s, while the database does not answer."""
    turns = Turns(RelayBudget(alarm_after_s=30.0))
    turns.tables.open_rows[HalfId("A", 1)] = turns.database.begin(1.0)  # type: ignore[assignment]
    turns.store(half("A"))
    for _ in range(70):
        turns.turn(1)
        turns.world.now_s += 1.0
    alarms = [e.detail for e in turns.events if isinstance(e, Alarm) and e.what == "undecided half"]
    assert len(alarms) == 2 and alarms[0].startswith("1 halves have no outcome")
    assert turns.relay.health().undecided == 1 and turns.relay.health().oldest_s > 60.0
    assert not any(isinstance(event, HalfParked) for event in turns.events)


def test_rule_28_the_keys_behind_parked_halves_are_reported_with_their_number() -> None:
    """From the first look on, and whenever it changes; the operator's D frees them."""
    turns = Turns(RelayBudget(survey_interval_s=0.0, desk=RelayBudget().desk))
    turns.world.now_s = 10 * 86_400.0
    turns.store(half("A", "k"))  # created long before the retention's half
    turns.store(half("B", "k"))
    turns.row("B")
    turns.turn()
    turns.world.now_s += 2.5
    turns.turn(6)
    assert turns.held[-1] == {("a", "k"): 1} and turns.published() == []
    sender = Connection(turns.broker, Process("operator")).sender("shop")
    sender.append(Envelope(TOPIC, encode([DecisionEntry(HalfId("A", 1), COMMITTED, True)])), 0)
    turns.turn(6)
    assert turns.published() == ["A.0", "B.0"] and turns.held[-1] == {}


def test_rule_12_a_partition_that_left_the_snapshot_is_dropped_with_all_state() -> None:
    """And begun anew, from the position, when it comes back."""
    turns = Turns()
    turns.store(half("A"))
    turns.turn()
    (partition,) = turns.relay._owned.values()
    assert partition.index.halves
    turns.broker.rebalance(["somebody else"], [TopicPartition(TOPIC, 0)])
    turns.turn(1)
    assert not turns.relay._owned
    turns.broker.rebalance(["relay"], [TopicPartition(TOPIC, 0)])
    turns.turn(2)
    (again,) = turns.relay._owned.values()
    assert again is not partition and len(again.index.halves) == 1


def test_rule_20_a_full_window_asks_at_once() -> None:
    """Rather than read on."""
    turns = Turns(RelayBudget(partition=PartitionBudget(window_halves_max=3)))
    for n in range(6):
        turns.row(f"tx{n}")
        turns.store(half(f"tx{n}", f"k{n}"))
    turns.turn(8)
    assert len(turns.published()) >= 3 and turns.world.now_s == 0.0


def test_an_unexpected_error_is_an_alarm_and_a_new_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a silent death: the clients are built anew."""
    turns = Turns()
    turns.store(half("A"))
    turns.row("A")

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "receiver", broken)
        assert 0.0 < turns.relay.turn() <= 10.0
    assert any(isinstance(e, Alarm) and "ZeroDivisionError" in e.detail for e in turns.events)
    turns.turn()
    turns.world.now_s += 2.5
    turns.turn()
    assert turns.published() == ["A.0"]


def test_the_last_error_is_gone_after_a_turn_that_went_well() -> None:
    """It is shown from the failing turn on, and no longer than until the broker works again, although
    health is looked at less often than that."""
    turns = Turns(RelayBudget(survey_interval_s=3600.0))
    turns.turn(1)
    turns.world.chances = replace(NEVER, unavailable=1.0)
    turns.turn(2)
    assert turns.relay.health().last_error == "BackendUnavailable: the broker is busy"
    turns.world.chances = NEVER
    turns.turn(1)
    assert turns.relay.health().last_error == ""


def test_a_turn_that_could_not_read_a_question_again_went_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half whose payload is out of memory and cannot be read for its own checker is the last error; once
    it can be read and is asked about, that is gone."""
    asked: list[Envelope] = []

    def own(envelope: Envelope, attempt: int) -> Outcome:
        asked.append(envelope)
        return COMMITTED

    def away(*args: Any) -> Any:
        raise BackendUnavailable("away")

    turns = Turns(RelayBudget(partition=PartitionBudget(payload_budget_bytes=0)), {"a": own})
    turns.store(half("A"))
    turns.turn()
    turns.world.now_s += 2.5
    with monkeypatch.context() as patch:
        patch.setattr(turns.relay._log, "read", away)
        turns.turn(1)
        assert turns.relay.health().last_error == "BackendUnavailable: away" and asked == []
    turns.world.now_s += 2.5
    turns.turn(2)
    assert turns.relay.health().last_error == "" and len(asked) == 1


def test_rule_09_a_relay_without_databases_is_refused() -> None:
    """It could answer for nothing; a name that it lacks alerts (see the ledger desk)."""
    turns = Turns()
    with pytest.raises(ConfigurationError, match="every database"):
        Relay(
            "shop", TOPIC, 1, Connection(turns.broker, turns.process), {}, {}, turns.world.ports(turns.process),
            turns.events.append, RelayBudget(), lambda partition, held: None,
        )  # fmt: skip


# with threads, memory:// and SQLite


class Order(BaseModel):
    number: int
    customer: str


orders: Topic[Order] = Topic("orders", Order, key=lambda order: order.customer)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with made.begin() as connection:
        connection.execute(text("create table placed (number integer primary key)"))
    yield made
    made.dispose()


def open_bus(engine: Engine, name: str, **settings: Any) -> tuple[Bus, list[Event]]:
    """A bus on memory:// and SQLite, without a relay until `start_relay`, and its events."""
    events: list[Event] = []
    bus = Bus(
        f"memory://{name}",
        service="shop",
        databases={"shop": engine},
        topics=[orders],
        create_schema=True,
        relay="outside",
        **settings,
    )
    bus.subscribe(events.append)
    return bus.open(), events


@pytest.fixture
def bus(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Bus]:
    with open_bus(engine, request.node.name)[0] as opened:
        yield opened


def place(bus: Bus, number: int, *customers: str) -> None:
    with bus.transaction("shop") as tx:
        tx.connection.execute(text("insert into placed values (:n)"), {"n": number})
        for customer in customers:
            tx.send(orders, Order(number=number, customer=customer))


def place_and_fail(bus: Bus, number: int) -> None:
    with bus.transaction("shop") as tx:
        tx.send(orders, Order(number=number, customer="c"))
        raise ZeroDivisionError


def in_log(bus: Bus) -> list[int]:
    log = bus.opened.backend.log("orders")
    try:
        numbers: list[int] = []
        for row in bus.opened.backend.admin().describe(["orders"]).values():
            assert row is not None
            for partition in range(row.partitions):
                records, _ = log.read(partition, 0, 10_000, 5.0)
                numbers += [Order.model_validate_json(r.envelope.payload).number for r in records if r.envelope.payload]
        return numbers
    finally:
        log.close()


def start_relay(bus: Bus) -> Relay:
    """The relay of an open bus, started."""
    bus.opened.start_relay()
    assert bus.opened.relay is not None
    return bus.opened.relay


def test_committed_halves_are_published_and_rolled_back_ones_are_not(bus: Bus) -> None:
    """From eight threads at once, over several half partitions, with quiet at the end."""

    def work(thread: int) -> None:
        for n in range(20):
            number = thread * 100 + n
            if n % 5 == 4:
                with pytest.raises(ZeroDivisionError):
                    place_and_fail(bus, number)
            else:
                place(bus, number, f"c{n}", f"d{n % 3}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert start_relay(bus).wait_quiet(LONG_S)
    expected = sorted(2 * [t * 100 + n for t in range(4) for n in range(20) if n % 5 != 4])
    assert sorted(in_log(bus)) == expected


def test_rule_03_every_row_is_confirmed_although_its_parts_are_published_apart(bus: Bus, engine: Engine) -> None:
    """The SQL ledger counts parts; nothing is left that the audit would list."""
    for n in range(10):
        place(bus, n, *(f"customer-{n}-{k}" for k in range(5)))
    assert start_relay(bus).wait_quiet(LONG_S)
    with engine.connect() as connection:
        rows = connection.execute(text("select confirmed_s, confirmed_parts from txbus_ledger")).all()
    assert len(rows) == 10 and all(row.confirmed_s is not None for row in rows)
    assert any("," in (row.confirmed_parts or "") for row in rows)


def test_the_survey_reads_what_no_relay_has_settled(bus: Bus) -> None:
    """Before a relay runs every half is there; afterwards none."""
    for n in range(5):
        place(bus, n, f"c{n}")
    rows = survey(bus.opened.backend, "shop", system_ports().clock)
    assert sorted(row.keys[0][1] for row in rows) == [f"c{n}" for n in range(5)]
    assert {row.database for row in rows} == {"shop"}
    assert start_relay(bus).wait_quiet(LONG_S)
    assert survey(bus.opened.backend, "shop", system_ports().clock) == ()


def test_rule_24_the_half_log_is_made_and_verified_at_open(engine: Engine) -> None:
    """Opening a bus creates it; opening another one with a different count is refused (rule 2)."""
    bus, _ = open_bus(engine, "verified", half_partitions=4)
    with bus:
        admin = bus.opened.backend.admin()
        found = admin.describe([half_topic("shop")])[half_topic("shop")]
        admin.close()
        assert found is not None and found.partitions == 4
        with pytest.raises(ConfigurationError, match=r"half\.shop"):
            open_bus(engine, "verified", half_partitions=5)


def test_rule_11_what_a_commit_must_promise_is_checked_where_it_can_be(engine: Engine) -> None:
    """A Connection in AUTOCOMMIT commits nothing together with its ledger row: refused."""
    bus, _ = open_bus(engine, "autocommit")
    with bus, engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            bus.attach(connection)


def test_the_relays_of_a_service_share_a_group() -> None:
    """Its name is the service's, so that two relays share the partitions."""
    assert relay_group("shop") == "txbus.relay.shop"
