"""What a handler function asks for, and what it is given: payload, delivery, connection, session."""

from __future__ import annotations

import enum
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeVar, Unpack, assert_never

from txbus._message import Envelope, Position, Topic
from txbus._trace import current_traceparent
from txbus._wire import CORRELATION, TRACEPARENT, SendArguments, inherited_traceparent
from txbus.errors import ConfigurationError, NotOpen
from txbus.spi import Received
from txbus.stores.contract import LocalTransaction

__all__ = ["Delivery", "HandlerSignature", "HandlerTransaction"]

T = TypeVar("T")


class HandlerTransaction(Protocol):
    """The transaction that a handler runs in. Used by one thread, once.

    Leaving the block normally commits the local transaction, with the messages sent through it;
    leaving it by an exception rolls both back and lets the exception pass. Whoever assembles a bus
    gives the inbox a function that makes one.
    """

    def __enter__(self) -> HandlerTransaction: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

    @property
    def local(self) -> LocalTransaction:
        """The open local transaction."""
        ...

    def send(
        self,
        topic: Topic[T],
        payload: T,
        **options: Unpack[SendArguments],
    ) -> str:
        """Add a message that becomes visible if and only if the local transaction commits."""
        ...


class Delivery:
    """What arrives: the envelope, where it was, and which run of its handler this is.

    ``attempt`` counts runs from 1, as far as they are known; see `txbus.Retry`. ``message_id`` and
    ``source`` are what the inbox knows it by; of a foreign message they are made of its position.
    Used in the handler's thread, until the handler returns.
    """

    __slots__ = ("_open", "_scope", "_transaction", "attempt", "envelope", "message_id", "position", "source")

    def __init__(
        self,
        received: Received,
        source: str,
        message_id: str,
        attempt: int,
        scope: str,
        transaction: HandlerTransaction | None,
    ) -> None:
        self.envelope: Envelope = received.envelope
        self.position: Position = received.position
        self.source = source
        self.message_id = message_id
        self.attempt = attempt
        self._scope = scope
        self._transaction = transaction
        self._open = True

    @property
    def key(self) -> str | None:
        return self.envelope.key

    @property
    def headers(self) -> Mapping[str, str]:
        return self.envelope.headers

    @property
    def correlation_id(self) -> str:
        """That of this message, or its own id: it began the conversation."""
        return self.envelope.headers.get(CORRELATION) or self.message_id

    def send(
        self,
        topic: Topic[T],
        payload: T,
        **options: Unpack[SendArguments],
    ) -> str:
        """Send a message in the handler's transaction: visible if and only if its effect commits.

        Its causation id is this message's id, its correlation id this message's, unless others are
        given. Returns its id. `NotOpen` once the handler has returned; ConfigurationError for a
        handler without a database.
        """
        if not self._open:
            raise NotOpen(f"the delivery of {self.message_id} has ended: send before the handler returns")
        if self._transaction is None:
            raise ConfigurationError(
                f"handler scope {self._scope!r} has no database, so a message cannot join its effect: "
                "declare it with database=, or send outside of any transaction with bus.send"
            )
        options["correlation_id"] = options.get("correlation_id") or self.correlation_id
        options["causation_id"] = options.get("causation_id") or self.message_id
        inherited = inherited_traceparent(self.envelope.headers)
        if inherited is not None and current_traceparent() is None:
            # The message's trace goes on, unless the application has a span or a header of its own.
            options["headers"] = {TRACEPARENT: inherited, **(options.get("headers") or {})}
        return self._transaction.send(topic, payload, **options)

    def end(self) -> None:
        """No message can be sent any more. Called by txbus when the handler returned."""
        self._open = False
        self._transaction = None

    def __repr__(self) -> str:
        return f"Delivery({self.position}, message_id={self.message_id!r}, attempt={self.attempt})"


class _Supply(enum.Enum):
    PAYLOAD = "payload"
    DELIVERY = "delivery"
    CONNECTION = "connection"
    SESSION = "session"


