"""The bookkeeping of unfinished deliveries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txbus.embedded.ack_window import AckWindow


def test_low_waits_for_the_first_unfinished() -> None:
    """The position stops at an unfinished delivery and jumps when that one is finished."""
    window = AckWindow(5)
    for offset in (5, 6, 9):
        window.deliver(offset)
    assert window.finish({6, 9}) == 5
    assert len(window) == 1
    assert window.finish({5}) == 10
    assert len(window) == 0


def test_low_after_changes_nothing() -> None:
    """A position can be asked for before it is written, and the window stays as it was."""
    window = AckWindow(0)
    window.deliver(0)
    window.deliver(1)
    assert window.low_after({0, 1}) == 2
    assert window.low == 0
    assert 0 in window


def test_unknown_and_repeated_offsets_are_passed_over() -> None:
    """Finishing twice, or what was never delivered, moves nothing."""
    window = AckWindow(3)
    window.deliver(3)
    window.deliver(4)
    assert window.finish({99, 2}) == 3
    assert window.finish({3}) == 4
    assert window.finish({3}) == 4


def test_offsets_are_delivered_in_order() -> None:
    """Delivering backwards is a broken invariant."""
    window = AckWindow(3)
    window.deliver(7)
    with pytest.raises(AssertionError):
        window.deliver(7)
    with pytest.raises(AssertionError):
        AckWindow(3).deliver(2)


@given(
    start=st.integers(0, 50),
    gaps=st.lists(st.integers(1, 4), max_size=30),
    batches=st.lists(st.sets(st.integers(0, 29), max_size=6), max_size=30),
)
def test_low_is_the_smallest_unfinished(start: int, gaps: list[int], batches: list[set[int]]) -> None:
    """In any order of finishing, low is the smallest unfinished offset, or one above the last."""
    window = AckWindow(start)
    offsets: list[int] = []
    for gap in gaps:
        offsets.append((offsets[-1] if offsets else start - 1) + gap)
        window.deliver(offsets[-1])
    left = set(offsets)
    for batch in batches:
        chosen = {offsets[index] for index in batch if index < len(offsets)}
        predicted = window.low_after(chosen)
        left -= chosen
        low = window.finish(chosen)
        assert low == predicted == window.low
        finished_all = offsets[-1] + 1 if offsets else start
        if left and min(left) == offsets[0]:
            assert low == start
        else:
            assert low <= (min(left) if left else finished_all)
            assert not any(low <= offset < min(left, default=finished_all) for offset in offsets)
        assert len(window) == len(left)
