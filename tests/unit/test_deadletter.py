"""What is kept of a delivery that is given up on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.shopfloor import Order, floor, orders
from tests.unit.test_consumer_broker import PORTS, Log
from txbus import Bus, GiveUp, Topic
from txbus._deadletter import DeadLetters, dead_envelope, describe_error
from txbus._message import Envelope, Position
from txbus._telemetry import Alarm, DeadLettered
from txbus.embedded.capabilities import HEADERS_BYTES_MAX
from txbus.errors import BackendUnavailable, MessageRefused
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


class SmallBroker:
    """Takes a record of at most ``bytes_max``, of which each header needs ``per_header`` besides its text."""

    def __init__(self, bytes_max: int, per_header: int = 0) -> None:
        self.bytes_max = bytes_max
        self.per_header = per_header
        self.taken: list[Envelope] = []

    def size(self, envelope: Envelope) -> int:
        texts = [envelope.key or "", *envelope.headers, *envelope.headers.values()]
        return len(envelope.payload) + sum(map(utf8, texts)) + self.per_header * len(envelope.headers)

    def send(self, envelope: Envelope) -> None:
        if self.size(envelope) > self.bytes_max:
            raise MessageRefused(f"{self.size(envelope)} bytes; the limit is {self.bytes_max}")
        self.taken.append(envelope)

    def keep(self, headers: Mapping[str, str], error: str, payload: bytes = b"p") -> Envelope:
        """The dead letter of a message that this broker delivered."""
        received = Received(Envelope("orders", payload, "k", headers), Position("orders", 3, 9), 1, 0.0)
        assert self.size(received.envelope) <= self.bytes_max
        log = Log()
        DeadLetters(scope="mail", service="shop", database=None, send=self.send, clock=PORTS.clock, emit=log).keep(
            received, "s", "m", 4, error
        )
        assert len(log.of(DeadLettered)) == 1
        (letter,) = self.taken
        assert (letter.topic, letter.key, letter.payload) == ("orders.dead.shop", "k", payload)
        return letter


def utf8(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


ATTRIBUTES = {
    "ce_specversion": "1.0",
    "ce_id": "m",
    "ce_source": "/txbus/till",
    "content-type": "application/json",
    "txbus-tag": "eu",
}


def test_a_dead_letter_without_room_has_a_short_error_and_all_headers() -> None:
    """Before anything of the message is lost, the error is cut: what it says in full is in the event."""
    headers = {**ATTRIBUTES, "x-till": "4", "x-note": "n" * 3000}
    roomy = SmallBroker(1_000_000)
    full = roomy.size(roomy.keep(headers, "E: " + "e" * 900))
    letter = SmallBroker(full - 600).keep(headers, "E: " + "e" * 900)
    assert letter.headers.items() >= headers.items()
    assert letter.headers["txbus-dead-error"].startswith("E: eee")
    assert len(letter.headers["txbus-dead-error"]) < 200
    assert "txbus-dead-dropped" not in letter.headers


def test_a_dead_letter_without_room_loses_the_smallest_header_that_makes_enough() -> None:
    """It says which. The broker took the message at its limit, and takes its letter."""
    headers = {**ATTRIBUTES, "x-till": "4", "x-note": "n" * 2000, "x-route": "r" * 9000}
    broker = SmallBroker(sum(utf8(n) + utf8(v) for n, v in headers.items()) + 2)
    letter = broker.keep(headers, "E: boom")
    assert letter.headers["txbus-dead-dropped"] == "x-note"
    assert letter.headers.items() >= {**ATTRIBUTES, "x-till": "4", "x-route": "r" * 9000}.items()
    assert letter.headers["txbus-dead-error"] == "E: boom" and letter.headers["txbus-dead-attempts"] == "4"


def test_a_dead_letter_without_room_loses_the_largest_of_many_small_headers() -> None:
    """Where no single one makes room: the largest first, until there is enough."""
    headers = {**ATTRIBUTES, **{f"x-{n}": "v" * (200 + n) for n in range(20)}}
    broker = SmallBroker(sum(utf8(n) + utf8(v) for n, v in headers.items()) + 2)
    letter = broker.keep(headers, "E: boom")
    dropped = letter.headers["txbus-dead-dropped"].split(", ")
    assert dropped[0] == "x-19" and 2 <= len(dropped) <= 6
    assert set(headers) - set(letter.headers) == set(dropped)


@pytest.mark.parametrize("note", range(0, 900, 7))
def test_the_reason_is_there_whenever_headers_can_make_room(note: int) -> None:
    """Also by a hair's breadth, and where the broker needs 16 bytes for each header besides its text."""
    headers = {**ATTRIBUTES, "x-" + "note" * 62: "n" * note, **{f"x-{n}-{'long' * 8}": "" for n in range(60)}}
    broker = SmallBroker(0, 16)
    broker.bytes_max = broker.size(Envelope("orders", b"p", "k", headers))
    letter = broker.keep(headers, "E: " + "e" * 900)
    assert letter.headers["txbus-dead-attempts"] == "4" and letter.headers["txbus-dead-error"].startswith("E: e")
    assert "x-" in letter.headers["txbus-dead-dropped"]


