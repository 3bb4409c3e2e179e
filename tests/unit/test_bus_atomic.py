"""Atomic handlers: what they send and the positions of what they read commit in one broker transaction."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.through import Parts, ThroughBackend, ThroughTransaction, World
from tests.unit.shopfloor import Floor, Order, Reserved, floor, orders, reserved, until
from txbus import Bus, Delivery, Envelope, Retry, Topic, _registry
from txbus.embedded.capabilities import HEADERS_BYTES_MAX
from txbus.embedded.plugin import EmbeddedPlugin
from txbus.errors import (
    BackendUnavailable,
    CommitUnknown,
    DestinationRefused,
    MessageRefused,
    NotOpen,
    StepAborted,
)
from txbus.events import Alarm, DeadLettered, FencedOff, HandlerFailed, Reconnected
from txbus.spi import Backend, BackendURL, Ports
from txbus.testing import TestBus, memory_url

QUICK = Retry(max_attempts=3, backoff_s=(0.001, 0.002))
PATIENCE_S = 20.0
billed = Topic("billed", Reserved)
dead = Topic("orders.dead.shop", Order)


# a broker whose commits fail as told


@dataclass
class Faults:
    """What the next commits and aborts do; each is called with the real one and may call it."""

    commits: list[Callable[[Callable[[], None]], None]] = field(default_factory=list)
    aborts: list[Exception] = field(default_factory=list)
    refused: set[bytes] = field(default_factory=set)
    steps: int = 0


class FaultyTransaction(ThroughTransaction):
    faults: Faults

    def __init__(self, inner: Any, client: ThroughBackend) -> None:
        super().__init__(inner, client)
        self.payloads: list[bytes] = []

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        self.payloads.append(envelope.payload)
        super().send(envelope, partition)

    def commit(self) -> None:
        self.faults.steps += 1
        if self.faults.refused & set(self.payloads):
            self.inner.abort()
            raise MessageRefused("the broker does not like its content")
        if self.faults.commits:
            self.faults.commits.pop(0)(self.inner.commit)
        else:
            self.inner.commit()

    def abort(self) -> None:
        if self.faults.aborts:
            raise self.faults.aborts.pop(0)
        self.inner.abort()


class FaultyPlugin(EmbeddedPlugin):
    def __init__(self, faults: Faults) -> None:
        transaction = type("Transaction", (FaultyTransaction,), {"faults": faults})
        self.parts = Parts(transaction=transaction)

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("faulty",)

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        inner = super().create(dataclasses.replace(url, scheme="memory"), ports)
        return ThroughBackend(inner, World(), self.parts)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Registers ``faulty://``, the broker in memory whose broker transactions fail as told."""
    made = Faults()
    installed = _registry.backends()
    monkeypatch.setattr(_registry, "backends", lambda: {**installed, "faulty": FaultyPlugin(made)})
    return made


def fails(error: Exception, first_commit: bool = False) -> Callable[[Callable[[], None]], None]:
    def commit(real: Callable[[], None]) -> None:
        if first_commit:
            real()
        raise error

    return commit


def passing(bus: Bus, **options: Any) -> None:
    """Consumes orders and produces a reservation for each."""

    @bus.on(orders, scope="pass", database=None, atomic=True, **{"retry": QUICK, **options})
    def reserve(order: Order, delivery: Delivery) -> None:
        delivery.send(reserved, Reserved(sku=order.sku))


def atomic_floor(
    tmp_path: Path, declare: Callable[[Bus], None] = passing, scheme: str = "memory", **settings: Any
) -> Any:
    url = memory_url().replace("memory", scheme)
    return floor(tmp_path, declare, url=url, **{"relay": "outside", "topic_partitions": 1, **settings})


def skus_in(shop: Floor, topic: Topic[Reserved]) -> list[str]:
    """What is visible; reading needs no running handlers."""
    return [one.sku for one in TestBus(shop.bus).sent(topic)]


