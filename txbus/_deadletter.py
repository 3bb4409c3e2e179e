"""Keeps a delivery that is given up on: in the handler's database, or else in a topic."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from txbus._message import Envelope
from txbus._ports import Clock
from txbus._telemetry import DeadLettered, Emit
from txbus._wire import trace_id
from txbus.spi import Received
from txbus.stores.contract import Database, DeadLetter

__all__ = ["DeadLetters", "dead_envelope", "dead_topic", "describe_error"]

ERROR_BYTES_MAX = 8 * 1024
_HEADER_CHARS_MAX = 1024
_CHAIN_MAX = 20


def dead_topic(topic: str, service: str) -> str:
    """Where the dead letters of a service's handlers without a database go."""
    return f"{topic}.dead.{service}"


class DeadLetters:
    """The dead letters of one handler scope. Thread-safe; implements `DeadLetterSink`.

    With a database a dead letter is a row in it, and the message counts as handled there, so that
    it is not run again. Without one it is a message on `dead_topic`, sent by ``send``, which
    returns when it is durable; sent again after a crash it may be there twice.
    """

    def __init__(
        self,
        *,
        scope: str,
        service: str,
        database: Database | None,
        send: Callable[[Envelope], object],
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._scope = scope
        self._service = service
        self._database = database
        self._send = send
        self._clock = clock
        self._emit = emit

    def keep(self, received: Received, source: str, message_id: str, attempts: int, error: BaseException | str) -> None:
        """Durable on return. Raises what the database or the broker raised; then nothing is lost,
        because the delivery is not acknowledged."""
        text = error if isinstance(error, str) else describe_error(error)
        text = _bounded(_storable(text))
        if self._database is not None:
            self._database.record_dead_letter(self._letter(received, source, message_id, attempts, text))
        else:
            self._send(dead_envelope(received, self._scope, self._service, attempts, text))
        trace = trace_id(received.envelope.headers)
        self._emit(DeadLettered(self._service, trace, self._scope, message_id, attempts, _first_line(text)))

    def _letter(self, received: Received, source: str, message_id: str, attempts: int, text: str) -> DeadLetter:
        envelope, position = received.envelope, received.position
        return DeadLetter(
            scope=self._scope,
            source=source,
            message_id=message_id,
            topic=position.topic,
            partition=position.partition,
            offset=position.offset,
            key=envelope.key,
            headers=envelope.headers,
            payload=envelope.payload,
            attempts=attempts,
            error=text,
            dead_s=self._clock.wall_s(),
        )


def dead_envelope(received: Received, scope: str, service: str, attempts: int, error: str) -> Envelope:
    """The original key, headers and payload bytes, with what became of it in four headers more."""
    envelope = received.envelope
    return Envelope(
        topic=dead_topic(received.position.topic, service),
        payload=envelope.payload,
        key=envelope.key,
        headers={
            **envelope.headers,
            "txbus-dead-scope": scope,
            "txbus-dead-error": _first_line(error)[:_HEADER_CHARS_MAX],
            "txbus-dead-attempts": str(attempts),
            "txbus-dead-position": str(received.position),
        },
    )


def describe_error(error: BaseException) -> str:
    """The chain of exceptions, one a line, then the end of the traceback; at most 8 KiB of UTF-8.

    The first line is the error itself, so that a list of dead letters can show just that.
    """
    chain: list[str] = []
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen and len(chain) < _CHAIN_MAX:
        seen.add(id(cause))
        prefix = "caused by " if chain else ""
        kind = f"{type(cause).__module__}.{type(cause).__qualname__}"
        chain.append(f"{prefix}{kind}: {_text_of(cause)[:2000]}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    head = _bounded("\n".join(chain), ERROR_BYTES_MAX // 2)
    trace = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    if not trace:
        return head
    room = ERROR_BYTES_MAX - len(head.encode("utf-8", "replace")) - 2
    return f"{head}\n\n{_tail(trace, room)}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as exc:
        return f"(its text failed: {type(exc).__name__})"


def _storable(text: str) -> str:
    """Without what databases and brokers refuse in text: NUL, and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _bounded(text: str, most: int = ERROR_BYTES_MAX) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return text
    return data[: most - 4].decode("utf-8", "ignore") + "…"


def _tail(text: str, most: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return text
    return "…" + data[len(data) - most + 4 :].decode("utf-8", "ignore")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
