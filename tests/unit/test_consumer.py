"""One polling thread, some workers, order per key."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.unit.test_consumer_broker import PATIENCE_S, PORTS, Broker, FakeReceiver, Log, cloud_event
from txbus._consumer import Consumer, ConsumerBudget
from txbus._consumer_contract import Disposition, Done, GiveBack, RetryAfter, Run
from txbus._consumer_limit import DeliveryLimit
from txbus._telemetry import Alarm, FencedOff, PartitionsChanged, Reconnected
from txbus.errors import BackendUnavailable, Fenced, NotOpen, SettingsError
from txbus.spi import Received, Receiver

SOON = ConsumerBudget(poll_s=0.05, backoff_s=(0.001, 0.01))


class Handler:
    """Notes what it runs; ``answers`` decides by payload, otherwise it is done."""

    def __init__(self, **answers: list[Disposition | BaseException]) -> None:
        self.answers = answers
        self.ran: list[str] = []
        self.threads: set[int] = set()
        self.gates: dict[str, threading.Event] = {}
        self.began = threading.Condition()

    def gate(self, payload: str) -> threading.Event:
        return self.gates.setdefault(payload, threading.Event())

    def wait_for(self, payload: str) -> None:
        with self.began:
            assert self.began.wait_for(lambda: payload in self.ran, PATIENCE_S), f"{payload} never ran"

    def __call__(self, received: Received, run: Run, /) -> Disposition:
        payload = received.envelope.payload.decode()
        self.threads.add(threading.get_ident())
        with self.began:
            self.ran.append(payload)
            self.began.notify_all()
        if payload in self.gates:
            assert self.gates[payload].wait(PATIENCE_S), f"{payload} was never let go"
        answers = self.answers.get(payload)
        answer = answers.pop(0) if answers else Done()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def publish(broker: Broker, *payloads: str, key: str | None = None, partition: int = 0) -> None:
    for payload in payloads:
        broker.publish(cloud_event(payload.encode(), key), partition)


@contextmanager
def consuming(
    broker: Broker,
    handler: Callable[..., Disposition],
    *,
    log: Log | None = None,
    make_receiver: Callable[[], Receiver] | None = None,
    native_redelivery: bool = False,
    budget: ConsumerBudget = SOON,
    max_messages: int | None = None,
) -> Iterator[Consumer]:
    consumer = Consumer(
        make_receiver=make_receiver or broker.receiver,
        handle=handler,
        ports=PORTS,
        emit=log or Log(),
        service="shop",
        scope="reserve",
        group="shop.reserve",
        budget=budget,
        native_redelivery=native_redelivery,
    )
    consumer.start(None if max_messages is None else DeliveryLimit(max_messages, PORTS))
    try:
        yield consumer
    finally:
        consumer.stop()
        assert consumer.join(PATIENCE_S), "it did not stop"


def test_everything_is_handled_and_acknowledged() -> None:
    """Each record is handled once, acknowledged once, and then the consumer is idle."""
    broker, handler = Broker(2), Handler()
    for n in range(200):
        publish(broker, str(n), key=f"k{n % 7}" if n % 3 else None, partition=n % 2)
    with consuming(broker, handler) as consumer:
        broker.wait(broker.all_acked)
        assert consumer.wait_idle(PATIENCE_S)
        assert consumer.idle()
        health = consumer.health()
        assert (health.in_flight, health.handled, health.runs, health.error) == (0, 200, 200, "")
        assert health.running
        assert health.partitions == ("orders/0", "orders/1")
    assert sorted(handler.ran, key=int) == [str(n) for n in range(200)]
    assert len(broker.acked) == 200
    assert not consumer.health().running


def test_only_the_polling_thread_talks_to_the_receiver() -> None:
    """Receiver calls other than wake come from one thread, and no handler runs in it."""
    broker, handler = Broker(), Handler(b=[RetryAfter(0.0)])
    publish(broker, "a", "b", "c")
    with consuming(broker, handler, native_redelivery=True):
        broker.wait(broker.all_acked)
        (member,) = broker.members
    assert len(member.users) == 1
    assert not member.users & handler.threads


def test_a_retried_key_keeps_its_order_while_others_go_on() -> None:
    """Later messages of a key wait until the failed one is done; another key does not."""
    broker, handler = Broker(), Handler(a1=[RetryAfter(0.05), RetryAfter(0.0)])
    publish(broker, "a1", "a2", "a3", key="a")
    publish(broker, "b1", key="b")
    with consuming(broker, handler):
        broker.wait(broker.all_acked)
    of_a = [payload for payload in handler.ran if payload[0] == "a"]
    assert of_a == ["a1", "a1", "a1", "a2", "a3"]
    assert handler.ran.index("b1") < handler.ran.index("a2")


def test_the_later_ones_of_a_key_wait_however_long_it_is_held() -> None:
    """While the head of a key is held for long, other keys are acknowledged and its own do not run."""
    broker, handler = Broker(), Handler(a1=[RetryAfter(3600.0)])
    publish(broker, "a1", "a2", key="a")
    publish(broker, "b1", "b2", key="b")
    with consuming(broker, handler) as consumer:
        broker.wait(lambda: len(broker.acked) == 2)
        assert not consumer.idle()
        assert (consumer.health().held, consumer.health().in_flight) == (1, 2)
    assert "a2" not in handler.ran
    assert {position.offset for position in broker.acked} == {2, 3}


def test_given_back_is_not_counted_as_a_failed_run() -> None:
    """GiveBack runs again in order; only RetryAfter raises the number of failed runs."""
    seen: list[tuple[str, int, int]] = []
    answers: list[Disposition] = [GiveBack(0.0), RetryAfter(0.0), GiveBack(0.0), Done(), Done()]

    def handle(received: Received, run: Run, /) -> Disposition:
        seen.append((received.envelope.payload.decode(), run.failed, run.given_back))
        return answers.pop(0)

    broker = Broker()
    publish(broker, "a1", "a2", key="a")
    with consuming(broker, handle):
        broker.wait(broker.all_acked)
    assert seen == [("a1", 0, 0), ("a1", 0, 1), ("a1", 1, 0), ("a1", 1, 1), ("a2", 0, 0)]


@pytest.mark.parametrize("native", [True, False])
def test_a_keyless_message_waits_at_the_broker_where_it_can(native: bool) -> None:
    """Under NATIVE_REDELIVERY a failed keyless message is given back to the broker, else held here."""
    broker, handler = Broker(), Handler(x=[RetryAfter(0.0)])
    publish(broker, "x")
    with consuming(broker, handler, native_redelivery=native):
        broker.wait(broker.all_acked)
    assert handler.ran == ["x", "x"]
    assert broker.attempts == ({(0, 0): 2} if native else {})


def test_a_keyed_message_never_goes_back_to_the_broker() -> None:
    """With a key the failed message waits here, because the broker would let later ones pass."""
    broker, handler = Broker(), Handler(x=[RetryAfter(0.0)])
    publish(broker, "x", "y", key="k")
    with consuming(broker, handler, native_redelivery=True):
        broker.wait(broker.all_acked)
    assert (handler.ran, broker.attempts) == (["x", "x", "y"], {})


def test_it_is_not_idle_while_a_message_waits_at_the_broker() -> None:
    """A message given back to the broker for long counts as left to do."""
    broker, handler = Broker(), Handler(x=[RetryAfter(3600.0)])
    publish(broker, "x")
    with consuming(broker, handler, native_redelivery=True) as consumer:
        broker.wait(lambda: bool(broker.attempts))
        polls = broker.polls
        publish(broker, "y")
        broker.wait(lambda: len(broker.acked) == 1 and broker.polls > polls + 4)
        assert not consumer.idle()


def test_a_lost_partition_is_dropped_and_not_acknowledged() -> None:
    """What waits of a lost partition never runs here; what runs finishes and is not acknowledged."""
    broker, handler, log = Broker(), Handler(), Log()
    gate = handler.gate("a1")
    publish(broker, "a1", "a2", key="a")
    with consuming(broker, handler, log=log) as consumer:
        handler.wait_for("a1")
        other = broker.receiver()
        broker.rebalance(shift=1)
        broker.wait(lambda: not broker.members[0].lost)
        told = broker.polls
        # The poll after the one that told the loss: by then it has been taken note of.
        broker.wait(lambda: broker.polls > told)
        gate.set()
        assert consumer.wait_idle(PATIENCE_S)
    assert (handler.ran, broker.acked) == (["a1"], [])
    assert [event.lost for event in log.of(PartitionsChanged) if event.lost] == [("orders/0",)]
    assert not log.of(Alarm)
    assert [r.envelope.payload for r in other.receive(10, 0.0).received] == [b"a1", b"a2"]


def test_an_ack_that_is_fenced_is_an_event_and_costs_other_partitions_nothing() -> None:
    """A partition lost between poll and ack is FencedOff; the other partition is acknowledged."""
    broker, handler, log = Broker(2), Handler(), Log()
    gates = [handler.gate("p0"), handler.gate("p1")]
    publish(broker, "p0", partition=0)
    publish(broker, "p1", partition=1)

    class Late(FakeReceiver):
        """Does not tell a loss in a poll, as a member that was paused beyond its lease."""

        def taken_away(self, partition: int) -> None:
            super().taken_away(partition)
            self.lost.discard(partition)
            self.owned.add(partition)

    def late() -> Receiver:
        with broker.changed:
            member = Late(broker)
            broker.members.append(member)
            broker.rebalance()
            return member

    with consuming(broker, handler, log=log, make_receiver=late):
        handler.wait_for("p0")
        handler.wait_for("p1")
        with broker.changed:
            other = FakeReceiver(broker)
            broker.owner[0].taken_away(0)  # type: ignore[union-attr]
            broker.owner[0] = other
            other.given(0)
            for gate in gates:
                gate.set()
        broker.wait(lambda: bool(broker.acked) and bool(log.of(FencedOff)))
    assert [position.partition for position in broker.acked] == [1]
    assert "orders/0" in log.of(FencedOff)[0].what
    assert not log.of(Alarm)


def test_what_was_gained_is_told() -> None:
    """A gain is a PartitionsChanged event with the group's name."""
    broker, log = Broker(2), Log()
    with consuming(broker, Handler(), log=log) as consumer:
        assert consumer.wait_idle(PATIENCE_S)
    (event,) = log.of(PartitionsChanged)
    assert (event.group, event.gained, event.lost) == ("shop.reserve", ("orders/0", "orders/1"), ())


