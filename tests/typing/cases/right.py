"""A service that uses the whole surface type-checks as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_type

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session, sessionmaker

from txbus import (
    AlreadyCommitted,
    AttachedScope,
    Bus,
    Delivery,
    Envelope,
    Outcome,
    OutcomeUnknown,
    Receipt,
    Retry,
    Topic,
)
from txbus.events import Event, HalfParked
from txbus.testing import TestBus, memory_url


class OrderPlaced(BaseModel):
    number: int
    customer: str


class RushOrder(OrderPlaced):
    before: datetime


@dataclass
class Reserved:
    number: int


orders = Topic("orders", OrderPlaced, key=lambda order: order.customer)
reserved = Topic("reserved", Reserved)


def a_bus(engine: Engine) -> Bus:
    return Bus(
        "embedded://bus.db",
        service="shop",
        databases={"shop": engine},
        topics=[orders, reserved],
        lease_s=5,
        create_schema=True,
    )


def declaring(bus: Bus) -> None:
    @bus.on(orders, scope="reserve", database="shop", retry=Retry(max_attempts=3).never_for(ValueError))
    def reserve(order: OrderPlaced, delivery: Delivery, connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        delivery.send(reserved, Reserved(order.number), key=delivery.key)

    @bus.on(orders, scope="orm", database="shop", in_flight="skip", tags={"eu"}, start=datetime.now(UTC))
    def with_session(order: OrderPlaced, session: Session) -> None:
        session.execute(text("SELECT 1"))

    @bus.on(reserved, scope="count", database=None, start="latest")
    def count(done: Reserved) -> None:
        assert_type(done, Reserved)

    @bus.on(orders, scope="relay", database=None, atomic=True)
    def answer(order: OrderPlaced, delivery: Delivery) -> None:
        delivery.send(reserved, Reserved(order.number))

    @bus.on(orders, scope="broad", database="shop")
    def takes_anything(order: object) -> None: ...

    # A handler stays the function that it was.
    reserve(OrderPlaced(number=1, customer="ada"), *handed_over())

    @bus.checker(orders)
    def in_the_books(envelope: Envelope, check: int) -> Outcome:
        return Outcome.COMMITTED if orders.decode(envelope.payload).number and check else Outcome.UNKNOWN

    @bus.subscribe
    def hear(event: Event) -> None:
        if isinstance(event, HalfParked):
            assert_type(event.reason, str)


def handed_over() -> tuple[Delivery, Connection]:
    raise NotImplementedError


def sending(bus: Bus, session: Session, maker: sessionmaker[Session]) -> None:
    with bus.transaction("shop", tx_id="order-1") as tx:
        assert_type(tx.connection, Connection)
        assert_type(tx.session, Session)
        assert_type(tx.send(orders, RushOrder(number=1, customer="ada", before=datetime.now(UTC))), str)
    assert_type(tx.outcome, Outcome)
    assert_type(tx.receipts, tuple[Receipt, ...])

    attached = bus.attach(session)
    attached.send(reserved, Reserved(1), headers={"shop-till": "4"}, deliver_after_s=60)
    messages = bus.attach(maker)
    assert_type(messages(session), AttachedScope)

    with bus.atomic() as together:
        together.send(orders, OrderPlaced(number=1, customer="ada"))
        together.send(reserved, Reserved(1))

    assert_type(bus.send(orders, OrderPlaced(number=1, customer="ada"), timeout_s=1), Receipt)
    assert_type(bus.send_many(reserved, [Reserved(1), Reserved(2)]), tuple[Receipt, ...])
    assert_type(bus.outcome("order-1"), Outcome)
    try:
        bus.run(until_idle=1.0, max_messages=10, workers=2)
    except (AlreadyCommitted, OutcomeUnknown) as error:
        if isinstance(error, OutcomeUnknown):
            assert_type(error.tx_id, str)


def testing(engine: Engine) -> None:
    with Bus(memory_url(), service="shop", topics=[orders]) as bus, TestBus(bus) as test:
        test.publish(orders, OrderPlaced(number=1, customer="ada"))
        assert_type(test.run_until_idle(), int)
        assert_type(test.sent(orders), list[OrderPlaced])
