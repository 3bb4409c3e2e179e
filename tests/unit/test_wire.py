"""The headers of a message: CloudEvents, trace context, and who is who."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from txbus._message import Envelope, Position, Topic
from txbus._wire import SendOptions, identity, make_envelope, source_of, tag_of, trace_id
from txbus.errors import ConfigurationError, DecodeError
from txbus.spi import Received


class OrderPlaced(pydantic.BaseModel):
    customer: str
    amount: int


ORDERS = Topic("orders", OrderPlaced, key=lambda order: order.customer)
ORDER = OrderPlaced(customer="ada", amount=3)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ids() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):032x}"


def envelope(options: SendOptions | None = None, **changes: Any) -> Envelope:
    values: dict[str, Any] = {"source": source_of("shop"), "wall_s": 1_700_000_000.25, "unique_id": ids()}
    return make_envelope(ORDERS, ORDER, options=options or SendOptions(), **{**values, **changes})


def received(headers: dict[str, str]) -> Received:
    return Received(Envelope("orders", b"{}", headers=headers), Position("orders", 2, 17), 1, 0.0)


def test_attributes_are_cloudevents_1_0_binary_mode() -> None:
    """An envelope carries the required CloudEvents attributes, time as RFC 3339 and the content type."""
    headers = envelope().headers
    assert headers["ce_specversion"] == "1.0"
    assert headers["ce_id"] == f"{1:032x}"
    assert headers["ce_source"] == "/txbus/shop"
    assert headers["ce_type"] == "OrderPlaced"
    assert headers["ce_time"] == "2023-11-14T22:13:20.250Z"
    assert headers["content-type"] == "application/json"


def test_key_comes_from_the_topic_unless_it_is_given() -> None:
    """The topic's key function gives the key, an option replaces it."""
    assert envelope().key == "ada"
    assert envelope(SendOptions(key="bob")).key == "bob"


def test_options_become_headers() -> None:
    """Message id, correlation, causation, tag and the user's headers travel."""
    sent = envelope(SendOptions(message_id="m1", correlation_id="c", causation_id="p", tag="vip", headers={"x": "é"}))
    assert (sent.id, sent.tag, tag_of(sent)) == ("m1", "vip", "vip")
    assert sent.headers["txbus-correlation-id"] == "c"
    assert sent.headers["txbus-causation-id"] == "p"
    assert sent.headers["x"] == "é"
    assert tag_of(Envelope("orders", b"", headers=sent.headers)) == "vip"


@pytest.mark.parametrize(
    ("current", "inherited", "expected"),
    [
        (PARENT, None, PARENT),
        (None, PARENT, PARENT),
        (PARENT.replace("0af7", "1af7"), PARENT, PARENT.replace("0af7", "1af7")),
        ("garbage", PARENT, PARENT),
    ],
)
def test_a_trace_is_continued(current: str | None, inherited: str | None, expected: str) -> None:
    """The current span's trace goes on, then the inherited one; a malformed one is ignored."""
    sent = envelope(SendOptions(traceparent=inherited), traceparent=current)
    assert sent.headers["traceparent"] == expected


def test_a_trace_begins_where_there_is_none() -> None:
    """Without a trace a fresh well-formed one begins."""
    sent = envelope(SendOptions(message_id="m"), unique_id=lambda: "ab" * 16)
    assert sent.headers["traceparent"] == f"00-{'ab' * 16}-{'ab' * 8}-01"
    assert trace_id(sent.headers) == "ab" * 16


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_no_trace_id_in_a_malformed_header(header: str) -> None:
    """A missing or malformed traceparent has no trace id."""
    assert trace_id({"traceparent": header}) == ""


def test_delay_is_counted_from_now() -> None:
    """deliver_after_s becomes a wall time; 0 and nothing mean at once."""
    assert envelope(SendOptions(deliver_after_s=10)).deliver_at_s == 1_700_000_010.25
    assert envelope(SendOptions(deliver_after_s=0)).deliver_at_s is None
    assert envelope().deliver_at_s is None


@pytest.mark.parametrize(
    "options",
    [
        {"deliver_after_s": -1},
        {"deliver_after_s": float("inf")},
        {"deliver_after_s": float("nan")},
        {"timeout_s": 0},
        {"key": ""},
        {"message_id": ""},
        {"message_id": "a\nb"},
        {"message_id": "x" * 256},
        {"tag": ""},
        {"headers": {"ce_id": "x"}},
        {"headers": {"CE_Type": "x"}},
        {"headers": {"txbus-mine": "x"}},
        {"headers": {"Content-Type": "x"}},
        {"headers": {"": "x"}},
        {"headers": {"a b": "x"}},
        {"headers": {"a": b"x"}},
        {"headers": {"a": "\udc80"}},
        {"headers": {"traceparent": "00-1-2-3"}},
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any]) -> None:
    """An option or header that cannot be kept is a ConfigurationError that names it."""
    name = next(iter(options)) if "headers" not in options else repr(next(iter(options["headers"])))
    with pytest.raises(ConfigurationError) as caught:
        SendOptions(**options)
    assert name.strip("'") in str(caught.value)


def test_a_key_function_must_give_text() -> None:
    """A key that is no text is refused with its value."""
    topic: Topic[OrderPlaced] = Topic("orders", OrderPlaced, key=lambda order: order.amount)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="gave 3"):
        make_envelope(topic, ORDER, source="s", options=SendOptions(), wall_s=0.0, unique_id=ids())


def test_identity_is_source_and_id() -> None:
    """A CloudEvents message is known by its source and id, whatever its position."""
    assert identity(received(dict(envelope(SendOptions(message_id="m1")).headers))) == ("/txbus/shop", "m1")


def test_a_foreign_message_is_known_by_its_position() -> None:
    """A message without CloudEvents attributes has the identity of its place in the log."""
    assert identity(received({"x": "y"})) == ("log:orders", "orders-2-17")


@pytest.mark.parametrize(
    "headers",
    [
        {"ce_id": "1"},
        {"ce_id": "1", "ce_source": "s"},
        {"ce_id": "1", "ce_source": "s", "ce_specversion": "2.0"},
        {"ce_id": "", "ce_source": "s", "ce_specversion": "1.0"},
        {"ce_source": "s", "ce_specversion": "1.0"},
        {"ce_id": "1", "ce_specversion": "1.0"},
        {"ce_specversion": "1.0"},
        {"ce_id": "x" * 256, "ce_source": "s", "ce_specversion": "1.0"},
        {"ce_id": "a\0b", "ce_source": "s", "ce_specversion": "1.0"},
        {"ce_id": "a\udc80", "ce_source": "s", "ce_specversion": "1.0"},
    ],
)
def test_broken_attributes_do_not_decode(headers: dict[str, str]) -> None:
    """CloudEvents attributes that are there and broken are a DecodeError, never another identity."""
    with pytest.raises(DecodeError):
        identity(received(headers))
