"""What is refused, and where a key goes."""

from __future__ import annotations

from typing import NoReturn
from zlib import crc32

from dirbus.plugin import CAPABILITIES
from dirbus.state import State
from txbus.errors import CapabilityMissing, DestinationRefused, MessageRefused
from txbus.spi import Envelope

__all__ = ["check", "missing", "partition_of"]


def missing(call: str) -> NoReturn:
    raise CapabilityMissing(f"dirbus has no {call}; embedded:// has")


def check(state: State, envelope: Envelope) -> None:
    """Refuse what could never be sent."""
    limits = CAPABILITIES.limits
    if envelope.deliver_at_s is not None:
        missing("delayed delivery")
    if envelope.topic not in state.topics:
        raise DestinationRefused(f"topic {envelope.topic!r} does not exist; create it with the admin")
    if len(envelope.payload) > (limits.payload_bytes_max or 0):
        raise MessageRefused(f"{len(envelope.payload)} bytes are above the limit of {limits.payload_bytes_max}")
    heavy = sum(len(name) + len(value) for name, value in envelope.headers.items())
    if heavy > (limits.headers_bytes_max or 0):
        raise MessageRefused(f"{heavy} bytes of headers are above the limit of {limits.headers_bytes_max}")


def partition_of(state: State, envelope: Envelope, turn: int) -> int:
    """By key; without one by turns."""
    count = len(state.topics[envelope.topic].partitions)
    return turn % count if envelope.key is None else crc32(envelope.key.encode("utf-8", "surrogatepass")) % count
