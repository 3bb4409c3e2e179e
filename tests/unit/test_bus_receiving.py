"""Receiving: what handlers are given, that effects happen once, and what becomes of failures."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import Connection, insert
from sqlalchemy.orm import Session

from tests.unit.shopfloor import Order, Reserved, count, floor, orders, reserved, sales, skus, until
from txbus import Bus, Delivery, Envelope, GiveUp, Retry, Topic
from txbus.errors import ConfigurationError, NotOpen
from txbus.events import Alarm, DeadLettered, DuplicateSuppressed, EffectCommitted, HandlerFailed

QUICK = Retry(max_attempts=3, backoff_s=(0.001, 0.002))
InFlight = Literal["wait", "skip", "fail"]


def sell(order: Order, connection: Connection) -> None:
    connection.execute(insert(sales), {"sku": order.sku})


def selling(bus: Bus) -> None:
    bus.on(orders, scope="reserve", database="shop")(sell)


def put(bus: Bus, payload: bytes, headers: dict[str, str] | None = None, key: str | None = "ada") -> None:
    """A record as a foreign client writes it."""
    sender = bus.opened.backend.sender("foreign")
    sender.send([Envelope("orders", payload, key=key, headers=headers or {})], 5.0)
    sender.close()


class TestWhatAHandlerIsGiven:
    def test_payload_delivery_connection_and_session_by_annotation(self, tmp_path: Path) -> None:
        """All four at once, whatever their names; connection and session are one local transaction."""
        seen: list[object] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(what: Order, by: Session, how: Delivery, where: Connection) -> None:
                where.execute(insert(sales), {"sku": what.sku})
                inside = by.query(sales).count()
                seen.append((what, how.key, how.attempt, how.position.topic, how.source, inside))
                assert by.connection() is where

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a", customer="bob"))
            test.run_until_idle()
            assert seen == [(Order(sku="a", customer="bob"), "bob", 1, "orders", "/txbus/shop", 1)]
            assert skus(shop.engine) == ["a"]

    def test_the_function_stays_an_ordinary_function(self, tmp_path: Path) -> None:
        """What bus.on returns is the function itself, to be called by tests of the application."""
        with floor(tmp_path) as shop:
            bus = Bus(shop.url, service="other", databases={"shop": shop.engine})
            assert bus.on(orders, scope="reserve", database="shop")(sell) is sell

    def test_a_delivery_ends_with_its_handler(self, tmp_path: Path) -> None:
        """Sending through a delivery that was kept is refused: it could join nothing any more."""
        kept: list[Delivery] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="keep", database="shop")
            def keep(order: Order, delivery: Delivery) -> None:
                kept.append(delivery)

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            with pytest.raises(NotOpen, match="before the handler returns"):
                kept[0].send(reserved, Reserved(sku="a"))

    def test_a_delayed_message_is_not_handled_before_its_time(self, tmp_path: Path) -> None:
        """deliver_after_s holds for bus.send and for messages of a local transaction."""
        early: dict[str, float] = {}

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(order: Order, delivery: Delivery) -> None:
                sent = datetime.fromisoformat(delivery.headers["ce_time"]).timestamp()
                early[order.sku] = time.time() - sent

        with floor(tmp_path, declare) as shop, shop.working():
            shop.bus.send(orders, Order(sku="sent"), deliver_after_s=0.3)
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="joined"), deliver_after_s=0.3)
            until(lambda: len(early) == 2)
        # ce_time has milliseconds.
        assert min(early.values()) >= 0.299


class TestOnce:
    def test_what_a_handler_sends_joins_its_effect(self, tmp_path: Path) -> None:
        """Runs that fail after they sent leave neither effect nor message; the one that succeeds has
        one of each, whose causation and correlation are those of the conversation."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop", retry=QUICK)
            def reserve(order: Order, delivery: Delivery, connection: Connection) -> None:
                sell(order, connection)
                delivery.send(reserved, Reserved(sku=f"{order.sku}{delivery.attempt}"))
                if delivery.attempt < 3:
                    raise TimeoutError

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), message_id="m-1", correlation_id="talk")
            test.run_until_idle()
            assert skus(shop.engine) == ["a"]
            assert test.sent(reserved) == [Reserved(sku="a3")]
            (received,) = test.received(reserved)
            assert received.envelope.headers["txbus-causation-id"] == "m-1"
            assert received.envelope.headers["txbus-correlation-id"] == "talk"
            assert [event.attempt for event in shop.of(HandlerFailed)] == [1, 2]

    def test_the_same_message_twice_has_one_effect(self, tmp_path: Path) -> None:
        """Source and id are the identity: the second copy is acknowledged without an effect."""
        with floor(tmp_path, selling) as shop, shop.working() as test:
            for _ in range(3):
                test.publish(orders, Order(sku="a"), message_id="m-1")
            test.run_until_idle()
            assert skus(shop.engine) == ["a"]
            assert [event.message_id for event in shop.of(DuplicateSuppressed)] == ["m-1", "m-1"]

    def test_the_same_id_of_two_services_is_two_messages(self, tmp_path: Path) -> None:
        """An id alone is no identity."""
        with floor(tmp_path, selling) as shop, shop.working() as test:
            with Bus(shop.url, service="web", topics=[orders]) as web:
                web.send(orders, Order(sku="web"), message_id="m-1")
            test.publish(orders, Order(sku="shop"), message_id="m-1")
            test.run_until_idle()
            assert sorted(skus(shop.engine)) == ["shop", "web"]

    def test_two_scopes_are_independent(self, tmp_path: Path) -> None:
        """Each scope has every message once, and the failure of one is nothing to the other."""

        def declare(bus: Bus) -> None:
            selling(bus)

            @bus.on(orders, scope="bill", database="shop", retry=QUICK)
            def bill(order: Order, connection: Connection) -> None:
                sell(Order(sku="billed " + order.sku), connection)
                if order.sku == "b":
                    raise ValueError("no price")

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), Order(sku="b"))
            test.run_until_idle()
            assert sorted(skus(shop.engine)) == ["a", "b", "billed a"]
            assert [letter.scope for letter in shop.of(DeadLettered)] == ["bill"]

    def test_a_renamed_function_keeps_its_scope(self, tmp_path: Path) -> None:
        """After a rename the scope goes on where it was: nothing is received anew, and a copy of a
        message that the old function handled has no effect."""
        url = f"embedded://{tmp_path}/bus.db"
        with floor(tmp_path, selling, url=url) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), message_id="m-1")
            test.run_until_idle()

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def set_aside(order: Order, connection: Connection) -> None:
                sell(Order(sku="new " + order.sku), connection)

        with floor(tmp_path, declare, url=url) as shop, shop.working() as test:
            assert test.run_until_idle() == 0
            test.publish(orders, Order(sku="a"), message_id="m-1")
            test.publish(orders, Order(sku="b"), message_id="m-2")
            assert test.run_until_idle() == 2
            assert skus(shop.engine) == ["a", "new b"]

    def test_a_handler_may_have_the_second_database(self, tmp_path: Path) -> None:
        """Effect and inbox row are in the handler's database, not in another one of the service."""

        def declare(bus: Bus) -> None:
            bus.on(orders, scope="reserve", database="south")(sell)

        with floor(tmp_path, declare, databases=("north", "south")) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), message_id="m-1")
            test.run_until_idle()
            assert {name: count(engine) for name, engine in shop.engines.items()} == {"north": 0, "south": 1}
            databases = shop.bus.opened.databases
            assert databases["south"].handled("reserve", "/txbus/shop", "m-1")
            assert not databases["north"].handled("reserve", "/txbus/shop", "m-1")


