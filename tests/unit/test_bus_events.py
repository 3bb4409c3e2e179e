"""Events: which ones, in which order, with which trace; and that a subscriber harms nobody."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import Connection, insert

from tests.unit.shopfloor import Order, Reserved, count, floor, orders, reserved, sales, until
from txbus import Bus, Delivery, Outcome, Retry, events
from txbus._telemetry import Event, Events
from txbus.events import (
    Alarm,
    CheckBack,
    DeadLettered,
    DuplicateSuppressed,
    EffectCommitted,
    HalfStored,
    HandlerFailed,
    LocalBegan,
    LocalCommitted,
    LocalEnded,
    OutcomeTold,
    PartitionsChanged,
    StepCommitted,
    StepOpen,
    TakeOver,
)

QUICK = Retry(max_attempts=2, backoff_s=(0.001, 0.002))


@pytest.fixture(scope="module")
def tracer() -> Iterator[trace.Tracer]:
    """Spans of a provider of its own; the process's global one is left alone."""
    provider = TracerProvider()
    yield provider.get_tracer("tests")
    provider.shutdown()


def trace_of(span: trace.Span) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def traceparent_of(headers: Any) -> tuple[str, str]:
    """Trace id and span id."""
    _, trace_id, span_id, _ = headers["traceparent"].split("-")
    return trace_id, span_id


def reserving(bus: Bus) -> None:
    @bus.on(orders, scope="reserve", database="shop", retry=QUICK)
    def reserve(order: Order, delivery: Delivery, connection: Connection) -> None:
        connection.execute(insert(sales), {"sku": order.sku})
        if order.sku == "poison":
            raise ValueError("no such shelf")
        delivery.send(reserved, Reserved(sku=order.sku))


def test_every_event_is_a_frozen_public_record() -> None:
    """Each has a fact as its docstring, is exported by txbus.events and cannot be changed."""
    kinds = Event.__subclasses__()
    assert {kind.__name__ for kind in kinds} | {"Event"} == set(events.__all__)
    for kind in kinds:
        assert kind.__doc__
        assert "(" not in kind.__doc__[:1]
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert [field.name for field in dataclasses.fields(kind)][:2] == ["service", "trace_id"]


def test_the_events_of_one_message_from_send_to_effect(tmp_path: Path) -> None:
    """In this order: begun, half, committed, told, ended; step open, step committed; then the handler's
    own local transaction around its effect. Ids, database, counts and outcomes are in the fields."""
    with floor(tmp_path, reserving, check_after_s=10.0) as shop, shop.working() as test:
        with shop.bus.transaction("shop") as tx:
            message_id = tx.send(orders, Order(sku="a"))
            tx.send(orders, Order(sku="b"))
        test.run_until_idle()
        own = [event for event in shop.events if getattr(event, "tx_id", None) == tx.id]
        assert [type(event) for event in own] == [LocalBegan, HalfStored, LocalCommitted, OutcomeTold, LocalEnded]
        began, stored, committed, told, ended = own
        assert isinstance(began, LocalBegan)
        assert (began.service, began.attempt, began.database) == ("shop", 1, "shop")
        assert isinstance(stored, HalfStored)
        assert isinstance(committed, LocalCommitted)
        assert (stored.messages, committed.messages) == (2, 2)
        assert isinstance(told, OutcomeTold)
        assert told.outcome is Outcome.COMMITTED
        assert isinstance(ended, LocalEnded)
        assert (ended.outcome, ended.messages) == (Outcome.COMMITTED, 2)
        assert ended.seconds >= 0.0

        order = [type(event) for event in shop.events]
        assert order.index(TakeOver) < order.index(StepOpen) < order.index(StepCommitted) < order.index(EffectCommitted)
        opened, stepped = shop.of(StepOpen)[0], shop.of(StepCommitted)[0]
        assert (opened.messages, opened.halves) == (stepped.messages, stepped.halves) == (2, 1)
        effects = {effect.message_id: effect for effect in shop.of(EffectCommitted)}
        assert (effects[message_id].scope, effects[message_id].attempt) == ("reserve", 1)
        gained = [where for change in shop.of(PartitionsChanged) for where in change.gained]
        assert {f"orders/{partition}" for partition in range(8)} <= set(gained)


