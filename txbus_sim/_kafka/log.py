"""A topic read by position, and what an administrator does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from txbus.errors import BackendUnavailable, DestinationRefused, NotOpen, SettingsError
from txbus.spi import GroupStatus, Received, TopicDescription, TopicPartition, TopicSpec
from txbus_sim._kafka.labels import stable
from txbus_sim._kafka.receiver import received_of
from txbus_sim._kafka.server import KafkaServer
from txbus_sim._network import request
from txbus_sim._world import Process
from txbus_sim.dialects.kafka import Cluster, Code, Refusal
from txbus_sim.history import Read

__all__ = ["SimAdmin", "SimLog"]

T = TypeVar("T")
_S = 1_000_000_000
_PATIENCE_NS = 5 * _S
_NO_LEADER_NS = _S // 10
_INTERNAL_BYTES_MAX = 8 * 1024 * 1024


class SimLog:
    """See `txbus.spi.Log`. Points: ``broker.start:TOPIC``, ``broker.end:TOPIC``, ``broker.read:TOPIC``,
    ``broker.truncate:TOPIC``."""

    def __init__(self, server: KafkaServer, process: Process, topic: str, forget: Callable[[object], None]) -> None:
        self._server = server
        self._process = process
        self._topic = topic
        self._label = stable(topic)
        self._forget = forget
        self._closed = False

    def _ask(self, what: str, partition: int, ask: Callable[[Cluster, TopicPartition], T]) -> T:
        if self._closed:
            raise NotOpen(f"sim+kafka://: the log of {self._topic!r} is closed")
        where = TopicPartition(self._topic, partition)
        return _request(self._server, f"broker.{what}:{self._label}", lambda cluster: ask(cluster, where))

    def start(self, partition: int) -> int:
        return self._ask("start", partition, lambda cluster, where: cluster.log(where).start)

    def end(self, partition: int) -> int:
        """The last stable offset."""
        return self._ask("end", partition, lambda cluster, where: cluster.log(where).stable)

    def read(self, partition: int, offset: int, max_records: int, timeout_s: float) -> tuple[tuple[Received, ...], int]:
        """Below the start it reads from the start, above the readable end nothing."""

        def fetch(cluster: Cluster, where: TopicPartition) -> tuple[tuple[Received, ...], int]:
            log = cluster.log(where)
            first = max(offset, log.start)
            if not log.readable_from(first):
                return (), first
            entries, following = cluster.fetch(where, first, max_records, self._server.world.now_ns)
            return tuple(received_of(where, entry, None) for entry in entries), following

        records, following = self._ask("read", partition, fetch)
        offsets = tuple(one.position.offset for one in records)
        self._server.world.history.add(
            Read(self._server.world.now_ns, self._process.key, self._topic, partition, offset, offsets, following)
        )
        return records, following

    def truncate(self, partition: int, before: int) -> None:
        def delete(cluster: Cluster, where: TopicPartition) -> None:
            high = cluster.log(where).replicated
            cluster.delete_records(where, min(before, high), self._server.world.now_ns)

        self._ask("truncate", partition, delete)

    def close(self) -> None:
        self._closed = True
        self._forget(self)


class SimAdmin:
    """See `txbus.spi.Admin`. Points: ``broker.describe``, ``broker.create``, ``broker.group-status:GROUP``."""

    def __init__(self, server: KafkaServer, forget: Callable[[object], None]) -> None:
        self._server = server
        self._forget = forget
        self._closed = False

    def _ask(self, label: str, ask: Callable[[Cluster], T]) -> T:
        if self._closed:
            raise NotOpen("sim+kafka://: the admin is closed")
        return _request(self._server, label, ask)

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        def look(cluster: Cluster) -> Mapping[str, TopicDescription | None]:
            found = {name: cluster.topic(name) for name in topics}
            return {
                name: None if topic is None else TopicDescription(name, topic.partitions, dict(topic.settings))
                for name, topic in found.items()
            }

        return self._ask("broker.describe", look)

    def create(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            if not spec.name or len(spec.name) > 249 or spec.partitions < 1:
                raise SettingsError(f"{spec} cannot be created: a name of 1 to 249 characters, 1 partition or more")

        def make(cluster: Cluster) -> None:
            for spec in specs:
                try:
                    cluster.create_topic(spec.name, spec.partitions, settings_of(spec))
                except Refusal as exc:
                    if exc.code is not Code.TOPIC_ALREADY_EXISTS:
                        raise AssertionError(f"unexpected {exc}") from exc
            self._server.world.progress()

        if specs:
            self._ask("broker.create", make)

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        topic = self._ask("broker.describe", lambda cluster: cluster.topic(spec.name))
        if topic is None:
            raise DestinationRefused(f"topic {spec.name!r} does not exist; create it with Backend.admin().create")
        wrong = []
        if topic.partitions != spec.partitions:
            wrong.append(
                f"topic {spec.name!r} has {topic.partitions} partitions, not {spec.partitions}: declare it as it is"
            )
        for name, value in settings_of(spec).items():
            if topic.settings[name] != value:
                wrong.append(
                    f"topic {spec.name!r} has {name}={topic.settings[name]}, not {value}: "
                    f"kafka-configs.sh --alter --add-config {name}={value}"
                )
        return wrong

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        """A position that a broker transaction is about to move is shown as missing."""

        def look(cluster: Cluster) -> list[GroupStatus]:
            owners = cluster.groups.owners(group)
            rows = []
            for name in topics:
                topic = cluster.topic(name)
                for number in range(topic.partitions if topic is not None else 0):
                    where = TopicPartition(name, number)
                    try:
                        committed = cluster.groups.committed(group, where)
                    except Refusal:
                        committed = None
                    offset = committed.offset if committed is not None else None
                    rows.append(GroupStatus(where, offset, cluster.log(where).stable, owners.get(where)))
            return rows

        return self._ask(f"broker.group-status:{stable(group)}", look)

    def close(self) -> None:
        self._closed = True
        self._forget(self)


def settings_of(spec: TopicSpec) -> dict[str, str]:
    """What the broker is asked for."""
    retention_ms = -1 if spec.retention_s is None else round(spec.retention_s * 1000)
    settings = {"retention.ms": str(retention_ms)}
    if spec.internal:
        settings["max.message.bytes"] = str(_INTERNAL_BYTES_MAX)
    return settings


def _request(server: KafkaServer, label: str, ask: Callable[[Cluster], T]) -> T:
    """A request that may be repeated; while a partition has no leader the client asks again."""

    def perform() -> T:
        deadline_ns = server.world.now_ns + _PATIENCE_NS
        while True:
            try:
                return server.ask(ask)
            except Refusal as exc:
                if exc.code is Code.UNKNOWN_TOPIC_OR_PARTITION:
                    raise DestinationRefused(f"{label}: {exc}; declare the topic in Bus(topics=...)") from exc
                if exc.code is not Code.NOT_LEADER_OR_FOLLOWER:
                    raise AssertionError(f"unexpected {exc}") from exc
                if server.world.now_ns >= deadline_ns:
                    raise BackendUnavailable(f"{label}: {exc}") from exc
            server.world.sleep_ns(_NO_LEADER_NS)

    return request(
        server.world,
        label,
        perform,
        patience_ns=_PATIENCE_NS,
        unanswered=BackendUnavailable,
        refused=BackendUnavailable,
    )