def test_many_names_of_dropped_headers_are_cut_and_counted() -> None:
    """The list has its bound, and says how many they are."""
    headers = {**ATTRIBUTES, **{f"x-{n}-{'long' * 8}": "" for n in range(100, 160)}}
    broker = SmallBroker(0)
    broker.bytes_max = broker.size(Envelope("orders", b"p", "k", headers))
    letter = broker.keep(headers, "E: boom")
    dropped = len(headers) - len(letter.headers.keys() & headers.keys())
    assert letter.headers["txbus-dead-dropped"].endswith(f"… ({dropped} in all)")
    assert len(letter.headers["txbus-dead-dropped"].encode()) <= 256


def test_headers_that_txbus_needs_are_not_lost_for_the_reason() -> None:
    """Where only they are left, the letter is the message as it was: its reason is in the event alone."""
    headers = {**ATTRIBUTES, "ce_id": "i" * 5000}
    letter = SmallBroker(sum(utf8(n) + utf8(v) for n, v in headers.items()) + 2).keep(headers, "E: boom")
    assert letter.headers == headers


texts = st.text(max_size=30)
many = st.dictionaries(st.text(min_size=1, max_size=12), st.builds(lambda t, n: t * n, texts, st.integers(1, 60)))


@given(many, st.text(max_size=300), st.integers(0, 700), st.integers(0, 16), st.integers(0, 2000))
@example({}, "", 0, 0, 0)
@example({"ce_id": "x" * 9000}, "e" * 300, 10, 16, 0)
@example({f"x{n}": "" for n in range(40)}, "e", 0, 16, 0)
@example({"x" * 3000: "y"}, "e", 0, 0, 0)
def test_what_the_broker_delivered_it_takes_as_a_dead_letter(
    headers: dict[str, str], error: str, spare: int, per_header: int, payload: int
) -> None:
    """However small its limit and however much it needs for a header: one letter, with key and payload, and
    every header is there as it was or is named as dropped."""
    broker = SmallBroker(0, per_header)
    broker.bytes_max = broker.size(Envelope("orders", b"p" * payload, "k", headers)) + spare
    letter = broker.keep(headers, error, b"p" * payload)
    kept = {n for n, v in headers.items() if letter.headers.get(n) == v}
    lost = [n for n in headers if n not in kept and not n.startswith("txbus-dead-")]
    assert bool(lost) == ("txbus-dead-dropped" in letter.headers)


def test_a_letter_that_is_refused_for_another_reason_is_not_kept() -> None:
    """The refusal passes, and nothing is told: the delivery is not acknowledged."""
    log = Log()

    def refuse(envelope: Envelope) -> object:
        raise MessageRefused("no such thing")

    letters = DeadLetters(scope="mail", service="shop", database=None, send=refuse, clock=PORTS.clock, emit=log)
    with pytest.raises(MessageRefused, match="no such thing"):
        letters.keep(RECEIVED, "s", "m", 4, "error")
    assert log.events == []


def test_a_message_at_the_limit_of_the_embedded_broker_becomes_a_dead_letter(tmp_path: Path) -> None:
    """It is acknowledged, the next one of its key is handled, and there is no alarm."""
    handled: list[str] = []

    def declare(bus: Bus) -> None:
        @bus.on(orders, scope="mail", database=None)
        def mail(order: Order) -> None:
            if order.sku == "bad":
                raise GiveUp("no such shelf")
            handled.append(order.sku)

    dead = Topic("orders.dead.shop", Order)
    with floor(tmp_path, declare, databases=()) as shop, shop.working() as test:
        test.publish(orders, Order(sku="plain"))
        test.run_until_idle()
        (plain,) = test.received(orders)
        room = HEADERS_BYTES_MAX - (plain.envelope.size - len(plain.envelope.payload)) - len("x-note")
        test.publish(orders, Order(sku="bad"), headers={"x-note": "n" * room})
        test.publish(orders, Order(sku="good"))
        test.run_until_idle()
        (letter,) = test.received(dead)
    assert handled == ["plain", "good"]
    assert "no such shelf" in letter.envelope.headers["txbus-dead-error"]
    assert letter.envelope.headers["txbus-dead-dropped"] == "x-note"
    assert letter.envelope.payload == b'{"sku":"bad","customer":"ada"}'
    assert shop.of(Alarm) == []
