"""The broker of a run, whichever the scenario asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from txbus.spi import Capabilities, TopicKind
from txbus_sim._embedded import EmbeddedNotes
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

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._path = f"{folder}/bus.db"
        # A receiver that waits looks into the file 200 times a second of virtual time unless told
        # otherwise: a quarter of a run's real time, in which nothing happens.
        self.url = f"embedded://{self._path}?wake_poll_s=0.2"

    def capabilities_of(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        from txbus.embedded.plugin import plugin

        return plugin.capabilities(kind)

    def begin(self, topics: Mapping[str, int]) -> None:
        """Have the history tell what is committed in the file and what its members are handed."""
        from txbus.embedded.log import EmbeddedLog
        from txbus.embedded.receiver import EmbeddedReceiver

        EmbeddedNotes(self._world, self._path, EmbeddedReceiver, EmbeddedLog)


def _kafka(world: World, folder: Path) -> Server:
    from txbus_sim._kafka.server import KafkaServer

    return KafkaServer(world)


def _rocketmq(world: World, folder: Path) -> Server:
    from txbus_sim._rocketmq.server import RocketmqServer

    return RocketmqServer(world)


def _embedded(world: World, folder: Path) -> Server:
    return _EmbeddedServer(world, folder)


SERVERS: Mapping[str, Callable[[World, Path], Server]] = {
    "kafka": _kafka,
    "rocketmq": _rocketmq,
    "embedded": _embedded,
}
"""By the name that a scenario gives; each is made anew for each run."""
