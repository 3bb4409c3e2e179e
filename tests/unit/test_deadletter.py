"""What is kept of a delivery that is given up on."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_consumer_broker import PORTS, Log
from txbus._deadletter import DeadLetters, dead_envelope, describe_error
from txbus._message import Envelope, Position
from txbus._telemetry import DeadLettered
from txbus.errors import BackendUnavailable
from txbus.spi import Received
from txbus.stores.sql import SqlDatabase

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"x": "y\udc80", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
RECEIVED = Received(Envelope("orders", b"\x00\xff", "k", HEADERS, tag="t"), Position("orders", 3, 9), 1, 0.0)


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_an_error_is_its_chain_and_the_end_of_its_traceback() -> None:
    """The first line is the error itself, then its causes, then where it was raised."""
    lines = describe_error(raised(ValueError("outer"), KeyError("inner"))).splitlines()
    assert lines[0] == "builtins.ValueError: outer"
    assert lines[1] == "caused by builtins.KeyError: 'inner'"
    assert any("in raised" in line for line in lines)


def test_an_error_that_cannot_be_shown_is_described_all_the_same() -> None:
    """An exception whose text fails, or whose causes go in a circle, has a description."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "its text failed" in describe_error(Odd())
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert describe_error(one).splitlines() == [
        "builtins.ValueError: 1",
        "caused by builtins.ValueError: 2",
    ]


@given(text=st.text(max_size=50), times=st.integers(1, 2000), depth=st.integers(0, 30))
def test_a_description_has_its_bound(text: str, times: int, depth: int) -> None:
    """However long texts, chains and tracebacks are: at most 8 KiB, and the first line is the error."""
    error: BaseException = ValueError(text * times)
    for _ in range(depth):
        error = raised(ValueError(text * times), error)
    described = describe_error(error)
    assert len(described.encode("utf-8", "replace")) <= 8 * 1024
    assert described.startswith("builtins.ValueError: ")


def test_a_dead_letter_in_the_database_keeps_everything(tmp_path: Path) -> None:
    """Raw payload, headers, key, position, error and attempts are in the row, and the message is handled."""
    log = Log()
    database = SqlDatabase("shop", sa.create_engine(f"sqlite:///{tmp_path / 'shop.db'}"), PORTS, log)
    database.create_schema()
    letters = DeadLetters(scope="reserve", service="shop", database=database, send=_never, clock=PORTS.clock, emit=log)
    letters.keep(RECEIVED, "s", "m", 4, raised(ValueError("bad\0\udc80")))
    (letter,) = database.dead_letters("reserve", 10)
    assert (letter.source, letter.message_id, letter.attempts) == ("s", "m", 4)
    assert (letter.topic, letter.partition, letter.offset, letter.key) == ("orders", 3, 9, "k")
    assert (letter.payload, letter.headers) == (b"\x00\xff", HEADERS)
    assert letter.error.startswith("builtins.ValueError: bad\\0\\udc80\n")
    assert database.handled("reserve", "s", "m")
    (event,) = log.of(DeadLettered)
    assert (event.service, event.trace_id, event.attempts) == ("shop", TRACE, 4)
    assert event.error == "builtins.ValueError: bad\\0\\udc80"


def _never(envelope: Envelope) -> object:
    raise AssertionError("it has a database")


def test_without_a_database_it_is_a_message_on_the_dead_topic() -> None:
    """The message keeps key, headers and bytes, and says in four headers what became of it."""
    sent: list[Envelope] = []
    log = Log()
    letters = DeadLetters(scope="mail", service="shop", database=None, send=sent.append, clock=PORTS.clock, emit=log)
    letters.keep(RECEIVED, "s", "m", 4, "first line\nsecond line")
    (envelope,) = sent
    assert (envelope.topic, envelope.key, envelope.payload) == ("orders.dead.shop", "k", b"\x00\xff")
    assert envelope.headers == {
        **HEADERS,
        "txbus-dead-scope": "mail",
        "txbus-dead-error": "first line",
        "txbus-dead-attempts": "4",
        "txbus-dead-position": "orders/3@9",
    }
    assert len(log.of(DeadLettered)) == 1


def test_a_header_has_its_bound() -> None:
    """The error header is at most 1,024 characters."""
    envelope = dead_envelope(RECEIVED, "mail", "shop", 1, "x" * 5000)
    assert len(envelope.headers["txbus-dead-error"]) == 1024


def test_what_hinders_the_keeping_is_raised_and_nothing_is_told() -> None:
    """If the dead topic cannot be reached there is no event, and the error passes."""
    log = Log()

    def away(envelope: Envelope) -> object:
        raise BackendUnavailable("away")

    letters = DeadLetters(scope="mail", service="shop", database=None, send=away, clock=PORTS.clock, emit=log)
    with pytest.raises(BackendUnavailable):
        letters.keep(RECEIVED, "s", "m", 4, "error")
    assert log.events == []
