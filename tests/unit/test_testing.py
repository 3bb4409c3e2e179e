"""txbus.testing: what an application's own tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert

from tests.unit.shopfloor import Order, Reserved, engine_at, floor, orders, reserved, sales, skus
from tests.unit.test_bus_checkback import Sender
from txbus import Bus, Delivery, Outcome, Retry, Topic
from txbus.errors import ConfigurationError, NotOpen, TxbusError
from txbus.testing import BusNotIdle, TestBus, memory_url, running

shipped = Topic("shipped", Reserved)
QUICK: dict[str, Any] = {"create_schema": True, "poll_s": 0.05, "check_after_s": 0.1, "check_interval_s": 0.05}


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[dict[str, Engine]]:
    made = {name: engine_at(tmp_path / f"{name}.db") for name in ("shop", "stock")}
    yield made
    for engine in made.values():
        engine.dispose()


def shop_and_stock(url: str, engines: dict[str, Engine]) -> tuple[Bus, Bus]:
    """Orders go from shop to stock, reservations back, and shop ships what is reserved."""
    shop = Bus(url, service="shop", databases={"shop": engines["shop"]}, topics=[orders, shipped], **QUICK)
    stock = Bus(url, service="stock", databases={"stock": engines["stock"]}, topics=[reserved], **QUICK)

    @stock.on(orders, scope="reserve", database="stock")
    def reserve(order: Order, delivery: Delivery, connection: Connection) -> None:
        connection.execute(insert(sales), {"sku": order.sku})
        delivery.send(reserved, Reserved(sku=order.sku))

    @shop.on(reserved, scope="ship", database="shop")
    def ship(what: Reserved, delivery: Delivery, connection: Connection) -> None:
        connection.execute(insert(sales), {"sku": what.sku})
        delivery.send(shipped, what)

    return shop, stock


def test_the_fixture_gives_a_fresh_bus_in_memory(txbus_url: str) -> None:
    """Comes with txbus as a pytest plugin; nothing of another test is in it."""
    assert txbus_url.startswith("memory://")
    assert txbus_url not in (memory_url(), memory_url())
    with running(Bus(txbus_url, service="shop", topics=[orders])) as test:
        assert test.sent(orders) == []


def test_two_services_share_one_memory_url(txbus_url: str, engines: dict[str, Engine]) -> None:
    """run_until_idle follows a conversation across the buses to its end, through three transactions."""
    shop, stock = shop_and_stock(txbus_url, engines)
    with running(shop, stock) as test:
        for sku in ("a", "b"):
            with shop.transaction("shop") as tx:
                tx.send(orders, Order(sku=sku))
        assert test.run_until_idle() == 4
        assert [order.sku for order in test.sent(orders)] == ["a", "b"]
        assert sorted(what.sku for what in test.sent(reserved)) == ["a", "b"]
        assert sorted(what.sku for what in test.sent(shipped)) == ["a", "b"]
        assert {name: sorted(skus(engine)) for name, engine in engines.items()} == {
            "shop": ["a", "b"],
            "stock": ["a", "b"],
        }
        assert test.run_until_idle() == 0


def test_two_replicas_of_a_service_may_be_in_one_test(txbus_url: str, engines: dict[str, Engine]) -> None:
    """They share the half log and the partitions; each message has its effect once."""
    made: list[Bus] = []
    for _ in range(2):
        bus = Bus(txbus_url, service="stock", databases={"stock": engines["stock"]}, topics=[reserved], **QUICK)

        @bus.on(orders, scope="reserve", database="stock")
        def reserve(order: Order, delivery: Delivery, connection: Connection) -> None:
            connection.execute(insert(sales), {"sku": order.sku})
            delivery.send(reserved, Reserved(sku=order.sku))

        made.append(bus)
    with running(*made) as test:
        test.publish(orders, *(Order(sku=str(number), customer=str(number)) for number in range(20)))
        assert test.run_until_idle() >= 20
        assert sorted(map(int, skus(engines["stock"]))) == list(range(20))
        assert len(test.sent(reserved)) == 20


def test_publish_returns_receipts_and_takes_options(tmp_path: Path) -> None:
    """As bus.send: one receipt a payload, in order; a topic must be declared on the first bus."""
    with floor(tmp_path) as shop, shop.working() as test:
        receipts = test.publish(orders, Order(sku="a"), Order(sku="b"), key="k", headers={"x": "y"})
        assert [one.topic for one in receipts] == ["orders", "orders"]
        assert test.sent(orders) == [Order(sku="a"), Order(sku="b")]
        assert {(one.envelope.key, one.envelope.headers["x"]) for one in test.received(orders)} == {("k", "y")}
        with pytest.raises(ConfigurationError, match="'shipped' is not declared"):
            test.publish(shipped, Reserved(sku="a"))


def test_what_was_sent_to_a_topic_that_does_not_exist_is_nothing(tmp_path: Path) -> None:
    with floor(tmp_path) as shop, shop.working() as test:
        assert test.sent(shipped) == []


def test_what_is_not_committed_is_not_sent(tmp_path: Path) -> None:
    """sent shows what consumers can see, not halves."""
    with floor(tmp_path, relay="outside") as shop, shop.working() as test:
        with shop.bus.transaction("shop") as tx:
            tx.send(orders, Order(sku="a"))
            assert test.sent(orders) == []
        assert test.sent(orders) == []
        shop.bus.run_relay(until_idle=0.0)
        assert test.sent(orders) == [Order(sku="a")]


def test_not_idle_says_which_handler_waits(tmp_path: Path) -> None:
    """A handler that keeps failing: service, scope and how many deliveries."""

    def declare(bus: Bus) -> None:
        @bus.on(orders, scope="reserve", database="shop", retry=Retry(10, (60.0, 60.0)))
        def reserve(order: Order) -> None:
            raise TimeoutError

    with floor(tmp_path, declare) as shop, shop.working() as test:
        test.publish(orders, Order(sku="a"))
        with pytest.raises(BusNotIdle, match=r"timeout_s=0\.3: shop: scope reserve: 1 in flight") as raised:
            test.run_until_idle(timeout_s=0.3)
        assert isinstance(raised.value, TxbusError)


def test_not_idle_says_that_a_half_is_undecided(tmp_path: Path) -> None:
    """One whose local transaction is still open."""
    with floor(tmp_path) as shop, shop.working() as test:
        sender = Sender(shop)
        half = sender.half("t-1", Order(sku="a"), database="elsewhere")
        assert half.database == "elsewhere"
        with pytest.raises(BusNotIdle, match=r"shop: relay: 1 undecided, 0 parked"):
            test.run_until_idle(timeout_s=0.5)


def test_a_parked_half_is_an_operator_s_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Idle: nothing is left that runs by itself."""

    def declare(bus: Bus) -> None:
        bus.checker(orders)(lambda envelope, attempt: Outcome.UNKNOWN)

    with floor(tmp_path, declare, check_max=1) as shop, shop.working() as test:
        Sender(shop).half("t-1", Order(sku="a"))
        assert test.run_until_idle() == 0
        assert test.sent(orders) == []