def test_a_full_window_pauses_and_an_emptied_one_resumes() -> None:
    """Never more than max_in_flight records are in hand, and all are handled in the end."""
    broker, handler = Broker(), Handler()
    gate = handler.gate("0")
    publish(broker, *map(str, range(50)))
    budget = ConsumerBudget(workers=1, max_in_flight=8, poll_s=0.05)
    with consuming(broker, handler, budget=budget) as consumer:
        broker.wait(lambda: bool(broker.members and broker.members[0].paused))
        assert consumer.health().in_flight == 8
        polls = broker.polls
        broker.wait(lambda: broker.polls > polls + 2)
        assert consumer.health().in_flight == 8
        gate.set()
        broker.wait(broker.all_acked)
    assert sorted(map(int, handler.ran)) == list(range(50))


def test_a_full_partition_does_not_stop_another() -> None:
    """A partition whose window is held by a key under retry is paused alone."""
    broker, handler = Broker(2), Handler(a0=[RetryAfter(3600.0)])
    publish(broker, *(f"a{n}" for n in range(40)), key="a", partition=0)
    publish(broker, *(f"b{n}" for n in range(40)), key="b", partition=1)
    budget = ConsumerBudget(workers=2, max_in_flight=100, max_in_flight_per_partition=10, poll_s=0.05)
    with consuming(broker, handler, budget=budget):
        broker.wait(lambda: len(broker.done[1]) == 40)
    assert [payload for payload in handler.ran if payload[0] == "a"] == ["a0"]


