"""The broker of a run, whichever the scenario asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from txbus.spi import Capabilities, TopicKind
from txbus_sim._world import World

__all__ = ["SERVERS", "Server"]


class Server(Protocol):
    """A run's broker. ``url`` is what processes give to their `Bus`."""

    @property
    def url(self) -> str: ...

    def capabilities_of(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities: ...

    def begin(self, topics: Mapping[str, int]) -> None:
        """Before the first process starts: the topics that exist, with their partitions."""
        ...


class _EmbeddedServer:
    """The embedded broker has no server: its file is in the run's directory, and the broker itself
    runs in the processes. Topics are made by the bus that declares them."""

    def __init__(self, folder: Path) -> None:
        self.url = f"embedded://{folder}/bus.db"

    def capabilities_of(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        from txbus.embedded.plugin import plugin

        return plugin.capabilities(kind)

    def begin(self, topics: Mapping[str, int]) -> None:
        """Nothing to do."""


def _kafka(world: World, folder: Path) -> Server:
    from txbus_sim._kafka.server import KafkaServer

    return KafkaServer(world)


def _rocketmq(world: World, folder: Path) -> Server:
    from txbus_sim._rocketmq.server import RocketmqServer

    return RocketmqServer(world)


def _embedded(world: World, folder: Path) -> Server:
    return _EmbeddedServer(folder)


SERVERS: Mapping[str, Callable[[World, Path], Server]] = {
    "kafka": _kafka,
    "rocketmq": _rocketmq,
    "embedded": _embedded,
}
"""By the name that a scenario gives; each is made anew for each run."""
