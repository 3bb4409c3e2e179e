"""Transactional messaging that can prove itself.

Either a database change and its messages both happen or neither, whatever crashes between; and the
receiver's effect happens once. Declare a `Bus` with its topics and handlers, enter it, and send
inside of ``bus.transaction(...)``.

Public surface: this module for applications, `txbus.events`, `txbus.errors`, `txbus.settings`,
`txbus.testing`; `txbus.spi` and `txbus.conformance` for backend authors.
"""

from txbus._bus import Bus
from txbus._capability import Capabilities, Capability, Limits, Support, TopicKind
from txbus._inbox_signature import Delivery
from txbus._message import Codec, Envelope, JsonCodec, Position, Receipt, Topic, TopicPartition
from txbus._outcome import Outcome
from txbus._retry import Retry
from txbus._transactional import AttachedScope, TransactionScope
from txbus._version import __version__
from txbus.errors import (
    AlreadyCommitted,
    CapabilityMissing,
    ConfigurationError,
    GiveUp,
    OutcomeUnknown,
    TxbusError,
)

__all__ = [
    "AlreadyCommitted",
    "AttachedScope",
    "Bus",
    "Capabilities",
    "Capability",
    "CapabilityMissing",
    "Codec",
    "ConfigurationError",
    "Delivery",
    "Envelope",
    "GiveUp",
    "JsonCodec",
    "Limits",
    "Outcome",
    "OutcomeUnknown",
    "Position",
    "Receipt",
    "Retry",
    "Support",
    "Topic",
    "TopicKind",
    "TopicPartition",
    "TransactionScope",
    "TxbusError",
    "__version__",
]
