"""Which record may run next."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txbus._consumer_lanes import Lanes, Work
from txbus._message import Envelope, Position, TopicPartition
from txbus.spi import Received

ZERO = TopicPartition("orders", 0)


def record(offset: int, key: str | None, partition: int = 0) -> Received:
    return Received(Envelope("orders", b"", key), Position("orders", partition, offset), 1, 0.0)


def take(lanes: Lanes) -> Work:
    work = lanes.take()
    assert work is not None
    return work


def filled(*keys: str | None) -> Lanes:
    lanes = Lanes()
    lanes.gain(ZERO)
    for offset, key in enumerate(keys):
        lanes.add(record(offset, key))
    return lanes


def offset_of(work: Work | None) -> int | None:
    return work.received.position.offset if work is not None else None


def test_a_key_runs_one_at_a_time_in_order() -> None:
    """The second record of a key is taken only when the first is finished; other keys go on."""
    lanes = filled("a", "a", "b")
    first, other = take(lanes), take(lanes)
    assert (offset_of(first), offset_of(other), lanes.take()) == (0, 2, None)
    lanes.finish(first)
    assert offset_of(lanes.take()) == 1


def test_records_without_a_key_do_not_wait_for_one_another() -> None:
    """Each keyless record is its own lane."""
    lanes = filled(None, None)
    assert [offset_of(lanes.take()), offset_of(lanes.take())] == [0, 1]


def test_the_same_key_in_two_partitions_is_two_lanes() -> None:
    """Order is kept within a partition; partitions do not wait for one another."""
    lanes = filled("a")
    lanes.add(record(0, "a", partition=1))
    assert {take(lanes).received.position.partition, take(lanes).received.position.partition} == {0, 1}


def test_a_held_record_comes_before_the_later_ones_of_its_key() -> None:
    """While the head of a key is held none of its key runs, and then the head runs first."""
    lanes = filled("a", "a", "b")
    lanes.hold(take(lanes), due_s=5.0)
    assert (offset_of(lanes.take()), lanes.take(), lanes.next_due_s, lanes.held) == (2, None, 5.0, 1)
    lanes.release(4.9)
    assert lanes.take() is None
    lanes.release(5.0)
    assert (offset_of(lanes.take()), lanes.next_due_s) == (0, None)


@pytest.mark.parametrize("held", [False, True])
def test_a_lost_partition_drops_what_waits_and_ignores_what_runs(held: bool) -> None:
    """After a loss nothing of the partition runs any more, and what ran is not to be acknowledged."""
    lanes = filled("a", "a", None, "b")
    running = take(lanes)
    if held:
        lanes.hold(take(lanes), due_s=0.0)
    assert lanes.lose((ZERO, ZERO)) == [ZERO]
    lanes.release(1.0)
    assert (lanes.take(), lanes.unfinished, lanes.held, running.wanted) == (None, 1, 0, False)
    assert lanes.finish(running) is False
    assert (lanes.unfinished, lanes.running) == (0, 0)


def test_a_partition_gained_again_knows_nothing_of_before() -> None:
    """Each gain has another number, and records of the gain before do not hold up the new ones."""
    lanes = filled("a")
    old = take(lanes)
    share = lanes.gain(ZERO)
    lanes.add(record(0, "a"))
    new = take(lanes)
    assert (new.ownership.gain, old.ownership.lost, share.end) == (old.ownership.gain + 1, True, 1)
    lanes.hold(old, due_s=0.0)
    lanes.release(1.0)
    assert (lanes.take(), lanes.unfinished) == (None, 1)


def test_closing_leaves_only_what_runs() -> None:
    """After close nothing is taken, what runs may finish and is to be acknowledged."""
    lanes = filled("a", "a", None)
    running = take(lanes)
    lanes.close()
    assert (lanes.take(), lanes.unfinished, running.wanted) == (None, 1, False)
    assert lanes.finish(running) is True
    assert (lanes.take(), lanes.unfinished) == (None, 0)


@given(
    keys=st.lists(st.sampled_from(["a", "b", None]), max_size=12),
    chance=st.randoms(use_true_random=False),
)
def test_any_history_runs_each_once_in_order_per_key(keys: list[str | None], chance: random.Random) -> None:
    """Whatever is held, released and finished in whatever order: each record finishes once, keys in order."""
    lanes = filled(*keys)
    finished: list[int] = []
    in_hand: list[Work] = []
    while lanes.unfinished:
        work = lanes.take() if chance.random() < 0.6 else None
        if work is not None:
            assert all(w.received.envelope.key != work.lane.key for w in in_hand if work.lane.key)
            in_hand.append(work)
        elif in_hand:
            work = in_hand.pop(chance.randrange(len(in_hand)))
            if chance.random() < 0.4:
                lanes.hold(work, due_s=0.0)
            else:
                assert lanes.finish(work)
                finished.append(work.received.position.offset)
        else:
            lanes.release(1.0)
    assert sorted(finished) == list(range(len(keys)))
    for key in {k for k in keys if k is not None}:
        of_key = [offset for offset in finished if keys[offset] == key]
        assert of_key == sorted(of_key)
    assert (lanes.running, lanes.ready, lanes.held) == (0, 0, 0)
