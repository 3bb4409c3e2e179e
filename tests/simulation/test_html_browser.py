"""The HTML report in a real browser: it is opened, clicked, and used with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation import report_story as story
from tests.simulation.browser import Tab, opened, skip_without_chromium
from tests.simulation.test_html_page import evil

skip_without_chromium()

TITLE = "document.getElementById('timeline-title').textContent"
ABOUT = "document.getElementById('timeline-about').textContent"
TIMELINE = "document.getElementById('timeline-rows').innerText"
FOCUS = "document.activeElement.getAttribute('aria-label') || document.activeElement.id"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """One browser for all tests of this module."""
    with opened(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the shop's page."""
    file = tmp_path_factory.mktemp("pages") / "shop.html"
    file.write_text(story.page(), encoding="utf-8")
    return file.as_uri()


def test_report_opens_with_its_own_run(tab: Tab, shop: str) -> None:
    """The timeline of the failing run is there at once; nothing is loaded but the page, nothing complains."""
    tab.open(shop)
    assert tab.value(TITLE) == "Timeline"
    assert "order-2" in tab.value(ABOUT)
    shown = tab.value(TIMELINE)
    assert "✗ crash-after at sql.commit:shop#2" in shown
    assert "durable: 2 rows of shop.orders" in shown
    assert tab.requests() == [shop]
    assert tab.complaints() == []


def test_lane_stands_while_its_process_lives(tab: Tab, shop: str) -> None:
    """Between the crash and the next start the lane of the process is not drawn, that of the other is."""
    tab.open(shop)
    lanes = """[...document.querySelectorAll("#timeline-rows tbody tr")].map(row =>
        [...row.cells].slice(1).map(cell => cell.classList.contains("up") ? "|" : " ").join("") +
        [...row.cells].slice(1).map(cell => cell.textContent).join(""))"""
    shown = tab.value(lanes)
    assert "||||✗ crash-after at sql.commit:shop#2" in shown
    assert " |||■ crashed" in shown
    assert " |||LOST: its memory" in shown
    assert "||||● starts anew as orders+1" in shown


def test_click_on_a_run_shows_its_timeline(tab: Tab, shop: str) -> None:
    """A click in the matrix shows that run and marks it; the link back shows the report's own again."""
    tab.open(shop)
    failing = "a[aria-label^='orders/broker.send:orders#1 crash-before']"
    tab.click(failing)
    assert tab.value(TITLE) == "Timeline of orders/broker.send:orders#1 crash-before"
    assert tab.value(ABOUT).startswith("BROKEN no-loss: message order-1")
    assert "✗ crash-before at broker.send:orders#1" in tab.value(TIMELINE)
    assert tab.value("document.querySelectorAll('[aria-current]').length") == 1
    assert tab.value(f"document.querySelector({failing!r}).getAttribute('aria-current')") == "true"
    passing = "a[aria-label^='stock/broker.ack:stock#1 crash-after']"
    tab.click(passing)
    assert tab.value(ABOUT) == "passed"
    assert "✗ crash-after at broker.ack:stock#1" in tab.value(TIMELINE)
    tab.click("#timeline-back a")
    assert tab.value(TITLE) == "Timeline"
    assert "✗ crash-after at sql.commit:shop#2" in tab.value(TIMELINE)


def test_address_of_a_run_can_be_passed_on(tab: Tab, shop: str) -> None:
    """The fragment opens the page at that run, each run at its own."""
    tab.open(shop)
    runs = list(story.matrix())
    for number in (0, 9, len(runs) - 1):
        tab.open(f"{shop}#run-{number}")
        name = str(next(iter(runs[number].result.schedule)))
        assert tab.value(TITLE) == f"Timeline of {name}"
        assert tab.value("document.querySelector('[aria-current]').getAttribute('aria-label')").startswith(name)
    tab.open(f"{shop}#run-{len(runs)}")
    assert tab.value(TITLE) == "Timeline"


