"""What a bus refuses, makes and reports on a broker with half messages of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from tests.simulation.rocketmq_shop import BILLED, ORDERS, PLACED, Billed, Placed, tables
from txbus import Bus, Topic
from txbus._transactional import TransactionScope
from txbus.errors import CapabilityMissing, ConfigurationError, DestinationRefused, HalfFailed
from txbus.events import CheckBack
from txbus.spi import Capability, Outcome, TopicKind, TopicSpec
from txbus_sim import _interpose
from txbus_sim._database import Databases
from txbus_sim._rocketmq.backend import SimRocketmqBackend
from txbus_sim._rocketmq.server import RocketmqServer
from txbus_sim._world import Limits, ProcessSpec, World
from txbus_sim.dialects.rocketmq import MessageType
from txbus_sim.history import Visible
from txbus_sim.schedule import Address, Deviation

KEYED = Topic("keyed", Placed, key=lambda placed: str(placed.number))
HANDLED = Topic("handled", Placed)


class Stage:
    """Runs one function as a process with a database and RocketMQ, and passes on what it raises."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self.url = databases.define("shop", tables).url

    def run(self, main: Callable[[Stage], object], *deviations: str) -> RocketmqServer:
        wanted = {one.address: one for one in map(Deviation.parse, deviations)}
        world = World(
            lambda process, label, number, faults: wanted.get(Address(process, label, number)),
            limits=Limits(settle_ns=40_000_000_000),
        )
        self._databases.begin_run(world)
        server = RocketmqServer(world)
        errors: list[BaseException] = []
        spec = ProcessSpec(
            "p", lambda process: _interpose.run_main(process, lambda: main(self)), None, lambda _, e: errors.append(e)
        )
        world.start(spec)
        world.run()
        world.close()
        self.visible = [one.message_id for one in world.history if isinstance(one, Visible)]
        world.free()
        self._databases.end_run()
        if errors:
            raise errors[0]
        return server

    @contextmanager
    def bus(self, *topics: Topic[Placed] | Topic[Billed]) -> Iterator[Bus]:
        """An open bus of the process, with a handler of its own topic."""
        databases = {"shop": sa.create_engine(self.url)}
        bus = Bus("sim+rocketmq://broker", service="shop", databases=databases, topics=topics)

        @bus.on(HANDLED, scope="handle", database="shop")
        def handle(placed: Placed, connection: sa.Connection) -> None:
            connection.execute(ORDERS.insert().values(number=placed.number))

        with bus:
            yield bus


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with _interpose.installed():
        databases = Databases()
        yield Stage(databases)
        databases.close()


def test_topics_are_made_of_the_kind_they_are_used_for(stage: Stage) -> None:
    """With databases a topic without a key is made for half messages, one with a key for order; there is no
    half log."""

    def main(stage: Stage) -> None:
        with stage.bus(PLACED, KEYED):
            pass

    server = stage.run(main)
    found = {topic.name: topic.type for topic in server.broker.topics()}
    assert found == {
        "placed": MessageType.TRANSACTION,
        "handled": MessageType.TRANSACTION,
        "keyed": MessageType.FIFO,
    }


def test_order_and_delay_are_refused_where_they_are_asked_for(stage: Stage) -> None:
    """tx.send names the capability, the reason and what works instead."""

    def main(stage: Stage) -> None:
        with stage.bus(PLACED, KEYED) as bus:
            sends: list[tuple[Callable[[TransactionScope], object], Capability]] = [
                (lambda tx: tx.send(KEYED, Placed(number=1)), Capability.ORDER_BY_KEY),
                (lambda tx: tx.send(PLACED, Placed(number=1), key="a"), Capability.ORDER_BY_KEY),
                (lambda tx: tx.send(PLACED, Placed(number=1), deliver_after_s=5.0), Capability.DELAYED_DELIVERY),
            ]
            for send, capability in sends:
                with pytest.raises(CapabilityMissing, match=f"{capability.value}.*instead"):
                    with bus.transaction("shop") as tx:
                        send(tx)

    stage.run(main)
    assert stage.visible == []


def test_a_topic_that_was_not_announced_is_refused(stage: Stage) -> None:
    """The broker would ask nobody about its halves."""

    def main(stage: Stage) -> None:
        with stage.bus(PLACED) as bus, pytest.raises(ConfigurationError, match="handler.*add it to"):
            with bus.transaction("shop") as tx:
                tx.send(HANDLED, Placed(number=1))

    stage.run(main)


