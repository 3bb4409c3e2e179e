"""Running: until idle, until enough, until asked; signals, stops from anywhere, health."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from tests.unit.shopfloor import Floor, Order, Reserved, floor, orders, reserved, sales, skus, until
from txbus import Bus, Delivery, Retry
from txbus.errors import NotOpen
from txbus.events import Alarm, EffectCommitted

QUICK = Retry(max_attempts=3, backoff_s=(0.001, 0.002))
PATIENCE_S = 20.0


def sell(order: Order, connection: Connection) -> None:
    connection.execute(insert(sales), {"sku": order.sku})


def selling(bus: Bus) -> None:
    bus.on(orders, scope="reserve", database="shop")(sell)


def in_thread(function: Callable[[], object]) -> Callable[[], object]:
    """Run it in a thread; what is returned waits for the end and gives its result or error."""
    result: list[object] = []

    def target() -> None:
        try:
            result.append(function())
        except BaseException as exc:
            result.append(exc)

    thread = threading.Thread(target=target)
    thread.start()

    def end() -> object:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "it did not end"
        return result[0]

    return end


def sold(shop: Floor, number: int) -> bool:
    return len(skus(shop.engine)) == number


class TestRun:
    def test_until_idle_publishes_and_handles_everything(self, tmp_path: Path) -> None:
        """Halves are settled, published and handled; it returns how many deliveries were."""
        with floor(tmp_path, selling) as shop:
            for number in range(20):
                with shop.bus.transaction("shop") as tx:
                    tx.send(orders, Order(sku=str(number), customer=str(number)))
            assert shop.bus.run(until_idle=0.05) == 20
            assert sorted(map(int, skus(shop.engine))) == list(range(20))
            shop.bus.send(orders, Order(sku="20"))
            assert shop.bus.run(until_idle=0.05) == 1

    def test_until_idle_waits_for_retries(self, tmp_path: Path) -> None:
        """A message that is held for its next attempt is something to do."""
        retry = Retry(max_attempts=3, backoff_s=(0.2, 0.2), jitter=0.0)

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop", retry=retry)
            def reserve(order: Order, delivery: Delivery, connection: Connection) -> None:
                if delivery.attempt < 3:
                    raise TimeoutError
                sell(order, connection)

        with floor(tmp_path, declare) as shop:
            shop.bus.send(orders, Order(sku="a"))
            assert shop.bus.run(until_idle=0.0) == 1
            assert skus(shop.engine) == ["a"]

    def test_it_opens_and_closes_a_bus_that_is_not_open(self, tmp_path: Path) -> None:
        with floor(tmp_path, selling) as shop:
            shop.bus.send(orders, Order(sku="a"))
            other = Bus(shop.url, service="shop", databases={"shop": shop.engine}, poll_s=0.05)
            selling(other)
            assert other.run(until_idle=0.05) == 1
            assert skus(shop.engine) == ["a"]
            with pytest.raises(NotOpen):
                other.send(orders, Order(sku="b"))

    def test_until_idle_ends_beside_other_processes_of_the_service(self, tmp_path: Path) -> None:
        """Relays share the half log: each knows its own part, and the log tells whether the rest is
        settled."""
        with floor(tmp_path, selling) as shop:
            others = [
                Bus(shop.url, service="shop", databases={"shop": shop.engine}, poll_s=0.05, check_after_s=0.1)
                for _ in range(2)
            ]
            for other in others:
                selling(other)
                other.open()
            for number in range(20):
                with shop.bus.transaction("shop") as tx:
                    tx.send(orders, Order(sku=str(number), customer=str(number)))
            ends = [in_thread(partial(bus.run, until_idle=0.2)) for bus in (shop.bus, *others)]
            # What a partition's change of hands delivers twice is suppressed.
            assert sum(int(str(end())) for end in ends) >= 20
            assert sorted(map(int, skus(shop.engine))) == list(range(20))
            for other in others:
                other.close()

    def test_max_messages_is_a_total_over_all_handlers(self, tmp_path: Path) -> None:
        """Three handlers, an atomic one among them, share the number; the next run has the rest."""
        ran: list[str] = []

        def declare(bus: Bus) -> None:
            selling(bus)
            bus.on(orders, scope="mail", database=None)(lambda order: ran.append(order.sku))
            bus.on(orders, scope="pass", database=None, atomic=True)(lambda order: ran.append(order.sku))

        with floor(tmp_path, declare) as shop:
            for number in range(20):
                shop.bus.send(orders, Order(sku=str(number), customer=str(number)))
            done = [shop.bus.run(max_messages=7) for _ in range(8)]
            assert done == [7] * 8
            assert shop.bus.run(max_messages=7, until_idle=0.1) == 4
            assert sorted(map(int, skus(shop.engine))) == list(range(20))
            assert len(set(ran)) == 20

    def test_a_limit_is_left_to_others_while_one_message_waits(self, tmp_path: Path) -> None:
        """What fails and is held takes nothing of the limit: another handler's messages fill it."""

        def declare(bus: Bus) -> None:
            selling(bus)

            @bus.on(reserved, scope="stuck", database="shop", retry=Retry(10, (3_600.0, 3_600.0)))
            def stuck(what: Reserved) -> None:
                raise TimeoutError

        with floor(tmp_path, declare, inbox_horizon_s=86_400 * 300.0, topic_retention_s=86_400 * 10.0) as shop:
            shop.bus.send(reserved, Reserved(sku="x"))
            shop.bus.send(orders, Order(sku="a"))
            shop.bus.send(orders, Order(sku="b"))
            assert shop.bus.run(max_messages=2) == 2
            assert skus(shop.engine) == ["a", "b"]

    def test_nothing_is_handled_for_a_limit_of_none(self, tmp_path: Path) -> None:
        with floor(tmp_path, selling) as shop:
            shop.bus.send(orders, Order(sku="a"))
            assert shop.bus.run(max_messages=0) == 0
            assert skus(shop.engine) == []

    def test_a_second_run_beside_the_first_is_refused(self, tmp_path: Path) -> None:
        with floor(tmp_path, selling) as shop:
            shop.bus.start()
            with pytest.raises(NotOpen, match="running already"):
                shop.bus.run(until_idle=0.0)
            shop.bus.stop()
            assert shop.bus.run(until_idle=0.0) == 0

    def test_a_relay_alone_settles_and_handles_nothing(self, tmp_path: Path) -> None:
        """run_relay publishes what others committed."""
        with floor(tmp_path, selling, relay="outside") as shop:
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="a"))
            assert shop.bus.health().relay is None
            shop.bus.run_relay(until_idle=0.0)
            assert skus(shop.engine) == []
            assert shop.bus.run(until_idle=0.05) == 1
            assert skus(shop.engine) == ["a"]


