"""What the application writes and what travels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import pydantic
import pydantic_core

from txbus.errors import ConfigurationError, DecodeError

__all__ = ["Codec", "Envelope", "JsonCodec", "Position", "Receipt", "Topic", "TopicPartition"]

T = TypeVar("T")
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_DETAILS_MAX = 5


@dataclass(frozen=True, slots=True, order=True)
class TopicPartition:
    """One partition of a topic; partitions count from 0."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a partition: ``offset`` counts from 0 and grows, not necessarily by one."""

    topic: str
    partition: int
    offset: int

    @property
    def where(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a message is durable at the broker.

    ``offset`` is None where the broker does not tell it yet (delayed messages).
    """

    message_id: str
    topic: str
    partition: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What travels: topic, key, headers and payload bytes.

    Headers are text; bytes of a foreign client that are not UTF-8 are kept by ``surrogateescape``.
    CloudEvents attributes are headers with the prefix ``ce_``, so an envelope has one form in
    memory and on the wire. ``deliver_at_s`` is wall-clock seconds since the epoch.
    """

    topic: str
    payload: bytes
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: _NO_HEADERS)
    tag: str | None = None
    deliver_at_s: float | None = None

    @property
    def id(self) -> str | None:
        """The CloudEvents id, or None for a message of a foreign client."""
        return self.headers.get("ce_id")

    @property
    def source(self) -> str | None:
        return self.headers.get("ce_source")

    @property
    def size(self) -> int:
        """Bytes of payload, key and headers, without the broker's own overhead."""
        return (
            len(self.payload)
            + len(self.key or "")
            + sum(len(name) + len(value) for name, value in self.headers.items())
        )


class Codec(Protocol[T]):
    """Turns a payload into bytes and back. Called from several threads at once.

    ``decode`` raises any exception for bytes that are no message; the core makes it a dead letter.
    """

    content_type: str

    def encode(self, value: T) -> bytes: ...

    def decode(self, data: bytes) -> T: ...


class JsonCodec(Generic[T]):
    """JSON by pydantic, validated in both directions."""

    content_type = "application/json"

    def __init__(self, model: type[T]) -> None:
        self._adapter: pydantic.TypeAdapter[T] = pydantic.TypeAdapter(model)

    def encode(self, value: T) -> bytes:
        return self._adapter.dump_json(value, by_alias=True, warnings="error")

    def decode(self, data: bytes) -> T:
        return self._adapter.validate_json(data)


@dataclass(frozen=True, eq=False)
class Topic(Generic[T]):
    """A topic's name with the model of its payload. Declared once, at module level, without I/O.

    ``key`` gives the ordering key of a payload: messages of one key keep their order; without a
    key there is no order. ``partitions`` is used when txbus creates the topic.
    """

    name: str
    model: type[T]
    key: Callable[[T], str] | None = None
    codec: Codec[T] | None = None
    partitions: int | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200 or not all(c.isalnum() or c in "._-" for c in self.name):
            raise ConfigurationError(
                f"topic name {self.name!r} is not usable: 1 to 200 letters, digits, '.', '_' or '-'"
            )
        if self.partitions is not None and self.partitions < 1:
            raise ConfigurationError(f"topic {self.name!r}: partitions={self.partitions} must be 1 or more")
        if self.codec is None:
            object.__setattr__(self, "codec", JsonCodec(self.model))

    @property
    def content_type(self) -> str:
        assert self.codec is not None
        return self.codec.content_type

    def encode(self, payload: T) -> bytes:
        """Bytes of a payload; ConfigurationError names the field that the model refuses."""
        assert self.codec is not None
        if not isinstance(self.codec, JsonCodec) or isinstance(payload, _checkable(self.model)):
            try:
                return self.codec.encode(payload)
            except (pydantic_core.PydanticSerializationError, pydantic.ValidationError) as exc:
                raise ConfigurationError(f"topic {self.name!r}: payload {payload!r:.200} is refused: {exc}") from exc
        raise ConfigurationError(
            f"topic {self.name!r} carries {self.model!r}, not {type(payload).__name__}: {payload!r:.200}"
        )

    def decode(self, data: bytes) -> T:
        """The payload, or DecodeError with the codec's reason."""
        assert self.codec is not None
        try:
            return self.codec.decode(data)
        except pydantic.ValidationError as exc:
            raise DecodeError(f"topic {self.name!r}: {_refused_fields(exc)}") from exc
        except Exception as exc:
            raise DecodeError(f"topic {self.name!r}: {type(exc).__name__}: {exc}") from exc


def _refused_fields(error: pydantic.ValidationError) -> str:
    """What the model refuses in one line, because dead letters and events show one line of a reason."""
    details = error.errors(include_url=False, include_input=False)
    shown = [
        ": ".join(filter(None, (".".join(map(str, detail["loc"])), detail["msg"]))).replace("\n", " ")
        for detail in details[:_DETAILS_MAX]
    ]
    return "; ".join(shown) + (f"; and {len(details) - _DETAILS_MAX} more" if len(details) > _DETAILS_MAX else "")


def _checkable(model: Any) -> type[Any]:
    """The class to check a payload against; ``object`` for annotations that are no class."""
    return model if isinstance(model, type) and not hasattr(model, "__origin__") else object
