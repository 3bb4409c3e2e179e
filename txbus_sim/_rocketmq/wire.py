"""An envelope as a RocketMQ message, and back.

Headers are properties. What RocketMQ refuses in a property (control characters, empty values, names of
its own, bytes that are no text) travels in one property as JSON, which is ASCII without controls.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from txbus.errors import MessageRefused
from txbus.spi import Envelope
from txbus_sim._rocketmq.capabilities import HEADERS_BYTES_MAX
from txbus_sim.dialects.rocketmq import Message
from txbus_sim.dialects.rocketmq_messages import RESERVED

__all__ = ["GROUP", "envelope_of", "message_group", "message_id", "message_of", "with_group"]

GROUP = "txbus.group"
"""The producer group of a half message; RocketMQ itself asks by topic."""
_KEY = "txbus.key"
_PACKED = "txbus.packed"
_EMPTY = "txbus.empty"
_OWN = (GROUP, _KEY, _PACKED, _EMPTY)


def message_of(envelope: Envelope, id: str, born_ns: int) -> Message:
    """A normal message; the sender makes it ordered, delayed or transactional. `MessageRefused` for
    headers that do not fit."""
    size = envelope.size - len(envelope.payload)
    if size > HEADERS_BYTES_MAX:
        raise MessageRefused(
            f"topic {envelope.topic!r}: headers and key of {size} bytes, at most {HEADERS_BYTES_MAX} fit into the "
            "properties of a message"
        )
    properties: dict[str, str] = {}
    packed: dict[str, str] = {}
    for name, value in envelope.headers.items():
        (properties if _plain(name, value) else packed)[name] = value
    if envelope.key is not None:
        if _plain(_KEY, envelope.key, own=True):
            properties[_KEY] = envelope.key
        else:
            packed[_KEY] = envelope.key
    if packed:
        properties[_PACKED] = json.dumps(packed, separators=(",", ":"))
    if not envelope.payload:
        properties[_EMPTY] = "1"
    return Message(id, envelope.topic, envelope.payload or b"\0", properties, envelope.tag, born_ns=born_ns)


def _plain(name: str, value: str, *, own: bool = False) -> bool:
    if (name in _OWN and not own) or name in RESERVED or not value or not name.isascii():
        return False
    if " " in name:
        return False
    return not any(ord(one) < 32 or 127 <= ord(one) < 160 or 0xD800 <= ord(one) < 0xE000 for one in name + value)


def envelope_of(message: Message) -> Envelope:
    """What was given to `message_of`, without the time of its delivery."""
    headers = {name: value for name, value in message.properties.items() if name not in _OWN}
    packed: dict[str, str] = json.loads(message.properties.get(_PACKED, "{}"))
    key = message.properties.get(_KEY, packed.pop(_KEY, None))
    headers.update(packed)
    payload = b"" if _EMPTY in message.properties else message.body
    return Envelope(message.topic, payload, key, headers, message.tag)


def message_group(key: str) -> str:
    """The message group of a key: valid whatever the key, and the same everywhere."""
    return hashlib.sha1(key.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def message_id(message: Message) -> str:
    """The CloudEvents id, "" for a message without one."""
    return envelope_of(message).id or ""


def with_group(message: Message, group: str) -> Message:
    """A half message that names its producer group."""
    return replace(message, properties={**message.properties, GROUP: group}, transactional=True)
