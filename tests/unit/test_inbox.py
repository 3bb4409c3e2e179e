"""Once, with its effect, or not at all: one record at a time against a real SQLite file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from tests.unit.test_consumer_broker import PATIENCE_S, PORTS, Log, cloud_event
from txbus._consumer_contract import Disposition, Done, GiveBack, Ownership, RetryAfter, Run
from txbus._deadletter import DeadLetters
from txbus._inbox import InboxBudget, InboxHandler, InFlight
from txbus._inbox_signature import Delivery, HandlerSignature, HandlerTransaction
from txbus._message import Envelope, Position, Topic, TopicPartition
from txbus._retry import Retry
from txbus._telemetry import Alarm, DeadLettered, DuplicateSuppressed, EffectCommitted, HandlerFailed
from txbus._transactional import LocalBudget, LocalParts, TransactionScope
from txbus.errors import (
    BackendUnavailable,
    ConfigurationError,
    GiveUp,
    HalfFailed,
    NotOpen,
    OutcomeUnknown,
    SettingsError,
    StoreBusy,
    StoreUnavailable,
    Superseded,
)
from txbus.spi import Received
from txbus.stores.contract import AttemptRow, Database
from txbus.stores.sql import SqlDatabase

QUICK = Retry(max_attempts=3, backoff_s=(0.0, 0.0))


S = TypeVar("S", bound=TransactionScope)


class Order(pydantic.BaseModel):
    n: int


ORDERS = Topic("orders", Order)
EFFECTS = sa.table("effects", sa.column("n", sa.Integer))


class Shop:
    """One service's database with an effects table, and handlers on it."""

    def __init__(self, path: Path, lock_wait_s: float = 10.0) -> None:
        self.engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": lock_wait_s})
        self.log = Log()
        self.database = SqlDatabase("shop", self.engine, PORTS, self.log)
        self.database.create_schema()
        with self.engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE effects (n INTEGER NOT NULL)"))

    def begin(self, trace_id: str) -> HandlerTransaction:
        return self.scope(TransactionScope)

    def scope(self, kind: type[S]) -> S:
        parts = LocalParts(
            service="shop",
            database=self.database,
            channel=None,
            make=lambda topic, payload, options: Envelope(topic.name, topic.encode(payload)),
            ports=PORTS,
            emit=self.log,
            heard=lambda kind: True,
            budget=LocalBudget(),
        )
        return kind(parts)

    def handler(
        self,
        function: Callable[..., object],
        *,
        database: Database | None = None,
        begin: Callable[[str], HandlerTransaction] | None = None,
        retry: Retry = QUICK,
        in_flight: InFlight = "wait",
        lock_wait_s: float = PATIENCE_S,
        tags: frozenset[str] | None = None,
        counted: bool = False,
        scope: str = "reserve",
        claim_ahead: int = 0,
    ) -> InboxHandler:
        used = database or self.database
        return InboxHandler(
            topic=ORDERS,
            signature=HandlerSignature.of(function, ORDERS, database=True),
            scope=scope,
            service="shop",
            database=used,
            begin=begin or self.begin,
            dead_letters=DeadLetters(
                scope=scope, service="shop", database=used, send=_never, clock=PORTS.clock, emit=self.log
            ),
            retry=retry,
            ports=PORTS,
            emit=self.log,
            heard=lambda kind: True,
            budget=InboxBudget(lock_wait_s=lock_wait_s, claim_ahead=claim_ahead),
            in_flight=in_flight,
            tags=tags,
            attempts_counted=counted,
        )

    def effects(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(EFFECTS.c.n)).scalars())

    def attempt(self, message_id: str) -> AttemptRow | None:
        return self.database.attempt("reserve", "test", message_id)

    def dead(self) -> list[tuple[str, int]]:
        return [(letter.message_id, letter.attempts) for letter in self.database.dead_letters(None, 100)]


def _never(envelope: Envelope) -> object:
    raise AssertionError("a handler with a database keeps its dead letters there")


def effect(order: Order, connection: Connection) -> None:
    connection.execute(EFFECTS.insert().values(n=order.n))


def run_of(n: int, *, gain: int = 1, end: int = 0, attempt: int = 1, headers: dict[str, str] | None = None) -> Run:
    """A record ``n`` at offset ``n``, as a consumer that received up to ``end`` hands it over."""
    envelope = cloud_event(b'{"n": %d}' % n, None, f"m{n}", **(headers or {}))
    ownership = Ownership(TopicPartition("orders", 0), gain)
    ownership.end = max(end, n + 1)
    return Run(Received(envelope, Position("orders", 0, n), attempt, 0.0), ownership)