def test_polls_go_on_while_handlers_are_slow() -> None:
    """The heartbeat does not wait for a handler."""
    broker, handler = Broker(), Handler()
    gate = handler.gate("slow")
    publish(broker, "slow")
    with consuming(broker, handler):
        handler.wait_for("slow")
        polls = broker.polls
        broker.wait(lambda: broker.polls > polls + 5)
        gate.set()


def test_a_finished_delivery_is_acknowledged_without_waiting_for_the_poll() -> None:
    """Completion wakes the poll: with polls of an hour the ack comes all the same."""
    broker, handler = Broker(), Handler()
    publish(broker, "a")
    with consuming(broker, handler, budget=ConsumerBudget(poll_s=3600.0)):
        broker.wait(broker.all_acked)
        publish(broker, "b")
        broker.wait(broker.all_acked)


def test_a_finished_delivery_is_acknowledged_while_another_is_still_running() -> None:
    """An ack does not wait for a slow neighbour, nor for the poll."""
    broker, handler = Broker(), Handler()
    gate = handler.gate("slow")
    publish(broker, "slow", "quick")
    with consuming(broker, handler, budget=ConsumerBudget(poll_s=3600.0)):
        broker.wait(lambda: len(broker.acked) == 1)
        gate.set()
        broker.wait(broker.all_acked)


