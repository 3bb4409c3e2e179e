"""The headers of a message: CloudEvents 1.0 in binary mode, W3C trace context, and txbus's own.

An `Envelope` has one form in memory and on the wire, so building and reading headers is all there
is to it. No I/O, no clock and no chance of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict, TypeVar

from txbus._message import Envelope, Topic
from txbus.errors import ConfigurationError, DecodeError
from txbus.spi import Received

__all__ = [
    "CAUSATION",
    "CORRELATION",
    "TAG",
    "TRACEPARENT",
    "SendArguments",
    "SendNowArguments",
    "SendOptions",
    "identity",
    "inherited_traceparent",
    "log_identity",
    "make_envelope",
    "source_of",
    "tag_of",
    "trace_id",
]

T = TypeVar("T")

SPECVERSION = "ce_specversion"
CONTENT_TYPE = "content-type"
TRACEPARENT = "traceparent"
CORRELATION = "txbus-correlation-id"
CAUSATION = "txbus-causation-id"
TAG = "txbus-tag"

_RESERVED_PREFIXES = ("ce_", "txbus-")
_NAME_MAX = 200
_ID_MAX = 255
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class SendArguments(TypedDict, total=False):
    """What may be said about one message besides its payload; every one may be left out,
    or None.

    ``key`` replaces the topic's key. ``headers`` are text. ``message_id`` (1 to 255 printable
    characters) is the identity at the receiver, together with the sender's source; without it a
    fresh one is made. ``tag`` is what consumers filter by. ``correlation_id`` and ``causation_id``
    tell a conversation. ``deliver_after_s`` is seconds.
    """

    key: str | None
    headers: Mapping[str, str] | None
    message_id: str | None
    tag: str | None
    correlation_id: str | None
    causation_id: str | None
    deliver_after_s: float | None


class SendNowArguments(SendArguments, total=False):
    """`SendArguments` of a message sent without a local transaction; ``timeout_s`` is seconds."""

    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class SendOptions:
    """`SendNowArguments`, checked. ``timeout_s`` None is the bus's own.

    ``traceparent`` is used where no span is current. Wrong values are a ConfigurationError.
    """

    key: str | None = None
    headers: Mapping[str, str] | None = None
    message_id: str | None = None
    tag: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    deliver_after_s: float | None = None
    timeout_s: float | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        for name in ("key", "message_id", "tag", "correlation_id", "causation_id"):
            value = getattr(self, name)
            if value is not None:
                _check_text(name, value)
        if self.deliver_after_s is not None and not 0.0 <= self.deliver_after_s < float("inf"):
            raise ConfigurationError(
                f"deliver_after_s={self.deliver_after_s} must be 0 or more seconds; leave it out for at once"
            )
        if self.timeout_s is not None and not 0.0 < self.timeout_s < float("inf"):
            raise ConfigurationError(
                f"timeout_s={self.timeout_s} must be more than 0 seconds; leave it out for the bus's own"
            )
        if self.headers is not None:
            _check_headers(self.headers)


def source_of(service: str) -> str:
    """The CloudEvents source of a service's messages."""
    return f"/txbus/{service}"


def make_envelope(
    topic: Topic[T],
    payload: T,
    *,
    source: str,
    options: SendOptions,
    wall_s: float,
    unique_id: Callable[[], str],
    traceparent: str | None = None,
) -> Envelope:
    """The envelope of a payload.

    ``source`` is the CloudEvents source (`source_of`), ``wall_s`` the time now, ``unique_id`` makes
    32 hex digits (`Entropy.unique_id`). ``traceparent`` is the current span's, if there is one.
    ConfigurationError for a payload, key or header that is refused.
    """
    headers = {
        SPECVERSION: "1.0",
        "ce_id": options.message_id or unique_id(),
        "ce_source": source,
        "ce_type": getattr(topic.model, "__name__", None) or str(topic.model),
        "ce_time": _rfc3339(wall_s),
        CONTENT_TYPE: topic.content_type,
        TRACEPARENT: _continued(traceparent, options.traceparent) or _fresh_traceparent(unique_id),
    }
    if options.correlation_id is not None:
        headers[CORRELATION] = options.correlation_id
    if options.causation_id is not None:
        headers[CAUSATION] = options.causation_id
    if options.tag is not None:
        headers[TAG] = options.tag
    if options.headers:
        headers.update(options.headers)
    after_s = options.deliver_after_s
    return Envelope(
        topic=topic.name,
        payload=topic.encode(payload),
        key=options.key if options.key is not None else _key_of(topic, payload),
        headers=headers,
        tag=options.tag,
        deliver_at_s=wall_s + after_s if after_s else None,
    )


