"""How results are shown."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass

import pytest

from txbus.cli._output import explained, print_json, print_table, span


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Row:
    name: str
    colour: Colour
    parts: tuple[int, ...]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (-3, "0 s"),
        (0.04, "0.0 s"),
        (3.21, "3.2 s"),
        (42.4, "42 s"),
        (60, "1 min"),
        (3_599.9, "1 h"),
        (3_661, "1 h 1 min"),
        (3_601, "1 h"),
        (8 * 86_400 + 3_600 + 60, "8 d 1 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    """A duration is shown as people say it."""
    assert span(seconds) == text


def test_records_and_enumerations_have_a_form_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Records become objects, enumerations their value, tuples arrays; anything else is an error."""
    print_json({"rows": [Row("a", Colour.RED, (1, 2))]})
    assert json.loads(capsys.readouterr().out) == {"rows": [{"name": "a", "colour": "red", "parts": [1, 2]}]}
    with pytest.raises(TypeError):
        print_json({"row": object()})


def test_a_table_into_a_pipe_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A long cell stays on its line whole, and brackets are no markup."""
    long = "[bold]" + "x" * 500
    print_table("Title", [long], {"column": lambda row: row})
    assert any(long in line for line in capsys.readouterr().out.splitlines())
    print_table("Title", [], {"column": str}, "nothing here")
    assert "nothing here" in capsys.readouterr().out


def test_paragraphs_are_filled_and_examples_are_kept() -> None:
    """Lines of a paragraph are joined; those of an example are not."""
    text = "One\n    two.\n\n    \b\n    Examples:\n      a\n      b\n    "
    assert explained(text) == "One two.\n\n\b\nExamples:\n  a\n  b"
