"""Opening: whatever is wrong is said before the first message, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event

from tests.conformance.through import Parts, ThroughBackend, World
from tests.unit.shopfloor import Order, Reserved, engine_at, floor, orders, reserved, until
from txbus import Bus, ConfigurationError, Envelope, Outcome, Retry, Topic, _registry
from txbus._halflog.relay import Relay
from txbus.embedded.plugin import EmbeddedPlugin
from txbus.errors import CapabilityMissing, MessageRefused, NotOpen, SchemaMismatch, SettingsError
from txbus.spi import Backend, BackendURL, Capabilities, Capability, Limits, Ports, TopicKind
from txbus.stores.sql import SqlDatabase
from txbus.testing import memory_url

SECRET = "Tr0ub4dor"


def handle(order: Order) -> None:
    """Does nothing."""


# declarations


def test_a_handler_of_an_unknown_database_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    def declare(bus: Bus) -> None:
        bus.on(orders, scope="reserve", database="shp")(handle)

    with (
        pytest.raises(ConfigurationError, match=r"scope='reserve', database='shp'.*it has: shop"),
        floor(tmp_path, declare),
    ):
        pass


def test_a_scope_given_twice_is_refused_with_both_functions(tmp_path: Path) -> None:
    """Two handlers of one scope would take each other's messages for handled."""

    def declare(bus: Bus) -> None:
        bus.on(orders, scope="reserve", database="shop")(handle)

        @bus.on(reserved, scope="reserve", database="shop")
        def another(what: Reserved) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'reserve'.*'handle'.*another"), floor(tmp_path, declare):
        pass


def needs_a_date(order: Order, date: datetime) -> None: ...


def needs_a_connection(order: Order, connection: Connection) -> None: ...


async def waits(order: Order) -> None: ...


def yields(order: Order) -> Iterable[int]:
    yield 1


def of_another_topic(order: Reserved) -> None: ...


@pytest.mark.parametrize(
    ("function", "database", "text"),
    [
        (needs_a_date, "shop", "'date': datetime.*available.*Delivery"),
        (needs_a_connection, None, "connection.*no database"),
        (waits, "shop", "async"),
        (yields, "shop", "generator"),
        (of_another_topic, "shop", "Reserved.*Order"),
    ],
)
def test_a_handler_that_could_never_be_called_is_refused_where_it_is_declared(
    function: Callable[..., Any], database: str | None, text: str
) -> None:
    """The message names the function and the parameter; nothing was opened for it."""
    bus = Bus(memory_url(), service="shop")
    with pytest.raises(ConfigurationError, match=text) as raised:
        bus.on(orders, scope="reserve", database=database)(function)
    assert function.__name__ in str(raised.value)
    assert bus.handlers == ()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": ""}, "scope=''"),
        ({"scope": "a b"}, "scope='a b'"),
        ({"in_flight": "drop"}, "in_flight='drop'.*'wait', 'skip' or 'fail'"),
        ({"start": "newest"}, "start='newest'"),
        ({"start": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - that is what is refused
        ({"atomic": True}, "atomic=True.*database='shop'"),
        ({"tags": "red"}, r"tags=\['red'\]"),
        ({"tags": []}, "tags= is empty"),
    ],
)
def test_an_option_of_a_handler_that_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    bus = Bus(memory_url(), service="shop")
    with pytest.raises(ConfigurationError, match=text):
        bus.on(orders, **{"scope": "reserve", "database": "shop", **options})(handle)


async def waiting_checker(envelope: Envelope, attempt: int) -> Outcome:
    return Outcome.COMMITTED


def lonely_checker(envelope: Envelope) -> Outcome:
    return Outcome.COMMITTED