class TestWhatIsReceived:
    def test_tags_are_filtered_by_the_consumer(self, tmp_path: Path) -> None:
        """The embedded broker has no tag filter: others are acknowledged without a run."""

        def declare(bus: Bus) -> None:
            bus.on(orders, scope="reserve", database="shop", tags={"red", "blue"})(sell)

        with floor(tmp_path, declare) as shop, shop.working() as test:
            for tag in ("red", "green", "blue", None):
                test.publish(orders, Order(sku=str(tag)), tag=tag)
            assert test.run_until_idle() == 4
            assert sorted(skus(shop.engine)) == ["blue", "red"]
            assert shop.bus.opened.consuming.caught_up()

    def test_where_a_new_group_starts(self, tmp_path: Path) -> None:
        """earliest: everything retained; latest: what comes from now on; a datetime: what was stored
        at or after it. A group that has a position keeps it."""
        url = f"embedded://{tmp_path}/bus.db"
        with Bus(url, service="web", topics=[orders]) as web:
            web.send(orders, Order(sku="old"))
            time.sleep(0.02)
            between = datetime.fromtimestamp(time.time(), UTC)
            time.sleep(0.02)
            web.send(orders, Order(sku="recent"))
        seen: dict[str, list[str]] = {"all": [], "new": [], "since": []}

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="all", database="shop", start="earliest")
            def everything(order: Order) -> None:
                seen["all"].append(order.sku)

            @bus.on(orders, scope="new", database="shop", start="latest")
            def new(order: Order) -> None:
                seen["new"].append(order.sku)

            @bus.on(orders, scope="since", database="shop", start=between)
            def since(order: Order) -> None:
                seen["since"].append(order.sku)

        for sku in ("now", "later"):
            with floor(tmp_path, declare, url=url) as shop, shop.working() as test:
                test.run_until_idle()
                test.publish(orders, Order(sku=sku))
                test.run_until_idle()
        assert seen == {
            "all": ["old", "recent", "now", "later"],
            "new": ["now", "later"],
            "since": ["recent", "now", "later"],
        }

    def test_a_foreign_message_without_headers_is_known_by_its_position(self, tmp_path: Path) -> None:
        """Bytes of the model without CloudEvents attributes are handled; two alike are two messages."""
        seen: list[tuple[str, str]] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(order: Order, delivery: Delivery, connection: Connection) -> None:
                sell(order, connection)
                seen.append((delivery.source, delivery.message_id))

        with floor(tmp_path, declare, topic_partitions=1) as shop, shop.working() as test:
            for _ in range(2):
                put(shop.bus, b'{"sku": "a"}')
            test.run_until_idle()
            assert skus(shop.engine) == ["a", "a"]
            assert seen == [("log:orders", "orders-0-0"), ("log:orders", "orders-0-1")]


