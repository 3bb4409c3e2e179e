"""What a handler function asks for, and the errors when it cannot have it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import pydantic
import pytest
import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from txbus._inbox_signature import Delivery, HandlerSignature, HandlerTransaction
from txbus._message import Envelope, Position, Topic
from txbus.errors import ConfigurationError
from txbus.spi import Received
from txbus.stores.contract import LocalTransaction

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Base(pydantic.BaseModel):
    n: int


class Order(Base):
    pass


class Other(pydantic.BaseModel):
    n: int


class OwnSession(Session):
    pass


ORDERS = Topic("orders", Order)


class _Local:
    connection = "the connection"
    session = "the session"


class _Sent:
    """Notes what a delivery sends."""

    def __init__(self) -> None:
        self.options: list[Mapping[str, Any]] = []

    def send(self, topic: Topic[Any], payload: Any, **options: Any) -> str:
        self.options.append(options)
        return "new"


def delivery(headers: Mapping[str, str] | None = None, sent: _Sent | None = None) -> Delivery:
    received = Received(Envelope("orders", b"", "k", headers or {}), Position("orders", 0, 5), 1, 0.0)
    return Delivery(received, "s", "m5", 2, "reserve", cast(HandlerTransaction | None, sent))


def called(function: Callable[..., object], got: list[object], *, database: bool = True) -> list[object]:
    """Calls it as a consumer would; ``got`` is what it appended."""
    signature = HandlerSignature.of(function, ORDERS, database=database)
    signature.call("the payload", delivery(), cast(LocalTransaction, _Local()))
    return [type(value).__name__ if isinstance(value, Delivery) else value for value in got]


def test_parameters_are_supplied_by_annotation_in_any_order() -> None:
    """Payload, Delivery, Connection and Session are recognised by their types, keyword-only ones too."""
    got: list[object] = []

    def handler(c: Connection, order: Order, *, s: Session, d: Delivery) -> None:
        got.extend([c, order, s, d])

    assert called(handler, got) == ["the connection", "the payload", "the session", "Delivery"]


def test_parameters_without_annotation_are_supplied_by_name_and_the_first_is_the_payload() -> None:
    """Without annotations the first parameter is the payload and the others go by their names."""
    got: list[object] = []

    def handler(anything, session, connection, delivery):  # type: ignore[no-untyped-def]
        got.extend([anything, session, connection, delivery])

    assert called(handler, got) == ["the payload", "the session", "the connection", "Delivery"]


def test_a_base_of_the_model_and_a_subclass_of_session_are_recognised() -> None:
    """A handler may ask for a base of the payload's model, and for its own Session class."""
    got: list[object] = []

    def handler(order: Base, session: OwnSession, more: str | int | None = None) -> None:
        got.extend([order, session, more])

    assert called(handler, got) == ["the payload", "the session", None]


def test_any_first_parameter_may_be_the_payload_only_if_its_type_fits() -> None:
    """Any and object are the payload; another model is not."""
    got: list[object] = []

    def handler(order: Any) -> None:
        got.append(order)

    assert called(handler, got) == ["the payload"]

    def wrong(order: Other) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'order': Other .*Order of topic 'orders'"):
        HandlerSignature.of(wrong, ORDERS, database=True)


def test_methods_partials_and_callable_objects_are_handlers() -> None:
    """Whatever can be called with its annotations readable is a handler."""
    got: list[object] = []

    class Service:
        def handle(self, order: Order, delivery: Delivery) -> None:
            got.extend([order, delivery])

        def __call__(self, delivery: Delivery) -> None:
            got.append(delivery)

    def handler(prefix: str, order: Order) -> None:
        got.extend([prefix, order])

    assert called(Service().handle, got) == ["the payload", "Delivery"]
    got.clear()
    assert called(Service(), got) == ["Delivery"]
    got.clear()
    assert called(functools.partial(handler, "p"), got) == ["p", "the payload"]


def test_a_parameter_with_a_default_is_left_alone() -> None:
    """What cannot be supplied and has a default keeps it; later ones are given by name."""
    got: list[object] = []

    def handler(order: Order, limit: int = 3, d: Delivery | None = None, *rest: int, **more: int) -> None:
        got.extend([order, limit, d, rest, more])

    assert called(handler, got) == ["the payload", 3, "Delivery", (), {}]


def test_a_model_of_a_function_is_resolved_by_its_topic() -> None:
    """A payload model declared inside of a function needs no import."""

    class Local(pydantic.BaseModel):
        n: int

    def handler(order: Local) -> None: ...

    HandlerSignature.of(handler, Topic("local", Local), database=False)


def test_what_cannot_be_supplied_is_named_with_what_can() -> None:
    """The error names handler, parameter and everything available."""

    def handler(order: Order, engine: sqlalchemy.Engine) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        HandlerSignature.of(handler, ORDERS, database=True)
    for part in ("handler'", "'engine': Engine", "Order of topic 'orders'", "Delivery", "Connection and Session"):
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", [Connection, Session])
def test_a_connection_needs_a_database(kind: type[Any]) -> None:
    """Asking for a connection or session without a database names database=."""

    def handler(order: Order, it: Any) -> None: ...

    handler.__annotations__["it"] = kind
    with pytest.raises(ConfigurationError, match="database="):
        HandlerSignature.of(handler, ORDERS, database=False)


async def coroutine(order: Order) -> None: ...


def generator(order: Order) -> Iterator[None]:
    yield


class AsyncCallable:
    async def __call__(self, order: Order) -> None: ...


def twice(order: Order, again: Order) -> None: ...


def unresolved(order: Order, it: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (coroutine, "async"),
        (AsyncCallable(), "async"),
        (functools.partial(coroutine), "async"),
        (generator, "generator"),
        (twice, "second time"),
        (unresolved, "TYPE_CHECKING"),
        (cast(Callable[..., object], "text"), "not callable"),
    ],
)
def test_a_function_that_would_do_nothing_or_cannot_be_read_is_refused(
    function: Callable[..., object], part: str
) -> None:
    """Async functions, generators and unreadable annotations are errors at declaration."""
    with pytest.raises(ConfigurationError, match=part):
        HandlerSignature.of(function, ORDERS, database=True)


def test_a_delivery_continues_conversation_and_trace() -> None:
    """What a handler sends is caused by its message, in its correlation and its trace."""
    sent = _Sent()
    one = delivery({"txbus-correlation-id": "c", "traceparent": PARENT}, sent)
    assert one.send(ORDERS, Order(n=1), headers={"x": "y"}) == "new"
    options = sent.options[0]
    assert (options["causation_id"], options["correlation_id"]) == ("m5", "c")
    assert options["headers"] == {"x": "y", "traceparent": PARENT}
    first = delivery({}, sent)
    first.send(ORDERS, Order(n=1), correlation_id="mine")
    first.send(ORDERS, Order(n=1))
    assert [options["correlation_id"] for options in sent.options[1:]] == ["mine", "m5"]
    assert "headers" not in sent.options[1]
    assert (first.key, first.headers, first.attempt) == ("k", {}, 2)
