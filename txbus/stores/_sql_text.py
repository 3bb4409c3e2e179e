"""Text as every database keeps it: no NUL, no lone surrogate, no trailing space, no case folding.

Identities of foreign messages are any bytes (``surrogateescape``) of any length; PostgreSQL refuses
NUL, drivers refuse lone surrogates, MySQL ignores trailing spaces in keys. What could be refused or
changed is escaped with backslashes, and what is too long for a key is cut and ends in its hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import cast

__all__ = ["fits", "headers_from", "headers_json", "stored_key", "stored_text", "text_from"]

_ESCAPED = re.compile(r"\\(u[0-9a-f]{4}|\\)")
_UNSAFE = re.compile("[\\\\\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]| \\Z")
_HASH_CHARS = 65


def stored_text(text: str) -> str:
    """The text with what a database might refuse or change escaped; `text_from` undoes it."""
    if text.isascii() and text.isprintable() and "\\" not in text and text[-1:] != " ":
        return text
    return _UNSAFE.sub(_escape, text)


def text_from(stored: str) -> str:
    """The text that `stored_text` was given."""
    if "\\" not in stored:
        return stored
    return _ESCAPED.sub(lambda m: "\\" if m[1] == "\\" else chr(int(m[1][1:], 16)), stored)


def fits(text: str, chars_max: int) -> bool:
    """Is the text kept in a key of so many characters as a whole, without a hash?"""
    return len(stored_text(text)) <= chars_max


def stored_key(text: str, chars_max: int) -> str:
    """The text as part of a key: equal for equal texts, different for different ones."""
    key = stored_text(text)
    if len(key) <= chars_max:
        return key
    digest = hashlib.sha256(key.encode("ascii", "backslashreplace")).hexdigest()
    return f"{key[: chars_max - _HASH_CHARS - 1]}\\#{digest}"[:chars_max]


def headers_json(headers: Mapping[str, str]) -> str:
    """Headers as ASCII JSON; lone surrogates and NUL survive as its escapes."""
    return json.dumps(dict(headers), ensure_ascii=True, separators=(",", ":"))


def headers_from(document: str) -> dict[str, str]:
    """The headers that `headers_json` was given."""
    return cast("dict[str, str]", json.loads(document))


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return "\\\\" if character == "\\" else f"\\u{ord(character):04x}"
