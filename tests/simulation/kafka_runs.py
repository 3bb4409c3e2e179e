"""Short runs of simulated processes on a simulated Kafka, under a few faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from txbus.spi import Backend, Envelope
from txbus_sim._kafka.backend import SimKafkaBackend
from txbus_sim._kafka.server import KafkaServer
from txbus_sim._world import Limits, Process, ProcessSpec, StopReason, World
from txbus_sim.faults import Fault, Faults
from txbus_sim.history import Point, Record, Stored, Visible
from txbus_sim.schedule import Address, Deviation

__all__ = ["Main", "Run", "client", "message", "play"]

S = 1_000_000_000
Main = Callable[[Backend], object]


def message(text: str, key: str | None = None, topic: str = "t") -> Envelope:
    return Envelope(topic, text.encode(), key, {"ce_id": text})


def client() -> SimKafkaBackend:
    """A client of the run's cluster, opened."""
    backend = SimKafkaBackend("cluster")
    backend.open()
    return backend


@dataclass
class Run:
    """What came of a run."""

    world: World
    server: KafkaServer
    reason: StopReason
    hit: list[Deviation] = field(default_factory=list)

    @property
    def history(self) -> list[Record]:
        return self.world.history.records

    def visible(self, topic: str = "t") -> list[str]:
        """Payloads in the order in which they became readable."""
        return [one.payload.decode() for one in self.history if type(one) is Visible and one.topic == topic]

    def stored(self, topic: str = "t") -> list[str]:
        return [one.message_id for one in self.history if type(one) is Stored and one.topic == topic]

    def labels(self, process: str = "p") -> list[str]:
        return [one.label for one in self.history if type(one) is Point and one.process == process]


def play(
    *mains: Main | tuple[str, Main],
    faults: Mapping[str, Fault | tuple[Fault, int]] | None = None,
    topics: Mapping[str, int] | None = None,
    settle_s: float = 100.0,
    seed: int = 0,
) -> Run:
    """Run each function with a client of its own as a process, started anew one second after it died.

    A function alone is the process ``p``. ``faults`` by address (``p/label#n``); each must be met.
    What a process raises comes out of here, unless it is started anew and ends well."""
    planned: dict[Address, Deviation] = {}
    for text, fault in (faults or {}).items():
        kind, amount = fault if isinstance(fault, tuple) else (fault, 0)
        planned[Address.parse(text)] = Deviation(Address.parse(text), kind, amount)
    hit: list[Deviation] = []

    def tape(process: str, label: str, number: int, possible: Faults) -> Deviation | None:
        deviation = planned.get(Address(process, label, number))
        if deviation is not None:
            hit.append(deviation)
        return deviation

    limits = Limits(settle_ns=round(settle_s * S), time_ns_max=3_600 * S, steps_max=200_000)
    world = World(tape, seed=seed, limits=limits)
    server = KafkaServer(world)
    server.begin(topics or {"t": 1})

    def live(main: Main, process: Process) -> None:
        main(client())

    for one in mains:
        name, main = one if isinstance(one, tuple) else ("p", one)
        world.start(ProcessSpec(name, partial(live, main)))
    try:
        reason = world.run()
    finally:
        world.close()
        world.free()
    assert len(hit) == len(planned), f"not met: {set(planned.values()) - set(hit)}"
    last = {process.spec.name: process for process in world.processes}
    for process in last.values():
        if process.error is not None:
            raise process.error
    return Run(world, server, reason, hit)