class TestFailures:
    def test_retries_and_then_a_dead_letter_in_the_database(self, tmp_path: Path) -> None:
        """max_attempts runs, then a row with exception, attempts and the raw envelope; no effect of
        any run stays, and another copy of the message is not run again."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop", retry=QUICK)
            def reserve(order: Order, connection: Connection) -> None:
                sell(order, connection)
                raise ValueError("no such shelf")

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), message_id="m-1", headers={"x-note": "ä"})
            test.run_until_idle()
            (letter,) = shop.bus.opened.databases["shop"].dead_letters("reserve", 10)
            assert (letter.attempts, letter.message_id, letter.key, letter.topic) == (3, "m-1", "ada", "orders")
            assert letter.error.startswith("builtins.ValueError: no such shelf")
            assert Order.model_validate_json(letter.payload) == Order(sku="a")
            assert letter.headers["x-note"] == "ä"
            assert [event.attempt for event in shop.of(HandlerFailed)] == [1, 2]
            assert [(event.attempts, event.message_id) for event in shop.of(DeadLettered)] == [(3, "m-1")]
            test.publish(orders, Order(sku="a"), message_id="m-1")
            test.run_until_idle()
            assert len(shop.of(HandlerFailed)) == 2
            assert count(shop.engine) == 0

    def test_some_exceptions_are_dead_letters_at_once(self, tmp_path: Path) -> None:
        """GiveUp always, others as the schedule says for their class."""
        retry = QUICK.never_for(LookupError)

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop", retry=retry)
            def reserve(order: Order) -> None:
                raise {"give up": GiveUp, "key": KeyError, "other": OSError}[order.sku]("because")

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, *(Order(sku=sku) for sku in ("give up", "key", "other")))
            test.run_until_idle()
            assert sorted(event.attempts for event in shop.of(DeadLettered)) == [1, 1, 3]

    def test_without_a_database_dead_letters_go_to_a_topic(self, tmp_path: Path) -> None:
        """Key, headers and payload as they were, with scope, attempts, error and position beside."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="mail", database=None, retry=QUICK)
            def mail(order: Order) -> None:
                raise ValueError("no such address")

        with floor(tmp_path, declare) as shop, shop.working() as test:
            (receipt,) = test.publish(orders, Order(sku="a"), message_id="m-1")
            test.run_until_idle()
            (dead,) = test.received(Topic("orders.dead.shop", Order))
            headers = dead.envelope.headers
            assert (dead.envelope.key, dead.envelope.id) == ("ada", "m-1")
            assert Order.model_validate_json(dead.envelope.payload) == Order(sku="a")
            assert headers["txbus-dead-scope"] == "mail"
            assert headers["txbus-dead-attempts"] == "3"
            assert "no such address" in headers["txbus-dead-error"]
            assert headers["txbus-dead-position"] == f"orders/{receipt.partition}@{receipt.offset}"

    def test_without_a_database_nothing_can_join_an_effect(self, tmp_path: Path) -> None:
        """delivery.send is refused, and the dead letter says what to do."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="mail", database=None, retry=QUICK.never_for(ConfigurationError))
            def mail(order: Order, delivery: Delivery) -> None:
                delivery.send(reserved, Reserved(sku=order.sku))

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            (event,) = shop.of(DeadLettered)
            assert "declare it with database=" in event.error
            assert test.sent(reserved) == []

    @pytest.mark.parametrize("database", ["shop", None])
    @pytest.mark.parametrize(
        ("payload", "headers", "why"),
        [
            (b"\xff\x00 no json", {}, "Invalid JSON"),
            (b'{"customer": "ada"}', {}, "sku"),
            (b'{"sku": "x"}', {"ce_id": "m-1", "ce_source": "/web"}, "ce_specversion"),
            (b'{"sku": "x"}', {"ce_specversion": "1.0", "ce_source": "/web"}, "ce_id"),
        ],
    )
    def test_a_malformed_record_is_a_dead_letter_and_blocks_nothing(
        self, tmp_path: Path, payload: bytes, headers: dict[str, str], why: str, database: str | None
    ) -> None:
        """Reason and raw bytes are kept, no run is spent on it, and the next record of its key and
        partition is handled."""
        ran: list[str] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database=database, retry=QUICK)
            def reserve(order: Order) -> None:
                ran.append(order.sku)

        with floor(tmp_path, declare, topic_partitions=1) as shop, shop.working() as test:
            put(shop.bus, payload, headers)
            put(shop.bus, b'{"sku": "good"}')
            test.run_until_idle()
            assert ran == ["good"]
            if database is not None:
                (letter,) = shop.bus.opened.databases[database].dead_letters(None, 10)
                assert (letter.payload, letter.attempts) == (payload, 0)
                assert why in letter.error
            else:
                (dead,) = test.received(Topic("orders.dead.shop", Order))
                assert (dead.envelope.payload, dead.envelope.headers["txbus-dead-attempts"]) == (payload, "0")
                assert why in shop.of(DeadLettered)[0].error
            assert len(shop.of(DeadLettered)) == 1

    def test_a_key_keeps_its_order_while_one_of_it_is_retried(self, tmp_path: Path) -> None:
        """Later messages of a key wait for the failing one, though four workers are free; other keys
        of the same partition go on meanwhile."""
        others = threading.Event()

        patient = Retry(max_attempts=10_000, backoff_s=(0.005, 0.005))

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop", retry=patient)
            def reserve(order: Order, connection: Connection) -> None:
                if order.sku == "a0" and not others.is_set():
                    raise TimeoutError
                sell(order, connection)
                if order.sku == "b4":
                    others.set()

        with floor(tmp_path, declare, topic_partitions=1, workers=4) as shop, shop.working() as test:
            for number in range(5):
                test.publish(orders, Order(sku=f"a{number}", customer="ada"), Order(sku=f"b{number}", customer="bob"))
            test.run_until_idle()
            sold = skus(shop.engine)
            assert [sku for sku in sold if sku[0] == "a"] == [f"a{number}" for number in range(5)]
            assert [sku for sku in sold if sku[0] == "b"] == [f"b{number}" for number in range(5)]
            assert sold.index("b4") < sold.index("a0")

    @pytest.mark.parametrize("in_flight", ["wait", "skip", "fail"])
    def test_a_duplicate_in_flight(self, tmp_path: Path, in_flight: InFlight) -> None:
        """While another local transaction has the message: wait for it or skip it without counting an
        attempt, or fail one. The effect happens once in the end."""

        def declare(bus: Bus) -> None:
            bus.on(orders, scope="reserve", database="shop", retry=QUICK, in_flight=in_flight)(sell)

        with floor(tmp_path, declare, lock_wait_s=0.05) as shop, shop.working() as test:
            test.publish(orders, Order(sku="first"))
            test.run_until_idle()
            # Another process's transaction with the same inbox row: on SQLite, whoever writes.
            database = shop.bus.opened.databases["shop"]
            other = database.begin(30.0)
            assert other.insert_inbox("reserve", "/txbus/shop", "m-1", 1.0)
            test.publish(orders, Order(sku="a"), message_id="m-1")
            health = shop.bus.opened.consuming.health
            if in_flight == "fail":
                until(lambda: shop.of(HandlerFailed))
                assert "DuplicateInFlight" in shop.of(HandlerFailed)[0].error
            else:
                until(lambda: health()[0].runs >= 4)
                assert shop.of(HandlerFailed) == []
            assert skus(shop.engine) == ["first"]
            other.rollback()
            test.run_until_idle()
            assert skus(shop.engine) == ["first", "a"]
            assert shop.of(Alarm) == []

    def test_a_database_that_is_away_costs_no_attempt(self, tmp_path: Path) -> None:
        """A handler whose database cannot be reached is given back, not failed, and goes on after."""
        with floor(tmp_path, selling) as shop, shop.working() as test:
            path, aside = tmp_path / "shop.db", tmp_path / "aside.db"
            test.run_until_idle()
            with shop.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            shop.engine.dispose()
            path.rename(aside)
            path.mkdir()
            test.publish(orders, Order(sku="a"))
            until(lambda: shop.bus.health().handlers[0].held)
            path.rmdir()
            aside.rename(path)
            test.run_until_idle()
            assert skus(shop.engine) == ["a"]
            assert shop.of(HandlerFailed) == shop.of(DeadLettered) == []
            assert [event.attempt for event in shop.of(EffectCommitted)] == [1]