class TestStop:
    def test_stop_from_another_thread_ends_run_when_the_delivery_in_hand_is_done(self, tmp_path: Path) -> None:
        """Both run and stop return only then; nothing new is begun."""
        begun, go = threading.Event(), threading.Event()

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(order: Order, connection: Connection) -> None:
                begun.set()
                assert go.wait(PATIENCE_S)
                sell(order, connection)

        with floor(tmp_path, declare, workers=1) as shop:
            for number in range(5):
                shop.bus.send(orders, Order(sku=str(number)))
            ran = in_thread(lambda: shop.bus.run())
            assert begun.wait(PATIENCE_S)
            stopped = in_thread(shop.bus.stop)
            until(lambda: not shop.bus.opened.consuming.health()[0].in_flight > 1)
            go.set()
            assert stopped() is None
            assert ran() == 1
            assert skus(shop.engine) == ["0"]
            assert len(shop.of(EffectCommitted)) == 1
            # The ack is durable too: the next run begins after it.
            assert shop.bus.run(until_idle=0.0) == 4
            assert skus(shop.engine) == [str(number) for number in range(5)]

    def test_start_and_stop_may_be_repeated_from_any_thread(self, tmp_path: Path) -> None:
        """Stopping twice, at once or from several threads, is fine; each start goes on where it was."""
        with floor(tmp_path, selling) as shop:
            for number in range(3):
                in_thread(shop.bus.start)()
                shop.bus.send(orders, Order(sku=str(number)))
                until(partial(sold, shop, number + 1))
                stops = [in_thread(shop.bus.stop) for _ in range(4)]
                assert [stop() for stop in stops] == [None] * 4
                shop.bus.stop()
                assert shop.bus.health().handlers == ()

    def test_a_handler_may_ask_to_stop(self, tmp_path: Path) -> None:
        """It is not waited for by itself: its delivery is finished, and run returns."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(order: Order, connection: Connection) -> None:
                sell(order, connection)
                bus.stop()

            @bus.on(reserved, scope="pass", database=None, atomic=True)
            def passing(what: Reserved) -> None:
                bus.stop()

        with floor(tmp_path, declare, workers=1, topic_partitions=1) as shop:
            shop.bus.send(orders, Order(sku="a"))
            assert shop.bus.run() == 1
            assert skus(shop.engine) == ["a"]
            shop.bus.send(reserved, Reserved(sku="b"))
            assert shop.bus.run() == 1
            shop.bus.send(orders, Order(sku="c"))
            shop.bus.start()
            until(lambda: not shop.bus.health().handlers[0].running)
            # Asked, not waited for: starting anew takes the place of what has ended.
            until(lambda: not any(handler.running for handler in shop.bus.health().handlers))
            shop.bus.start()
            assert shop.bus.health().ok
            assert shop.of(Alarm) == []

    def test_a_handler_that_does_not_end_is_reported(self, tmp_path: Path) -> None:
        """stop gives up after stop_timeout_s with an alarm; the delivery is not acknowledged."""
        begun, go = threading.Event(), threading.Event()

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="mail", database=None)
            def mail(order: Order) -> None:
                begun.set()
                go.wait(PATIENCE_S)

        with floor(tmp_path, declare, stop_timeout_s=0.2) as shop:
            shop.bus.send(orders, Order(sku="a"))
            shop.bus.start()
            assert begun.wait(PATIENCE_S)
            shop.bus.stop()
            (alarm,) = shop.of(Alarm)
            assert "scope mail" in alarm.detail
            assert "stop_timeout_s=0.2" in alarm.detail
            go.set()

    @pytest.mark.parametrize("atomic", [False, True])
    def test_stopping_takes_a_bounded_number_of_polls(self, tmp_path: Path, atomic: bool) -> None:
        """With polls of four seconds and nothing to do, a stop is not a matter of polls: it wakes them."""

        def declare(bus: Bus) -> None:
            bus.on(orders, scope="reserve", database=None, atomic=atomic)(lambda order: None)

        with floor(tmp_path, declare, poll_s=4.0, lease_s=10.0) as shop:
            shop.bus.start()
            until(lambda: shop.bus.health().handlers[0].polled_ago_s is not None)
            polls = _polls(shop.bus)
            shop.bus.stop()
            assert polls() <= 2


def _polls(bus: Bus) -> Callable[[], int]:
    """Counts the polls that any receiver of the bus's handlers makes from now on."""
    made = 0
    for _, running in bus.opened.consuming._running:
        poller: Any = getattr(running, "_poller", running)
        receiver = poller._receiver
        assert receiver is not None
        whole = receiver.receive

        def receive(most: int, timeout_s: float, whole: Callable[[int, float], object] = whole) -> object:
            nonlocal made
            made += 1
            return whole(most, timeout_s)

        receiver.receive = receive
    return lambda: made