@pytest.mark.parametrize(("function", "text"), [(waiting_checker, "async"), (lonely_checker, "number of the check")])
def test_a_checker_that_could_never_answer_is_refused(function: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{function.__name__}.*{text}"):
        Bus(memory_url(), service="shop").checker(orders)(function)


def test_a_checker_of_a_bus_without_databases_is_refused() -> None:
    """Such a bus sends no halves, so the checker would wait for questions for ever."""
    bus = Bus(memory_url(), service="shop")
    bus.checker(orders)(lambda envelope, attempt: Outcome.COMMITTED)
    with pytest.raises(ConfigurationError, match=r"checker\('orders'\).*no database"):
        bus.open()


def test_one_checker_a_topic_and_one_model_a_topic() -> None:
    bus = Bus(memory_url(), service="shop", topics=[orders])
    bus.checker(orders)(lambda envelope, attempt: Outcome.COMMITTED)
    with pytest.raises(ConfigurationError, match="'orders' has a checker already"):
        bus.checker(orders)(lambda envelope, attempt: Outcome.COMMITTED)
    with pytest.raises(ConfigurationError, match="declared twice.*Order.*Reserved"):
        bus.on(Topic("orders", Reserved), scope="other", database=None)(of_another_topic)


def test_declaring_on_an_open_bus_is_refused(tmp_path: Path) -> None:
    with floor(tmp_path) as shop:
        with pytest.raises(ConfigurationError, match="declare before"):
            shop.bus.on(orders, scope="reserve", database="shop")(handle)
        with pytest.raises(ConfigurationError, match="declare before"):
            shop.bus.checker(orders)(lambda envelope, attempt: Outcome.COMMITTED)


def test_a_closed_bus_says_so() -> None:
    """Sending before open, and after close, is NotOpen; opening again works."""
    bus = Bus(memory_url(), service="shop", topics=[orders])
    for _ in range(2):
        with pytest.raises(NotOpen, match="inside of `with bus:`"):
            bus.send(orders, Order(sku="a"))
        with bus:
            assert bus.open() is bus
            bus.send(orders, Order(sku="a"))
        bus.close()


# settings and URLs


def test_settings_out_of_relation_are_refused_with_both_figures(tmp_path: Path) -> None:
    """Also those that come from a handler's retry schedule."""
    with pytest.raises(SettingsError, match="2 x poll_s = 6 must be less than lease_s = 5"):
        Bus(memory_url(), service="shop", lease_s=5, poll_s=3).open()
    bus = Bus(memory_url(), service="shop", inbox_horizon_s=700_000, databases={"shop": engine_at(tmp_path / "a.db")})
    bus.on(orders, scope="reserve", database="shop", retry=Retry(100, (3_600, 3_600)))(handle)
    with pytest.raises(SettingsError, match=r"= 961,210 must be at most inbox_horizon_s = 700,000"):
        bus.open()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Bus("memory://x", service="shop", lease=5), r"unknown setting 'lease'.*'lease_s'"),  # type: ignore[call-arg]
        (lambda: Bus("memory://x", service="shop", lease_s=-5), r"argument lease_s=-5 .*more than 0"),
        (lambda: Bus("memory://x?lease_s=soon", service="shop"), r"URL option lease_s='soon'"),
        (lambda: Bus("memory://x?wake_pol_s=1", service="shop").open(), r"'wake_pol_s'; did you mean 'wake_poll_s'"),
        (lambda: Bus("embeded:///x", service="shop").open(), r"embeded://.*nearest known is embedded://"),
        (lambda: Bus("kafka://x", service="shop").open(), r"kafka is planned"),
        (lambda: Bus("/var/lib/bus.db", service="shop"), r"no scheme.*embedded:///"),
        (lambda: Bus("memory://x", service="the shop"), r"service='the shop'"),
    ],
)
def test_a_setting_or_url_that_is_unknown_or_out_of_range_is_named(make: Callable[[], Bus], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        make()


def test_an_environment_variable_that_is_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXBUS_LEASES_S", "5")
    with pytest.raises(SettingsError, match="TXBUS_LEASES_S.*TXBUS_LEASE_S"):
        Bus("memory://x", service="shop")


def test_settings_of_the_environment_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL goes before the environment, an argument before both."""
    monkeypatch.setenv("TXBUS_LEASE_S", "7")
    monkeypatch.setenv("TXBUS_WORKERS", "2")
    monkeypatch.setenv("TXBUS_POLL_S", "0.3")
    bus = Bus("memory://x?workers=3&poll_s=0.4", service="shop", poll_s=0.2)
    assert (bus.settings.lease_s, bus.settings.workers, bus.settings.poll_s) == (7, 3, 0.2)


def test_secrets_are_in_no_text() -> None:
    """Neither repr nor any error of a URL, an option or a database given as text shows a password."""
    bus = Bus(f"memory://me:{SECRET}@shop?password={SECRET}", service="shop")
    shown = [repr(bus), bus.url, repr(bus.settings)]
    for attempt in (
        lambda: bus.open(),
        lambda: Bus(f"me:{SECRET}@shop", service="shop"),
        lambda: Bus(f"memory://me:{SECRET}@shop?lease_s=soon", service="shop"),
        lambda: Bus(f"nowhere://me:{SECRET}@shop", service="shop").open(),
        lambda: Bus(memory_url(), service="s", databases={"shop": f"postgresql://me:{SECRET}@db/shop"}).open(),
        lambda: bus.send(orders, Order(sku="a")),
    ):
        with pytest.raises(ConfigurationError) as raised:
            attempt()
        shown.append(str(raised.value))
    other = Bus(memory_url(), service="shop")
    other.on(orders, scope="reserve", database=f"postgresql://me:{SECRET}@db/shop")(handle)
    with pytest.raises(ConfigurationError) as raised:
        other.open()
    with Bus(memory_url(), service="shop") as opened, pytest.raises(ConfigurationError) as unknown:
        opened.transaction(f"postgresql://me:{SECRET}@db/shop")
    for text in (*shown, str(raised.value), str(unknown.value)):
        assert SECRET not in text, text


# databases


def test_missing_tables_are_said_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with (
        pytest.raises(SchemaMismatch, match=r"database 'shop'.*txbus schema create"),
        floor(tmp_path, create_schema=False),
    ):
        pass


def test_something_that_is_no_database_is_refused_by_its_type() -> None:
    with pytest.raises(ConfigurationError, match=r"databases\['shop'\] is of type dict"):
        Bus(memory_url(), service="shop", databases={"shop": {}}).open()


def test_one_ledger_under_two_names_is_refused(tmp_path: Path) -> None:
    """Two engines of one file, or a copy of a file: a check-back could not tell them apart."""
    one = engine_at(tmp_path / "shop.db")
    again = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    bus = Bus(memory_url(), service="shop", databases={"shop": one, "store": again}, create_schema=True)
    with pytest.raises(ConfigurationError, match="'shop' and 'store' are the same ledger"):
        bus.open()
    one.dispose()
    again.dispose()


# topics


def test_a_missing_topic_is_refused_where_topics_are_not_created(tmp_path: Path) -> None:
    """The message names each with its partitions, the half log too; nothing is created."""
    url = f"embedded://{tmp_path}/bus.db"
    engine = engine_at(tmp_path / "shop.db")
    bus = Bus(url, service="shop", databases={"shop": engine}, topics=[orders], create_topics=False, create_schema=True)
    with pytest.raises(ConfigurationError, match=r"'orders' with 8 partitions, 'txbus.half.shop' with 8 .*create_to"):
        bus.open()
    with Bus(url, service="shop", databases={"shop": engine}, topics=[orders]):
        pass
    with bus:
        bus.send(orders, Order(sku="a"))
    engine.dispose()


def test_a_half_log_of_another_partition_count_is_refused(tmp_path: Path) -> None:
    """Keys belong to half partitions by their number: it is fixed with the topic."""
    url = f"embedded://{tmp_path}/bus.db"
    with floor(tmp_path, url=url, half_partitions=4):
        pass
    with pytest.raises(ConfigurationError, match=r"txbus.half.shop' has 4 partitions, not 8"), floor(tmp_path, url=url):
        pass


def test_more_partitions_than_the_backend_takes_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'wide': partitions=5000 is more than the 1024"):
        Bus(memory_url(), service="shop", topics=[Topic("wide", Order, partitions=5_000)]).open()


def test_a_topic_that_was_not_declared_cannot_be_sent_to() -> None:
    with Bus(memory_url(), service="shop", topics=[orders]) as bus:
        with pytest.raises(ConfigurationError, match=r"'reserved' is not declared.*declared: orders"):
            bus.send(reserved, Reserved(sku="a"))


def test_a_delay_beyond_the_limit_is_refused_where_it_is_sent(tmp_path: Path) -> None:
    """With both figures, whichever way it is sent; the embedded broker holds a message for 30 days."""
    text = r"deliver_after_s=2,592,001 is more than the 2,592,000 s"
    with floor(tmp_path) as shop:
        with pytest.raises(MessageRefused, match=text), shop.bus.atomic() as step:
            step.send(orders, Order(sku="a"), deliver_after_s=2_592_001)
        with pytest.raises(MessageRefused, match=text), shop.bus.transaction("shop") as tx:
            tx.send(orders, Order(sku="a"), deliver_after_s=2_592_001)
        with pytest.raises(ConfigurationError, match="deliver_after_s=-1"):
            shop.bus.send(orders, Order(sku="a"), deliver_after_s=-1)
        shop.bus.send(orders, Order(sku="a"), deliver_after_s=2_592_000)


# capabilities


class LesserBackend(ThroughBackend):
    """The embedded broker, which declares less than it keeps."""

    declared: Capabilities

    @property
    def name(self) -> str:
        return "lesser"

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return self.declared


class LesserPlugin(EmbeddedPlugin):
    """Registers it. ``conditional`` as a backend of many settings would declare it."""

    def __init__(self, without: Iterable[Capability], conditional: dict[Capability, str], limits: Limits) -> None:
        native = super().capabilities().native - set(without)
        self.declared = Capabilities(native, limits, conditional)

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("lesser",)

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return self.declared

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        inner = super().create(dataclasses.replace(url, scheme="memory"), ports)
        backend = LesserBackend(inner, World(), Parts())
        backend.declared = self.declared
        return backend


Register = Callable[..., str]


@pytest.fixture
def lesser(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a backend that lacks capabilities beside the installed ones; its URL."""
    installed = _registry.backends()

    def register(*without: Capability, **options: Any) -> str:
        limits = dataclasses.replace(EmbeddedPlugin().capabilities().limits, **options.pop("limits", {}))
        plugin = LesserPlugin(without, options.pop("conditional", {}), limits)
        monkeypatch.setattr(_registry, "backends", lambda: {**installed, "lesser": plugin})
        return f"lesser://{memory_url().removeprefix('memory://')}"

    return register


def says(error: pytest.ExceptionInfo[CapabilityMissing], *texts: str) -> None:
    for text in (*texts, "'lesser'", "what works instead: ", "backends that have it: embedded"):
        assert text in str(error.value)


def test_the_lesser_backend_works_for_what_it_declares(lesser: Register) -> None:
    """What the cases below refuse is refused for the missing capability alone."""
    ran: list[str] = []
    bus = Bus(lesser(Capability.HALF_MESSAGE), service="shop", topics=[orders])
    bus.on(orders, scope="reserve", database=None)(lambda order: ran.append(order.sku))
    with bus:
        bus.send(orders, Order(sku="a"))
        bus.run(max_messages=1)
    assert ran == ["a"]


@pytest.mark.parametrize(
    "lacking", [Capability.BROKER_TRANSACTION, Capability.POSITIONS_IN_BROKER_TRANSACTION, Capability.LOG]
)
def test_databases_need_half_messages(lesser: Register, tmp_path: Path, lacking: Capability) -> None:
    """Without what the half log needs bus.transaction cannot be kept: the bus does not open."""
    with pytest.raises(CapabilityMissing) as raised, floor(tmp_path, url=lesser(lacking)):
        pass
    says(raised, "bus.transaction(...)", "needs half_message", f"the half log needs {lacking.value}")


def test_a_key_needs_order_by_key(lesser: Register) -> None:
    bus = Bus(lesser(Capability.ORDER_BY_KEY), service="shop", topics=[orders])
    with pytest.raises(CapabilityMissing) as raised:
        bus.open()
    says(raised, "Topic('orders', key=...)", "order_by_key", "in any order")
    Bus(lesser(Capability.ORDER_BY_KEY), service="shop", topics=[reserved]).open().close()


@pytest.mark.parametrize("lacking", [Capability.BROKER_TRANSACTION, Capability.POSITIONS_IN_BROKER_TRANSACTION])
def test_an_atomic_handler_needs_positions_in_a_broker_transaction(lesser: Register, lacking: Capability) -> None:
    bus = Bus(lesser(lacking, conditional={lacking: "mode=slow"}), service="shop")
    bus.on(orders, scope="reserve", database=None, atomic=True)(handle)
    with pytest.raises(CapabilityMissing) as raised:
        bus.open()
    says(raised, "@bus.on('orders', scope='reserve', atomic=True)", lacking.value, "it would with mode=slow", "inbox")


def test_a_start_by_time_needs_replay_by_time(lesser: Register) -> None:
    bus = Bus(lesser(Capability.REPLAY_BY_TIME), service="shop")
    bus.on(orders, scope="reserve", database=None, start=datetime(2026, 1, 1, tzinfo=UTC))(handle)
    with pytest.raises(CapabilityMissing) as raised:
        bus.open()
    says(raised, "scope='reserve', start=<datetime>)", "replay_by_time", "start='earliest'")


def test_what_only_a_call_asks_for_is_refused_by_the_call(lesser: Register) -> None:
    """bus.atomic() and deliver_after_s=: CapabilityMissing there, never a silent no-op."""
    url = lesser(Capability.BROKER_TRANSACTION, Capability.DELAYED_DELIVERY)
    with Bus(url, service="shop", topics=[orders]) as bus:
        with pytest.raises(CapabilityMissing) as raised:
            bus.atomic()
        says(raised, "bus.atomic()", "broker_transaction")
        with pytest.raises(CapabilityMissing) as raised:
            bus.send(orders, Order(sku="a"), deliver_after_s=1)
        says(raised, "deliver_after_s=", "delayed_delivery", "at once")


def test_limits_are_those_of_the_backend(lesser: Register) -> None:
    """A backend without limits refuses nothing; one with small ones refuses with both figures."""
    unlimited = {"payload_bytes_max": None, "headers_bytes_max": None, "delay_s_max": None}
    with Bus(lesser(limits=unlimited), service="shop", topics=[orders]) as bus:
        bus.send(orders, Order(sku="x" * 10_000), deliver_after_s=1)
    small = {"payload_bytes_max": 100, "headers_bytes_max": 400, "delay_s_max": 0.5}
    with Bus(lesser(limits=small), service="shop", topics=[orders]) as bus:
        with pytest.raises(MessageRefused, match=r"more than the 100 that 'lesser' takes"):
            bus.send(orders, Order(sku="x" * 100))
        with pytest.raises(MessageRefused, match=r"headers.*more than the 400"):
            bus.send(orders, Order(sku="a"), headers={"x": "y" * 400})
        with pytest.raises(MessageRefused, match=r"deliver_after_s=1 is more than the 0.5 s"):
            bus.send(orders, Order(sku="a"), deliver_after_s=1)


# what is left open


def txbus_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("txbus")}


