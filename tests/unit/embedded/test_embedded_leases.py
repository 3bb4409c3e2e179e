"""Group members lease partitions; a lease that is over fences its member."""

from __future__ import annotations

import pytest

from tests.unit.embedded.station import Station, drain, message, settle, texts
from txbus.errors import Fenced
from txbus.spi import Batch, Committed, Receiver, Subscription, TopicPartition

T0 = TopicPartition("t", 0)


def parts(*numbers: int) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition("t", number) for number in numbers)


def owners(station: Station, group: str = "g") -> list[str | None]:
    return [row.owner for row in station.backend.admin().group_status(group, ["t"])]


def own(receiver: Receiver) -> frozenset[TopicPartition]:
    return receiver.receive(1, 0.0).membership.partitions


def test_members_share_partitions_evenly_without_overlap(station: Station) -> None:
    """Three members of seven partitions get two or three each, all of them, no one twice."""
    station.topic(partitions=7)
    members = [station.another().receiver(Subscription("g", ("t",))) for _ in range(3)]
    settle(*members)
    shares = [own(member) for member in members]
    assert sorted(map(len, shares)) == [2, 2, 3]
    assert frozenset().union(*shares) == parts(*range(7))


def test_a_newcomer_takes_only_what_makes_it_fair(station: Station) -> None:
    """The older member keeps the rest, without interruption: neither lost nor gained again."""
    station.topic(partitions=4)
    first, second = station.receiver(), station.receiver()
    assert len(first.receive(1, 0.0).gained) == 4
    assert not second.receive(1, 0.0).gained
    batch = first.receive(1, 0.0)
    assert len(batch.lost) == 2 and not batch.gained
    gained = second.receive(1, 0.0).gained
    assert gained == batch.lost
    assert own(first) == parts(0, 1, 2, 3) - gained


def test_what_is_kept_is_not_interrupted(station: Station) -> None:
    """Deliveries in flight of a kept partition are acknowledged after a rebalance; those of a
    released one are fenced, and come again at the new owner."""
    station.topic(partitions=2)
    sender = station.backend.sender("s")
    for number in (0, 1):
        sender.append(message(f"p{number}"), number)
    sender.close()
    first, second = station.receiver(), station.receiver()
    received = drain(first, 2)
    second.receive(1, 0.0)
    lost = first.receive(1, 0.0).lost
    assert len(lost) == 1
    kept = [one for one in received if one.position.where not in lost]
    gone = [one for one in received if one.position.where in lost]
    with pytest.raises(Fenced, match=str(gone[0].position.where)):
        first.ack(received)
    assert first.committed(kept[0].position.where) == Committed(1)
    assert first.committed(gone[0].position.where) is None
    assert texts(drain(second, 1)) == texts(gone)


def test_leaving_frees_the_partitions_at_once(station: Station) -> None:
    """The others need not wait for the lease."""
    station.topic(partitions=2)
    first, second = station.receiver(lease_s=1000.0), station.receiver(lease_s=1000.0)
    settle(first, second)
    first.close()
    first.close()
    assert len(own(second)) == 2
    second.close()
    assert owners(station) == [None, None]


def test_a_closed_backend_leaves_its_groups(station: Station) -> None:
    """Closing the backend is as good as closing its receivers."""
    station.topic()
    other = station.another()
    other.receiver(Subscription("g", ("t",))).receive(1, 0.0)
    assert owners(station) != [None]
    other.close()
    assert owners(station) == [None]


def test_polling_keeps_the_lease(station: Station) -> None:
    """A member that polls keeps its partitions for ever, by waiting in receive or between calls."""
    station.topic()
    first, second = station.receiver(lease_s=10.0), station.receiver(lease_s=10.0)
    first.receive(1, 0.0)
    second.receive(1, 0.0)
    for _ in range(10):
        station.clock.advance(7.0)
        batch = first.receive(1, 0.0)
        assert batch.membership.partitions == {T0} and not batch.lost
        second.receive(1, 0.0)
    first.receive(1, 40.0)
    assert own(first) == {T0}


def expire(station: Station) -> tuple[Receiver, Batch]:
    """A member that received three messages and then fell silent beyond its lease."""
    station.topic()
    station.send("0", "1", "2")
    zombie = station.receiver(lease_s=10.0)
    batch = zombie.receive(10, 1.0)
    assert len(batch.received) == 3
    station.clock.advance(10.1)
    return zombie, batch


def test_a_silent_members_partitions_are_taken_over(station: Station) -> None:
    """Another member gets them with what was unfinished, waiting no longer than the lease."""
    station.topic()
    station.send("0", "1")
    silent = station.receiver(lease_s=10.0)
    received = drain(silent, 2)
    silent.ack(received[:1])
    other = station.receiver(lease_s=10.0)
    other.receive(1, 0.0)
    before = station.clock.monotonic_s()
    assert texts(drain(other, 1, timeout_s=30.0)) == ["1"]
    assert station.clock.monotonic_s() - before <= 10.1