def test_a_plain_send_to_a_topic_of_half_messages_is_refused(stage: Stage) -> None:
    """bus.send says what the topic takes; to a topic with a key it works."""

    def main(stage: Stage) -> None:
        with stage.bus(PLACED, KEYED) as bus:
            with pytest.raises(DestinationRefused, match="bus.transaction"):
                bus.send(PLACED, Placed(number=1))
            bus.send(KEYED, Placed(number=1), message_id="kept")

    stage.run(main)
    assert stage.visible == ["kept"]


def test_messages_of_a_rolled_back_block_are_never_visible(stage: Stage) -> None:
    """An exception in the block: no half is even prepared. One in COMMIT's way: the halves are rolled back."""

    def main(stage: Stage) -> None:
        with stage.bus(PLACED, BILLED) as bus:
            with pytest.raises(ZeroDivisionError), bus.transaction("shop") as tx:
                tx.send(PLACED, Placed(number=1))
                raise ZeroDivisionError
            with pytest.raises(HalfFailed), bus.transaction("shop") as tx:
                tx.send(PLACED, Placed(number=2))
                tx.send(BILLED, Billed(number=2))
            assert bus.outcome(tx.id) is Outcome.ROLLED_BACK

    server = stage.run(main, "p/broker.prepare:billed#1 fail")
    assert stage.visible == [] and not server.broker.discarded


def test_running_until_idle_hands_over_every_outcome(stage: Stage) -> None:
    """What was sent is received, and the bus is idle; its health names no error."""

    def main(stage: Stage) -> None:
        with stage.bus(PLACED, BILLED) as bus:
            with bus.transaction("shop") as tx:
                tx.send(PLACED, Placed(number=1), message_id="a")
                tx.send(BILLED, Billed(number=1), message_id="b")
            bus.run(until_idle=1.0)
            health = bus.health()
            assert health.relay is not None and health.relay.running and health.relay.undecided == 0
            assert health.relay.last_error == ""

    stage.run(main)
    assert sorted(stage.visible) == ["a", "b"]


@pytest.mark.parametrize("relay", ["inside", "outside"])
def test_every_process_of_the_service_answers(stage: Stage, relay: str) -> None:
    """Whatever the setting says of relays: the broker asks whoever sends."""
    asked: list[Outcome] = []

    def main(stage: Stage) -> None:
        engine = sa.create_engine(stage.url)
        bus = Bus("sim+rocketmq://broker", service="shop", databases={"shop": engine}, topics=[PLACED], relay=relay)  # type: ignore[arg-type]
        bus.subscribe(lambda event: asked.append(event.outcome) if isinstance(event, CheckBack) else None)
        with bus:
            with bus.transaction("shop") as tx:
                tx.send(PLACED, Placed(number=1), message_id="a")
            bus.ports.clock.sleep_s(10.0)

    stage.run(main, "p/broker.finish:placed#1 late-end")
    assert asked == [Outcome.COMMITTED] and stage.visible == ["a"]


def test_capabilities_depend_on_the_kind_of_topic() -> None:
    """A message is ordered, delayed or transactional, never two of these; what another kind has is said."""
    backend = SimRocketmqBackend()
    special = {Capability.ORDER_BY_KEY, Capability.DELAYED_DELIVERY, Capability.HALF_MESSAGE}
    found = {kind: special & backend.capabilities(kind).native for kind in TopicKind}
    assert found == {
        TopicKind.PLAIN: set(),
        TopicKind.ORDERED: {Capability.ORDER_BY_KEY},
        TopicKind.DELAYED: {Capability.DELAYED_DELIVERY},
        TopicKind.TRANSACTIONAL: {Capability.HALF_MESSAGE},
    }
    assert set(backend.capabilities().conditional) == special


def test_a_topic_of_another_kind_is_found_by_verify(stage: Stage) -> None:
    """The administrator is told the attribute that is wrong."""

    def main(stage: Stage) -> None:
        backend = SimRocketmqBackend()
        backend.open()
        admin = backend.admin()
        admin.create([TopicSpec("plain", 1)])
        (wrong,) = admin.verify(TopicSpec("plain", 1, TopicKind.TRANSACTIONAL))
        assert "message.type is NORMAL, wanted TRANSACTION" in wrong

    stage.run(main)
