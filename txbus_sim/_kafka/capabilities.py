"""What the simulated Kafka promises; importing this loads no model."""

from __future__ import annotations

from typing import Final

from txbus.spi import Capabilities, Capability, Limits

__all__ = ["CAPABILITIES"]

CAPABILITIES: Final = Capabilities(
    native=frozenset(
        {
            Capability.DURABLE_SEND,
            Capability.ORDER_BY_KEY,
            Capability.SINGLE_OWNER,
            Capability.BROKER_TRANSACTION,
            Capability.POSITIONS_IN_BROKER_TRANSACTION,
            Capability.LOG,
            Capability.REPLAY_BY_POSITION,
            Capability.REPLAY_BY_TIME,
        }
    ),
    # The broker's limit of a batch is 1,048,588 bytes; the rest is for the key and Kafka's own.
    limits=Limits(payload_bytes_max=1_000_000, headers_bytes_max=32_768, delay_s_max=None, partitions_max=None),
)
"""Those of the backend of a real Kafka; for every kind of topic."""
