"""What the embedded broker promises, without importing SQLite."""

from __future__ import annotations

from txbus.spi import Capabilities, Capability, Limits

__all__ = [
    "CAPABILITIES",
    "DELAY_S_MAX",
    "HEADERS_BYTES_MAX",
    "PARTITIONS_MAX",
    "PAYLOAD_BYTES_MAX",
]

PAYLOAD_BYTES_MAX = 16 * 1024 * 1024
HEADERS_BYTES_MAX = 64 * 1024
DELAY_S_MAX = 30 * 86400.0
PARTITIONS_MAX = 1024

CAPABILITIES = Capabilities(
    native=frozenset(
        {
            Capability.DURABLE_SEND,
            Capability.ATOMIC_SEND,
            Capability.ORDER_BY_KEY,
            Capability.SINGLE_OWNER,
            Capability.BROKER_TRANSACTION,
            Capability.POSITIONS_IN_BROKER_TRANSACTION,
            Capability.LOG,
            Capability.DELAYED_DELIVERY,
            Capability.NATIVE_REDELIVERY,
            Capability.REPLAY_BY_POSITION,
            Capability.REPLAY_BY_TIME,
        }
    ),
    limits=Limits(
        payload_bytes_max=PAYLOAD_BYTES_MAX,
        headers_bytes_max=HEADERS_BYTES_MAX,
        delay_s_max=DELAY_S_MAX,
        partitions_max=PARTITIONS_MAX,
    ),
)
