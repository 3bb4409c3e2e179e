"""What a broker must not show its readers: each property broken, and kept by what looks alike."""

from __future__ import annotations

import pytest

from tests.unit.sim.checkers_story import Story, log_broker, queue_broker
from txbus import Outcome
from txbus_sim import history
from txbus_sim.faults import Fault

PRODUCER = "txbus.half.shop.0"


@pytest.fixture
def story() -> Story:
    made = Story()
    made.start("one", "two")
    return made


def store(story: Story, *numbers: int) -> None:
    for number in numbers:
        story.store("one", "t", f"m{number}", {"n": number})


def deliver(story: Story, process: str, *offsets: int, attempt: int = 1) -> None:
    for offset in offsets:
        story.deliver(process, "svc.scope", "t", offset, f"m{offset}", attempt=attempt)


def end_transaction(story: Story, committed: bool, *, epoch: int = 0, by: str = "one") -> None:
    story.add(history.BrokerTransactionEnded(story.tick(), PRODUCER, epoch, committed, by))


def read(story: Story, start: int, offsets: tuple[int, ...], to: int) -> None:
    story.add(history.Read(story.tick(), "one", "t", 0, start, offsets, to))


# G1a, precommitted-read, lost-write


def test_an_aborted_record_that_is_read_is_g1a(story: Story) -> None:
    """It became visible because its abort marker was lost; unseen it is none."""
    first = story.store("one", "t", "m0", {}, producer=PRODUCER)
    second = story.store("one", "t", "m1", {}, producer=PRODUCER)
    end_transaction(story, False)
    report = story.check()
    assert report.verdicts == () and report.premises["G1a"] == 2
    story.fault(Fault.MARKER_SKIPPED)
    story.show("t", second, "m1", {})
    (verdict,) = story.check().verdicts
    assert verdict.name == "G1a" and f"t/0@{second}" in verdict.sentence and f"@{first}" not in verdict.sentence


def test_an_aborted_record_that_is_handed_over_is_g1a(story: Story) -> None:
    """Also to a reader to whom nothing was ever said to be visible."""
    story.store("one", "t", "m0", {}, producer=PRODUCER)
    end_transaction(story, False)
    deliver(story, "two", 0)
    assert story.accused() == ["G1a"]


@pytest.mark.parametrize("ends", [True, False])
def test_a_record_of_an_open_broker_transaction_is_not_readable(story: Story, ends: bool) -> None:
    """Whether it commits after all, or never ends."""
    offset = story.store("one", "t", "m0", {}, producer=PRODUCER)
    story.show("t", offset, "m0", {})
    if ends:
        end_transaction(story, True)
    assert story.accused() == ["precommitted-read"]


def test_a_committed_record_is_readable(story: Story) -> None:
    """The transactions of one id follow one another."""
    for number in range(3):
        story.publish("one", "t", f"m{number}", {}, epoch=number)
    report = story.check()
    assert report.verdicts == () and report.premises["precommitted-read"] == 3


def test_a_hole_below_what_was_read_is_a_lost_write(story: Story) -> None:
    """A durable record never became visible, though a later one did; the last ones may still come."""
    store(story, 0)
    story.store("one", "t", "m1", {}, visible=False)
    assert story.accused() == []
    store(story, 2)
    (verdict,) = story.check().verdicts
    assert verdict.name == "lost-write" and "message m1" in verdict.sentence and "t/0@1" in verdict.sentence


def test_an_aborted_record_below_what_was_read_is_no_lost_write(story: Story) -> None:
    """It has an offset, and nobody is to read it."""
    story.store("one", "t", "m0", {}, producer=PRODUCER)
    end_transaction(story, False)
    store(story, 1)
    assert story.accused() == []


# inconsistent-offsets


def test_another_message_at_an_offset_is_inconsistent(story: Story) -> None:
    """What was stored, what is visible and what is handed over are one and the same."""
    store(story, 0)
    story.deliver("two", "svc.scope", "t", 0, "m9")
    assert story.accused() == ["inconsistent-offsets"]


