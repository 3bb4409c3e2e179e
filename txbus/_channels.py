"""What an open bus does otherwise on a backend that has half messages of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from txbus._capability import Capability, TopicKind
from txbus._checkback import CheckBudget, OwnChecker
from txbus._halflog.relay import RelayHealth
from txbus._message import Topic
from txbus._nativehalves import NativeHalves, NativeHalvesBudget
from txbus._ports import Ports
from txbus._telemetry import Emit
from txbus.settings import Settings
from txbus.spi import Backend
from txbus.stores.contract import Database

__all__ = ["has_half_messages", "native_channel", "native_health", "topic_kind"]


def has_half_messages(backend: Backend) -> bool:
    """Natively, for some kind of topic; then the half log is not used."""
    return Capability.HALF_MESSAGE in backend.capabilities(TopicKind.TRANSACTIONAL)


def topic_kind(backend: Backend, topic: Topic[Any], halves: bool) -> TopicKind:
    """The kind that keeps what a declared topic is used for; PLAIN where that keeps as much.

    ``halves``: the bus has databases, so what has no order is sent in local transactions.
    """
    plain = backend.capabilities(TopicKind.PLAIN)
    if topic.key is not None and Capability.ORDER_BY_KEY not in plain:
        return TopicKind.ORDERED
    if topic.key is None and halves and has_half_messages(backend) and Capability.HALF_MESSAGE not in plain:
        return TopicKind.TRANSACTIONAL
    return TopicKind.PLAIN


def native_channel(
    service: str,
    backend: Backend,
    topics: Sequence[str],
    databases: Mapping[str, Database],
    checkers: Mapping[str, OwnChecker],
    settings: Settings,
    ports: Ports,
    emit: Emit,
) -> NativeHalves:
    """The channel over the backend's own half messages, at work. ``topics``: those it may send to; the
    broker asks nobody about one that was not announced."""
    channel = NativeHalves(
        service,
        backend.half_messages(service, topics),
        databases,
        checkers,
        ports,
        emit,
        NativeHalvesBudget(
            poll_s=settings.poll_s,
            confirm_interval_s=settings.confirm_interval_s,
            headers_bytes_max=backend.capabilities(TopicKind.TRANSACTIONAL).limits.headers_bytes_max,
            check=CheckBudget(
                lock_wait_s=settings.check_lock_wait_s,
                held_after_s=settings.local_timeout_s + settings.half_timeout_s,
                round_s=settings.check_budget_s,
                retention_s=settings.ledger_retention_s,
                check_max=settings.check_max,
            ),
        ),
    )
    channel.start()
    return channel


def native_health(channel: NativeHalves) -> RelayHealth:
    """As a relay's: outcomes that wait count as undecided; what the broker may still ask is not known."""
    found = channel.health()
    return RelayHealth(found.running, (), found.waiting, 0, 0.0, 0, found.last_error)
