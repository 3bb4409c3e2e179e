"""A handler that its topic's messages cannot be given to is refused where it is declared."""

from __future__ import annotations

from pydantic import BaseModel

from txbus import Bus, Delivery, Envelope, Outcome, Retry, Topic
from txbus.events import Event, HalfParked


class OrderPlaced(BaseModel):
    customer: str


class Refund(BaseModel):
    cents: int


orders = Topic("orders", OrderPlaced)


def handlers(bus: Bus) -> None:
    @bus.on(orders, scope="a", database="shop")  # type: ignore[arg-type]  # another model
    def of_another_topic(refund: Refund) -> None: ...

    @bus.on(orders, scope="b", database="shop")  # type: ignore[arg-type]  # the payload comes first
    def delivery_first(delivery: Delivery, order: OrderPlaced) -> None: ...

    @bus.on(orders, scope="c", database="shop")  # type: ignore[arg-type]  # nobody takes its result
    def returns_something(order: OrderPlaced) -> int:
        return 1

    @bus.on(orders, scope="d", database="shop")  # type: ignore[arg-type]  # txbus is synchronous
    async def asynchronous(order: OrderPlaced) -> None: ...

    @bus.on(orders, scope="e", database="shop")  # type: ignore[arg-type]  # no parameter at all
    def takes_nothing() -> None: ...


def declarations(bus: Bus) -> None:
    @bus.on(orders, scope="a")  # type: ignore[call-arg]  # database= is missing; None must be said
    def without_database(order: OrderPlaced) -> None: ...

    @bus.on(orders, database="shop")  # type: ignore[call-arg]  # scope= is missing
    def without_scope(order: OrderPlaced) -> None: ...

    @bus.on("orders", scope="c", database="shop")  # type: ignore[arg-type]  # a name is no topic
    def of_a_name(order: OrderPlaced) -> None: ...

    @bus.on(orders, scope="d", database="shop", in_flight="drop")  # type: ignore[arg-type]  # no such choice
    def in_flight(order: OrderPlaced) -> None: ...

    @bus.on(orders, scope="e", database="shop", start="today")  # type: ignore[arg-type]  # no such choice
    def start(order: OrderPlaced) -> None: ...

    @bus.on(orders, scope="f", database="shop", retry=3)  # type: ignore[arg-type]  # a Retry
    def retry(order: OrderPlaced) -> None: ...

    Retry(backoff_s=0.5)  # type: ignore[arg-type]  # first wait and cap


def checkers(bus: Bus) -> None:
    @bus.checker(orders)  # type: ignore[arg-type]  # an Outcome, not a bool
    def answers_bool(envelope: Envelope, check: int) -> bool:
        return True

    @bus.checker(orders)  # type: ignore[arg-type]  # it gets the number of the check, too
    def takes_one(envelope: Envelope) -> Outcome:
        return Outcome.UNKNOWN


def subscribers(bus: Bus) -> None:
    @bus.subscribe  # type: ignore[arg-type]  # it gets every event
    def hears_one_kind(event: HalfParked) -> None: ...

    @bus.subscribe
    def hears_all(event: Event) -> None: ...


def settings() -> None:
    Bus("memory://shop", service="shop", leas_s=3)  # type: ignore[call-arg]  # no such setting
    Bus("memory://shop", service="shop", workers="4")  # type: ignore[arg-type]  # a number
    Bus("memory://shop")  # type: ignore[call-arg]  # service= is missing
