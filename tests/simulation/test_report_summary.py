"""The summary of an exploration."""

from __future__ import annotations

import io
import re

import pytest

from txbus_sim._lines import cells
from txbus_sim.faults import Fault
from txbus_sim.report import Summary, look, render_summary
from txbus_sim.result import Verdict, VerdictKind

LOST = Verdict(VerdictKind.PROPERTY, "no-loss", "message order-2 of topic orders is lost")
SUMMARY = Summary(
    runs=1_204,
    passed=1_200,
    failures=((LOST, 4),),
    enumerated=1_500,
    pruned=296,
    took_s=8.0,
    coverage={
        ("sql.commit:shop", Fault.CRASH_AFTER): 12,
        ("sql.commit:shop", Fault.CRASH_BEFORE): 1_012,
        ("sql.commit:shop", Fault.ANSWER_LOST): 0,
        ("broker.send:orders", Fault.FAIL): 0,
    },
    premises={"no-loss": 1_204, "order-per-key": 0},
    sometimes={"two orders at once": 3},
)


def test_summary_to_the_letter() -> None:
    """Counts, rate, failures, each label with its faults, and what never occurred."""
    assert (
        render_summary(SUMMARY)
        == """\
1,204 schedules run; 1,500 enumerated, 296 of them pruned as alike; in 8.0 s, 150 a second
    1,200 passed
        4 BROKEN no-loss: message order-2 of topic orders is lost

Faults by operation (2 of 4 took place)
  broker.send:orders  never: fail
  sql.commit:shop     crash-before 1,012, crash-after 12
                      never: answer-lost

Properties, and how often each was put to the test
    1,204  no-loss
        0  order-per-key: VACUOUS, its situation never occurred

Sometimes, and how often it was so
        3  two orders at once
"""
    )


def test_interrupted_exploration_says_how_much_is_left() -> None:
    """After Ctrl-C the summary tells what was not run, and leaves out figures that nobody has."""
    text = render_summary(Summary(runs=1, passed=1, left=99))
    assert text == "1 schedule run; INTERRUPTED with 99 left\n        1 passed\n"


@pytest.mark.parametrize("width", [48, 80, 160])
def test_summary_fits_its_width(width: int) -> None:
    """Long labels and many faults are wrapped in their columns."""
    labels = ("sql.commit:a", "broker.send:" + "a-topic-with-a-name-that-goes-on-and-on." * 2)
    coverage = {(label, fault): number % 3 for label in labels for number, fault in enumerate(Fault)}
    text = render_summary(Summary(1, 0, ((LOST, 1),), coverage=coverage), width=width)
    long = [one for one in text.splitlines() if cells(one) > width and "a-topic" not in one]
    assert long == []
    for fault in Fault:
        assert len(re.findall(rf"(?<![a-z-]){fault.value}(?![a-z-])", text)) == len(labels)


def test_no_colours_where_there_is_no_terminal() -> None:
    """What is written to a file has 160 columns and no codes."""
    assert look(io.StringIO()) == (160, False)


def test_terminal_has_its_own_width_and_no_color_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's width is used; NO_COLOR takes the colours away."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "97")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert look(Terminal()) == (97, True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert look(Terminal()) == (97, False)


def test_colours_add_nothing_but_codes() -> None:
    """The coloured summary says the same."""
    assert re.sub(r"\x1b\[[0-9;]*m", "", render_summary(SUMMARY, colour=True)) == render_summary(SUMMARY)