def handle(handler: InboxHandler, run: Run) -> Disposition:
    """One call, with what a consumer notes about its answer."""
    disposition = handler(run.received, run)
    if isinstance(disposition, RetryAfter):
        run.failed, run.given_back = run.failed + 1, 0
    elif isinstance(disposition, GiveBack):
        run.given_back += 1
    return disposition


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "shop.db")
    yield made
    made.engine.dispose()


def test_effect_and_inbox_row_are_committed_together(shop: Shop) -> None:
    """A handled message has its effect and its inbox row, and the event follows the commit."""
    assert handle(shop.handler(effect), run_of(7)) == Done()
    assert shop.effects() == [7]
    assert shop.database.handled("reserve", "test", "m7")
    (event,) = shop.log.of(EffectCommitted)
    assert (event.scope, event.message_id, event.attempt) == ("reserve", "m7", 1)


def test_the_same_message_twice_has_one_effect(shop: Shop) -> None:
    """A duplicate is Done without effect, by whatever process and at whatever offset it comes."""
    handle(shop.handler(effect), run_of(7))
    again = run_of(7)
    moved = Run(Received(again.received.envelope, Position("orders", 0, 99), 1, 0.0), again.ownership)
    assert [handle(shop.handler(effect), run) for run in (again, moved)] == [Done(), Done()]
    assert shop.effects() == [7]
    assert [event.message_id for event in shop.log.of(DuplicateSuppressed)] == ["m7", "m7"]
    assert shop.attempt("m7") is None


def test_scopes_are_independent(shop: Shop) -> None:
    """The same message has its effect once in each scope."""
    handle(shop.handler(effect), run_of(7))
    handle(shop.handler(effect, scope="bill"), run_of(7))
    assert shop.effects() == [7, 7]


def test_a_failed_run_leaves_nothing_and_is_retried(shop: Shop) -> None:
    """An exception rolls effect and inbox row back; the next run sees attempt 2, success clears the count."""
    seen: list[int] = []

    def flaky(order: Order, delivery: Delivery, connection: Connection) -> None:
        effect(order, connection)
        seen.append(delivery.attempt)
        if len(seen) == 1:
            raise ValueError("not yet")

    handler, run = shop.handler(flaky), run_of(1)
    assert handle(handler, run) == RetryAfter(0.0)
    assert (shop.effects(), shop.database.handled("reserve", "test", "m1")) == ([], False)
    row = shop.attempt("m1")
    assert row is not None
    assert (row.attempts, row.error) == (1, "ValueError: not yet")
    assert handle(handler, run) == Done()
    assert (shop.effects(), seen, shop.attempt("m1")) == ([1], [1, 2], None)
    (failed,) = shop.log.of(HandlerFailed)
    assert (failed.attempt, failed.error) == (1, "ValueError: not yet")


def test_after_max_attempts_it_is_a_dead_letter(shop: Shop) -> None:
    """The last failed run makes a dead letter with the error, the attempts and the raw payload."""

    def broken(order: Order) -> None:
        raise ValueError("never")

    handler, run = shop.handler(broken), run_of(1)
    assert [handle(handler, run) for _ in range(3)] == [RetryAfter(0.0), RetryAfter(0.0), Done()]
    (letter,) = shop.database.dead_letters("reserve", 10)
    assert (letter.attempts, letter.payload, letter.offset) == (3, b'{"n": 1}', 1)
    assert letter.error.startswith("builtins.ValueError: never")
    assert (shop.attempt("m1"), len(shop.log.of(DeadLettered))) == (None, 1)
    assert handle(shop.handler(effect), run_of(1)) == Done()
    assert shop.effects() == []


@pytest.mark.parametrize(
    ("error", "retry"),
    [(GiveUp("hopeless"), QUICK), (KeyError("k"), QUICK.never_for(LookupError))],
)
def test_some_errors_are_dead_letters_at_once(shop: Shop, error: Exception, retry: Retry) -> None:
    """GiveUp, and a class without further runs, make a dead letter after one run."""

    def broken(order: Order) -> None:
        raise error

    assert handle(shop.handler(broken, retry=retry), run_of(1)) == Done()
    assert shop.dead() == [("m1", 1)]


@pytest.mark.parametrize(
    ("payload", "headers"),
    [
        (b"{", {}),
        (b'{"n": "x"}', {}),
        (b"\xff", {}),
        (b'{"n": 1}', {"ce_specversion": ""}),
        (b'{"n": 1}', {"ce_id": ""}),
    ],
)
def test_a_malformed_record_is_a_dead_letter_and_blocks_nothing(
    shop: Shop, payload: bytes, headers: dict[str, str]
) -> None:
    """What does not decode is kept with its reason and raw bytes, and the next record is handled."""
    handler = shop.handler(effect)
    envelope = Envelope("orders", payload, None, {**cloud_event(b"", None, "bad").headers, **headers})
    bad = Run(Received(envelope, Position("orders", 0, 0), 1, 0.0), Ownership(TopicPartition("orders", 0), 1))
    assert [handle(handler, bad), handle(handler, run_of(1))] == [Done(), Done()]
    (letter,) = shop.database.dead_letters("reserve", 10)
    assert (letter.payload, letter.attempts, "DecodeError" in letter.error) == (payload, 0, True)
    assert shop.effects() == [1]