def test_a_member_whose_lease_is_over_is_fenced(station: Station) -> None:
    """Its ack, redelivery and positions fail, before anybody took over and after."""
    zombie, batch = expire(station)
    for taken_over in (False, True):
        if taken_over:
            other = station.receiver()
            assert texts(drain(other, 3)) == ["0", "1", "2"]
        with pytest.raises(Fenced, match="rejoins"):
            zombie.ack(batch.received[:1])
        with pytest.raises(Fenced):
            zombie.redeliver(batch.received[0], 0.0)
        step = station.backend.broker_transactions("id", 60.0).begin()
        step.send(message("never"))
        step.positions("g", batch.membership, {T0: Committed(3)})
        with pytest.raises(Fenced):
            step.commit()
    assert zombie.committed(T0) is None
    assert station.backend.log("t").end(0) == 3


def test_a_fenced_member_reports_its_losses_and_rejoins(station: Station) -> None:
    """First a batch that has only the losses, then it is a member again under new epochs."""
    zombie, old = expire(station)
    batch = zombie.receive(10, 5.0)
    assert batch.lost == {T0} and not batch.gained and not batch.received
    assert batch.membership.partitions == frozenset()
    again = zombie.receive(10, 5.0)
    assert again.gained == {T0} and texts(again.received) == ["0", "1", "2"]
    with pytest.raises(Fenced):
        zombie.ack(old.received)
    zombie.ack(again.received)
    assert zombie.committed(T0) == Committed(3)


def test_a_fenced_member_does_not_take_back_what_another_owns(station: Station) -> None:
    """It comes back as a member like any other: one partition has one owner."""
    zombie, _ = expire(station)
    other = station.receiver(lease_s=10.0)
    assert len(drain(other, 3)) == 3
    zombie.receive(1, 0.0)
    for _ in range(4):
        assert not zombie.receive(10, 0.0).received
        assert own(other) == {T0}


def test_an_outdated_snapshot_is_fenced(station: Station) -> None:
    """A membership of before a rebalance does not cover a partition that left and came back."""
    station.topic(partitions=2)
    first = station.receiver()
    old = first.receive(1, 0.0).membership
    second = station.receiver()
    second.receive(1, 0.0)
    lost = first.receive(1, 0.0).lost
    second.receive(1, 0.0)
    second.close()
    new = first.receive(1, 0.0).membership
    assert new.partitions == old.partitions == parts(0, 1)
    where = next(iter(lost))
    owner = station.backend.broker_transactions("id", 60.0)
    step = owner.begin()
    step.positions("g", old, {where: Committed(0, "old")})
    with pytest.raises(Fenced, match=str(where)):
        step.commit()
    step = owner.begin()
    step.positions("g", new, {where: Committed(0, "new")})
    step.commit()
    assert first.committed(where) == Committed(0, "new")


def test_a_lease_of_before_a_reboot_is_over(station: Station) -> None:
    """The monotonic clock began anew: an end further away than the lease is long does not count."""
    station.topic()
    receiver = station.receiver(lease_s=10.0)
    receiver.receive(1, 0.0)
    station.clock.monotonic = 5.0
    assert owners(station) == [None]
    other = station.receiver(lease_s=10.0)
    assert own(other) == {T0}


def test_members_of_one_group_may_read_different_topics(station: Station) -> None:
    """A member never gets a partition of a topic that it did not subscribe to."""
    station.topic("a", 2)
    station.topic("b", 2)
    one, both = station.receiver(topics=("a",)), station.receiver(topics=("a", "b"))
    settle(one, both)
    mine = one.receive(1, 0.0).membership.partitions
    others = both.receive(1, 0.0).membership.partitions
    assert {where.topic for where in mine} == {"a"}
    assert mine | others == {TopicPartition(t, n) for t in "ab" for n in (0, 1)} and not mine & others


def test_more_members_than_partitions(station: Station) -> None:
    """Those without one wait, and step in when one leaves."""
    station.topic()
    members = [station.receiver() for _ in range(3)]
    settle(*members)
    shares = [own(member) for member in members]
    assert sorted(map(len, shares)) == [0, 0, 1]
    members.pop(next(i for i, share in enumerate(shares) if share)).close()
    settle(*members)
    assert sum(len(own(member)) for member in members) == 1


def test_groups_are_apart(station: Station) -> None:
    """Each group owns all partitions for itself."""
    station.topic(partitions=2)
    assert len(own(station.receiver("a"))) == len(own(station.receiver("b"))) == 2
