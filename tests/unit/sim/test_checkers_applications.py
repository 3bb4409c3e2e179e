"""Whole applications, each crashed at every step: the right ones are never accused, the wrong ones are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.sim import checkers_applications as apps
from tests.unit.sim.checkers_applications import Main, play
from tests.unit.sim.checkers_story import learned
from txbus_sim.checkers import Effect, Expectation

RIGHT: list[tuple[Main, Main]] = [
    (apps.with_half_messages, apps.with_an_inbox),
    (apps.with_half_messages, apps.with_an_upsert),
    (apps.with_half_messages, apps.logging_its_tries),
    (apps.with_half_messages, apps.summing_up),
    (apps.with_an_outbox, apps.with_an_inbox),
    (apps.with_an_outbox, apps.with_an_upsert),
    (apps.with_an_outbox_of_fresh_ids, apps.with_an_upsert),
    (apps.importing, apps.with_an_inbox),
    (apps.announcing_some, apps.with_an_inbox),
    (apps.telling_twice, apps.with_an_inbox),
    (apps.changing_later, apps.with_an_inbox),
    (apps.giving_up, apps.with_an_inbox),
    (apps.giving_up, apps.summing_up),
]
# The names, with a space between them.
WRONG: list[tuple[Main, Main, str]] = [
    (apps.commit_then_publish, apps.with_an_inbox, "no-loss"),
    (apps.publish_then_commit, apps.with_an_inbox, "no-phantom"),
    (apps.publish_then_commit_again, apps.with_an_upsert, "precommitted-read no-phantom"),
    (apps.believing_all, apps.with_an_inbox, "no-phantom"),
    (apps.with_half_messages, apps.without_an_inbox, "effect-exactly-once"),
    (apps.with_half_messages, apps.acknowledging_first, "effect-exactly-once"),
    (apps.with_half_messages, apps.swallowing, "effect-exactly-once"),
    (apps.with_half_messages, apps.outside_of_the_transaction, "effect-exactly-once"),
    (apps.with_half_messages, apps.inbox_in_its_own_transaction, "effect-exactly-once"),
    (apps.with_half_messages, apps.remembering, "effect-exactly-once"),
    (apps.with_an_outbox_of_fresh_ids, apps.with_an_inbox, "effect-exactly-once"),
]


def explored(sender: Main, receiver: Main) -> tuple[tuple[Expectation, ...], list[tuple[int, bool, list[str]]]]:
    """What the run without faults teaches, and what is held against each run with one fault."""
    first = play(sender, receiver)
    expectations = learned(first.story)
    assert first.story.accused(*expectations) == []
    runs = [(at, fails) for at in range(1, first.steps + 1) for fails in (False, True)]
    assert len(runs) > 30
    return expectations, [
        (at, fails, play(sender, receiver, at, fails=fails).story.accused(*expectations)) for at, fails in runs
    ]


def named(one: object) -> str:
    return getattr(one, "__name__", str(one))


@pytest.mark.parametrize(("sender", "receiver"), RIGHT, ids=named)
def test_a_right_application_is_never_accused(sender: Main, receiver: Main) -> None:
    """Whatever step it dies at, and whatever commit is refused."""
    _, runs = explored(sender, receiver)
    assert [run for run in runs if run[2]] == []


@pytest.mark.parametrize(("sender", "receiver", "names"), WRONG, ids=named)
def test_a_wrong_application_is_found_and_named(sender: Main, receiver: Main, names: str) -> None:
    """Some single fault shows it, and every accusation's first name is the right one."""
    _, runs = explored(sender, receiver)
    assert Counter(accused[0] for _, _, accused in runs if accused).keys() == set(names.split())


def test_a_fault_alone_accuses_nobody() -> None:
    """Most faults do no harm to the wrong ones either: the accusation is of what happened."""
    _, runs = explored(apps.commit_then_publish, apps.with_an_inbox)
    assert any(not accused for _, _, accused in runs)


def test_a_declared_effect_is_asked_of_every_message() -> None:
    """Dedupe by payload: two orders say the same, and one of them has no effect."""
    run = play(apps.with_half_messages, apps.with_an_upsert)
    story = run.story
    run.process = "orders"
    records = story.history.records
    del records[-2:]
    story.send("orders", "orders", "m-twin", {"id": "o-1"})
    story.deliver("stock", "stock.reserve", "orders", 3, "m-twin")
    story.position("stock", "stock.reserve", "orders", 4)
    story.end("orders", "stock")
    assert story.accused(Effect("orders", "id", "stock.reservations", "order_id")) == ["effect-exactly-once"]
    assert story.accused(Effect("orders", "id", "stock.reservations", "order_id", strict=False)) == []


_SAY = """
from tests.unit.sim import checkers_applications as apps
from tests.unit.sim.checkers_story import learned
expected = learned(apps.play(apps.with_half_messages, apps.without_an_inbox).story)
print(expected)
for at in range(1, 60):
    print(apps.play(apps.believing_all, apps.remembering, at, fails=at % 2 == 0).story.check(*expected))
"""


def test_verdicts_do_not_depend_on_the_order_of_hashes() -> None:
    """The same words in the same order, whatever PYTHONHASHSEED is."""
    root = Path(__file__).parents[3]
    said = [
        subprocess.run(
            [sys.executable, "-c", _SAY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] and said[0].count("effect-exactly-once") > 5
