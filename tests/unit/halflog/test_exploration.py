"""Random schedules of the whole half log; and the same with one rule in its naive form.

The naive forms are in `naive`. A schedule is its seed: the same seed gives the same schedule.
"""

from __future__ import annotations

import pytest

from tests.unit.halflog.naive import VARIANTS, Variant
from tests.unit.halflog.schedule import run_schedule
from tests.unit.halflog.world import Chances

SCHEDULES = 2_500
LIMIT = 2_500


@pytest.mark.parametrize("part", range(10))
def test_no_schedule_loses_doubles_or_disorders_a_message(part: int) -> None:
    """Under kills, zombies, late and lost records, rebalances, purges and copies of a database every
    committed message becomes visible once, in the order of the COMMITs of its key, and no other."""
    size = SCHEDULES // 10
    published = 0
    for seed in range(part * size, (part + 1) * size):
        books = run_schedule(seed)
        assert not books.broken, f"seed {seed}: {books}"
        published += books.published
    assert published > 5 * size, "the schedules publish too little to prove anything"


@pytest.mark.parametrize(
    "chances",
    [
        Chances(crash=0.05),
        Chances(pause=0.12),
        Chances(append_late=0.3, append_lost=0.1),
        Chances(commit_unknown=0.3, marker_lost=0.9),
        Chances(commit_answer_lost=0.4),
        Chances(long_wait=0.9, position_lost=0.5),
        Chances(wrong_database=0.8),
        Chances(unavailable=0.1),
    ],
    ids=["crashes", "zombies", "late", "unknown-steps", "unknown-commits", "purges", "copies", "busy"],
)
def test_no_concentration_of_one_fault_breaks_it(chances: Chances) -> None:
    """Many more of one kind of fault break nothing either."""
    for seed in range(150):
        books = run_schedule(seed, chances)
        assert not books.broken, f"seed {seed}: {books}"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_rule_in_its_naive_form_breaks_a_schedule(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exploration finds what the rule prevents: without it a message is lost, doubled or disordered."""
    variant.patch(monkeypatch)
    for seed in range(LIMIT):
        books = run_schedule(seed, variant.chances, variant.actions)
        if books.broken & variant.breaks:
            return
    pytest.fail(f"{LIMIT} schedules did not show {set(variant.breaks)}")


def test_a_schedule_is_its_seed() -> None:
    """The same seed gives the same messages in the same places."""
    assert run_schedule(11) == run_schedule(11)
    assert run_schedule(11) != run_schedule(12)
