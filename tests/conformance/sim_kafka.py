"""A conformance case inside of a simulated process: the cluster, clients and all time are virtual."""

from __future__ import annotations

from collections.abc import Callable

from txbus.conformance import Case, Harness, Result
from txbus.spi import Backend
from txbus_sim._kafka.backend import SimKafkaBackend
from txbus_sim._kafka.server import KafkaServer
from txbus_sim._ports import world_ports
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.faults import Faults
from txbus_sim.schedule import Deviation

__all__ = ["SimKafkaHarness", "in_world"]

S = 1_000_000_000


class SimKafkaHarness(Harness):
    """Clients of the run's cluster, all in the calling process; time costs nothing."""

    patience_s = 60.0
    answer_s = 10.0
    quiet_s = 8.0
    """Longer than two heartbeats, after which a group has come to rest."""
    poll_s = 0.5
    lease_s = 9.0
    transaction_timeout_s = 60.0

    def __init__(self) -> None:
        super().__init__(world_ports())

    def backend(self) -> Backend:
        backend = SimKafkaBackend("cluster")
        backend.open()
        return backend

    def kill(self, backend: Backend) -> None:
        assert isinstance(backend, SimKafkaBackend)
        backend.vanish()


def no_fault(process: str, label: str, number: int, faults: Faults) -> Deviation | None:
    return None


def in_world(case: Case, harness: Callable[[], Harness] = SimKafkaHarness) -> Result:
    """Run a case as the main function of a simulated process."""
    world = World(no_fault, limits=Limits(settle_ns=3_600 * S, time_ns_max=24 * 3_600 * S, steps_max=2_000_000))
    KafkaServer(world)
    results: list[Result] = []

    def main(process: Process) -> None:
        results.append(case.run(harness()))

    process = world.start(ProcessSpec("conformance", main, restart_after_ns=None))
    try:
        reason = world.run()
        assert process.error is None, process.error
        assert reason is StopReason.FINISHED, reason
    finally:
        world.close()
        world.free()
    (result,) = results
    return result