def test_keyboard_alone_is_enough(tab: Tab, shop: str) -> None:
    """The matrix is one stop of Tab, arrows move in it, Enter chooses, and the timeline has the focus then."""
    tab.open(shop)
    stops = []
    for _ in range(4):
        tab.press("Tab")
        stops.append(tab.value(FOCUS))
    assert stops[1] == "only-bad"
    assert stops[2].startswith("orders/sql.begin:shop#1 crash-before")
    assert "orders/" not in stops[3]
    tab.value("document.querySelector('.tries a[tabindex=\"0\"]').focus()")
    tab.press("ArrowRight")
    assert tab.value(FOCUS).startswith("orders/sql.begin:shop#2 crash-before")
    for _ in range(3):
        tab.press("ArrowDown")
    assert tab.value(FOCUS).startswith("orders/broker.send:orders#1 crash-before")
    tab.press("Enter")
    assert tab.value(TITLE) == "Timeline of orders/broker.send:orders#1 crash-before"
    assert tab.value(FOCUS) == "timeline-title"


def test_only_failures_hides_what_passed(tab: Tab, shop: str) -> None:
    """With the box ticked, lines without a failing run are gone, and the keyboard still finds the matrix."""
    tab.open(shop)
    seen = (
        "[...document.querySelectorAll('.matrix .label')].filter(one => one.offsetParent).map(one => one.textContent)"
    )
    assert len(tab.value(seen)) == 6
    tab.click("#only-bad")
    assert tab.value(seen) == ["orders: sql.commit:shop", "orders: broker.send:orders"]
    tab.value("document.getElementById('only-bad').focus()")
    tab.press("Tab")
    assert tab.value(FOCUS).startswith("orders/sql.commit:shop#1")
    tab.click("#only-bad")
    assert len(tab.value(seen)) == 6


@pytest.mark.parametrize("width", [400, 1_280])
@pytest.mark.parametrize("page", ["shop", "evil"])
def test_nothing_is_wider_than_the_window(tab: Tab, shop: str, tmp_path: Path, width: int, page: str) -> None:
    """Neither on a telephone nor on a desk has the page to be scrolled sideways."""
    if page == "evil":
        (tmp_path / "evil.html").write_text(evil(), encoding="utf-8")
        shop = (tmp_path / "evil.html").as_uri()
    tab.open(shop, width=width)
    assert tab.value("document.documentElement.scrollWidth") <= width


def test_dark_and_light_follow_the_system(tab: Tab, shop: str) -> None:
    """The page has the system's scheme, and text that can be read in both: contrast of 4.5 at least."""
    contrast = """(() => {
        const light = colour => {
            const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(one => one / 255)
                .map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
        };
        const behind = element => {
            for (let one = element; one; one = one.parentElement) {
                const colour = getComputedStyle(one).backgroundColor;
                if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
        };
        return [...document.querySelectorAll("body *")].filter(one => one.offsetParent &&
            [...one.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())
        ).map(one => {
            const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), one.className + ":" + one.textContent.slice(0, 30)];
        }).sort((x, y) => x[0] - y[0])[0];
    })()"""
    colours = set()
    for scheme in ("light", "dark"):
        tab.open(shop, scheme="light" if scheme == "light" else "dark")
        colours.add(tab.value("getComputedStyle(document.body).backgroundColor"))
        least, where = tab.value(contrast)
        assert least >= 4.5, f"{scheme}: {where}"
    assert len(colours) == 2


def test_script_of_a_payload_does_not_run(tab: Tab, tmp_path: Path) -> None:
    """A page full of hostile texts shows them, runs none of them, and works."""
    file = tmp_path / "evil.html"
    file.write_text(evil(), encoding="utf-8")
    tab.open(file.as_uri())
    assert tab.value("window.pwned") is None
    tab.click(".tries a")
    assert "<script>window.pwned=1</script>" in tab.value(TIMELINE)
    assert tab.value("window.pwned") is None
    assert tab.requests() == [file.as_uri()]
    assert tab.complaints() == []