class TestInterrupts:
    @pytest.mark.parametrize("atomic", [False, True])
    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_of_a_handler_is_raised_by_run(
        self, tmp_path: Path, interrupt: type[BaseException], atomic: bool
    ) -> None:
        """All handlers stop; the delivery is neither finished nor counted as failed, and comes again."""
        armed = threading.Event()
        armed.set()

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database=None if atomic else "shop", atomic=atomic)
            def reserve(order: Order, delivery: Delivery) -> None:
                delivery.send(reserved, Reserved(sku=order.sku))
                if armed.is_set():
                    raise interrupt(3)

            bus.on(reserved, scope="other", database="shop")(lambda what: None)

        with floor(tmp_path, declare, lease_s=1.0) as shop, shop.working() as test:
            shop.bus.stop()
            shop.bus.send(orders, Order(sku="a"))
            with pytest.raises(interrupt):
                shop.bus.run()
            assert shop.bus.health().handlers == ()
            assert "reserve" in shop.of(Alarm)[0].detail
            assert test.sent(reserved) == []
            armed.clear()
            assert shop.bus.run(until_idle=0.1) == 2
            assert test.sent(reserved) == [Reserved(sku="a")]

    def test_an_interrupt_of_a_handler_in_the_background_is_in_health(self, tmp_path: Path) -> None:
        """Nobody waits in run: health is not ok and says why, an alarm is raised."""

        def declare(bus: Bus) -> None:
            @bus.on(orders, scope="reserve", database="shop")
            def reserve(order: Order) -> None:
                raise SystemExit(3)

        with floor(tmp_path, declare) as shop:
            shop.bus.start()
            shop.bus.send(orders, Order(sku="a"))
            until(lambda: not shop.bus.health().ok)
            until(lambda: not shop.bus.health().handlers[0].running)
            assert "SystemExit" in shop.bus.health().handlers[0].error
            assert len(shop.of(Alarm)) == 1


