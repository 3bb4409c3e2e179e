"""The lines of source code that a report shows for a ``file:line``."""

from __future__ import annotations

import ast
import linecache
import os
import re
from dataclasses import dataclass

__all__ = ["Place", "place_at_end", "statement"]

_LINES_MAX = 6
_AT_END = re.compile(r" at (?P<file>\S.*?):(?P<line>[0-9]+)$")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file; ``str`` shows the path as seen from the current folder where that is shorter."""

    file: str
    line: int

    @classmethod
    def parse(cls, site: str) -> Place | None:
        """None for what is no ``file:line``."""
        file, _, line = site.rpartition(":")
        return cls(file, int(line)) if file and line.isascii() and line.isdigit() else None

    def __str__(self) -> str:
        return f"{shown_path(self.file)}:{self.line}"

    @property
    def text(self) -> str:
        """The line itself, without its indent; "" where the file cannot be read."""
        lines = _lines_of(self.file)
        return lines[self.line - 1].strip() if 1 <= self.line <= len(lines) else ""


def shown_path(file: str) -> str:
    """The path as seen from the current folder, unless it is outside of it."""
    here = os.getcwd() + os.sep
    return file.removeprefix(here)


def place_at_end(text: str) -> Place | None:
    """The place that a line such as ``orders:main waits for … at FILE:LINE`` ends with."""
    found = _AT_END.search(text)
    return Place(found["file"], int(found["line"])) if found is not None else None


def statement(place: Place) -> list[tuple[int, str]]:
    """The statement that a line belongs to, numbered, without the common indent.

    The line alone for a compound statement, a long one, or a file that is not Python any more.
    """
    lines = _lines_of(place.file)
    if not 1 <= place.line <= len(lines):
        return []
    first, last = _extent("".join(lines), place.line)
    shown = [text.rstrip() for text in lines[first - 1 : last]]
    indent = min((len(text) - len(text.lstrip()) for text in shown if text.strip()), default=0)
    return [(number, text[indent:]) for number, text in enumerate(shown, first)]


def _lines_of(file: str) -> list[str]:
    """None of a file that cannot be read, whatever its name is made of."""
    try:
        linecache.checkcache(file)
        return linecache.getlines(file)
    except ValueError:
        return []


def _extent(source: str, line: int) -> tuple[int, int]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return line, line
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    if not around:
        return line, line
    inner = min(around, key=lambda node: (node.end_lineno or node.lineno) - node.lineno)
    last = inner.end_lineno or inner.lineno
    if hasattr(inner, "body") or last - inner.lineno >= _LINES_MAX:
        return line, line
    return inner.lineno, last
