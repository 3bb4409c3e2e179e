"""The summary of an exploration."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation import report_story as story
from txbus_sim._lines import cells
from txbus_sim.exploration import Coverage, End, ExplorationResult, Failure, Stage, crash_everywhere
from txbus_sim.faults import Fault
from txbus_sim.report import look, render_exploration, render_summary
from txbus_sim.result import Verdict, VerdictKind
from txbus_sim.schedule import Deviation, Schedule

LOST = Verdict(VerdictKind.PROPERTY, "no-loss", "message order-2 of topic orders is lost")
VACUOUS = Verdict(VerdictKind.VACUOUS, "order-per-key", "order-per-key was never put to the test")
STAGES = (Stage("without faults", 1, 0, 1, 0), Stage("crashes", 1_499, 296, 1_203, 4))
FAILURE = Failure(12, "crashes", LOST, Schedule.of([Deviation.parse("orders/sql.commit:shop#2 crash-after")]), times=4)
COVERAGE = Coverage(
    {
        ("sql.commit:shop", Fault.CRASH_AFTER): 12,
        ("sql.commit:shop", Fault.CRASH_BEFORE): 1_012,
        ("sql.commit:shop", Fault.ANSWER_LOST): 0,
        ("broker.send:orders", Fault.FAIL): 0,
    }
)
RESULT = ExplorationResult(
    kind="crash_everywhere",
    seed=0,
    end=End.COMPLETE,
    stages=STAGES,
    failures=(FAILURE,),
    shrunk=None,
    vacuous=(),
    coverage=COVERAGE,
    sometimes={"two orders at once": 3},
    premises={"no-loss": 1_204, "order-per-key": 0},
    jobs=2,
    seconds=8.0,
)


def test_summary_to_the_letter() -> None:
    """Counts, rate, stages, failures, each label with its faults, and what never occurred."""
    assert (
        render_summary(RESULT)
        == """\
crash_everywhere: 1,204 runs in 8.0 s (150 a second, 2 jobs): 1,200 passed, 4 failed; 1,500 enumerated, 296 pruned

Stages                 run    failed    pruned
  without faults         1         0         0
  crashes            1,203         4       296

Failures, the first of each kind
  run 12 (crashes, 4 such runs): BROKEN no-loss: message order-2 of topic orders is lost
    orders/sql.commit:shop#2 crash-after

Faults by operation (2 of 4 took place)
  broker.send:orders  never: fail
  sql.commit:shop     crash-before 1,012, crash-after 12
                      never: answer-lost

Properties, and how often each was put to the test
    1,204  no-loss
        0  order-per-key: never in these runs

Sometimes, and how often it was so
        3  two orders at once
"""
    )


def test_reference_page_shows_the_summary_as_it_is() -> None:
    """The example in the documentation is this one."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "sim-report.md").read_text("utf-8")
    assert f"```text\n{render_summary(RESULT)}```\n" in page


def test_vacuous_property_is_named() -> None:
    """What the exploration found vacuous is called so, at the property and above the summary."""
    result = replace(RESULT, failures=(), vacuous=(VACUOUS,))
    assert "        0  order-per-key: VACUOUS, it never occurred\n" in render_summary(result)
    assert render_exploration(result).startswith("VACUOUS: order-per-key was never put to the test\n\ncrash_everyw")


@pytest.mark.parametrize("end", [End.INTERRUPTED, End.ENOUGH, End.CUT])
def test_unfinished_exploration_says_how_much_is_left(end: End) -> None:
    """After Ctrl-C, or at a limit, the summary tells what was not run."""
    stages = (Stage("crashes", 100, 1, 9, 0),)
    text = render_summary(replace(RESULT, stages=stages, failures=(), end=end))
    assert "; 90 not run, and what follows from them not enumerated\n" in text
    assert "not run" not in render_summary(replace(RESULT, stages=stages, failures=()))


def test_whole_report_of_a_real_exploration() -> None:
    """The shop explored: the shortest schedule, the proof that shrinking made, then the figures."""
    result = crash_everywhere(story.ShopRunner(), second_faults=False)
    text = render_exploration(result)
    assert text.startswith("BROKEN no-loss: message order-1 of topic orders is lost")
    assert result.shrunk is not None
    (need,) = result.shrunk.necessities
    assert f"without {need.deviation} (no fault): passes\n" in text
    assert text.index("Timeline") < text.index("crash_everywhere: ") < text.index("Faults by operation")


@pytest.mark.parametrize("width", [60, 80, 160])
def test_summary_fits_its_width(width: int) -> None:
    """Long labels and many faults are wrapped in their columns."""
    labels = ("sql.commit:a", "broker.send:" + "a-topic-with-a-name-that-goes-on-and-on." * 2)
    coverage = Coverage({(label, fault): number % 3 for label in labels for number, fault in enumerate(Fault)})
    text = render_summary(replace(RESULT, coverage=coverage), width=width)
    long = [one for one in text.splitlines() if cells(one) > width and "a-topic" not in one]
    assert long == []
    begin = text.index("Faults by operation")
    for fault in Fault:
        found = re.findall(rf"(?<![a-z-]){fault.value}(?![a-z-])", text[begin:])
        assert len(found) == len(labels)


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
    assert re.sub(r"\x1b\[[0-9;]*m", "", render_summary(RESULT, colour=True)) == render_summary(RESULT)