def test_tags_that_do_not_match_leave_no_trace(shop: Shop) -> None:
    """A message of another tag is Done without effect, without inbox row, without being decoded."""
    handler = shop.handler(effect, tags=frozenset({"vip"}))
    assert handle(handler, run_of(1, headers={"txbus-tag": "mass"})) == Done()
    assert handle(handler, run_of(2)) == Done()
    assert handle(handler, run_of(3, headers={"txbus-tag": "vip"})) == Done()
    assert shop.effects() == [3]
    assert not shop.database.handled("reserve", "test", "m1")


def test_a_session_joins_the_same_transaction(shop: Shop) -> None:
    """What an ORM session does is committed with the inbox row and rolled back with it."""

    def with_session(order: Order, session: Session) -> None:
        session.execute(EFFECTS.insert().values(n=order.n))
        if order.n == 2:
            raise GiveUp("no")

    handler = shop.handler(with_session)
    handle(handler, run_of(1))
    handle(handler, run_of(2))
    assert shop.effects() == [1]


def test_a_delivery_ends_with_its_handler(shop: Shop) -> None:
    """A delivery that outlives its handler cannot send."""
    kept: list[Delivery] = []
    handle(shop.handler(lambda order, delivery: kept.append(delivery)), run_of(1))
    with pytest.raises(NotOpen, match="m1"):
        kept[0].send(ORDERS, Order(n=1))


class Lost(TransactionScope):
    """Ends with an error of one's choice in place of the commit."""

    error: Exception

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        super().__exit__(GiveUp, value or GiveUp("rolled back by the test"), None)
        if value is None:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("gone"),
        StoreBusy("locked"),
        HalfFailed("broker away"),
        BackendUnavailable("away"),
        OutcomeUnknown("who knows", tx_id="t", database="shop"),
        Superseded("fenced"),
    ],
)
def test_what_is_nobodys_fault_at_the_commit_is_given_back_uncounted(shop: Shop, error: Exception) -> None:
    """However often database or broker fail at the end, no attempt is counted; then it is handled."""

    def losing(trace_id: str) -> HandlerTransaction:
        scope = shop.scope(Lost)
        scope.error = error
        return scope

    run = run_of(1)
    failing = shop.handler(effect, begin=losing)
    for _ in range(6):
        assert isinstance(handle(failing, run), GiveBack)
    assert not shop.log.of(HandlerFailed)
    assert len(shop.log.of(Alarm)) == 1
    row = shop.attempt("m1")
    assert row is None or row.attempts <= 1
    assert handle(shop.handler(effect), run) == Done()
    assert (shop.effects(), shop.dead()) == ([1], [])


def test_a_database_that_cannot_be_reached_counts_nothing(shop: Shop) -> None:
    """StoreUnavailable when beginning is given back with a growing wait, uncounted."""

    def away(trace_id: str) -> HandlerTransaction:
        raise StoreUnavailable("no database")

    run, waits = run_of(1), []
    handler = shop.handler(effect, begin=away)
    for _ in range(12):
        disposition = handle(handler, run)
        assert isinstance(disposition, GiveBack)
        waits.append(disposition.after_s)
    assert waits[0] <= 0.1
    assert all(wait <= 30.0 for wait in waits)
    assert waits[-1] >= 15.0
    assert (run.started, shop.attempt("m1")) == (False, None)


def test_a_defect_of_the_store_is_for_the_consumer_to_tell(shop: Shop) -> None:
    """An error that no store announces passes, so that the consumer raises an alarm."""

    def broken(trace_id: str) -> HandlerTransaction:
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        handle(shop.handler(effect, begin=broken), run_of(1))


def test_a_broker_away_for_the_application_itself_is_not_counted(shop: Shop) -> None:
    """BackendUnavailable out of the function is given back; its StoreBusy is counted."""
    errors: list[Exception] = [BackendUnavailable("away"), StoreBusy("waits for itself")]

    def sends(order: Order) -> None:
        raise errors.pop(0)

    handler, run = shop.handler(sends), run_of(1)
    assert isinstance(handle(handler, run), GiveBack)
    assert handle(handler, run) == RetryAfter(0.0)
    assert [event.attempt for event in shop.log.of(HandlerFailed)] == [1]


