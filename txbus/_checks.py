"""What is checked when a bus opens, so that nothing of it is found out at the first message."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from txbus import _registry
from txbus._capability import Capabilities, Capability, TopicKind
from txbus._declare import HandlerDeclaration
from txbus._message import Envelope, Topic
from txbus._wire import SendOptions
from txbus.errors import (
    CapabilityMissing,
    ConfigurationError,
    MessageRefused,
    SchemaMismatch,
)
from txbus.settings import mask
from txbus.spi import Backend, TopicSpec
from txbus.stores.contract import Database

__all__ = [
    "HALF_LOG_NEEDS",
    "check_all_databases",
    "check_capabilities",
    "check_checkers",
    "check_handlers",
    "check_partitions",
    "check_schema",
    "derives_half_messages",
    "missing",
    "refuse",
    "refuse_half",
]

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
    native_halves = Capability.HALF_MESSAGE in backend.capabilities(TopicKind.TRANSACTIONAL)
    if sends_halves and not native_halves and not derives_half_messages(plain.native):
        lacking = [c for c in HALF_LOG_NEEDS if c not in plain]
        raise missing(
            backend.name,
            plain,
            "Bus(databases=...), for bus.transaction(...),",
            Capability.HALF_MESSAGE,
            "it has no half messages, and the half log needs " + ", ".join(c.value for c in lacking),
            "no databases=, and a handler with database=None",
        )
    ordered = backend.capabilities(TopicKind.ORDERED)
    for topic in topics:
        if topic.key is not None and Capability.ORDER_BY_KEY not in ordered:
            what = f"Topic({topic.name!r}, key=...)"
            why = "it hands messages of one key over in any order"
            raise missing(backend.name, ordered, what, Capability.ORDER_BY_KEY, why, "a topic without key=")
    for handler in handlers:
        what = f"@bus.on({handler.topic.name!r}, scope={handler.scope!r}"
        if handler.atomic:
            for need in (Capability.BROKER_TRANSACTION, Capability.POSITIONS_IN_BROKER_TRANSACTION):
                if need not in plain:
                    why = "what the handler sends and its position could not commit together"
                    raise missing(backend.name, plain, f"{what}, atomic=True)", need, why, "database= with its inbox")
        if isinstance(handler.start_at, float) and Capability.REPLAY_BY_TIME not in plain:
            why = "it does not find a message by its time"
            call = f"{what}, start=<datetime>)"
            raise missing(backend.name, plain, call, Capability.REPLAY_BY_TIME, why, "start='earliest'")


def missing(
    backend_name: str, capabilities: Capabilities, call: str, capability: Capability, why: str, instead: str
) -> CapabilityMissing:
    """The error that names the call, the capability, the reason, what works instead and who has it."""
    conditional = capabilities.conditional.get(capability)
    having = [
        name
        for name, plugin in _registry.backends().items()
        if any(_has(plugin.capabilities(kind), capability) for kind in TopicKind)
    ]
    text = f"{call} needs {capability.value}, which the backend {backend_name!r} does not keep: {why}"
    if conditional:
        text += f"; it would with {conditional}"
    return CapabilityMissing(
        f"{text}; what works instead: {instead}; backends that have it: {', '.join(having) or 'none installed'}"
    )


def _has(capabilities: Capabilities, capability: Capability) -> bool:
    """Natively, or derived by the core."""
    derived = capability is Capability.HALF_MESSAGE and derives_half_messages(capabilities.native)
    return derived or capability in capabilities


def check_partitions(backend: Backend, specs: Iterable[TopicSpec]) -> None:
    """The backend can have topics of so many partitions."""
    for spec in specs:
        most = backend.capabilities(spec.kind).limits.partitions_max
        if most is not None and spec.partitions > most:
            raise ConfigurationError(
                f"topic {spec.name!r}: partitions={spec.partitions} is more than the {most} that the backend "
                f"{backend.name!r} takes"
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
                f"@bus.on({handler.topic.name!r}, scope={handler.scope!r}, database={mask(handler.database)!r}): "
                f"this bus has no such database (it has: {known}); add it to Bus(databases=...)"
            )


def check_checkers(topics: Iterable[str], databases: Mapping[str, object]) -> None:
    """There are halves to ask about."""
    if not databases:
        for topic in topics:
            raise ConfigurationError(
                f"@bus.checker({topic!r}): this bus has no database, so it never sends a half that the checker could "
                "be asked about; add Bus(databases=...), or remove the checker"
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
    deliver_after_s: float | None,
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
    if envelope.deliver_at_s is None:
        return
    if Capability.DELAYED_DELIVERY not in capabilities:
        why = "it would be received at once"
        raise missing(
            backend_name, capabilities, "deliver_after_s=", Capability.DELAYED_DELIVERY, why, "send it when it is due"
        )
    if limits.delay_s_max is not None and deliver_after_s is not None and deliver_after_s > limits.delay_s_max:
        raise MessageRefused(
            f"topic {envelope.topic!r}: deliver_after_s={deliver_after_s:,.12g} is more than the "
            f"{limits.delay_s_max:,.12g} s that {backend_name!r} can hold a message back"
        )


def refuse_half(
    capabilities: Capabilities, backend_name: str, sends: Container[str], topic: Topic[Any], options: SendOptions
) -> None:
    """`CapabilityMissing` for what the broker's own half messages do not keep (``capabilities``: theirs);
    ConfigurationError for a topic that was not announced to it."""
    if topic.name not in sends:
        raise ConfigurationError(
            f"tx.send to Topic({topic.name!r}), which this bus only has a handler of: the broker would ask nobody "
            "about its half messages; add it to Bus(topics=...)"
        )
    if (topic.key is not None or options.key is not None) and Capability.ORDER_BY_KEY not in capabilities:
        what = f"tx.send to Topic({topic.name!r}), which has a key,"
        why = "its half messages have no order"
        instead = "a topic without key=, or bus.send outside of a local transaction"
        raise missing(backend_name, capabilities, what, Capability.ORDER_BY_KEY, why, instead)
    if options.deliver_after_s is not None and Capability.DELAYED_DELIVERY not in capabilities:
        what = f"tx.send to Topic({topic.name!r}) with deliver_after_s="
        why = "its half messages cannot be delayed"
        instead = "bus.send to a topic of its own, from a handler of the message"
        raise missing(backend_name, capabilities, what, Capability.DELAYED_DELIVERY, why, instead)


def check_all_databases(service: str, databases: Mapping[str, Database]) -> None:
    """A relay has every database of its service, or it would leave halves unanswered (rule 9)."""
    for name, database in sorted(databases.items()):
        lacking = sorted(database.join_service(service, set(databases)) - set(databases))
        if lacking:
            raise ConfigurationError(
                f"a relay of service {service!r} needs all its databases; this bus lacks "
                f"{', '.join(map(repr, lacking))} (noted in table txbus_databases of {name!r}): add them to "
                "Bus(databases=...), run without a relay (relay='outside'), or, for one that is gone for good and has "
                "nothing in `txbus unresolved list`, delete its row there"
            )
