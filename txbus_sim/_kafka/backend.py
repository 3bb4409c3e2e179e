"""`sim+kafka://`: the backend of a simulated process, assembled from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from txbus.errors import BackendUnavailable, CapabilityMissing, NotOpen
from txbus.spi import (
    Admin,
    Backend,
    BrokerTransactions,
    Capabilities,
    HalfMessages,
    Log,
    Receiver,
    Sender,
    Subscription,
    TopicKind,
)
from txbus_sim._kafka.broker_transactions import SimBrokerTransactions
from txbus_sim._kafka.capabilities import CAPABILITIES
from txbus_sim._kafka.log import SimAdmin, SimLog
from txbus_sim._kafka.receiver import SimReceiver
from txbus_sim._kafka.sender import SimSender
from txbus_sim._kafka.server import KafkaServer, server_of
from txbus_sim._network import request
from txbus_sim._world import Process, current_process

__all__ = ["SimKafkaBackend"]

_S = 1_000_000_000
_PATIENCE_NS = 5 * _S
_ORPHAN_LOOK_NS = 5 * _S


class _Closing(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closing)


class SimKafkaBackend:
    """One client of the run's cluster. It belongs to the process that opens it and dies with it."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._process: Process | None = None
        self._server: KafkaServer | None = None
        self._children: list[_Closing] = []
        self._closed = False

    @property
    def name(self) -> str:
        return "sim+kafka"

    def open(self) -> None:
        """Point: ``broker.open``. `NotOpen` outside of a simulated process."""
        if self._closed:
            raise NotOpen(f"sim+kafka://{self._location}: the backend is closed; make another one")
        if self._process is not None:
            return
        process = current_process()
        if process is None:
            raise NotOpen("sim+kafka:// exists inside of a simulated process only; run the scenario with txbus_sim")
        self._server = server_of(process)
        request(
            process.world,
            "broker.open",
            lambda: None,
            patience_ns=_PATIENCE_NS,
            unanswered=BackendUnavailable,
            refused=BackendUnavailable,
        )
        self._process = process
        process.at_death.append(self.vanish)

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return CAPABILITIES

    def admin(self) -> Admin:
        server, _ = self._need()
        return self._keep(SimAdmin(server, self._forget))

    def sender(self, group: str) -> Sender:
        return self._keep(SimSender(*self._need(), self._forget))

    def receiver(self, subscription: Subscription) -> Receiver:
        """`CapabilityMissing` for tags; `SettingsError` for a lease that the broker does not allow."""
        if subscription.tags is not None:
            raise CapabilityMissing("sim+kafka:// does not filter tags (TAG_FILTER); filter in the consumer")
        return self._keep(SimReceiver(*self._need(), subscription, self._forget))

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        return self._keep(SimBrokerTransactions(*self._need(), transactional_id, timeout_s, self._forget))

    def log(self, topic: str) -> Log:
        return self._keep(SimLog(*self._need(), topic, self._forget))

    def half_messages(self, group: str, topics: Sequence[str]) -> HalfMessages:
        raise CapabilityMissing(
            "sim+kafka:// has no native half messages (HALF_MESSAGE); the bus derives them from broker transactions "
            "through its half log: use bus.transaction(...)"
        )

    def _need(self) -> tuple[KafkaServer, Process]:
        if self._process is None or self._server is None or self._closed:
            state = "closed" if self._closed else "not open; call open()"
            raise NotOpen(f"sim+kafka://{self._location}: the backend is {state}")
        return self._server, self._process

    def _keep(self, child: C) -> C:
        self._children.append(child)
        return child

    def _forget(self, child: object) -> None:
        self._children = [one for one in self._children if one is not child]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for child in tuple(self._children):
            child.close()
        if self._process is not None and self.vanish in self._process.at_death:
            self._process.at_death.remove(self.vanish)

    def vanish(self) -> None:
        """The client is gone without a word, as when its process dies: its session runs out, its open
        broker transaction times out or is fenced, what it had not sent is never sent."""
        self._closed = True
        for child in tuple(self._children):
            if isinstance(child, SimReceiver):
                child.vanish()
            elif isinstance(child, SimBrokerTransactions):
                child.abandon()
                self._watch_orphan(child.id)
            elif isinstance(child, SimSender):
                child.vanish()

    def _watch_orphan(self, transactional_id: str) -> None:
        """The run is not over while a broker transaction that nobody will end holds readers up."""
        server = self._server
        assert server is not None
        world = server.world

        def look() -> None:
            if not world.closed and server.cluster.transactions.times_out_ns(transactional_id) is not None:
                world.pending_at(world.now_ns + _ORPHAN_LOOK_NS, look)

        look()


def _is_backend(backend: SimKafkaBackend) -> Backend:
    """Checked by mypy: it has every method of the SPI."""
    return backend