def test_buses_must_be_open(txbus_url: str) -> None:
    with pytest.raises(NotOpen), TestBus(Bus(txbus_url, service="shop", topics=[orders])):
        pass


def test_a_bus_that_does_not_start_stops_the_others(tmp_path: Path, txbus_url: str) -> None:
    """Entering starts all or none."""

    def declare(bus: Bus) -> None:
        bus.on(orders, scope="reserve", database="shop")(lambda order: None)

    with floor(tmp_path, declare, url=txbus_url) as shop:
        closed = Bus(txbus_url, service="other", topics=[orders])
        with pytest.raises(NotOpen), TestBus(shop.bus, closed):
            pass
        assert shop.bus.health().handlers == ()


@pytest.mark.parametrize("broken", ["open", "block"])
def test_running_closes_what_it_opened(tmp_path: Path, txbus_url: str, broken: str) -> None:
    """Whether a later bus does not open or the test fails."""
    first = Bus(txbus_url, service="first", topics=[orders])
    second = Bus(txbus_url, service="second", databases={"x": "no engine"} if broken == "open" else None)

    def fail() -> None:
        raise ConfigurationError("the test itself")

    check: Callable[[], None] = fail if broken == "block" else lambda: None
    with pytest.raises(ConfigurationError), running(first, second):
        check()
    for bus in (first, second):
        assert "closed" in repr(bus)


def test_it_works_on_a_file_too(tmp_path: Path, engines: dict[str, Engine]) -> None:
    """The same helper drives embedded:// buses."""
    shop, stock = shop_and_stock(f"embedded://{tmp_path}/bus.db", engines)
    with running(shop, stock) as test:
        test.publish(orders, Order(sku="a"))
        assert test.run_until_idle() == 2
        assert test.sent(shipped) == [Reserved(sku="a")]
