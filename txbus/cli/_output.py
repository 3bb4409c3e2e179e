"""How results are shown: tables for people, JSON for programs, notes on stderr."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["AppArgument", "JsonOption", "explained", "note", "print_json", "print_table", "span"]

R = TypeVar("R")
_PIPE_COLUMNS = 10_000

AppArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="APP", help="module.path:attribute of a Bus, or of a callable that returns one.")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def explained(text: str | None) -> str:
    """A help text whose paragraphs are filled to the terminal's width, as typer does not.

    A paragraph that begins with a line ``\\b`` (examples, lists) keeps its lines.
    """
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(p if p.startswith("\b") else " ".join(p.split("\n")) for p in paragraphs)


def print_json(report: Any) -> None:
    """Print a report on stdout: records as objects, enumerations by value."""
    print(json.dumps(report, default=_plain, indent=2, ensure_ascii=False))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def print_table(
    title: str, rows: Sequence[R], columns: Mapping[str, Callable[[R], object]], empty: str = "none"
) -> None:
    """Print rows on stdout under a title; ``columns`` maps a heading to the cell of a row.

    Lines are never cut: into a pipe they are as long as they need, on a terminal they wrap.
    """
    console = _console()
    console.print(Text(title, style="bold"))
    if not rows:
        console.print(Text(f"  {empty}\n", style="dim"))
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=True, show_edge=False)
    for heading in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(cell(row))) for cell in columns.values()))
    console.print(table)
    console.print()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, width=None if terminal else _PIPE_COLUMNS)


def note(text: str) -> None:
    """A line for people, on stderr: it is no part of the result."""
    print(text, file=sys.stderr, flush=True)


def span(seconds: float | None) -> str:
    """A duration as people say it; two units at most."""
    if seconds is None:
        return "-"
    if seconds < 0:
        return "0 s"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    left = round(seconds)
    parts: list[str] = []
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2])