class TestExactlyOnce:
    def test_each_delivery_s_messages_are_visible_once(self, tmp_path: Path) -> None:
        """Order is kept, several share a step, and positions need no acks of their own."""
        with atomic_floor(tmp_path) as shop, shop.working() as test:
            test.publish(orders, *(Order(sku=str(number)) for number in range(50)))
            assert test.run_until_idle() == 50
            assert [one.sku for one in test.sent(reserved)] == [str(number) for number in range(50)]
            assert shop.bus.health().handlers[0].handled == 50

    @pytest.mark.parametrize("committed", [True, False])
    def test_a_commit_without_an_answer_loses_and_doubles_nothing(
        self, tmp_path: Path, faults: Faults, committed: bool
    ) -> None:
        """CommitUnknown: the position tells whether it was; only what was not committed runs again."""
        faults.commits = [fails(CommitUnknown("the connection broke"), first_commit=committed)]
        with atomic_floor(tmp_path, scheme="faulty", lease_s=1.0) as shop, shop.working() as test:
            test.publish(orders, *(Order(sku=str(number)) for number in range(5)))
            test.run_until_idle()
            assert sorted(one.sku for one in test.sent(reserved)) == [str(number) for number in range(5)]
            assert len(shop.of(Reconnected)) == 1
            assert shop.of(HandlerFailed) == shop.of(Alarm) == []

    @pytest.mark.parametrize("comes_back", [True, False], ids=["zombie", "dead"])
    def test_a_process_that_stops_inside_of_a_step_is_fenced(
        self, tmp_path: Path, faults: Faults, comes_back: bool
    ) -> None:
        """It handled and sent, and stood still before its commit. After its lease another process
        handles the same deliveries; when the first one wakes up, its commit is refused as a whole."""
        stands, wake = threading.Event(), threading.Event()

        def stand_still(real: Callable[[], None]) -> None:
            stands.set()
            assert wake.wait(PATIENCE_S)
            real()

        faults.commits = [stand_still]
        with atomic_floor(tmp_path, scheme="faulty", lease_s=0.5) as shop:
            for number in range(5):
                shop.bus.send(orders, Order(sku=str(number)))
            shop.bus.start()
            assert stands.wait(PATIENCE_S)
            heir = Bus(shop.url, service="shop", topics=[reserved], poll_s=0.05, lease_s=0.5)
            passing(heir)
            with heir:
                assert heir.run(until_idle=0.1) == 5
                if comes_back:
                    wake.set()
                    until(lambda: shop.of(FencedOff))
                    heir.send(orders, Order(sku="5"))
                    until(lambda: len(skus_in(shop, reserved)) == 6)
                assert sorted(skus_in(shop, reserved)) == [str(number) for number in range(5 + comes_back)]
            assert shop.of(HandlerFailed) == []
            wake.set()

    def test_two_topics_are_visible_together(self, tmp_path: Path) -> None:
        """Whoever sees a message of a step in one topic finds the other one in the other topic."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="pass", database=None, atomic=True)
            def both(order: Order, delivery: Delivery) -> None:
                delivery.send(reserved, Reserved(sku=order.sku))
                delivery.send(billed, Reserved(sku=order.sku))

            bus.on(billed, scope="never", database=None, tags={"none"})(lambda what: None)

        with atomic_floor(tmp_path, declare) as shop, shop.working() as test:
            seen = 0
            for number in range(200):
                test.publish(orders, Order(sku=str(number)))
                first = set(skus_in(shop, reserved))
                second = set(skus_in(shop, billed))
                third = set(skus_in(shop, reserved))
                assert first <= second <= third
                seen += 0 < len(first) < 200
            test.run_until_idle()
            assert len(skus_in(shop, reserved)) == len(skus_in(shop, billed)) == 200
            assert seen, "it was never looked at while they were handled"

    def test_an_aborted_step_is_repeated_and_counts_for_nobody(self, tmp_path: Path, faults: Faults) -> None:
        """StepAborted and an unreachable broker are no fault of the messages."""
        faults.commits = [fails(StepAborted("a replica moved")), fails(BackendUnavailable("away"))]
        with atomic_floor(tmp_path, scheme="faulty", lease_s=1.0) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            assert skus_in(shop, reserved) == ["a"]
            assert shop.of(HandlerFailed) == shop.of(DeadLettered) == []


class TestFailures:
    def test_a_poisonous_message_is_a_dead_letter_together_with_its_position(self, tmp_path: Path) -> None:
        """It runs max_attempts times and no more, its neighbours are visible once and in order, and
        the dead letter is there once."""
        runs: Counter[str] = Counter()
        attempts: list[int] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="pass", database=None, atomic=True, retry=QUICK)
            def reserve(order: Order, delivery: Delivery) -> None:
                runs[order.sku] += 1
                delivery.send(reserved, Reserved(sku=order.sku))
                if order.sku == "poison":
                    attempts.append(delivery.attempt)
                    raise ValueError("no such shelf")

        names = ["a", "b", "poison", "c", "d"]
        with atomic_floor(tmp_path, declare) as shop:
            for name in names:
                shop.bus.send(orders, Order(sku=name), message_id=f"m-{name}")
            with shop.working() as test:
                assert test.run_until_idle() == 5
                assert skus_in(shop, reserved) == ["a", "b", "c", "d"]
                (letter,) = test.received(dead)
            assert attempts == [1, 2, 3]
            assert letter.envelope.id == "m-poison"
            assert letter.envelope.headers["txbus-dead-attempts"] == "3"
            assert "no such shelf" in letter.envelope.headers["txbus-dead-error"]
            assert [event.attempt for event in shop.of(HandlerFailed)] == [1, 2]
            assert [(event.message_id, event.attempts) for event in shop.of(DeadLettered)] == [("m-poison", 3)]
            traces = {event.trace_id for event in (*shop.of(HandlerFailed), *shop.of(DeadLettered))}
            assert traces == {letter.envelope.headers["traceparent"].split("-")[1]}
            # Neighbours ran again at most once for each step that the poison spoiled.
            assert max(runs[name] for name in names if name != "poison") <= 2

    def test_a_dead_letter_that_is_not_stored_is_tried_again_without_a_run(
        self, tmp_path: Path, faults: Faults
    ) -> None:
        """The step with the dead letter is aborted: it and the position come together later."""
        runs: list[int] = []

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="pass", database=None, atomic=True, retry=Retry(max_attempts=1))
            def reserve(order: Order, delivery: Delivery) -> None:
                runs.append(delivery.attempt)
                raise ValueError

        faults.commits = [fails(StepAborted("a replica moved"))]
        with atomic_floor(tmp_path, declare, scheme="faulty", lease_s=1.0) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            assert runs == [1]
            assert len(test.received(dead)) == 1

    def test_a_message_at_the_broker_s_limit_becomes_a_dead_letter(self, tmp_path: Path) -> None:
        """Its letter loses a header and says which; the next message is handled."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="pass", database=None, atomic=True, retry=Retry(max_attempts=1))
            def reserve(order: Order, delivery: Delivery) -> None:
                if order.sku == "bad":
                    raise ValueError("no such shelf")
                delivery.send(reserved, Reserved(sku=order.sku))

        with atomic_floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="plain"))
            (plain,) = test.received(orders)
            room = HEADERS_BYTES_MAX - (plain.envelope.size - len(plain.envelope.payload)) - len("x-note")
            test.publish(orders, Order(sku="bad"), headers={"x-note": "n" * room})
            test.publish(orders, Order(sku="good"))
            test.run_until_idle()
            assert skus_in(shop, reserved) == ["plain", "good"]
            (letter,) = test.received(dead)
        assert letter.envelope.headers["txbus-dead-dropped"] == "x-note"
        assert "no such shelf" in letter.envelope.headers["txbus-dead-error"]
        assert shop.of(Alarm) == shop.of(Reconnected) == []

    def test_other_partitions_go_on_while_one_is_held(self, tmp_path: Path) -> None:
        """A failing delivery holds its own partition, in order, and no other."""
        others = threading.Event()

        def declare(bus: Bus) -> None:
            patient = Retry(max_attempts=10_000, backoff_s=(0.005, 0.005))

            @bus.on(orders, scope="pass", database=None, atomic=True, retry=patient)
            def reserve(order: Order, delivery: Delivery) -> None:
                if order.sku == "a0" and not others.is_set():
                    raise TimeoutError
                delivery.send(reserved, Reserved(sku=order.sku), key="one")
                if order.sku == "b4":
                    others.set()

        with atomic_floor(tmp_path, declare, topic_partitions=2) as shop, shop.working() as test:
            keys = _keys_of_two_partitions(shop.bus)
            for number in range(5):
                for name, key in zip("ab", keys, strict=True):
                    test.publish(orders, Order(sku=f"{name}{number}"), key=key)
            test.run_until_idle()
            sent = skus_in(shop, reserved)
            assert [sku for sku in sent if sku[0] == "a"] == [f"a{number}" for number in range(5)]
            assert [sku for sku in sent if sku[0] == "b"] == [f"b{number}" for number in range(5)]
            assert sent.index("b4") < sent.index("a0")

    def test_a_malformed_record_is_a_dead_letter_at_once(self, tmp_path: Path) -> None:
        """Raw bytes and reason are kept, the handler does not see it, the next record is handled."""
        with atomic_floor(tmp_path) as shop, shop.working() as test:
            sender = shop.bus.opened.backend.sender("foreign")
            sender.send([Envelope("orders", b"\xff", key="k"), Envelope("orders", b'{"sku": "good"}', key="k")], 5.0)
            test.run_until_idle()
            assert skus_in(shop, reserved) == ["good"]
            (letter,) = test.received(dead)
            assert letter.envelope.payload == b"\xff"
            assert "Invalid JSON" in letter.envelope.headers["txbus-dead-error"]
            assert shop.of(HandlerFailed) == []

    def test_what_cannot_be_sent_is_the_handler_s_failure(self, tmp_path: Path) -> None:
        """A payload that is too large is refused where it is sent: attempts, then a dead letter."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="pass", database=None, atomic=True, retry=QUICK)
            def reserve(order: Order, delivery: Delivery) -> None:
                delivery.send(reserved, Reserved(sku=order.sku * (20_000_000 if order.sku == "x" else 1)))

        with atomic_floor(tmp_path, declare) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"), Order(sku="x"), Order(sku="b"))
            test.run_until_idle()
            assert skus_in(shop, reserved) == ["a", "b"]
            (event,) = shop.of(DeadLettered)
            assert event.attempts == 3
            assert "MessageRefused" in event.error

    def test_the_one_whose_message_the_broker_refuses_is_found(self, tmp_path: Path, faults: Faults) -> None:
        """The commit of a step of many is refused for one message: each goes alone, and only the one
        that sent it fails."""
        faults.refused = {reserved.encode(Reserved(sku="x"))}
        with atomic_floor(tmp_path, scheme="faulty") as shop:
            names = ["a", "b", "x", "c", "d"]
            for name in names:
                shop.bus.send(orders, Order(sku=name))
            with shop.working() as test:
                assert test.run_until_idle() == 5
            assert skus_in(shop, reserved) == ["a", "b", "c", "d"]
            assert [(event.attempts, "MessageRefused" in event.error) for event in shop.of(DeadLettered)] == [(3, True)]

    def test_a_destination_that_refuses_is_the_handler_s_failure_too(self, tmp_path: Path, faults: Faults) -> None:
        """It may be permitted by the next attempt."""
        faults.commits = [fails(DestinationRefused("not permitted"))]
        with atomic_floor(tmp_path, scheme="faulty") as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            assert skus_in(shop, reserved) == ["a"]
            assert [event.attempt for event in shop.of(HandlerFailed)] == [1]

    def test_tags_are_filtered(self, tmp_path: Path) -> None:
        """What has another tag is passed over without a run."""
        with atomic_floor(tmp_path, lambda bus: passing(bus, tags={"red"})) as shop, shop.working() as test:
            test.publish(orders, Order(sku="red"), tag="red")
            test.publish(orders, Order(sku="blue"), tag="blue")
            assert test.run_until_idle() == 2
            assert skus_in(shop, reserved) == ["red"]


def _keys_of_two_partitions(bus: Bus) -> tuple[str, ...]:
    """A key for each of two partitions, found by asking where they go."""
    probe = Topic("probe", Order, partitions=2)
    with Bus(bus.url, service="probe", topics=[probe]) as other:
        found: dict[int, str] = {}
        number = 0
        while len(found) < 2:
            found.setdefault(other.send(probe, Order(sku="x"), key=f"k{number}").partition, f"k{number}")
            number += 1
    return tuple(found.values())


class TestScope:
    """bus.atomic()."""

    def test_a_commit_without_an_answer_is_told(self, tmp_path: Path, faults: Faults) -> None:
        """CommitUnknown passes; the next scope has a broker transaction of its own and works."""
        faults.commits = [fails(CommitUnknown("the connection broke"), first_commit=True)]
        with atomic_floor(tmp_path, scheme="faulty") as shop:
            with pytest.raises(CommitUnknown), shop.bus.atomic() as step:
                step.send(reserved, Reserved(sku="a"))
            with shop.bus.atomic() as step:
                step.send(reserved, Reserved(sku="b"))
            assert skus_in(shop, reserved) == ["a", "b"]

    def test_the_block_s_own_error_passes_though_the_abort_fails(self, tmp_path: Path, faults: Faults) -> None:
        """What the application raised is what it gets; nothing is visible."""
        faults.aborts = [BackendUnavailable("away")]
        with atomic_floor(tmp_path, scheme="faulty") as shop:
            with pytest.raises(KeyError), shop.bus.atomic() as step:
                step.send(reserved, Reserved(sku="a"))
                raise KeyError
            with shop.bus.atomic() as step:
                step.send(reserved, Reserved(sku="b"))
            assert skus_in(shop, reserved) == ["b"]

    def test_a_scope_is_for_one_block(self, tmp_path: Path) -> None:
        with atomic_floor(tmp_path) as shop:
            scope = shop.bus.atomic()
            with pytest.raises(NotOpen, match="inside of its block"):
                scope.send(reserved, Reserved(sku="a"))
            with scope:
                scope.send(reserved, Reserved(sku="a"))
            with pytest.raises(NotOpen), scope:
                pass
            with pytest.raises(NotOpen):
                scope.send(reserved, Reserved(sku="a"))
            assert skus_in(shop, reserved) == ["a"]

    def test_scopes_of_several_threads_do_not_fence_one_another(self, tmp_path: Path) -> None:
        """Each open block has a transactional id of its own; finished ones are used again."""
        with atomic_floor(tmp_path) as shop:
            together = threading.Barrier(4)
            errors: list[BaseException] = []

            def work(name: str) -> None:
                try:
                    for number in range(5):
                        with shop.bus.atomic() as step:
                            step.send(reserved, Reserved(sku=f"{name}{number}"))
                            together.wait(PATIENCE_S)
                except BaseException as exc:
                    errors.append(exc)

            threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert errors == []
            assert len(set(skus_in(shop, reserved))) == 20