def open_files(folder: Path) -> set[str]:
    """The process's open files below a folder."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if target.startswith(str(folder)):
            found.add(target)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see open files")
def test_nothing_is_left_open_after_close(tmp_path: Path) -> None:
    """No thread, no file of the broker and no checked-out connection."""
    before = txbus_threads()

    def declare(bus: Bus) -> None:
        bus.on(orders, scope="reserve", database="shop")(handle)
        bus.on(orders, scope="atomic", database=None, atomic=True)(handle)

    with floor(tmp_path, declare, url=f"embedded://{tmp_path}/bus.db") as shop:
        with shop.working() as test:
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="a"))
            test.run_until_idle()
            assert any(name.startswith("txbus-reserve") for name in txbus_threads())
        with shop.bus.atomic() as step:
            step.send(orders, Order(sku="b"))
        assert open_files(tmp_path / "bus.db")
        shop.bus.close()
        until(lambda: txbus_threads() <= before)
        gc.collect()
        assert not [name for name in open_files(tmp_path) if "bus.db" in name]
        assert shop.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        shop.bus.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see open files")
@pytest.mark.parametrize("failing", ["schema", "capability", "topics", "half log", "relay", "channel"])
def test_nothing_is_left_open_when_opening_fails(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever step it fails."""
    before = txbus_threads()
    url = f"embedded://{tmp_path}/bus.db"
    settings: dict[str, Any] = {}

    def declare(bus: Bus) -> None:
        bus.on(orders, scope="reserve", database="shop")(handle)

    def refuse(*_: object, **__: object) -> None:
        raise ConfigurationError("refused for the test")

    if failing == "schema":
        settings["create_schema"] = False
    elif failing == "topics":
        settings["create_topics"] = False
    elif failing == "half log":
        with floor(tmp_path, url=url, half_partitions=4):
            pass
    elif failing == "capability":
        monkeypatch.setattr("txbus._open.check_capabilities", refuse)
    elif failing == "relay":
        monkeypatch.setattr(Relay, "start", refuse)
    else:
        monkeypatch.setattr("txbus._halflog.sender.HalfLogSender.__init__", refuse)
    with pytest.raises(ConfigurationError), floor(tmp_path, declare, url=url, **settings):
        pass
    until(lambda: txbus_threads() <= before)
    gc.collect()
    assert not [name for name in open_files(tmp_path) if "bus.db" in name]