class TestHealth:
    def test_ok_while_everything_runs(self, tmp_path: Path) -> None:
        """Handlers with their groups, partitions and counts; the relay with its partitions."""
        with floor(tmp_path, selling, half_partitions=2, topic_partitions=4) as shop, shop.working() as test:
            test.publish(orders, Order(sku="a"))
            test.run_until_idle()
            until(lambda: len(shop.bus.health().relay.partitions) == 2)  # type: ignore[union-attr]
            health = shop.bus.health()
            assert health.ok
            (handler,) = health.handlers
            assert (handler.scope, handler.group, handler.running, handler.error) == (
                "reserve",
                "shop.reserve",
                True,
                "",
            )
            assert (handler.handled, handler.runs, handler.in_flight, handler.held) == (1, 1, 0, 0)
            assert handler.partitions == tuple(f"orders/{n}" for n in range(4))
            assert handler.polled_ago_s is not None
            assert health.relay is not None
            assert health.relay.running

    @pytest.mark.parametrize("atomic", [False, True])
    def test_a_broker_that_is_away_is_in_health_and_what_comes_back_is_read_on(
        self, tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error is there while polls fail and gone when one succeeds."""
        from txbus.embedded.receiver import EmbeddedReceiver
        from txbus.errors import BackendUnavailable

        away = threading.Event()
        whole = EmbeddedReceiver.receive

        def receive(receiver: EmbeddedReceiver, most: int, timeout_s: float) -> object:
            if away.is_set():
                raise BackendUnavailable("the way is closed")
            return whole(receiver, most, timeout_s)

        monkeypatch.setattr(EmbeddedReceiver, "receive", receive)
        ran: list[str] = []

        def declare(bus: Bus) -> None:
            bus.on(orders, scope="reserve", database=None, atomic=atomic)(lambda order: ran.append(order.sku))

        with floor(tmp_path, declare, relay="outside") as shop, shop.working() as test:
            test.run_until_idle()
            assert shop.bus.health().ok
            away.set()
            until(lambda: not shop.bus.health().ok)
            assert "the way is closed" in shop.bus.health().handlers[0].error
            shop.bus.send(orders, Order(sku="a"))
            away.clear()
            until(lambda: shop.bus.health().ok)
            until(lambda: ran == ["a"])


def test_signals_are_left_alone_outside_of_the_main_thread(tmp_path: Path) -> None:
    """run in another thread changes no handler of the process."""
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with floor(tmp_path, selling) as shop:
        ran = in_thread(lambda: shop.bus.run())
        until(lambda: shop.bus.health().handlers)
        assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
        shop.bus.stop()
        assert ran() == 0


def test_the_main_thread_gets_its_signal_handlers_back(tmp_path: Path) -> None:
    """Also those that an application had installed."""
    mine: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: mine.append(number))
    try:
        with floor(tmp_path, selling) as shop:
            shop.bus.run(until_idle=0.0)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: mine == [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)
