"""Entry points of the simulated brokers; importing this loads neither greenlet nor a model."""

from __future__ import annotations

import importlib.util
from typing import Final

from txbus.errors import SettingsError
from txbus.spi import Backend, BackendPlugin, BackendURL, Capabilities, Ports, TopicKind

__all__ = ["SimKafkaPlugin", "SimRocketmqPlugin", "kafka", "rocketmq"]


class SimKafkaPlugin:
    """Makes backends for ``sim+kafka://cluster``, the Kafka of a simulated run. Stateless."""

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("sim+kafka",)

    @property
    def extra(self) -> str | None:
        return "sim"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("greenlet") is not None else "greenlet"

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        from txbus_sim._kafka.capabilities import CAPABILITIES

        return CAPABILITIES

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        """No I/O. `SettingsError` for an option: there are none; `NotModelled` for one of Kafka's client.

        ``ports`` are not used: a backend in a simulated process lives in the world's time."""
        from txbus_sim._kafka.backend import SimKafkaBackend
        from txbus_sim.errors import NotModelled

        for name in url.options:
            if "." in name:
                raise NotModelled(f"sim+kafka://: the client's setting {name!r} is not modelled; leave it out")
            raise SettingsError(f"sim+kafka:// has no option {name!r}, nor any other; leave it out")
        return SimKafkaBackend(url.location)


class SimRocketmqPlugin:
    """Makes backends for ``sim+rocketmq://broker``, the RocketMQ of a simulated run. Stateless."""

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("sim+rocketmq",)

    @property
    def extra(self) -> str | None:
        return "sim"

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("greenlet") is not None else "greenlet"

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        from txbus_sim._rocketmq.capabilities import capabilities

        return capabilities(kind)

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        """No I/O. `SettingsError` for an option: the broker's settings are those of the run.

        ``ports`` are not used: a backend in a simulated process lives in the world's time."""
        from txbus_sim._rocketmq.backend import SimRocketmqBackend

        for name in url.options:
            raise SettingsError(f"sim+rocketmq:// has no option {name!r}, nor any other; leave it out")
        return SimRocketmqBackend()


kafka: Final[BackendPlugin] = SimKafkaPlugin()
rocketmq: Final[BackendPlugin] = SimRocketmqPlugin()