def test_the_events_of_what_goes_wrong(tmp_path: Path) -> None:
    """Rolled back, failed, dead, suppressed: who, how often and why."""
    with floor(tmp_path, reserving) as shop, shop.working() as test:
        with pytest.raises(KeyError), shop.bus.transaction("shop", tx_id="order-1") as tx:
            tx.send(orders, Order(sku="a"))
            raise KeyError
        (began, ended) = [event for event in shop.events if getattr(event, "tx_id", None) == "order-1"]
        assert isinstance(began, LocalBegan)
        assert isinstance(ended, LocalEnded)
        assert (ended.outcome, ended.messages) == (Outcome.ROLLED_BACK, 1)
        test.publish(orders, Order(sku="poison"), message_id="m-1")
        test.publish(orders, Order(sku="b"), message_id="m-2")
        test.publish(orders, Order(sku="b"), message_id="m-2")
        test.run_until_idle()
        (failed,) = shop.of(HandlerFailed)
        assert (failed.scope, failed.message_id, failed.attempt) == ("reserve", "m-1", 1)
        assert failed.error == "ValueError: no such shelf"
        assert 0.0 < failed.retry_after_s <= 0.002
        (dead,) = shop.of(DeadLettered)
        assert (dead.scope, dead.message_id, dead.attempts) == ("reserve", "m-1", 2)
        assert "no such shelf" in dead.error
        assert [(event.scope, event.message_id) for event in shop.of(DuplicateSuppressed)] == [("reserve", "m-2")]


class TestTrace:
    def test_a_span_s_trace_goes_with_the_message_into_what_the_handler_does(
        self, tmp_path: Path, tracer: trace.Tracer
    ) -> None:
        """From the span around the block: its events, the message, the handler's events and local
        transaction, and the messages that the handler sends."""
        with floor(tmp_path, reserving) as shop, shop.working() as test:
            with tracer.start_as_current_span("place") as span, shop.bus.transaction("shop", tx_id="order-1") as tx:
                tx.send(orders, Order(sku="a"))
            test.run_until_idle()
            wanted = trace_of(span)
            (order,), (what,) = test.received(orders), test.received(reserved)
            assert traceparent_of(order.envelope.headers) == (wanted, f"{span.get_span_context().span_id:016x}")
            assert traceparent_of(what.envelope.headers)[0] == wanted
            kinds = (LocalBegan, HalfStored, LocalCommitted, OutcomeTold, LocalEnded, EffectCommitted)
            seen = [event for event in shop.events if isinstance(event, kinds)]
            # Once for the sender's local transaction, once for the handler's.
            assert len(seen) == 11
            assert {event.trace_id for event in seen} == {wanted}

    def test_a_failing_handler_s_events_have_the_trace(self, tmp_path: Path, tracer: trace.Tracer) -> None:
        """Failure, dead letter and suppressed duplicate: those of the message."""
        with floor(tmp_path, reserving) as shop, shop.working() as test:
            with tracer.start_as_current_span("place") as span:
                test.publish(orders, Order(sku="poison"), message_id="m-1")
                test.publish(orders, Order(sku="a"), message_id="m-2")
                test.publish(orders, Order(sku="a"), message_id="m-2")
            test.run_until_idle()
            for kind in (HandlerFailed, DeadLettered, DuplicateSuppressed):
                (event,) = shop.of(kind)
                assert event.trace_id == trace_of(span), kind

    def test_a_handler_s_own_span_is_the_parent_of_what_it_sends(self, tmp_path: Path, tracer: trace.Tracer) -> None:
        """An application that continues the trace by itself is not overruled."""
        spans: list[trace.Span] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(order: Order, delivery: Delivery) -> None:
                with tracer.start_as_current_span("reserve") as span:
                    spans.append(span)
                    delivery.send(reserved, Reserved(sku=order.sku))

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            (what,) = test.received(reserved)
            context = spans[0].get_span_context()
            assert traceparent_of(what.envelope.headers) == (trace_of(spans[0]), f"{context.span_id:016x}")

    def test_without_a_span_each_message_begins_a_trace_that_is_continued(self, tmp_path: Path) -> None:
        """Also where nobody uses OpenTelemetry a conversation can be followed."""
        with floor(tmp_path, reserving) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), Order(sku="b"))
            test.run_until_idle()
            begun = {traceparent_of(one.envelope.headers)[0] for one in test.received(orders)}
            continued = {traceparent_of(one.envelope.headers)[0] for one in test.received(reserved)}
            assert len(begun) == 2
            assert continued == begun
            assert {event.trace_id for event in shop.of(EffectCommitted)} == begun


