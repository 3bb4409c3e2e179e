"""What a backend promises: one member is one promise that somebody can observe."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Capabilities", "Capability", "Limits", "Support", "TopicKind"]


class TopicKind(enum.Enum):
    """What a topic is used for; some brokers keep other promises for each kind."""

    PLAIN = "plain"
    ORDERED = "ordered"
    DELAYED = "delayed"
    TRANSACTIONAL = "transactional"


class Capability(enum.Enum):
    """One observable promise. A backend declares each or does not; there are no defaults."""

    DURABLE_SEND = "durable_send"
    """``send`` returned → the message survives the death of every client process."""
    ATOMIC_SEND = "atomic_send"
    """``send`` of several messages makes all or none visible."""
    ORDER_BY_KEY = "order_by_key"
    """Messages of one key, sent one after the other, are received in that order."""
    SINGLE_OWNER = "single_owner"
    """A partition has one owner within a group; a former owner's ack and commit are ``Fenced``."""
    HALF_MESSAGE = "half_message"
    """Durable and invisible until its outcome; the broker asks back."""
    BROKER_TRANSACTION = "broker_transaction"
    """Several sends visible together or never; a newer owner of the id fences the older."""
    POSITIONS_IN_BROKER_TRANSACTION = "positions_in_broker_transaction"
    """Consumer positions commit together with the messages of a broker transaction."""
    LOG = "log"
    """A partition can be read from any position to its readable end, and truncated below one."""
    DELAYED_DELIVERY = "delayed_delivery"
    """A message with ``deliver_at_s`` is not received before that time."""
    NATIVE_REDELIVERY = "native_redelivery"
    """``redeliver`` gives the message back after a delay, durably; others are not held up."""
    ATTEMPTS_COUNTED = "attempts_counted"
    """``Received.attempt`` counts every hand-over durably, those that ended in a crash included."""
    NATIVE_DEAD_LETTER = "native_dead_letter"
    """The broker itself sets a message aside after its attempts."""
    TAG_FILTER = "tag_filter"
    """A subscription's tags are filtered by the broker."""
    REPLAY_BY_POSITION = "replay_by_position"
    """A group's position can be moved to any retained position."""
    REPLAY_BY_TIME = "replay_by_time"
    """A group's position can be moved to the first message at or after a time."""


class Support(enum.Enum):
    """How a capability comes about."""

    NATIVE = "native"
    DERIVED = "derived"
    CONDITIONAL = "conditional"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes a backend refuses to exceed. ``None`` means no limit of its own."""

    payload_bytes_max: int | None
    headers_bytes_max: int | None
    delay_s_max: float | None
    partitions_max: int | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The promises a backend keeps for one kind of topic under its present settings.

    ``conditional`` explains a capability that other settings or kinds of topic would give:
    capability → what to change. It is not part of ``native``.
    """

    native: frozenset[Capability]
    limits: Limits
    conditional: Mapping[Capability, str] = field(default_factory=dict)

    def __contains__(self, capability: Capability) -> bool:
        return capability in self.native
