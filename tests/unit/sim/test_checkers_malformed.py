"""Histories that no correct dialect can have made are refused, not judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.sim.checkers_story import Story
from txbus_sim import history
from txbus_sim.checkers import PROPERTIES, check
from txbus_sim.errors import MalformedHistory


def back_in_time(story: Story) -> None:
    story.add(history.Logged(story.now_ns, "one", "INFO", "app", "now"))
    story.add(history.Logged(story.now_ns - 1, "one", "INFO", "app", "before"))


def stored_twice(story: Story) -> None:
    story.store("one", "t", "m0", {})
    story.offsets.clear()
    story.store("one", "t", "m1", {}, visible=False)


def visible_twice(story: Story) -> None:
    story.show("t", story.store("one", "t", "m0", {}), "m0", {})


def visible_without_being_stored(story: Story) -> None:
    story.store("one", "t", "m0", {})
    story.show("t", 1, "m1", {})


def delivered_before_it_was_visible(story: Story) -> None:
    offset = story.store("one", "t", "m0", {}, visible=False)
    story.deliver("one", "g", "t", offset, "m0")


def delivered_without_being_stored(story: Story) -> None:
    story.deliver("one", "g", "t", 0, "m0")


def handed_to_the_dead(story: Story) -> None:
    offset = story.store("one", "t", "m0", {})
    story.end("one", how="crashed")
    story.deliver("one", "g", "t", offset, "m0")


def intended_by_the_dead(story: Story) -> None:
    story.end("one", how="crashed")
    story.send("one", "t", "m0", {})


def started_twice(story: Story) -> None:
    story.start("one")


def read_outside_of_itself(story: Story) -> None:
    story.store("one", "t", "m0", {})
    story.add(history.Read(story.tick(), "one", "t", 0, 1, (0,), 2))


IMPOSSIBLE = [
    back_in_time,
    stored_twice,
    visible_twice,
    visible_without_being_stored,
    delivered_before_it_was_visible,
    delivered_without_being_stored,
    handed_to_the_dead,
    intended_by_the_dead,
    started_twice,
    read_outside_of_itself,
]


@pytest.mark.parametrize("write", IMPOSSIBLE, ids=lambda write: write.__name__)
def test_an_impossible_history_is_malformed(write: Callable[[Story], None]) -> None:
    """It says nothing about the code under test; the record is named."""
    story = Story()
    story.start("one")
    write(story)
    with pytest.raises(MalformedHistory, match="record [0-9]+ cannot be: .*A model is at fault"):
        story.check()


def test_what_servers_do_after_a_process_died_is_possible() -> None:
    """A request that was under way arrives; a commit that was sent is carried out."""
    story = Story()
    story.start("one")
    story.end("one", how="crashed")
    story.store("one", "t", "m0", {})
    story.commit("one", "shop", answered=False, orders={"id": "o-1"})
    assert story.accused() == []


def test_a_native_half_becomes_visible_without_being_stored_as_a_record() -> None:
    """The broker gives it its offset when it takes the outcome."""
    story = Story()
    story.start("one")
    story.store("one", "t", "m0", {})
    story.add(history.HalfStored(story.tick(), "one", "t", "h1", "m1"))
    story.show("t", 1, "m1", {})
    assert story.accused() == []


def test_an_empty_history_breaks_nothing_and_proves_nothing() -> None:
    """No property has a subject in it, so none has a premise."""
    report = Story().check()
    assert (report.verdicts, dict(report.premises)) == ((), {})
    assert len(set(PROPERTIES)) == len(PROPERTIES) == 15
    assert callable(check)
