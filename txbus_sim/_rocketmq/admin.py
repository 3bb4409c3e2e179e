"""Administration of the simulated RocketMQ, as its admin tool does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from txbus.errors import DestinationRefused
from txbus.spi import GroupStatus, TopicDescription, TopicKind, TopicPartition, TopicSpec
from txbus_sim._rocketmq.server import RocketmqServer, translated
from txbus_sim._world import Process
from txbus_sim.dialects.rocketmq import MessageType, ServerStatus
from txbus_sim.dialects.rocketmq_messages import Topic

__all__ = ["SimAdmin", "type_of"]


def type_of(kind: TopicKind) -> MessageType:
    """The ``message.type`` of a kind of topic."""
    match kind:
        case TopicKind.PLAIN:
            return MessageType.NORMAL
        case TopicKind.ORDERED:
            return MessageType.FIFO
        case TopicKind.DELAYED:
            return MessageType.DELAY
        case TopicKind.TRANSACTIONAL:
            return MessageType.TRANSACTION
        case _:
            assert_never(kind)


class SimAdmin:
    """`Admin`. Its calls take no time and are no points: they happen when a bus opens."""

    def __init__(self, server: RocketmqServer, process: Process, forget: Callable[[object], None]) -> None:
        self._server = server
        self._process = process
        self._forget = forget

    def _find(self, name: str) -> Topic | None:
        try:
            return self._server.broker.topic(name)
        except ServerStatus:
            return None

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        found: dict[str, TopicDescription | None] = {}
        for name in topics:
            topic = self._find(name)
            found[name] = None
            if topic is not None:
                found[name] = TopicDescription(name, len(topic.queues), {"message.type": topic.type.value})
        return found

    def create(self, specs: Sequence[TopicSpec]) -> None:
        """Retention is the broker's (``fileReservedTime``), not a topic's: nothing to set."""
        self._server.check_alive(self._process)
        for spec in specs:
            try:
                self._server.broker.create_topic(spec.name, type_of(spec.kind), spec.partitions)
            except ServerStatus as exc:
                raise translated(exc, f"create topic {spec.name!r}") from exc

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        topic = self._find(spec.name)
        if topic is None:
            raise DestinationRefused(f"topic {spec.name!r} does not exist; create it")
        wrong: list[str] = []
        if len(topic.queues) != spec.partitions:
            wrong.append(f"{len(topic.queues)} queues, wanted {spec.partitions}: mqadmin updateTopic -r -w")
        if topic.type not in (type_of(spec.kind), MessageType.MIXED):
            wrong.append(
                f"message.type is {topic.type.value}, wanted {type_of(spec.kind).value}: "
                "mqadmin updateTopic -a +message.type"
            )
        return wrong

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        """The position is the lowest offset that is not done; nobody owns a queue."""
        rows: list[GroupStatus] = []
        found = self._server.broker.find_group(group)
        for name in topics:
            topic = self._find(name)
            if topic is None:
                raise DestinationRefused(f"topic {name!r} does not exist; create it")
            for number, queue in enumerate(topic.queues):
                committed = found.oldest_open(topic, number) if found is not None else None
                rows.append(GroupStatus(TopicPartition(name, number), committed, len(queue), None))
        return rows

    def close(self) -> None:
        self._forget(self)