class TestSubscribers:
    def test_one_that_raises_harms_nobody(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Whatever the event: sending, publishing and handling go on, others are told, it is logged."""
        broken: set[str] = set()

        def declare(bus: Bus) -> None:
            reserving(bus)

            @bus.subscribe
            def raising(event: Event) -> None:
                broken.add(type(event).__name__)
                raise RuntimeError("subscriber")

        with floor(tmp_path, declare) as shop, shop.working() as test:
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="a"))
            test.publish(orders, Order(sku="poison"))
            test.run_until_idle()
            assert test.sent(reserved) == [Reserved(sku="a")]
            assert count(shop.engine) == 1
            assert {"LocalBegan", "StepCommitted", "EffectCommitted", "DeadLettered"} <= broken
            assert {type(event).__name__ for event in shop.events} >= broken - {"Alarm"}
            assert shop.bus.health().ok
        failures = [record for record in caplog.records if "a subscriber failed on EffectCommitted" in record.message]
        assert failures
        assert failures[0].exc_info is not None

    def test_an_event_is_heard_by_a_subscriber_or_a_log_of_its_level(self, caplog: pytest.LogCaptureFixture) -> None:
        """Only what somebody is told of needs to be made."""
        point = Events()
        told: list[Event] = []
        with caplog.at_level(logging.INFO, "txbus"):
            assert (point.heard(LocalBegan), point.heard(TakeOver), point.heard(Alarm)) == (False, True, True)
            point.subscribe(told.append)
            assert point.heard(LocalBegan)
            point.unsubscribe(told.append)
            assert not point.heard(LocalBegan)
        with caplog.at_level(logging.DEBUG, "txbus"):
            assert point.heard(LocalBegan)

    def test_subscribing_returns_the_function(self) -> None:
        """So that it can be a decorator."""
        bus = Bus("memory://events", service="shop")

        def subscriber(event: Event) -> None: ...

        assert bus.subscribe(subscriber) is subscriber


class TestLogging:
    def test_events_are_log_records_with_structured_fields(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, tracer: trace.Tracer
    ) -> None:
        """Logger txbus; service, trace and local transaction id as extras, at begin and at end; quiet
        unless something is worth a look."""
        caplog.set_level(logging.DEBUG, "txbus")
        with floor(tmp_path, reserving) as shop, shop.working() as test:
            with tracer.start_as_current_span("place") as span, shop.bus.transaction("shop", tx_id="order-1") as tx:
                tx.send(orders, Order(sku="a"))
            test.publish(orders, Order(sku="poison"))
            test.run_until_idle()
        records = [record for record in caplog.records if record.name == "txbus"]
        own = [record for record in records if getattr(record, "txbus_tx_id", "") == "order-1"]
        first, last = own[0], own[-1]
        assert first.getMessage().startswith("LocalBegan ")
        assert last.getMessage().startswith("LocalEnded ")
        for record in (first, last):
            fields = record.__dict__
            assert (fields["txbus_service"], fields["txbus_database"]) == ("shop", "shop")
            assert fields["txbus_trace_id"] == trace_of(span)
        assert last.__dict__["txbus_outcome"] is Outcome.COMMITTED
        assert "tx_id=order-1" in last.getMessage()
        levels = {record.getMessage().split()[0]: record.levelno for record in records}
        assert levels["LocalBegan"] == levels["EffectCommitted"] == logging.DEBUG
        assert levels["TakeOver"] == logging.INFO
        assert levels["HandlerFailed"] == logging.WARNING
        assert levels["DeadLettered"] == logging.ERROR

    def test_an_alarm_is_an_error(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """What an operator should look at stands out."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database=None)
            def reserve(order: Order) -> None:
                raise SystemExit(3)

        with floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            until(lambda: shop.of(Alarm))
        (record,) = [record for record in caplog.records if record.message.startswith("Alarm")]
        assert record.levelno == logging.ERROR
        assert "reserve" in record.__dict__["txbus_detail"]

    def test_check_back_is_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Who was asked, about what, and what the answer was."""
        from tests.unit.test_bus_checkback import Sender

        caplog.set_level(logging.INFO, "txbus")
        with floor(tmp_path) as shop, shop.working() as test:
            Sender(shop).half("t-1", Order(sku="a"))
            test.run_until_idle()
            (check,) = shop.of(CheckBack)
            assert (check.tx_id, check.database, check.outcome) == ("t-1", "shop", Outcome.ROLLED_BACK)
        (record,) = [record for record in caplog.records if record.message.startswith("CheckBack")]
        assert record.levelno == logging.INFO
        assert record.__dict__["txbus_outcome"] is Outcome.ROLLED_BACK

    def test_a_foreign_half_is_logged_once_and_then_at_debug(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is asked about for ever, and the log at INFO is not filled with it."""
        from tests.unit.test_bus_checkback import Sender

        caplog.set_level(logging.DEBUG, "txbus")
        with floor(tmp_path) as shop, shop.working():
            sender = Sender(shop)
            sender.half("t-1", Order(sku="a"), ledger_id="of-a-copy")
            until(lambda: len(shop.of(CheckBack)) >= 4)
        levels = [record.levelno for record in caplog.records if record.message.startswith("CheckBack")]
        assert levels[0] == logging.INFO and set(levels[1:]) == {logging.DEBUG}