def test_what_is_read_is_what_was_stored(story: Story) -> None:
    """A broker that shows something else at the offset."""
    offset = story.store("one", "t", "m0", {}, visible=False)
    story.show("t", offset, "m1", {})
    assert story.accused() == ["inconsistent-offsets"]


@pytest.mark.parametrize("seen", [True, False])
def test_a_failover_may_take_back_only_what_nobody_saw(story: Story, seen: bool) -> None:
    """The offset is given to another record."""
    story.store("one", "t", "m0", {}, visible=seen)
    story.fault(Fault.FAILOVER)
    story.offsets.clear()
    story.store("two", "t", "m1", {}, visible=not seen)
    assert story.accused() == (["inconsistent-offsets"] if seen else [])


# nonmonotonic-poll


def test_a_read_goes_forward(story: Story) -> None:
    """Two offsets of one read in the wrong order."""
    store(story, 0, 1)
    read(story, 0, (0, 1), 2)
    assert story.accused() == []
    read(story, 0, (1, 0), 2)
    assert story.accused() == ["nonmonotonic-poll"]


def test_a_member_is_not_handed_what_it_committed_itself(story: Story) -> None:
    """Below its own position, which nobody moved since; a queue with several owners may."""
    store(story, 0, 1)
    deliver(story, "one", 0, 1)
    story.position("one", "svc.scope", "t", 2)
    deliver(story, "one", 1)
    assert story.accused(broker=log_broker) == ["nonmonotonic-poll"]
    assert story.accused(broker=queue_broker) == []


def test_a_member_may_be_handed_again_what_is_not_done(story: Story) -> None:
    """After a rebalance from the group's position, after another member moved it back, as a redelivery."""
    store(story, 0, 1, 2)
    deliver(story, "one", 0, 1, 2)
    story.position("one", "svc.scope", "t", 1)
    deliver(story, "one", 1, 2)
    deliver(story, "one", 0, attempt=2)
    deliver(story, "two", 0)
    story.position("two", "svc.scope", "t", 0)
    deliver(story, "one", 0)
    assert story.accused() == []


# int-poll-skip and unseen


def test_a_read_leaves_nothing_out(story: Story) -> None:
    """Of what was visible when it read; gaps of aborted records are none."""
    store(story, 0)
    story.store("one", "t", "m1", {}, producer=PRODUCER)
    end_transaction(story, False)
    store(story, 2)
    read(story, 0, (0, 2), 3)
    assert story.accused() == []
    read(story, 0, (2,), 3)
    assert story.accused() == ["int-poll-skip"]


def test_a_poll_leaves_nothing_out(story: Story) -> None:
    """Between two records handed to one member there is one that its group never sees."""
    store(story, 0, 1, 2)
    deliver(story, "one", 0, 2)
    assert "int-poll-skip" in story.accused()
    deliver(story, "two", 1)
    story.end("one", "two")
    assert story.accused() == []


def test_a_broker_that_filters_by_tags_may_leave_something_out(story: Story) -> None:
    """Allowed by the capability where tags are in use, and by nothing else."""
    for number, headers in enumerate(({}, {"txbus-tag": "eu"}, {})):
        story.store("one", "t", f"m{number}", {}, headers=headers)
    deliver(story, "one", 0, 2)
    story.end("one", "two")
    assert story.accused(broker=log_broker) == ["int-poll-skip"]
    assert story.accused(broker=queue_broker) == []


def test_a_message_that_a_waiting_group_never_sees_is_unseen(story: Story) -> None:
    """Its member was there until the end."""
    store(story, 0)
    deliver(story, "two", 0)
    store(story, 1)
    story.end("one", "two")
    assert story.accused() == ["unseen"]


@pytest.mark.parametrize("how", ["returned", "crashed"])
def test_a_group_that_went_away_sees_nothing(story: Story, how: str) -> None:
    """It ended, or it died for good."""
    store(story, 0)
    deliver(story, "two", 0)
    story.end("two", how=how)
    store(story, 1)
    story.end("one")
    assert story.accused() == []


# fencing


