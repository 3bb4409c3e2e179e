"""The backend of ``sim+rocketmq://``: assembly of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from txbus.errors import CapabilityMissing, NotOpen
from txbus.spi import (
    Admin,
    BrokerTransactions,
    Capabilities,
    HalfMessages,
    Log,
    Receiver,
    Sender,
    Subscription,
    TopicKind,
)
from txbus_sim._rocketmq.admin import SimAdmin
from txbus_sim._rocketmq.capabilities import capabilities
from txbus_sim._rocketmq.halves import SimHalfMessages
from txbus_sim._rocketmq.receiver import SimReceiver
from txbus_sim._rocketmq.sender import SimSender
from txbus_sim._rocketmq.server import RocketmqServer, here, server_of
from txbus_sim._world import Process

__all__ = ["SimRocketmqBackend"]

SCHEME = "sim+rocketmq"


class _Closing(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closing)


class SimRocketmqBackend:
    """One process's connection to the run's RocketMQ. It dies with its process."""

    def __init__(self) -> None:
        self._open: tuple[RocketmqServer, Process] | None = None
        self._children: list[_Closing] = []
        self._closed = False

    @property
    def name(self) -> str:
        return SCHEME

    def open(self) -> None:
        """AssertionError outside of a simulated process of a run with RocketMQ."""
        if self._closed:
            raise NotOpen(f"{SCHEME}://: the backend is closed; make another one")
        if self._open is None:
            process = here()
            self._open = (server_of(process), process)

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return capabilities(kind)

    def admin(self) -> Admin:
        return self._keep(SimAdmin(*self._need(), self._forget))

    def sender(self, group: str) -> Sender:
        return self._keep(SimSender(*self._need(), self._forget))

    def receiver(self, subscription: Subscription) -> Receiver:
        return self._keep(SimReceiver(*self._need(), subscription, self._forget))

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        raise CapabilityMissing(f"{SCHEME}:// has no broker transactions (BROKER_TRANSACTION)")

    def log(self, topic: str) -> Log:
        raise CapabilityMissing(f"{SCHEME}:// reads no topic by position (LOG)")

    def half_messages(self, group: str, topics: Sequence[str]) -> HalfMessages:
        return self._keep(SimHalfMessages(*self._need(), group, topics, self._forget))

    def _need(self) -> tuple[RocketmqServer, Process]:
        if self._open is None or self._closed:
            raise NotOpen(f"{SCHEME}://: the backend is {'closed' if self._closed else 'not open; call open()'}")
        return self._open

    def _keep(self, child: C) -> C:
        self._children.append(child)
        return child

    def _forget(self, child: object) -> None:
        self._children = [one for one in self._children if one is not child]

    def sever(self) -> None:
        """Break every connection without a word, as the death of the process does."""
        for child in self._children:
            if isinstance(child, SimReceiver | SimHalfMessages):
                child.sever()

    def close(self) -> None:
        """Close what it handed out. Idempotent."""
        self._closed = True
        for child in list(self._children):
            child.close()
