"""A payload that is not its topic's is refused wherever a message can be sent."""

from __future__ import annotations

from pydantic import BaseModel

from txbus import AttachedScope, Bus, Delivery, Topic, TransactionScope
from txbus.testing import TestBus


class OrderPlaced(BaseModel):
    customer: str


class Refund(BaseModel):
    cents: int


orders = Topic("orders", OrderPlaced, key=lambda order: order.customer)
refunds: Topic[Refund] = Topic("refunds", Refund)


def inside(tx: TransactionScope, attached: AttachedScope, delivery: Delivery, bus: Bus) -> None:
    tx.send(orders, Refund(cents=1))  # type: ignore[misc]  # another model
    tx.send(orders, {"customer": "ada"})  # type: ignore[misc]  # a dict is no model
    tx.send("orders", OrderPlaced(customer="ada"))  # type: ignore[arg-type]  # a name is no topic
    attached.send(orders, Refund(cents=1))  # type: ignore[misc]  # another model
    delivery.send(orders, Refund(cents=1))  # type: ignore[misc]  # another model
    with bus.atomic() as together:
        together.send(orders, Refund(cents=1))  # type: ignore[misc]  # another model


def owners(bus: Bus) -> None:
    bus.attach("shop")  # type: ignore[call-overload]  # a Session, Connection or sessionmaker


def outside(bus: Bus, test: TestBus) -> None:
    bus.send(orders, Refund(cents=1))  # type: ignore[misc]  # another model
    bus.send_many(orders, [Refund(cents=1)])  # type: ignore[misc]  # another model
    test.publish(orders, Refund(cents=1))  # type: ignore[misc]  # another model


def options(tx: TransactionScope, bus: Bus) -> None:
    order = OrderPlaced(customer="ada")
    tx.send(orders, order, key=7)  # type: ignore[arg-type]  # keys are text
    tx.send(orders, order, headers={"till": 4})  # type: ignore[dict-item]  # headers are text
    tx.send(orders, order, timeout_s=1)  # type: ignore[call-arg]  # half_timeout_s bounds it
    bus.send(orders, order, delay_s=1)  # type: ignore[call-arg]  # it is deliver_after_s


def topics() -> None:
    Topic("orders", OrderPlaced, key=lambda order: order.client)  # type: ignore[attr-defined]  # no such field
    Topic("orders", OrderPlaced, key=lambda order: 7)  # type: ignore[arg-type, return-value]  # keys are text
