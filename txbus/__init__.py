"""Transactional messaging that can prove itself.

Either a database change and its messages both happen or neither, whatever crashes between; and the
receiver's effect happens once. Declare a `Bus` with its topics and handlers, enter it, and send
inside of ``bus.transaction(...)``.

Public surface: this module for applications, `txbus.events`, `txbus.errors`, `txbus.settings`,
`txbus.testing`; `txbus.spi` and `txbus.conformance` for backend authors.
"""

import importlib
from typing import TYPE_CHECKING

from txbus._version import __version__

if TYPE_CHECKING:
    from txbus._bus import Bus
    from txbus._capability import Capabilities, Capability, Limits, Support, TopicKind
    from txbus._inbox_signature import Delivery
    from txbus._message import Codec, Envelope, JsonCodec, Position, Receipt, Topic, TopicPartition
    from txbus._outcome import Outcome
    from txbus._retry import Retry
    from txbus._transactional import AttachedScope, AttachedSessions, TransactionScope
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
    "AttachedSessions",
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

_HOMES = {
    "_bus": ("Bus",),
    "_capability": ("Capabilities", "Capability", "Limits", "Support", "TopicKind"),
    "_inbox_signature": ("Delivery",),
    "_message": ("Codec", "Envelope", "JsonCodec", "Position", "Receipt", "Topic", "TopicPartition"),
    "_outcome": ("Outcome",),
    "_retry": ("Retry",),
    "_transactional": ("AttachedScope", "AttachedSessions", "TransactionScope"),
    "errors": (
        "AlreadyCommitted",
        "CapabilityMissing",
        "ConfigurationError",
        "GiveUp",
        "OutcomeUnknown",
        "TxbusError",
    ),
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: pydantic does the same, and whoever imports txbus
    for one name should not pay for all."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(f"txbus.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
