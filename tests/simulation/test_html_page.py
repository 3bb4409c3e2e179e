"""The HTML report as a text: nothing from outside, nothing smuggled in, the same every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import report_story as story
from txbus_sim import history as h
from txbus_sim._html import Tried, render_exploration, render_html
from txbus_sim.exploration import Coverage, End, ExplorationResult, Failure, Stage, crash_everywhere
from txbus_sim.faults import Fault
from txbus_sim.history import History
from txbus_sim.report import Told
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Deviation, Schedule
from txbus_sim.shrink import Necessity

EVIL = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>\"&amp;\u202e\u2028\x1b[2J\ud800"
VOID = {"meta", "br", "input", "link", "img", "hr"}


class Outline(HTMLParser):
    """The elements of a page, their texts by element, and tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.crooked: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.crooked.append(tag)

    def handle_data(self, data: str) -> None:
        tag = self._open[-1] if self._open else ""
        self.texts[tag] = self.texts.get(tag, "") + data

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.elements)


def data_of(page: str) -> dict[str, Any]:
    """The data that the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    assert not set(found[1]) & set("<>&")
    data: dict[str, Any] = json.loads(found[1])
    return data


def evil() -> str:
    """A page in which everything that can come from outside tries to break out of its place."""
    history = History()
    for record in (
        h.ProcessStarted(0, "orders"),
        h.Logged(1, "orders", EVIL, EVIL, EVIL),
        h.Intended(1, "orders", EVIL, EVIL, EVIL, EVIL, EVIL),
        h.LocalCommitted(2, "orders", EVIL, 1, {EVIL: 1}),
        h.Visible(3, EVIL, 0, 0, EVIL, EVIL, EVIL.encode("utf-8", "surrogatepass"), {EVIL: EVIL}),
        h.ProcessEnded(4, "orders", "raised", EVIL),
    ):
        history.add(record)
    verdict = Verdict(VerdictKind.PROPERTY, EVIL, EVIL, (EVIL, EVIL), f"{EVIL}:3", (EVIL,))
    deviation = Deviation.parse("orders/<script>alert(1)</script>#1 crash-before")
    schedule = Schedule((deviation,), EVIL)
    result = RunResult(schedule, verdict, history)
    told = Told((Necessity(deviation, Schedule(), verdict),), Path("a&b<c>.sched"), command=EVIL)
    summary = ExplorationResult(
        kind=EVIL,
        seed=0,
        end=End.COMPLETE,
        stages=(Stage(EVIL, 1, 0, 1, 1), Stage(EVIL, 1, 0, 1, 1)),
        failures=(Failure(1, EVIL, verdict, schedule),),
        shrunk=None,
        vacuous=(verdict,),
        coverage=Coverage({(EVIL, Fault.TORN): 0}),
        sometimes={EVIL: 0},
        premises={EVIL: 1},
    )
    return render_html(result, told, [Tried(f"{EVIL}:4", result)], summary)


@pytest.mark.parametrize("page", [story.page(), evil()], ids=["shop", "evil"])
def test_page_needs_nothing_from_elsewhere(page: str) -> None:
    """No element loads anything, no address leads out of the page, and its policy refuses the rest."""
    outline = Outline(page)
    assert not {"src", "srcset", "action", "style"} & {name for _, attrs in outline.elements for name in attrs}
    links = [attrs.get("href") or "" for _, attrs in outline.elements if "href" in attrs]
    assert links and all(link.startswith("#") for link in links)
    assert not re.search(r"https?:|@import|url\(", page.partition('<script type="application/json"')[0])
    policy = next(attrs["content"] for tag, attrs in outline.elements if attrs.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")


def test_nothing_in_a_history_becomes_markup() -> None:
    """Payloads, ids, logs, labels, paths and messages stay text, however they are spelled."""
    page = evil()
    outline = Outline(page)
    assert outline.crooked == []
    assert outline.count("script") == 2
    assert any("</script><script>" in text for text in data_of(page)["strings"])
    assert outline.count("img") == 0
    assert not [name for _, attrs in outline.elements for name in attrs if name.startswith("on")]
    assert not set(page) & {"\x1b", "\u202e", "\u2028", "\ud800"}
    assert "window.pwned=1" in outline.texts["h1"]


def test_elements_match() -> None:
    """Every element that is opened is closed in its place."""
    assert Outline(story.page()).crooked == []


def test_page_can_be_written_as_utf_8() -> None:
    """Even half a character of a log is shown, as an escape."""
    assert "\\ud800" in evil().encode("utf-8").decode("utf-8")


def test_matrix_has_a_run_for_each_operation_before_and_after() -> None:
    """Each run stands in the matrix once, at its source line, with its verdict in words."""
    page = story.page()
    runs = list(story.matrix())
    shown = [attrs for tag, attrs in Outline(page).elements if (attrs.get("href") or "").startswith("#run-")]
    assert sorted(str(attrs["href"]) for attrs in shown) == sorted(f"#run-{number}" for number in range(len(runs)))
    data = data_of(page)
    for attrs in shown:
        number = int(str(attrs["href"]).removeprefix("#run-"))
        result = runs[number].result
        failed = result.verdict is not None
        assert attrs["class"] == ("bad" if failed else "good")
        assert str(attrs["aria-label"]).startswith(f"{next(iter(result.schedule))}: {'BROKEN' if failed else 'passed'}")
        assert data["strings"][data["tries"][number]["name"]] == str(next(iter(result.schedule)))
    assert f"{len(runs)} runs with a fault at one operation each: {len(runs) - 4} passed, 4 failed." in page


def test_run_of_a_recovery_stands_at_its_second_fault() -> None:
    """Two faults: the run stands in the matrix where the second one is, and names both."""
    first, second = "orders/sql.commit:shop#1 crash-before", "orders+1/broker.send:orders#1 crash-before"
    page = render_html(story.run(), None, [Tried("", story.run(f"{first}\n{second}"))])
    assert "orders: broker.send:orders</th>" in page
    assert f'aria-label="{second}, after {first}: BROKEN' in page


def test_same_run_gives_the_same_page() -> None:
    """Two interpreters with different hash seeds write the same bytes."""
    script = "from tests.simulation import report_story; print(ascii(report_story.page()))"
    pages = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(pages) == 1


def test_run_that_passed_has_a_page_too() -> None:
    """A matrix is of use where nothing failed."""
    page = render_html(story.run())
    assert "PASSED" in page
    assert "The shortest schedule" not in page


def test_page_of_an_exploration() -> None:
    """Its first failure with the proof, its whole crash matrix replayed, its figures."""
    runner = story.ShopRunner()
    result = crash_everywhere(runner, second_faults=False)
    page = render_exploration(result, runner, Told(file=Path("lost.sched")))
    assert result.run is not None and result.shrunk is not None
    assert "message order-1 of topic orders is lost" in Outline(page).texts["h1"]
    assert "Each deviation is needed" in page
    data = data_of(page)
    names = [data["strings"][one["name"]] for one in data["tries"]]
    assert names == [str(cell.deviation) for cell in result.matrix]
    assert [one["failed"] for one in data["tries"]] == [cell.verdict is not None for cell in result.matrix]
    assert "tests/simulation/report_story.py:" in page
    assert f"crash_everywhere: {result.executed} runs" in page


def test_page_of_an_exploration_without_a_failure() -> None:
    """Nothing failed: the page has the run without faults, and what was never put to the test."""
    runner = story.ShopRunner(lambda shop: setattr(shop, "orders", 0))
    result = crash_everywhere(runner, second_faults=False)
    page = render_exploration(result, runner)
    assert "VACUOUS" in page
    assert "No fault: the schedule is empty." in page
    assert "order-per-key: VACUOUS" in page


def test_matrix_is_read_as_it_is_made() -> None:
    """A matrix may be a generator, so that no more than one history is held at a time."""
    given = 0

    def one_by_one() -> Any:
        nonlocal given
        for tried in story.matrix():
            given += 1
            yield tried

    render_html(story.run(story.LOST), None, one_by_one())
    assert given == len(list(story.matrix()))