def identity(received: Received) -> tuple[str, str]:
    """Source and id of a message: what an inbox knows it by.

    A message of a foreign client without CloudEvents attributes is known by its position. DecodeError
    for attributes that are there and broken: no such message may be mistaken for another one.
    """
    headers = received.envelope.headers
    message_id, source = headers.get("ce_id"), headers.get("ce_source")
    if message_id is None and source is None and SPECVERSION not in headers:
        return log_identity(received)
    version = headers.get(SPECVERSION)
    if version is None or not version.startswith("1."):
        raise DecodeError(f"ce_specversion is {version!r} beside ce_id={message_id!r}: not CloudEvents 1.x")
    return _identifying("ce_source", source), _identifying("ce_id", message_id)


def _identifying(name: str, value: str | None) -> str:
    if not value or len(value) > _ID_MAX or not value.isprintable():
        raise DecodeError(f"{name}={value!r:.100} is no identity: 1 to {_ID_MAX} printable characters")
    return value


def log_identity(received: Received) -> tuple[str, str]:
    """Source and id of a message by its position: for messages without an identity of their own."""
    position = received.position
    return f"log:{position.topic}", f"{position.topic}-{position.partition}-{position.offset}"


def tag_of(envelope: Envelope) -> str | None:
    """The tag, also from a broker that has no tags of its own."""
    return envelope.tag if envelope.tag is not None else envelope.headers.get(TAG)


def trace_id(headers: Mapping[str, str]) -> str:
    """The W3C trace id, or an empty string."""
    value = headers.get(TRACEPARENT)
    match = _TRACEPARENT.match(value) if value else None
    return match.group(1) if match else ""


def inherited_traceparent(headers: Mapping[str, str]) -> str | None:
    """The traceparent of a message, for those sent while it is handled; None if it is malformed."""
    return _continued(headers.get(TRACEPARENT))


def _continued(*candidates: str | None) -> str | None:
    """The first well-formed one; W3C: a malformed traceparent is ignored and a new trace begins."""
    return next((c for c in candidates if c is not None and _TRACEPARENT.fullmatch(c)), None)


def _fresh_traceparent(unique_id: Callable[[], str]) -> str:
    return f"00-{unique_id()}-{unique_id()[:16]}-01"


def _rfc3339(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _key_of(topic: Topic[Any], payload: object) -> str | None:
    if topic.key is None:
        return None
    key = topic.key(payload)
    if not isinstance(key, str) or not key:
        raise ConfigurationError(f"topic {topic.name!r}: key= gave {key!r}; a key is non-empty text")
    return key


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or (name != "key" and not value.isprintable()):
        raise ConfigurationError(f"{name}={value!r:.100} must be non-empty printable text")
    if name != "key" and len(value) > _ID_MAX:
        raise ConfigurationError(f"{name}={value!r:.40}… has {len(value)} characters; {_ID_MAX} at most")


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(f"header {name!r}: {value!r:.100} must be text; encode it")
        lower = name.lower()
        if lower.startswith(_RESERVED_PREFIXES) or lower == CONTENT_TYPE:
            raise ConfigurationError(
                f"header {name!r} is reserved: names that begin with 'ce_' or 'txbus-' and 'content-type' "
                "are written by txbus; choose another name"
            )
        if not 1 <= len(name) <= _NAME_MAX or not name.isascii() or not name.isprintable() or " " in name:
            raise ConfigurationError(
                f"header name {name!r:.100} is not usable: 1 to {_NAME_MAX} visible ASCII characters"
            )
        if lower == TRACEPARENT and not _TRACEPARENT.fullmatch(value):
            raise ConfigurationError(f"header traceparent={value!r:.100} is no W3C traceparent; leave it out")
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise ConfigurationError(f"header {name!r}: {value!r:.100} is not valid Unicode text") from exc
