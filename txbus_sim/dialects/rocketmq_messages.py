"""RocketMQ's messages, topics and queues, and what the server and its client refuse of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = [
    "RESERVED",
    "Message",
    "MessageType",
    "Rules",
    "ServerStatus",
    "Stored",
    "Topic",
    "check_message",
    "queue_of_group",
]

_S = 1_000_000_000

UNAVAILABLE = 14
"""gRPC's own status: the proxy cannot be reached, nothing was done."""
ILLEGAL_TOPIC = 40002
ILLEGAL_TAG = 40003
ILLEGAL_PROPERTY = 40007
ILLEGAL_INVISIBLE = 40011
ILLEGAL_DELIVERY_TIME = 40012
INVALID_RECEIPT = 40013
WRONG_TYPE = 40014
TOPIC_NOT_FOUND = 40402
BODY_TOO_LARGE = 41301
PROPERTIES_TOO_LARGE = 43101
INTERNAL = 50001


class ServerStatus(Exception):
    """A request was refused; ``code`` is the status of the gRPC protocol, 0 where the client refuses."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}" if code else text)
        self.code = code


class MessageType(Enum):
    """The topic attribute ``message.type``; a message has one of the first four."""

    NORMAL = "NORMAL"
    FIFO = "FIFO"
    DELAY = "DELAY"
    TRANSACTION = "TRANSACTION"
    MIXED = "MIXED"


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of broker and proxy; the defaults are those of 5.3.3. Times in nanoseconds.

    ``op_memory_ns``: an outcome is in memory only for so long. ``proxy_memory_ns``: after that the
    proxy no longer knows which half a commit is about. ``redelivery_late_ns``: a message of a normal
    topic comes again so long after its invisible time. ``retries_max``: after so many redeliveries it
    is a dead letter. ``restart_ns``: how long a restart takes.
    """

    check_after_ns: int = 6 * _S
    check_interval_ns: int = 30 * _S
    check_max: int = 15
    op_memory_ns: int = 1 * _S
    proxy_memory_ns: int = 30 * _S
    invisible_ns_min: int = 10 * _S
    invisible_ns_max: int = 12 * 3600 * _S
    redelivery_late_ns: int = 3 * _S
    retries_max: int = 16
    delay_ns_max: int = 24 * 3600 * _S
    body_bytes_max: int = 4 * 1024 * 1024
    properties_max: int = 128
    properties_bytes_max: int = 16 * 1024
    receive_max: int = 32
    restart_ns: int = 5 * _S
    mixed_types: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One message as its client made it. ``id`` is the client's. ``group`` is the message group that
    orders; ``deliver_at_ns`` and ``born_ns`` are times of the run."""

    id: str
    topic: str
    body: bytes
    properties: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    group: str | None = None
    deliver_at_ns: int | None = None
    born_ns: int = 0
    transactional: bool = False

    @property
    def type(self) -> MessageType:
        if self.transactional:
            return MessageType.TRANSACTION
        if self.deliver_at_ns is not None:
            return MessageType.DELAY
        return MessageType.NORMAL if self.group is None else MessageType.FIFO


@dataclass(frozen=True, slots=True)
class Stored:
    """A message in a queue, for consumers to see."""

    queue: int
    offset: int
    message: Message
    stored_ns: int


class Topic:
    """A topic and its queues, which are never truncated in a run."""

    def __init__(self, name: str, type: MessageType, queues: int) -> None:
        self.name = name
        self.type = type
        self.queues: list[list[Stored]] = [[] for _ in range(queues)]
        self.turn = 0
        """Of the proxy's round robin."""

    def store(self, message: Message, now_ns: int) -> Stored:
        """Append to the queue that the proxy selects."""
        if message.group is not None:
            at = queue_of_group(message.group, len(self.queues))
        else:
            at = self.turn % len(self.queues)
            self.turn += 1
        stored = Stored(at, len(self.queues[at]), message, now_ns)
        self.queues[at].append(stored)
        return stored