@pytest.mark.parametrize(("policy", "failed"), [("skip", 0), ("fail", 1)])
def test_a_duplicate_in_flight_is_skipped_or_failed_as_declared(tmp_path: Path, policy: InFlight, failed: int) -> None:
    """While another transaction has the message: skip comes back uncounted, fail counts an attempt."""
    shop = Shop(tmp_path / "shop.db", lock_wait_s=0.0)
    handler, run = shop.handler(effect, in_flight=policy, claim_ahead=10), run_of(1)
    assert handle(handler, run_of(0)) == Done()
    with shop.begin("") as other:
        assert other.local.insert_inbox("reserve", "test", "m1", PATIENCE_S)
        disposition = handle(handler, run)
    assert isinstance(disposition, RetryAfter if failed else GiveBack)
    assert (run.failed, run.started) == (failed, False)
    assert [event.error.partition(":")[0] for event in shop.log.of(HandlerFailed)] == (["DuplicateInFlight"] * failed)
    assert handle(handler, run) == Done()
    assert shop.effects() == [0]


def test_a_duplicate_in_flight_waits_for_the_other_and_is_suppressed(shop: Shop) -> None:
    """The same message in two transactions at once: the second waits, then has no effect."""
    inside, go = threading.Event(), threading.Event()

    def slow(order: Order, connection: Connection) -> None:
        effect(order, connection)
        inside.set()
        assert go.wait(PATIENCE_S)

    first = threading.Thread(target=lambda: handle(shop.handler(slow), run_of(1)))
    first.start()
    assert inside.wait(PATIENCE_S)
    answers: list[Disposition] = []
    second_handler = shop.handler(effect, counted=True)
    second = threading.Thread(target=lambda: answers.append(handle(second_handler, run_of(1))))
    second.start()
    go.set()
    first.join(PATIENCE_S)
    second.join(PATIENCE_S)
    assert (answers, shop.effects()) == ([Done()], [1])
    assert [event.message_id for event in shop.log.of(DuplicateSuppressed)] == ["m1"]


def test_a_dead_letter_that_cannot_be_kept_is_kept_later_without_another_run(shop: Shop) -> None:
    """While dead letters cannot be stored the delivery is given back, and its function does not run again."""
    runs: list[int] = []

    def hopeless(order: Order) -> None:
        runs.append(order.n)
        raise GiveUp("hopeless")

    handler, run = shop.handler(hopeless), run_of(1)
    kept = handler._dead_letters

    class Away:
        def keep(self, *args: object) -> None:
            raise StoreUnavailable("gone")

    handler._dead_letters = Away()
    assert [type(handle(handler, run)) for _ in range(2)] == [GiveBack, GiveBack]
    handler._dead_letters = kept
    assert handle(handler, run) == Done()
    assert (runs, shop.dead()) == ([1], [("m1", 1)])


# without a database


def bare(function: Callable[..., object], log: Log, sent: list[Envelope], retry: Retry = QUICK) -> InboxHandler:
    return InboxHandler(
        topic=ORDERS,
        signature=HandlerSignature.of(function, ORDERS, database=False),
        scope="mail",
        service="shop",
        database=None,
        begin=None,
        dead_letters=DeadLetters(
            scope="mail", service="shop", database=None, send=sent.append, clock=PORTS.clock, emit=log
        ),
        retry=retry,
        ports=PORTS,
        emit=log,
        heard=lambda kind: True,
        budget=InboxBudget(),
    )


def test_without_a_database_attempts_are_the_brokers_and_the_process_own() -> None:
    """The attempt is what the broker counted plus the failed runs here; then a message on the dead topic."""
    seen: list[int] = []
    sent: list[Envelope] = []

    def broken(order: Order, delivery: Delivery) -> None:
        seen.append(delivery.attempt)
        raise ValueError("no")

    handler, run = bare(broken, Log(), sent), run_of(1, attempt=2)
    assert [handle(handler, run), handle(handler, run)] == [RetryAfter(0.0), Done()]
    assert (seen, [envelope.topic for envelope in sent]) == ([2, 3], ["orders.dead.shop"])
    assert handle(handler, run_of(2, attempt=4)) == Done()
    assert (len(seen), len(sent)) == (2, 2)


def test_without_a_database_a_delivery_cannot_send() -> None:
    """delivery.send without a database is a ConfigurationError that names database=."""
    errors: list[Exception] = []

    def sends(order: Order, delivery: Delivery) -> None:
        try:
            delivery.send(ORDERS, order)
        except ConfigurationError as exc:
            errors.append(exc)

    assert handle(bare(sends, Log(), []), run_of(1)) == Done()
    assert "database=" in str(errors[0])


@pytest.mark.parametrize("change", [{"lock_wait_s": -1.0}, {"give_back_s": (0.0, 1.0)}, {"claim_ahead": -1}])
def test_a_budget_out_of_range_is_refused_by_name(change: dict[str, Any]) -> None:
    """A budget that cannot work is a SettingsError that names it."""
    with pytest.raises(SettingsError, match=next(iter(change))):
        InboxBudget(**change)