def test_a_delivery_finished_while_another_is_acknowledged_is_not_overlooked() -> None:
    """What finishes between two polls, when there is no poll to wake, does not wait for the next one."""
    broker, handler = Broker(), Handler()
    gate = handler.gate("slow")
    begun: list[Consumer] = []

    class Slow(FakeReceiver):
        def ack(self, received: Sequence[Received]) -> None:
            gate.set()
            deadline_s = PORTS.clock.monotonic_s() + PATIENCE_S
            while begun[0].handled < 2 and PORTS.clock.monotonic_s() < deadline_s:
                PORTS.clock.sleep_s(0.001)
            super().ack(received)

    def join() -> FakeReceiver:
        member = Slow(broker)
        broker.members.append(member)
        broker.rebalance()
        return member

    budget = ConsumerBudget(poll_s=3600.0, ack_delay_s=0.001)
    with consuming(broker, handler, make_receiver=join, budget=budget) as consumer:
        begun.append(consumer)
        publish(broker, "slow", "quick")
        broker.wait(broker.all_acked)


def test_stop_finishes_the_delivery_in_hand_and_leaves_the_rest() -> None:
    """After stop the running delivery is acknowledged, none is begun, and the receiver is closed."""
    broker, handler = Broker(), Handler()
    gate = handler.gate("0")
    publish(broker, *map(str, range(10)), key="a")
    with consuming(broker, handler, budget=ConsumerBudget(poll_s=3600.0)) as consumer:
        handler.wait_for("0")
        (member,) = broker.members
        consumer.stop()
        consumer.stop()
        assert not consumer.join(0.0)
        gate.set()
        assert consumer.join(PATIENCE_S)
    assert (handler.ran, [p.offset for p in broker.acked], member.closed) == (["0"], [0], True)


def test_stop_ends_an_idle_consumer_whose_poll_waits() -> None:
    """Stop wakes the poll: one of an hour ends."""
    broker = Broker()
    with consuming(broker, Handler(), budget=ConsumerBudget(poll_s=3600.0)) as consumer:
        broker.wait(lambda: broker.polls >= 2)
        consumer.stop()
        assert consumer.join(PATIENCE_S)


def test_stop_ends_a_consumer_whose_broker_is_away() -> None:
    """Stop does not wait for a backoff of an hour."""
    log = Log()

    def away() -> Receiver:
        raise BackendUnavailable("no broker")

    budget = ConsumerBudget(backoff_s=(3600.0, 3600.0))
    with consuming(Broker(), Handler(), make_receiver=away, budget=budget, log=log) as consumer:
        while not consumer.health().error:
            assert not consumer.join(0.01)
        consumer.stop()
        assert consumer.join(PATIENCE_S)
    assert "no broker" in consumer.health().error


def test_max_messages_handles_exactly_so_many() -> None:
    """With max_messages it handles that many, acknowledges them and ends by itself."""
    broker, handler = Broker(), Handler(m1=[RetryAfter(0.0)])
    publish(broker, *(f"m{n}" for n in range(20)))
    with consuming(broker, handler, max_messages=5) as consumer:
        assert consumer.join(PATIENCE_S)
        assert (consumer.handled, len(broker.acked)) == (5, 5)
        assert len(set(handler.ran)) <= 6


def test_it_starts_once() -> None:
    """A second start is refused."""
    with consuming(Broker(), Handler()) as consumer, pytest.raises(NotOpen, match="reserve"):
        consumer.start()


