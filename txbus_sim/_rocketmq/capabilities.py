"""What a backend of RocketMQ promises for each kind of topic; the real one will say the same."""

from __future__ import annotations

from typing import assert_never

from txbus.spi import Capabilities, Capability, Limits, TopicKind

__all__ = ["HEADERS_BYTES_MAX", "capabilities"]

PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
HEADERS_BYTES_MAX = 8 * 1024
"""Properties may have 16 KiB; the rest is for names, escapes and what the backend adds."""
DELAY_S_MAX = 24 * 3600.0
PARTITIONS_MAX = 1024

_ALWAYS = {
    Capability.DURABLE_SEND,
    Capability.NATIVE_REDELIVERY,
    Capability.NATIVE_DEAD_LETTER,
    Capability.TAG_FILTER,
}
_WHERE = {
    Capability.ORDER_BY_KEY: "topics of kind ORDERED (message.type FIFO)",
    Capability.DELAYED_DELIVERY: "topics of kind DELAYED (message.type DELAY)",
    Capability.HALF_MESSAGE: "topics of kind TRANSACTIONAL (message.type TRANSACTION)",
}


def capabilities(kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
    """A message is ordered, delayed or transactional, never two of these."""
    match kind:
        case TopicKind.PLAIN:
            native = _ALWAYS
        case TopicKind.ORDERED:
            # A message that is out holds its queue back, so redelivery does hold up others.
            native = _ALWAYS - {Capability.NATIVE_REDELIVERY} | {Capability.ORDER_BY_KEY}
        case TopicKind.DELAYED:
            native = _ALWAYS | {Capability.DELAYED_DELIVERY}
        case TopicKind.TRANSACTIONAL:
            # Only half messages go there, so there is no plain send.
            native = _ALWAYS - {Capability.DURABLE_SEND} | {Capability.HALF_MESSAGE}
        case _:
            assert_never(kind)
    return Capabilities(
        native=frozenset(native),
        limits=Limits(
            payload_bytes_max=PAYLOAD_BYTES_MAX,
            headers_bytes_max=HEADERS_BYTES_MAX,
            delay_s_max=DELAY_S_MAX,
            partitions_max=PARTITIONS_MAX,
        ),
        conditional={capability: where for capability, where in _WHERE.items() if capability not in native},
    )
