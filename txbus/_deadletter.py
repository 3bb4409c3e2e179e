"""Keeps a delivery that is given up on: in the handler's database, or else in a topic."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from txbus._message import Envelope
from txbus._ports import Clock
from txbus._telemetry import DeadLettered, Emit
from txbus._wire import trace_id
from txbus.errors import MessageRefused
from txbus.spi import Received
from txbus.stores.contract import Database, DeadLetter

__all__ = ["DeadLetters", "dead_envelope", "dead_topic", "describe_error", "lighter_letters"]

ERROR_BYTES_MAX = 8 * 1024
_HEADER_CHARS_MAX = 1024
_CHAIN_MAX = 20
_ERROR, _DROPPED = "txbus-dead-error", "txbus-dead-dropped"
_SHORT_BYTES = 128
_NAMES_BYTES = 256
_OVERHEAD_BYTES = 128
"""What a broker may need for the five headers more, besides their text."""
_NEEDED = ("ce_", "txbus-", "content-type", "traceparent")
"""How the headers begin that say what a message is: never dropped."""


def dead_topic(topic: str, service: str) -> str:
    """Where the dead letters of a service's handlers without a database go."""
    return f"{topic}.dead.{service}"


class DeadLetters:
    """The dead letters of one handler scope. Thread-safe; implements `DeadLetterSink`.

    With a database a dead letter is a row in it, and the message counts as handled there, so that
    it is not run again. Without one it is a message on `dead_topic`, sent by ``send``, which
    returns when it is durable; sent again after a crash it may be there twice. Where the broker
    refuses it for its size, it goes in a lighter form (`lighter_letters`).
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
            self._send_some(received, dead_envelope(received, self._scope, self._service, attempts, text))
        trace = trace_id(received.envelope.headers)
        self._emit(DeadLettered(self._service, trace, self._scope, message_id, attempts, _first_line(text)))

    def _send_some(self, received: Received, letter: Envelope) -> None:
        """The letter as it is, or the first lighter one that the broker takes."""
        try:
            self._send(letter)
            return
        except MessageRefused as exc:
            refused = exc
        for lighter in lighter_letters(received, letter):
            try:
                self._send(lighter)
                return
            except MessageRefused:
                pass
        # Not for its size, then: what the broker said of the whole letter tells more.
        raise refused

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
    """The original key, headers and payload bytes, with what became of it in four headers more.

    It is larger than the message was, so a broker may refuse it: see `lighter_letters`."""
    envelope = received.envelope
    return Envelope(
        topic=dead_topic(received.position.topic, service),
        payload=envelope.payload,
        key=envelope.key,
        headers={
            **envelope.headers,
            "txbus-dead-scope": scope,
            _ERROR: _first_line(_storable(error))[:_HEADER_CHARS_MAX],
            "txbus-dead-attempts": str(attempts),
            "txbus-dead-position": str(received.position),
        },
    )


def lighter_letters(received: Received, letter: Envelope) -> Iterator[Envelope]:
    """What to send, one after the other, in place of a dead letter that the broker finds too large.

    First with a short error; then also without some of the application's headers, named in
    ``txbus-dead-dropped``, so that it is no larger than the message was; at last the message just as
    it was, which the broker took once, with nothing said. Key and payload are never touched.
    """
    short = {**letter.headers, _ERROR: _bounded(letter.headers[_ERROR], _SHORT_BYTES)}
    yield replace(letter, headers=short)
    before = _bytes_of(received.envelope.headers)
    over = _bytes_of(short) + len(_DROPPED) + _NAMES_BYTES + _OVERHEAD_BYTES - before
    dropped = _expendable(received.envelope.headers, over)
    if dropped:
        left = {name: value for name, value in short.items() if name not in dropped}
        yield replace(letter, headers={**left, _DROPPED: _listed(dropped)})
    yield replace(letter, headers=received.envelope.headers)


def _expendable(headers: Mapping[str, str], over: int) -> list[str]:
    """The application's headers to drop for ``over`` bytes: the smallest that is enough alone, or else
    the largest, and again for the rest; all of them if even that is not enough."""
    sizes = {name: _bytes(name) + _bytes(headers[name]) for name in headers if not name.lower().startswith(_NEEDED)}
    dropped: list[str] = []
    while over > 0 and sizes:
        enough = [name for name, size in sizes.items() if size >= over]
        name = min(enough, key=sizes.__getitem__) if enough else max(sizes, key=sizes.__getitem__)
        over -= sizes.pop(name)
        dropped.append(name)
    return dropped


def _listed(names: list[str]) -> str:
    listed = _storable(", ".join(names))
    if _bytes(listed) <= _NAMES_BYTES:
        return listed
    return f"{_bounded(listed, _NAMES_BYTES - 24)} ({len(names)} in all)"


def _bytes_of(headers: Mapping[str, str]) -> int:
    return sum(_bytes(name) + _bytes(value) for name, value in headers.items())


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


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
