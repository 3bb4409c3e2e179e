"""Text survives every database: `txbus.stores._sql_text`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from txbus.stores._sql_text import (
    fits,
    headers_from,
    headers_json,
    stored_key,
    stored_text,
    text_from,
)

ANY_TEXT = st.text(st.characters(), max_size=40) | st.text("\\u0abcdef \x00\n\udc80", max_size=12)


@given(ANY_TEXT)
def test_text_comes_back(text: str) -> None:
    """Any text, lone surrogates and NUL included, comes back as it was."""
    assert text_from(stored_text(text)) == text


@given(ANY_TEXT)
def test_stored_text_is_plain(text: str) -> None:
    """What is stored can be encoded, has no NUL, and does not end in a blank that MySQL ignores."""
    stored = stored_text(text)
    stored.encode()
    assert "\x00" not in stored and not stored.endswith(" ")


@given(st.lists(ANY_TEXT.map(lambda t: t * 9), min_size=2, max_size=2, unique=True))
def test_keys_differ_as_texts_do(texts: list[str]) -> None:
    """Different texts have different keys, short or hashed, within the length of the column."""
    one, two = (stored_key(text, 100) for text in texts)
    assert one != two and len(one) <= 100 and len(two) <= 100


def test_long_keys_with_one_beginning_differ() -> None:
    """Texts that differ after the length of the column only are different keys."""
    assert stored_key("x" * 300 + "1", 250) != stored_key("x" * 300 + "2", 250)
    assert stored_key("x" * 250, 250) == "x" * 250
    assert fits("x" * 250, 250) and not fits("x" * 251, 250)


@given(st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=4))
def test_headers_come_back(headers: dict[str, str]) -> None:
    """Headers come back as they were, from a document in ASCII."""
    document = headers_json(headers)
    assert document.isascii() and "\x00" not in document
    assert headers_from(document) == headers
