"""The embedded broker as a backend: assembly of its parts."""

from __future__ import annotations

from typing import Protocol, TypeVar

from txbus.embedded.admin import EmbeddedAdmin
from txbus.embedded.broker_transaction import EmbeddedBrokerTransactions
from txbus.embedded.capabilities import CAPABILITIES
from txbus.embedded.database import Database
from txbus.embedded.group_commit import GroupCommit
from txbus.embedded.log import EmbeddedLog
from txbus.embedded.options import Options
from txbus.embedded.receiver import EmbeddedReceiver
from txbus.embedded.retention import Retention
from txbus.embedded.sender import EmbeddedSender
from txbus.embedded.topics import Topics
from txbus.errors import CapabilityMissing, NotOpen
from txbus.spi import (
    Admin,
    BrokerTransactions,
    Capabilities,
    HalfMessages,
    Log,
    Ports,
    Receiver,
    Sender,
    Subscription,
    TopicKind,
)

__all__ = ["EmbeddedBackend"]


class _Closing(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closing)


class _Parts:
    """What `open` made."""

    def __init__(self, options: Options, ports: Ports) -> None:
        self.database = Database(options, ports)
        self.topics = Topics(self.database)
        self.commits = GroupCommit(self.database, self.topics)
        self.retention = Retention(self.database)


class EmbeddedBackend:
    """One process's connection to a bus file, or to a bus in memory. Thread-safe.

    Not to be used after a fork, in the child: `NotOpen` then; open another one.
    """

    def __init__(self, options: Options, ports: Ports) -> None:
        self._options = options
        self._ports = ports
        self._lock = ports.runtime.lock()
        self._parts: _Parts | None = None
        self._children: list[_Closing] = []
        self._closed = False

    @property
    def name(self) -> str:
        return self._options.scheme

    def open(self) -> None:
        """Open or create the file; `SettingsError`, `BackendUnavailable` or `BrokerFileError` say
        what is wrong with its place or its content. Idempotent; several processes may do it at once."""
        with self._lock:
            if self._closed:
                raise NotOpen(f"{self._label}: the backend is closed; make another one")
            if self._parts is None:
                self._parts = _Parts(self._options, self._ports)

    @property
    def _label(self) -> str:
        return f"{self._options.scheme}://{self._options.name}"

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        """The same for every kind of topic and every option."""
        return CAPABILITIES

    def admin(self) -> Admin:
        parts = self._need()
        return self._keep(EmbeddedAdmin(parts.database, parts.topics, self._forget))

    def sender(self, group: str) -> Sender:
        parts = self._need()
        return self._keep(EmbeddedSender(parts.database, parts.commits, parts.retention.tick, self._forget))

    def receiver(self, subscription: Subscription) -> Receiver:
        """`CapabilityMissing` for tags: the consumer filters them."""
        parts = self._need()
        if subscription.tags is not None:
            raise CapabilityMissing(
                f"{self.name}:// does not filter tags (TAG_FILTER); leave them out and filter in the consumer"
            )
        return self._keep(
            EmbeddedReceiver(parts.database, parts.topics, subscription, parts.retention.tick, self._forget)
        )

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        """Fences former owners on return. ``timeout_s`` has nothing to limit: nothing of an open
        broker transaction is at the broker."""
        parts = self._need()
        return self._keep(
            EmbeddedBrokerTransactions(parts.database, parts.topics, parts.commits, transactional_id, self._forget)
        )

    def log(self, topic: str) -> Log:
        """`DestinationRefused` comes with the first use if the topic is missing."""
        parts = self._need()
        return self._keep(EmbeddedLog(parts.database, parts.topics, topic, self._forget))

    def half_messages(self, group: str, topics: object) -> HalfMessages:
        raise CapabilityMissing(
            f"{self.name}:// has no native half messages (HALF_MESSAGE); the bus derives them from broker "
            "transactions through its half log: use bus.transaction(...)"
        )

    def _need(self) -> _Parts:
        parts = self._parts
        if parts is None or self._closed:
            raise NotOpen(f"{self._label}: the backend is {'closed' if self._closed else 'not open; call open()'}")
        parts.database.check_process()
        return parts

    def _keep(self, child: C) -> C:
        with self._lock:
            self._children.append(child)
        return child

    def _forget(self, child: object) -> None:
        with self._lock:
            self._children = [one for one in self._children if one is not child]

    def close(self) -> None:
        """Close what it handed out, write what is queued, end its thread. Idempotent; bounded by a
        few times ``busy_timeout_s``."""
        parts = self._parts
        if parts is not None and parts.database.process_id != self._ports.runtime.process_id():
            # A forked child: locks may be held for ever by threads that exist in the parent only.
            self._parts, self._closed = None, True
            parts.database.close()
            return
        with self._lock:
            parts, self._parts = self._parts, None
            self._closed = True
            children = list(self._children)
        if parts is None:
            return
        for child in children:
            child.close()
        parts.commits.close()
        parts.database.close()