def test_an_older_epoch_never_commits(story: Story) -> None:
    """It may abort; and what it wrote is seen by nobody."""
    story.publish("one", "t", "m0", {}, epoch=0)
    story.publish("two", "t", "m1", {}, epoch=1)
    story.store("one", "t", "m2", {}, producer=PRODUCER)
    end_transaction(story, False, epoch=0)
    report = story.check()
    assert report.verdicts == () and report.premises["fencing"] == 1
    story.store("one", "t", "m3", {}, producer=PRODUCER)
    end_transaction(story, True, epoch=0)
    (verdict,) = story.check().verdicts
    assert verdict.name == "fencing" and "epoch 0" in verdict.sentence


def test_a_member_that_lost_its_partition_is_not_believed(story: Story) -> None:
    """Another was handed its records and its word was taken; a queue with several owners believes both."""
    store(story, 0, 1, 2)
    deliver(story, "one", 0, 1)
    story.position("one", "svc.scope", "t", 1)
    deliver(story, "two", 1, 2)
    story.position("two", "svc.scope", "t", 3)
    assert story.check().premises["fencing"] == 1
    assert story.accused() == []
    story.position("one", "svc.scope", "t", 2)
    (verdict,) = story.check().verdicts
    assert verdict.name == "fencing" and "one had lost t/0 of group svc.scope to two" in verdict.sentence
    assert story.accused(broker=queue_broker) == []


def test_a_member_that_was_given_its_partition_back_is_believed(story: Story) -> None:
    """It was handed something there since."""
    store(story, 0, 1, 2)
    deliver(story, "one", 0)
    story.position("one", "svc.scope", "t", 1)
    deliver(story, "two", 1)
    story.position("two", "svc.scope", "t", 2)
    deliver(story, "one", 2)
    story.position("one", "svc.scope", "t", 3)
    assert story.accused() == []


# checks-stop-after-resolution


def half(story: Story, *answers: Outcome | None, settled: int, after: int = 0) -> None:
    """Rounds of checks; the outcome is taken after the ``settled``-th, then come ``after`` more."""
    story.add(history.HalfStored(story.tick(), "one", "t", "h1", "m0"))
    for number, answer in enumerate(answers, 1):
        story.add(history.Checked(story.tick(), "one", "h1", "m0", number, answer))
        if number == settled:
            story.add(history.Settled(story.tick(), "h1", "m0", answer or Outcome.COMMITTED))
    for number in range(len(answers) + 1, len(answers) + 1 + after):
        story.add(history.Checked(story.tick(), "one", "h1", "m0", number, Outcome.COMMITTED))


def test_an_answer_ends_the_checks(story: Story) -> None:
    """Unknown and no answer do not; the answer does."""
    half(story, Outcome.UNKNOWN, None, Outcome.COMMITTED, settled=3)
    report = story.check(broker=queue_broker)
    assert report.verdicts == () and report.premises["checks-stop-after-resolution"] == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (None, ["checks-stop-after-resolution"]),
        (Fault.MEMORY_LOST, []),
        (Fault.DELAY, ["checks-stop-after-resolution"]),
    ],
)
def test_checks_after_the_answer_are_found(story: Story, fault: Fault | None, expected: list[str]) -> None:
    """Unless the broker forgot it, which it may."""
    if fault is not None:
        story.fault(fault)
    half(story, Outcome.COMMITTED, settled=1, after=1)
    assert story.accused(broker=queue_broker) == expected


def test_a_producers_own_word_does_not_stop_the_checks(story: Story) -> None:
    """RocketMQ goes on asking after a late commit."""
    half(story, None, settled=1, after=2)
    assert story.accused(broker=queue_broker) == []


def test_an_answer_never_changes(story: Story) -> None:
    """A checker that looks says rolled back, and committed a moment later."""
    story.fault(Fault.MEMORY_LOST)
    half(story, Outcome.ROLLED_BACK, Outcome.COMMITTED, settled=1)
    (verdict,) = story.check(broker=queue_broker).verdicts
    assert verdict.name == "checks-stop-after-resolution" and "changed" in verdict.sentence
