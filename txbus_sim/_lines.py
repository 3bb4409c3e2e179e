"""Lines of a report: text with styles, wrapped to a width, with colours only where they are wanted."""

from __future__ import annotations

import importlib.util
import io
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = ["Line", "Span", "Style", "cells", "clean", "cut", "line", "to_text", "wrap"]

_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


class Style(Enum):
    """How a span looks on a terminal; the value is rich's word for it."""

    PLAIN = ""
    HEADING = "bold"
    FAINT = "dim"
    BAD = "bold red"
    GOOD = "green"
    FAULT = "red"
    LOST = "magenta"
    NOTE = "yellow"
    SEEN = "cyan"


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    style: Style = Style.PLAIN


Line = tuple[Span, ...]


def line(text: str = "", style: Style = Style.PLAIN) -> Line:
    return (Span(text, style),) if text else ()


def clean(text: str) -> str:
    """The text with what a terminal would obey, or hide, as escapes; one line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if unicodedata.category(character) not in _UNPRINTABLE else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def cells(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def cut(text: str, width: int) -> str:
    """The text in at most ``width`` columns, with a mark where something is missing."""
    if cells(text) <= width:
        return text
    kept = ""
    for character in text:
        if cells(kept) + _width(character) > width - 1:
            break
        kept += character
    return f"{kept}…"


def wrap(text: str, width: int, indent: str = "  ") -> list[str]:
    """The text in lines of at most ``width`` columns, broken at spaces where there are any; those
    after the first begin with ``indent``."""
    width = max(width, len(indent) + 8)
    lines: list[str] = []
    rest = text
    while cells(rest) > width:
        at = _break(rest, width, len(indent) if lines else 0)
        lines.append(rest[:at].rstrip())
        rest = indent + rest[at:].lstrip()
    return [*lines, rest]


def _break(text: str, width: int, least: int) -> int:
    """Where to break: after the last space that fits, else in a word."""
    fits = 0
    used = 0
    for at, character in enumerate(text):
        used += _width(character)
        if used > width:
            break
        fits = at + 1
    space = text.rfind(" ", least, fits + 1)
    return space if space > least + (width - least) // 3 else fits


def to_text(lines: Iterable[Line], *, width: int, colour: bool) -> str:
    """The lines with a newline after each. Colours need rich; without it the text is plain."""
    if not colour or importlib.util.find_spec("rich") is None:
        return "".join("".join(span.text for span in one).rstrip() + "\n" for one in lines)
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system="standard", highlight=False)
    for one in _trimmed(lines):
        console.print(Text.assemble(*((span.text, span.style.value) for span in one)), soft_wrap=True)
    return out.getvalue()


def _trimmed(lines: Iterable[Line]) -> Iterator[Line]:
    for one in lines:
        yield (*one[:-1], Span(one[-1].text.rstrip(), one[-1].style)) if one else ()
