"""The simulated RocketMQ keeps what it declares, each case in a world of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from txbus.conformance import Case, Harness, Result, Status
from txbus.conformance._suite import registered
from txbus.spi import Backend, Subscription, TopicSpec
from txbus_sim._ports import world_ports
from txbus_sim._rocketmq.backend import SimRocketmqBackend
from txbus_sim._rocketmq.server import SIMULATED, RocketmqServer
from txbus_sim._world import ProcessSpec, World
from txbus_sim.dialects.rocketmq import dead_letter_topic
from txbus_sim.errors import NotModelled
from txbus_sim.faults import Faults

RETRIES = 2


class SimHarness(Harness):
    """Clients of the run's broker, in virtual time. Made inside of a simulated process."""

    patience_s = 60.0
    lease_s = 4.0
    check_after_s = 4.0
    deletes_by_age = False
    attempts_max = RETRIES + 1

    def __init__(self) -> None:
        super().__init__(world_ports())

    def backend(self) -> Backend:
        backend = SimRocketmqBackend()
        backend.open()
        return backend

    def kill(self, backend: Backend) -> None:
        assert isinstance(backend, SimRocketmqBackend)
        backend.sever()

    def dead_letter_topic(self, topic: str, group: str) -> str:
        """An administrator makes it, as it exists from the first dead letter on only; and somebody of
        the group asks, as the proxy looks at the attempts only then."""
        client = self.backend()
        name = dead_letter_topic(group)
        client.admin().create([TopicSpec(name, 1)])
        self.advance(30.0)
        member = client.receiver(Subscription(group, (topic,), lease_s=self.lease_s))
        member.receive(1, 0.0)
        client.close()
        return name


def no_faults(process: str, label: str, number: int, faults: Faults) -> None:
    """The tape of a run without deviations."""


def run_case(case: Case) -> Result:
    """One case in a world of its own."""
    NotModelled.raised.clear()
    world = World(no_faults)
    RocketmqServer(world, replace(SIMULATED, retries_max=RETRIES))
    results: list[Result] = []
    world.start(ProcessSpec("conformance", lambda process: results.append(case.run(SimHarness())), None))
    reason = world.run()
    world.close()
    world.free()
    assert results, f"the case did not end: {reason}"
    assert not NotModelled.raised
    return results[0]


NAMED_PARTITION = "the proxy selects the queue (proxy-selects-queue): no append to a named partition of several"
UNHELD = {
    "admin.create_is_idempotent": NAMED_PARTITION,
    "admin.status_of_a_group": NAMED_PARTITION,
    "receiving.acknowledged_does_not_come_again": NAMED_PARTITION,
    "receiving.several_topics": NAMED_PARTITION,
    "receiving.partitions_come_in_order": NAMED_PARTITION,
    "receiving.batches_are_limited": NAMED_PARTITION,
    "receiving.pause_holds_back": NAMED_PARTITION,
    "sending.awaited_append_survives_the_death_of_the_sender": NAMED_PARTITION,
    "sending.appends_keep_their_order": NAMED_PARTITION,
    "sending.receipts_name_the_position": "the proxy does not tell the queue (proxy-selects-queue)",
    "receiving.committed_follows_the_acks": "no gRPC client reads a group's position",
    "sending.order_within_one_send": "an ordered queue gives nothing while a batch of it is out (fifo-blocks), and a "
    "batch ends at 32 messages of all queues (receive-max); the case wants 50 without an ack",
}
"""Cases that ask of every backend what a gRPC client of RocketMQ cannot do, each with its reason. They must
fail: one that passes leaves the list."""


@pytest.mark.parametrize("case", registered(), ids=lambda case: case.name)
def test_case(case: Case) -> None:
    """The simulated RocketMQ passes this case, or refuses what it does not declare, or is known not to."""
    result = run_case(case)
    if case.name in UNHELD:
        assert result.status is Status.FAILED, f"it holds now: {UNHELD[case.name]}"
    else:
        assert result.status is not Status.FAILED, result.reason


def test_the_cases_it_does_not_hold_exist() -> None:
    """Every name in the list is a case."""
    assert set(UNHELD) <= {case.name for case in registered()}
