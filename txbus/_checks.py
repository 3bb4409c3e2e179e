"""What is checked when a bus opens, so that nothing of it is found out at the first message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from txbus import _registry
from txbus._capability import Capabilities, Capability, TopicKind
from txbus._declare import HandlerDeclaration
from txbus._message import Envelope, Topic
from txbus.errors import (
    CapabilityMissing,
    ConfigurationError,
    MessageRefused,
    SchemaMismatch,
)
from txbus.spi import Backend
from txbus.stores.contract import Database

__all__ = ["HALF_LOG_NEEDS", "check_capabilities", "check_handlers", "check_schema", "derives_half_messages", "refuse"]

HALF_LOG_NEEDS = (
    Capability.BROKER_TRANSACTION,
    Capability.POSITIONS_IN_BROKER_TRANSACTION,
    Capability.LOG,
    Capability.SINGLE_OWNER,
)
"""What the core derives half messages from."""


def derives_half_messages(native: Iterable[Capability]) -> bool:
    """Can the core make half messages out of these?"""
    return set(HALF_LOG_NEEDS) <= set(native)


def check_capabilities(
    backend: Backend, handlers: Sequence[HandlerDeclaration], topics: Sequence[Topic[object]], sends_halves: bool
) -> None:
    """`CapabilityMissing` for what the declarations need and the backend does not keep."""
    plain = backend.capabilities(TopicKind.PLAIN)
    if sends_halves and Capability.HALF_MESSAGE not in plain and not derives_half_messages(plain.native):
        lacking = [c for c in HALF_LOG_NEEDS if c not in plain]
        raise _missing(
            backend, "bus.transaction(...)", Capability.HALF_MESSAGE,
            "it has no half messages, and the half log needs " + ", ".join(c.value for c in lacking), "via=\"outbox\"",
        )
    for topic in topics:
        kind = backend.capabilities(TopicKind.ORDERED)
        if topic.key is not None and Capability.ORDER_BY_KEY not in kind:
            raise _missing(backend, f"Topic({topic.name!r}, key=...)", Capability.ORDER_BY_KEY, "", "no key=")
    for handler in handlers:
        what = f"@bus.on({handler.topic.name!r}, scope={handler.scope!r}"
        if handler.atomic:
            for need in (Capability.BROKER_TRANSACTION, Capability.POSITIONS_IN_BROKER_TRANSACTION):
                if need not in plain:
                    raise _missing(backend, f"{what}, atomic=True)", need, "", "database= with its inbox")
        if isinstance(handler.start_at, float) and Capability.REPLAY_BY_TIME not in plain:
            raise _missing(backend, f"{what}, start=<datetime>)", Capability.REPLAY_BY_TIME, "", "start='earliest'")


def _missing(backend: Backend, call: str, capability: Capability, why: str, instead: str) -> CapabilityMissing:
    conditional = backend.capabilities(TopicKind.PLAIN).conditional.get(capability)
    having = [name for name, plugin in _registry.backends().items() if capability in plugin.capabilities()]
    text = f"{call} needs {capability.value}, which the backend {backend.name!r} does not keep"
    text += f" ({why})" if why else ""
    if conditional:
        text += f"; it would with {conditional}"
    return CapabilityMissing(
        f"{text}; what works instead: {instead}; backends that have it: {', '.join(having) or 'none installed'}"
    )


def check_handlers(handlers: Sequence[HandlerDeclaration], databases: Mapping[str, object]) -> None:
    """Names of databases exist, scopes are given once."""
    seen: dict[str, HandlerDeclaration] = {}
    for handler in handlers:
        other = seen.setdefault(handler.scope, handler)
        if other is not handler:
            raise ConfigurationError(
                f"scope {handler.scope!r} is used by {other.function.__qualname__!r} and "
                f"{handler.function.__qualname__!r}: their inboxes would take each other's messages for handled; "
                "give each its own"
            )
        if handler.database is not None and handler.database not in databases:
            known = ", ".join(sorted(databases)) or "none"
            raise ConfigurationError(
                f"@bus.on({handler.topic.name!r}, scope={handler.scope!r}, database={handler.database!r}): "
                f"this bus has no such database (it has: {known}); add it to Bus(databases=...)"
            )


def check_schema(databases: Mapping[str, Database], create: bool) -> None:
    """The stores' tables are there and right; made first where that was asked for."""
    for name, database in databases.items():
        wrong = database.verify()
        if wrong and create:
            # Only when something is missing: creating takes the write lock, looking does not.
            database.create_schema()
            wrong = database.verify()
        if wrong:
            raise SchemaMismatch(f"database {name!r}: " + "; ".join(wrong))
    identities: dict[str, str] = {}
    for name, database in databases.items():
        other = identities.setdefault(database.identity(), name)
        if other != name:
            raise ConfigurationError(
                f"databases {other!r} and {name!r} are the same ledger (one database under two names, or a copy of "
                "one): a check-back could not tell them apart; give it one name, or make its tables anew"
            )


def refuse(
    capabilities_of: Callable[[TopicKind], Capabilities],
    backend_name: str,
    declared: Mapping[str, object],
    envelope: Envelope,
) -> None:
    """Raise for an envelope that could never be published: unknown topic, sizes, delay."""
    if envelope.topic not in declared:
        known = ", ".join(sorted(declared)) or "none"
        raise ConfigurationError(
            f"topic {envelope.topic!r} is not declared on this bus (declared: {known}): add it to Bus(topics=...), "
            "so that it is checked when the bus opens"
        )
    kind = TopicKind.PLAIN if envelope.deliver_at_s is None else TopicKind.DELAYED
    capabilities = capabilities_of(kind)
    limits = capabilities.limits
    if limits.payload_bytes_max is not None and len(envelope.payload) > limits.payload_bytes_max:
        raise MessageRefused(
            f"topic {envelope.topic!r}: a payload of {len(envelope.payload)} bytes is more than the "
            f"{limits.payload_bytes_max} that {backend_name!r} takes; send a reference to it instead"
        )
    headers = envelope.size - len(envelope.payload)
    if limits.headers_bytes_max is not None and headers > limits.headers_bytes_max:
        raise MessageRefused(
            f"topic {envelope.topic!r}: headers and key of {headers} bytes are more than the "
            f"{limits.headers_bytes_max} that {backend_name!r} takes"
        )
    if envelope.deliver_at_s is not None and Capability.DELAYED_DELIVERY not in capabilities:
        raise CapabilityMissing(
            f"deliver_after_s= needs {Capability.DELAYED_DELIVERY.value}, which the backend {backend_name!r} does not "
            "keep; what works instead: send it when it is due"
        )