def test_a_broker_that_comes_back_is_read_on() -> None:
    """BackendUnavailable is tried again; after several in a row the receiver is built anew."""
    broker, handler, log = Broker(), Handler(), Log()
    publish(broker, "a")
    broker.failures = [BackendUnavailable("away") for _ in range(4)]
    with consuming(broker, handler, log=log):
        broker.wait(broker.all_acked)
    (event,) = log.of(Reconnected)
    assert "away" in event.reason
    assert not log.of(Alarm)


def test_a_fenced_member_joins_anew() -> None:
    """Fenced in a poll is FencedOff, then a new receiver, and everything is handled."""
    broker, handler, log = Broker(), Handler(), Log()
    broker.failures = [Fenced("lease expired")]
    publish(broker, "a")
    with consuming(broker, handler, log=log):
        broker.wait(broker.all_acked)
    assert (len(log.of(FencedOff)), len(log.of(Reconnected))) == (1, 1)


def test_an_ack_that_failed_is_repeated() -> None:
    """BackendUnavailable in an ack costs neither the ack nor a second run."""
    broker, handler = Broker(), Handler()
    broker.ack_failures = [BackendUnavailable("busy"), BackendUnavailable("busy")]
    publish(broker, "a")
    with consuming(broker, handler):
        broker.wait(broker.all_acked)
    assert handler.ran == ["a"]


def test_an_unexpected_error_of_the_receiver_is_an_alarm_and_not_the_end() -> None:
    """A defect of the backend raises an alarm, shows in health, and the receiver is built anew."""
    broker, handler, log = Broker(), Handler(), Log()
    broker.failures = [ValueError("defect"), ValueError("defect")]
    publish(broker, "a")
    with consuming(broker, handler, log=log):
        broker.wait(broker.all_acked)
    assert [("defect" in event.detail, "reserve" in event.detail) for event in log.of(Alarm)] == [(True, True)] * 2


def test_an_unexpected_error_of_the_handling_loses_nothing() -> None:
    """What the handle raises is an alarm; the message is tried again in the order of its key."""
    broker, handler, log = Broker(), Handler(a1=[RuntimeError("defect")]), Log()
    publish(broker, "a1", "a2", key="a")
    with consuming(broker, handler, log=log):
        broker.wait(broker.all_acked)
    assert handler.ran == ["a1", "a1", "a2"]
    assert "orders/0@0" in log.of(Alarm)[0].detail


@pytest.mark.parametrize("interrupt", [SystemExit(3), KeyboardInterrupt()])
def test_an_interrupt_in_a_handler_stops_the_consumer(interrupt: BaseException) -> None:
    """SystemExit and KeyboardInterrupt stop it without an ack, and it says so."""
    broker, handler = Broker(), Handler(a=[interrupt])
    publish(broker, "a")
    with consuming(broker, handler) as consumer:
        assert consumer.join(PATIENCE_S)
        assert consumer.interrupt is interrupt
        assert type(interrupt).__name__ in consumer.health().error
    assert broker.acked == []


def test_a_held_message_is_run_when_due_though_all_that_waited_are_busy() -> None:
    """A free worker looks after the time of a held message when the one that held it is busy."""
    broker, handler = Broker(), Handler(a=[RetryAfter(0.02)])
    gate = handler.gate("b")
    publish(broker, "a", key="a")
    budget = ConsumerBudget(workers=2, poll_s=3600.0)
    with consuming(broker, handler, budget=budget):
        handler.wait_for("a")
        publish(broker, "b", key="b")
        broker.wait(lambda: len(broker.done[0]) == 1)
        gate.set()
        broker.wait(broker.all_acked)


@pytest.mark.parametrize(
    "change",
    [{"workers": 0}, {"max_in_flight": 0}, {"poll_s": 0.0}, {"backoff_s": (0.0, 1.0)}, {"backoff_s": (2.0, 1.0)}],
)
def test_a_budget_out_of_range_is_refused_by_name(change: dict[str, Any]) -> None:
    """A budget that cannot work is a SettingsError that names it."""
    with pytest.raises(SettingsError, match=next(iter(change))):
        ConsumerBudget(**change)
