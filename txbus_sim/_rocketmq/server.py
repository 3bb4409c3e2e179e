"""The RocketMQ broker of one run in its world: deadlines, who waits for what, and requests to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

from txbus.errors import BackendError, BackendUnavailable, DestinationRefused, Fenced, MessageRefused
from txbus_sim import _network
from txbus_sim._rocketmq import wire
from txbus_sim._rocketmq.capabilities import capabilities
from txbus_sim._world import Process, Strand, Wait, World, current_process, current_strand
from txbus_sim.dialects import rocketmq_messages as status
from txbus_sim.dialects.rocketmq import MessageType, RocketmqBroker, Rules, ServerStatus, Stored
from txbus_sim.faults import Fault, Faults
from txbus_sim.history import Stored as StoredRecord
from txbus_sim.history import Visible

__all__ = ["SERVICE", "RocketmqServer", "here", "label", "server_of", "translated"]

T = TypeVar("T")
SERVICE = "rocketmq"
_S = 1_000_000_000
_RANDOM = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*")

SIMULATED = Rules(check_after_ns=2 * _S, check_interval_ns=2 * _S, check_max=100, invisible_ns_min=_S)
"""Short check times, so that a run need not last for minutes; and a budget of 200 s, longer than any pause of
a process, as a server is to be set up for its longest outage."""

SERVER: Faults = (Fault.FAILOVER, Fault.MEMORY_LOST)
"""The proxy is restarted; the broker is killed, and the proxy with it."""


class RocketmqServer:
    """One broker; make one for each run, it puts itself in the world's services.

    ``url`` is for the processes of the run. `create_topic` is for what exists before they start.
    """

    url = "sim+rocketmq://broker"

    def __init__(self, world: World, rules: Rules = SIMULATED) -> None:
        self.world = world
        self.rules = rules
        self.broker = RocketmqBroker(rules, world.history.add, self._note_stored, wire.message_id)
        self._waiting: dict[Strand, Callable[[], bool]] = {}
        self._armed_ns: int | None = None
        self._ids = 0
        world.services[SERVICE] = self

    capabilities_of = staticmethod(capabilities)

    def create_topic(self, name: str, queues: int, type: MessageType | None = None) -> None:
        """Make a topic before the run; one that exists stays as it is. Without a type it is made for
        half messages, and for others too where the rules allow mixed types."""
        if type is None:
            type = MessageType.MIXED if self.rules.mixed_types else MessageType.TRANSACTION
        self.broker.create_topic(name, type, queues)

    def begin(self, topics: Mapping[str, int]) -> None:
        """Make the topics of a scenario: name to number of queues."""
        for name, queues in topics.items():
            self.create_topic(name, queues)

    def next_id(self) -> str:
        """A client's message id; ids are unique in a run."""
        self._ids += 1
        return f"M{self._ids:06d}"

    # what happens by itself

    def changed(self) -> None:
        """Something may have changed at the broker: wake whoever waits for it, and set the alarm."""
        for strand, ready in list(self._waiting.items()):
            if ready():
                self.world.unpark(strand)
        due_ns = self.broker.next_deadline_ns()
        if due_ns is not None and (self._armed_ns is None or due_ns < self._armed_ns):
            self._armed_ns = due_ns
            self.world.at(due_ns, lambda: self._come(due_ns))

    def _come(self, due_ns: int) -> None:
        if self._armed_ns != due_ns:
            return  # an earlier alarm has been set since
        self._armed_ns = None
        if self.broker.advance(self.world.now_ns):
            self.world.progress()
        self.changed()

    def wait(self, what: str, ready: Callable[[], bool], deadline_ns: int) -> None:
        """Park the calling strand until ``ready`` or the deadline."""
        strand = current_strand()
        if ready() or self.world.now_ns >= deadline_ns:
            return
        self._waiting[strand] = ready
        self.world.park(Wait("broker", what), deadline_ns)
        self._waiting.pop(strand, None)

    def _note_stored(self, stored: Stored, process: str, now_ns: int) -> None:
        message = stored.message
        envelope = wire.envelope_of(message)
        id, key = envelope.id or "", envelope.key
        add = self.world.history.add
        add(StoredRecord(now_ns, process, message.topic, stored.queue, stored.offset, id, key))
        add(Visible(now_ns, message.topic, stored.queue, stored.offset, id, key, envelope.payload, envelope.headers))

    # requests

    def check_alive(self, process: Process) -> None:
        """Does not return to a dead process."""
        if self.world.closed or not process.alive:
            self.world.inert(current_strand())

    def request(
        self,
        label: str,
        perform: Callable[[], T],
        *,
        patience_ns: int,
        faults: Faults,
        unanswered: Callable[[str], BackendError] = BackendUnavailable,
        suffer: Callable[[Fault], None] | None = None,
        durable: bool = True,
    ) -> T:
        """Carry out ``perform`` at the broker; raises `ServerStatus` for what it refuses."""

        def there() -> T | ServerStatus:
            try:
                return perform()
            except ServerStatus as exc:
                return exc
            finally:
                self.changed()

        result = _network.request(
            self.world,
            label,
            there,
            patience_ns=patience_ns,
            unanswered=unanswered,
            refused=BackendUnavailable,
            faults=faults,
            suffer=suffer or self.suffer,
        )
        if isinstance(result, ServerStatus):
            raise result
        if durable:
            self.world.progress()
        return result

    def suffer(self, fault: Fault) -> None:
        """A restart, right before a request arrives."""
        now_ns = self.world.now_ns
        if fault is Fault.MEMORY_LOST:
            self.broker.restart_broker(now_ns)
        else:
            assert fault is Fault.FAILOVER, fault
            self.broker.restart_proxy(now_ns)
        self.world.pending_at(now_ns + self.rules.restart_ns, self.changed)


def server_of(process: Process) -> RocketmqServer:
    """The broker of the calling process's run."""
    server = process.world.services.get(SERVICE)
    assert isinstance(server, RocketmqServer), "this run has no RocketMQ broker"
    return server


def here() -> Process:
    """The calling process. AssertionError outside of a simulated process."""
    process = current_process()
    assert process is not None, "sim+rocketmq:// outside of a simulated process"
    return process


@cache
def label(operation: str, name: str) -> str:
    """``operation:name``, with random ids in the name as ``*``, so that it is the same in every run."""
    return f"{operation}:{_RANDOM.sub('*', name).replace(' ', '_')}"


def translated(error: ServerStatus, what: str) -> BackendError:
    """The core's error for a status, to be raised from it."""
    text = f"{what}: {error}"
    match error.code:
        case status.TOPIC_NOT_FOUND | status.WRONG_TYPE | status.ILLEGAL_TOPIC:
            return DestinationRefused(text)
        case status.INVALID_RECEIPT:
            return Fenced(text)
        case status.UNAVAILABLE | status.INTERNAL:
            return BackendUnavailable(text)
        case _:
            return MessageRefused(text)