class HandlerSignature:
    """A handler function with what each of its parameters is given. Thread-safe."""

    __slots__ = ("_by_name", "_by_place", "function", "name")

    def __init__(
        self, function: Callable[..., object], by_place: tuple[_Supply, ...], by_name: Mapping[str, _Supply]
    ) -> None:
        self.function = function
        self.name = _name_of(function)
        self._by_place = by_place
        self._by_name = dict(by_name)

    @classmethod
    def of(cls, function: Callable[..., object], topic: Topic[Any], *, database: bool) -> HandlerSignature:
        """Inspect a handler of ``topic``; ``database``: does it have one?

        By annotation: the topic's model (or a base of it) is the payload, `Delivery`, SQLAlchemy's
        ``Connection`` and ``Session``. Without annotation: the names ``payload``, ``delivery``,
        ``connection`` and ``session``, and the first parameter is the payload. ConfigurationError
        names a parameter that cannot be supplied, and what can.
        """
        name = _name_of(function)
        _refuse_lazy(function, name)
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(f"handler {name}: its parameters cannot be read: {exc}") from exc
        hints = _hints(function, topic, name)
        by_place: list[_Supply] = []
        by_name: dict[str, _Supply] = {}
        skipped = False
        for index, parameter in enumerate(parameters.values()):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            supply = _supply(parameter.name, hints.get(parameter.name), index == 0, topic)
            if supply is None and parameter.default is not parameter.empty:
                skipped = True
                continue
            if supply is None:
                raise ConfigurationError(_unsupplied(name, parameter, hints, topic, database))
            if supply in (_Supply.CONNECTION, _Supply.SESSION) and not database:
                raise ConfigurationError(
                    f"handler {name}: parameter {parameter.name!r} asks for a {supply.value}, "
                    "but the handler has no database; declare it with database="
                )
            if supply in by_place or supply in by_name.values():
                raise ConfigurationError(
                    f"handler {name}: parameter {parameter.name!r} asks for the {supply.value} a second time"
                )
            placed = parameter.kind is parameter.POSITIONAL_ONLY
            if parameter.kind is parameter.KEYWORD_ONLY or (skipped and not placed):
                by_name[parameter.name] = supply
            elif skipped:
                raise ConfigurationError(
                    f"handler {name}: positional parameter {parameter.name!r} follows one that cannot be "
                    "supplied; change their order"
                )
            else:
                by_place.append(supply)
        return cls(function, tuple(by_place), by_name)

    def call(self, payload: object, delivery: Delivery, local: LocalTransaction | None) -> None:
        """Call the function. A session is made only if it is asked for."""
        values = [self._value(supply, payload, delivery, local) for supply in self._by_place]
        if self._by_name:
            named = {n: self._value(supply, payload, delivery, local) for n, supply in self._by_name.items()}
            self.function(*values, **named)
        else:
            self.function(*values)

    @staticmethod
    def _value(supply: _Supply, payload: object, delivery: Delivery, local: LocalTransaction | None) -> object:
        match supply:
            case _Supply.PAYLOAD:
                return payload
            case _Supply.DELIVERY:
                return delivery
            case _Supply.CONNECTION:
                assert local is not None
                connection: object = local.connection
                return connection
            case _Supply.SESSION:
                assert local is not None
                session: object = local.session
                return session
            case _:
                assert_never(supply)


def _supply(name: str, hint: object, first: bool, topic: Topic[Any]) -> _Supply | None:
    if hint is None:
        by_name = {supply.value: supply for supply in _Supply}.get(name)
        return by_name or (_Supply.PAYLOAD if first else None)
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and hint != topic.model:
        # ``Delivery | None``, of a function that is also called by other code.
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return _supply(name, options[0], first, topic) if len(options) == 1 else None
    if hint is Delivery:
        return _Supply.DELIVERY
    if isinstance(hint, type):
        for base in hint.__mro__:
            # By name, because importing sqlalchemy is not the core's to do.
            if base.__module__.partition(".")[0] == "sqlalchemy":
                if base.__name__ == "Connection":
                    return _Supply.CONNECTION
                if base.__name__ == "Session":
                    return _Supply.SESSION
    if hint == topic.model or (first and hint in (Any, object)):
        return _Supply.PAYLOAD
    model = topic.model
    if first and isinstance(hint, type) and isinstance(model, type) and not typing.get_origin(model):
        return _Supply.PAYLOAD if issubclass(model, hint) else None
    return None


def _unsupplied(
    name: str, parameter: inspect.Parameter, hints: Mapping[str, object], topic: Topic[Any], database: bool
) -> str:
    hint = hints.get(parameter.name)
    wanted = f"{parameter.name!r}" if hint is None else f"{parameter.name!r}: {_type_name(hint)}"
    available = f"the payload ({_type_name(topic.model)} of topic {topic.name!r}), Delivery"
    if database:
        available += ", sqlalchemy's Connection and Session"
    else:
        available += " (Connection and Session need database=)"
    return f"handler {name}: parameter {wanted} cannot be supplied; available by annotation are {available}"


def _hints(function: Callable[..., object], topic: Topic[Any], name: str) -> Mapping[str, object]:
    annotated: Any = function
    while isinstance(annotated, functools.partial):
        annotated = annotated.func
    if not (inspect.isroutine(annotated) or inspect.isclass(annotated)):
        annotated = type(annotated).__call__
    # A model declared inside of a function is not among the function's globals, but its topic has it.
    known = {"Delivery": Delivery, getattr(topic.model, "__name__", ""): topic.model}
    known = {key: value for key, value in known.items() if key not in getattr(annotated, "__globals__", {})}
    try:
        return typing.get_type_hints(annotated, localns=known)
    except NameError as exc:
        raise ConfigurationError(
            f"handler {name}: its annotations cannot be read: {exc}; import that name at module level, "
            "not under TYPE_CHECKING"
        ) from exc
    except TypeError as exc:
        raise ConfigurationError(f"handler {name}: its annotations cannot be read: {exc}") from exc


def _refuse_lazy(function: Callable[..., object], name: str) -> None:
    """A function whose call only makes a coroutine or a generator would have no effect."""
    if not callable(function):
        raise ConfigurationError(f"handler {name} is not callable")
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    for candidate in (inner, getattr(inner, "__call__", None)):  # noqa: B004 - the method itself is looked at
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise ConfigurationError(
                f"handler {name} is async: txbus is synchronous and would never await it; make it a plain function"
            )
        if inspect.isgeneratorfunction(candidate):
            raise ConfigurationError(f"handler {name} is a generator: calling it runs nothing; remove its yield")


def _name_of(function: object) -> str:
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{name!r}"


def _type_name(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
