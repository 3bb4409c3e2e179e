"""Consumer, inbox and dead letters together: effect once per message, in order per key."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from tests.unit.test_consumer import consuming
from tests.unit.test_consumer_broker import PATIENCE_S, PORTS, Broker, cloud_event
from tests.unit.test_inbox import EFFECTS, Order, Shop
from txbus._consumer import ConsumerBudget
from txbus._inbox import InboxHandler
from txbus._message import Envelope
from txbus._retry import Retry
from txbus._telemetry import Alarm, DuplicateSuppressed
from txbus.embedded.plugin import plugin
from txbus.errors import GiveUp
from txbus.spi import Backend, BackendURL, Subscription, TopicSpec

RETRY = Retry(max_attempts=50, backoff_s=(0.0, 0.002))
SOON = ConsumerBudget(workers=3, poll_s=0.05, backoff_s=(0.001, 0.01))


@dataclass(frozen=True)
class Plan:
    """One message: where it goes, how often its handler fails, and what happens in its first run."""

    partition: int
    key: str | None
    failures: int
    twice: bool
    rebalance: bool
    bad: bool


PLANS = st.builds(
    Plan,
    partition=st.integers(0, 1),
    key=st.sampled_from(["a", "b", None]),
    failures=st.sampled_from([0, 0, 0, 1, 3]),
    twice=st.booleans(),
    rebalance=st.sampled_from([False, False, True]),
    bad=st.sampled_from([False, False, False, True]),
)


class World:
    """Handlers that do what the plans say, on one database, whatever process they are in."""

    def __init__(self, shop: Shop, plans: list[Plan], broker: Broker | None) -> None:
        self.shop = shop
        self.plans = plans
        self._broker = broker
        self._runs: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._shift = 0

    def process(self) -> InboxHandler:
        return self.shop.handler(self._run, retry=RETRY, claim_ahead=2)

    def _run(self, order: Order, connection: Connection) -> None:
        plan = self.plans[order.n]
        with self._lock:
            self._runs[order.n] += 1
            run = self._runs[order.n]
        connection.execute(EFFECTS.insert().values(n=order.n))
        if run == 1 and plan.rebalance and self._broker is not None:
            with self._lock:
                self._shift += 1
                shift = self._shift
            self._broker.rebalance(shift)
        if run <= plan.failures:
            raise ValueError(f"run {run} of {order.n} fails")

    def envelope(self, n: int) -> Envelope:
        plan = self.plans[n]
        return cloud_event(b"{" if plan.bad else b'{"n": %d}' % n, plan.key, f"m{n}")

    def check(self) -> None:
        """Every good message has one effect, every bad one a dead letter, keys are in order."""
        effects = self.shop.effects()
        good = [n for n, plan in enumerate(self.plans) if not plan.bad]
        assert sorted(effects) == good
        for place in {(plan.partition, plan.key) for plan in self.plans if plan.key}:
            of_key = [n for n in effects if (self.plans[n].partition, self.plans[n].key) == place]
            assert of_key == sorted(of_key)
        bad = [(f"m{n}", 0) for n, plan in enumerate(self.plans) if plan.bad]
        assert sorted(self.shop.dead()) == sorted(bad)
        assert not self.shop.log.of(Alarm)


def fast(shop: Shop) -> Shop:
    """Without fsync: what is proven here does not need the power to fail."""
    sa.event.listen(shop.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
    shop.engine.dispose()
    return shop


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans=st.lists(PLANS, min_size=1, max_size=14), native=st.booleans())
def test_any_keys_failures_duplicates_and_rebalances(
    tmp_path_factory: pytest.TempPathFactory, plans: list[Plan], native: bool
) -> None:
    """Two processes on two partitions: every message has its effect exactly once, keys in order."""
    shop = fast(Shop(tmp_path_factory.mktemp("shop") / "shop.db"))
    broker = Broker(2)
    world = World(shop, plans, broker)
    for n, plan in enumerate(plans):
        for _ in range(2 if plan.twice else 1):
            broker.publish(world.envelope(n), plan.partition)
    with ExitStack() as stack:
        for _ in range(2):
            handler = world.process()
            stack.enter_context(consuming(broker, handler, native_redelivery=native, budget=SOON))
        broker.wait(broker.all_acked)
    world.check()
    shop.engine.dispose()


def embedded(name: str) -> Backend:
    backend = plugin.create(BackendURL("memory", name), PORTS)
    backend.open()
    backend.admin().create([TopicSpec("orders", 4)])
    return backend


def test_on_the_embedded_broker(tmp_path: Path) -> None:
    """On memory:// with a SQLite file, three members of which one leaves: each effect once, keys in order."""
    plans = [
        Plan(
            partition=0,
            key=f"k{n % 5}" if n % 6 else None,
            failures=2 if n % 9 == 0 else 0,
            twice=n % 4 == 0,
            rebalance=False,
            bad=n % 17 == 3,
        )
        for n in range(60)
    ]
    shop = fast(Shop(tmp_path / "shop.db"))
    world = World(shop, plans, None)
    backend = embedded("test-inbox-property")
    sender = backend.sender("shop")
    envelopes = [world.envelope(n) for n, plan in enumerate(plans) for _ in range(2 if plan.twice else 1)]
    sender.send(envelopes[:40], PATIENCE_S)
    subscription = Subscription("shop.reserve", ("orders",))

    with ExitStack() as stack:
        consumers = [
            stack.enter_context(
                consuming(
                    Broker(),
                    world.process(),
                    make_receiver=lambda: backend.receiver(subscription),
                    native_redelivery=True,
                    budget=SOON,
                    log=shop.log,
                )
            )
            for _ in range(3)
        ]
        assert consumers[0].wait_idle(PATIENCE_S)
        consumers[0].stop()
        assert consumers[0].join(PATIENCE_S)
        sender.send(envelopes[40:], PATIENCE_S)
        admin = backend.admin()

        def behind() -> int:
            return sum(row.end - (row.committed or 0) for row in admin.group_status("shop.reserve", ["orders"]))

        for _ in range(2000):
            if behind() == 0:
                break
            PORTS.clock.sleep_s(0.01)
        assert behind() == 0
        assert sum(consumer.handled for consumer in consumers) >= len(envelopes)
    assert len(shop.log.of(DuplicateSuppressed)) >= sum(plan.twice and not plan.bad for plan in plans)
    backend.close()
    world.check()


def test_a_dead_letter_lets_its_key_go_on(tmp_path: Path) -> None:
    """After a message is given up on, the later ones of its key are handled, in order."""
    shop = Shop(tmp_path / "shop.db")

    def refuses(order: Order, connection: Connection) -> None:
        if order.n == 1:
            raise GiveUp("never")
        connection.execute(EFFECTS.insert().values(n=order.n))

    broker = Broker()
    for n in range(4):
        broker.publish(cloud_event(b'{"n": %d}' % n, "k", f"m{n}"))
    with consuming(broker, shop.handler(refuses), budget=SOON):
        broker.wait(broker.all_acked)
    assert (shop.effects(), shop.dead()) == ([0, 2, 3], [("m1", 1)])
