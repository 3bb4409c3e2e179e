"""The demo's verdict: each way in which a run can fail to show what it is for is a reason of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from txbus.examples.shop.books import Books, Finding
from txbus.examples.shop.report import judge
from txbus.examples.shop.run import RunResult
from txbus.examples.shop.supervisor import Tally
from txbus.examples.shop.windows import Window

FINDING = (Finding("order 7", "effect in stock", "there is none"),)


def run(kills_per_window: int = 5, at_random: int = 3) -> RunResult:
    """A run in which everything went as it should, each window hit five times."""
    return RunResult(
        books=Books(
            committed=95,
            refused=5,
            messages_of_refused=0,
            published={"orders": 95},
            stock_effects=95,
            payment_effects=95,
            balances={"EUR": (1_000, 1_000)},
            lost=(),
            phantom=(),
            doubled=(),
            wrong=(),
        ),
        tally=Tally(windows=Counter(dict.fromkeys(Window, kills_per_window)), random=at_random, starts=30),
        events={"CheckBack": 9, "DuplicateSuppressed": 4},
        windows=frozenset(Window),
        kills_left=0,
        seconds=1.0,
    )


def with_books(**changed: object) -> RunResult:
    good = run()
    return replace(good, books=replace(good.books, **changed))  # type: ignore[arg-type]


def with_tally(**changed: object) -> RunResult:
    good = run()
    return replace(good, tally=replace(good.tally, **changed))  # type: ignore[arg-type]


def test_a_run_that_shows_everything_is_good() -> None:
    """Also with exactly as many kills as were asked for."""
    assert judge(run(), 5, run().tally.kills).reasons == ()


def test_fewer_kills_than_asked_for_are_a_failure() -> None:
    """By one, although every window was hit often enough; the reason has both numbers."""
    verdict = judge(run(), 5, run().tally.kills + 1)
    assert verdict.reasons == ("28 processes were killed, not 29; more orders leave room for all",)
    assert not verdict.good


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: with_books(lost=FINDING), "lost: 1, first order 7, effect in stock"),
        (lambda: with_books(phantom=FINDING), "phantom: 1"),
        (lambda: with_books(doubled=FINDING), "doubled: 1"),
        (lambda: with_books(wrong=FINDING), "wrong: 1"),
        (lambda: with_books(balances={"EUR": (1_000, 1_000), "USD": (5, 4)}), "sum of balances changed"),
        (lambda: with_books(messages_of_refused=2), "2 messages of refused orders"),
        (lambda: with_tally(failures=1), "1 times a service ended without being killed"),
        (lambda: replace(run(), events={"DuplicateSuppressed": 4}), "no check-back"),
        (lambda: replace(run(), events={"CheckBack": 9}), "no duplicate"),
    ],
)
def test_each_thing_that_is_wrong_is_the_one_reason(make: Callable[[], RunResult], reason: str) -> None:
    """And none is hidden by another rule."""
    (only,) = judge(make(), 5).reasons
    assert reason in only


@pytest.mark.parametrize("window", list(Window))
def test_each_window_must_have_been_hit(window: Window) -> None:
    """Unless the backend has no such window."""
    result = run()
    result.tally.windows[window] -= 1
    (only,) = judge(result, 5).reasons
    assert repr(window.value) in only and "4 times, not 5" in only
    assert judge(replace(result, windows=frozenset(Window) - {window}), 5).good