def test_closing_goes_on_after_a_part_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is closed whatever another one raises, and the error passes."""
    before = txbus_threads()
    closed: list[str] = []
    whole = SqlDatabase.close

    def close(database: SqlDatabase) -> None:
        closed.append(database.name)
        whole(database)

    monkeypatch.setattr(SqlDatabase, "close", close)
    stop = Relay.stop

    def failing(relay: Relay, timeout_s: float) -> None:
        stop(relay, timeout_s)
        raise OSError("no such socket")

    monkeypatch.setattr(Relay, "stop", failing)
    with pytest.raises(OSError, match="no such socket"), floor(tmp_path, databases=("north", "south")):
        pass
    until(lambda: txbus_threads() <= before)
    assert sorted(closed) == ["north", "south"]


def test_a_bus_without_databases_runs_no_relay_and_no_maintenance() -> None:
    """It neither asks nor purges, so it has no threads for that."""
    before = txbus_threads()
    with Bus(memory_url(), service="web", topics=[orders]) as bus:
        assert bus.health().relay is None
        assert not [n for n in txbus_threads() - before if "relay" in n or "maintenance" in n or "ledger" in n]
        with pytest.raises(NotOpen, match="no database"):
            bus.run_relay()


def test_connections_are_not_kept_between_calls(tmp_path: Path) -> None:
    """A bus at rest holds no connection of the application's pool."""
    with floor(tmp_path) as shop:
        taken: list[object] = []
        event.listen(shop.engine, "checkout", lambda connection, record, proxy: taken.append(1))
        with shop.bus.transaction("shop") as tx:
            tx.send(orders, Order(sku="a"))
        until(lambda: shop.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
        assert taken


def test_a_bus_shows_what_is_declared_on_it() -> None:
    """Its parts can be looked at without opening it."""
    bus = Bus("memory://shop", service="shop", databases={"a": object()}, topics=[orders])
    bus.on(reserved, scope="pack", database="a")(lambda what, delivery: None)
    assert (bus.service, bus.url, bus.database_names) == ("shop", "memory://shop", ("a",))
    assert [topic.name for topic in bus.topics] == ["orders", "reserved"]
    assert [declared.scope for declared in bus.handlers] == ["pack"]
    assert repr(bus) == "<Bus memory://shop service='shop' closed>"