# A part of MessageConst.STRING_HASH_SET: the names of the server that somebody might choose.
RESERVED = frozenset(
    (
        "KEYS",
        "TAGS",
        "WAIT",
        "DELAY",
        "RETRY_TOPIC",
        "REAL_TOPIC",
        "REAL_QID",
        "TRAN_MSG",
        "PGROUP",
        "MIN_OFFSET",
        "MAX_OFFSET",
        "BUYER_ID",
        "ORIGIN_MESSAGE_ID",
        "TRANSFER_FLAG",
        "CORRECTION_FLAG",
        "MQ2_FLAG",
        "RECONSUME_TIME",
        "MSG_REGION",
        "UNIQ_KEY",
        "TRACE_ON",
        "MAX_RECONSUME_TIMES",
        "CONSUME_START_TIME",
        "POP_CK",
        "POP_CK_OFFSET",
        "TRAN_PREPARED_QUEUE_OFFSET",
        "TRANSACTION_CHECK_TIMES",
        "CHECK_IMMUNITY_TIME_IN_SECONDS",
        "INSTANCE_ID",
        "CORRELATION_ID",
        "REPLY_TO_CLIENT",
        "TTL",
        "TIMER_DELIVER_MS",
        "TIMER_DELAY_SEC",
        "TIMER_DELAY_MS",
        "__SHARDINGKEY",
        "__transactionId__",
        "DUP_INFO",
    )
)


def check_message(message: Message, topic: Topic, rules: Rules, now_ns: int) -> None:
    """`ServerStatus` for what is not taken; nothing is stored then."""
    asked = [message.group is not None, message.deliver_at_ns is not None, message.transactional]
    if sum(asked) > 1:
        raise ServerStatus(0, "message group, delivery timestamp and transaction exclude each other")
    if topic.type not in (message.type, MessageType.MIXED):
        raise ServerStatus(
            WRONG_TYPE, f"topic {topic.name!r} takes {topic.type.value} messages, this is a {message.type.value} one"
        )
    if not message.body:
        raise ServerStatus(0, "the body is empty")
    if len(message.body) > rules.body_bytes_max:
        raise ServerStatus(BODY_TOO_LARGE, f"body of {len(message.body)} bytes, at most {rules.body_bytes_max}")
    if message.tag is not None and (not message.tag.strip() or "|" in message.tag or _controls(message.tag)):
        raise ServerStatus(ILLEGAL_TAG, f"tag {message.tag!r} is blank or has '|' or a control character")
    _check_properties(message.properties, rules)
    if message.deliver_at_ns is not None and message.deliver_at_ns - now_ns > rules.delay_ns_max:
        raise ServerStatus(ILLEGAL_DELIVERY_TIME, f"later than {rules.delay_ns_max // _S} s from now")


def _check_properties(properties: Mapping[str, str], rules: Rules) -> None:
    if len(properties) > rules.properties_max:
        raise ServerStatus(PROPERTIES_TOO_LARGE, f"{len(properties)} properties, at most {rules.properties_max}")
    size = 0
    for name, value in properties.items():
        if name in RESERVED:
            raise ServerStatus(ILLEGAL_PROPERTY, f"property {name!r} is the server's own")
        if not name or _controls(name) or _controls(value):
            raise ServerStatus(
                ILLEGAL_PROPERTY, f"property {name!r}={value!r:.50} is unnamed or has control characters"
            )
        try:
            size += len(name.encode()) + len(value.encode())
        except UnicodeEncodeError as exc:
            raise ServerStatus(ILLEGAL_PROPERTY, f"property {name!r} is no text: {exc}") from exc
    if size > rules.properties_bytes_max:
        raise ServerStatus(PROPERTIES_TOO_LARGE, f"{size} bytes of properties, at most {rules.properties_bytes_max}")


def _controls(text: str) -> bool:
    return any(ord(one) < 32 or 127 <= ord(one) < 160 for one in text)


def queue_of_group(group: str, queues: int) -> int:
    """The queue of a message group: Guava's ``consistentHash`` of Java's ``String.hashCode``."""
    code = 0
    units = group.encode("utf-16-be")
    for at in range(0, len(units), 2):
        code = (31 * code + (units[at] << 8 | units[at + 1])) & 0xFFFFFFFF
    state = code - (1 << 32) if code >= 1 << 31 else code
    candidate = 0
    while True:
        state = (2862933555777941757 * state + 1) & 0xFFFFFFFFFFFFFFFF
        following = int((candidate + 1) / (((state >> 33) + 1) / 2**31))
        if not 0 <= following < queues:
            return candidate
        candidate = following
