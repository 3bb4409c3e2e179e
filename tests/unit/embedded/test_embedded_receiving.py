"""Positions, acknowledgements, seeking, pausing."""

from __future__ import annotations

import pytest

from tests.unit.embedded.station import Station, drain, message, texts
from txbus.errors import DestinationRefused, Fenced, SettingsError
from txbus.spi import Committed, Envelope, TopicPartition

T0 = TopicPartition("t", 0)


def numbers(count: int, start: int = 0) -> list[str]:
    return [str(index) for index in range(start, start + count)]


def test_the_assignment_comes_before_its_records(station: Station) -> None:
    """The first batch reports what was gained, with a snapshot that covers every record."""
    station.topic(partitions=3)
    station.send(*numbers(9), key=None)
    batch = station.receiver().receive(100, 1.0)
    assert batch.gained == batch.membership.partitions == {TopicPartition("t", n) for n in range(3)}
    assert {one.position.where for one in batch.received} <= batch.membership.partitions
    assert not batch.lost and len(batch.received) == 9


def test_an_acknowledged_message_is_not_delivered_again(station: Station) -> None:
    """The next member of the group goes on behind it; another group has its own position."""
    station.topic()
    station.send(*numbers(5))
    receiver = station.receiver()
    received = drain(receiver, 5)
    receiver.ack(received[:3])
    receiver.ack(received[:3])
    assert receiver.committed(T0) == Committed(3)
    receiver.close()
    assert texts(drain(station.receiver(), 2)) == ["3", "4"]
    assert texts(drain(station.receiver("other"), 5)) == numbers(5)


def test_the_position_never_passes_an_unfinished_delivery(station: Station) -> None:
    """Acks out of order are remembered, and count when the gap is closed."""
    station.topic()
    station.send(*numbers(5))
    receiver = station.receiver()
    received = drain(receiver, 5)
    receiver.ack(received[1:4])
    assert receiver.committed(T0) is None
    receiver.ack(received[:1])
    assert receiver.committed(T0) == Committed(4)


def test_unfinished_deliveries_come_again_to_the_next_member(station: Station) -> None:
    """What was received and not acknowledged is not lost with its member."""
    station.topic()
    station.send(*numbers(4))
    receiver = station.receiver()
    received = drain(receiver, 4)
    receiver.ack([received[0], received[2]])
    receiver.close()
    assert texts(drain(station.receiver(), 3)) == ["1", "2", "3"]


def test_start_latest_skips_what_was_there(station: Station) -> None:
    """A new group begins at the end, durably: what comes while nobody listens is not skipped."""
    station.topic()
    station.send(*numbers(3))
    receiver = station.receiver(start="latest")
    assert not receiver.receive(10, 0.0).received
    receiver.close()
    station.send("3", "4")
    assert texts(drain(station.receiver(start="latest"), 2)) == ["3", "4"]


def test_start_at_a_time(station: Station) -> None:
    """A new group begins with the first record stored at or after the time."""
    station.topic()
    station.send("0")
    station.clock.advance(10)
    when = station.clock.wall_s()
    station.send("1")
    station.clock.advance(10)
    station.send("2")
    assert texts(drain(station.receiver(start=when), 2)) == ["1", "2"]
    assert texts(drain(station.receiver("late", start=when + 1), 1)) == ["2"]
    assert not station.receiver("later", start=when + 11).receive(9, 0.0).received


def test_a_wrong_start_is_refused(station: Station) -> None:
    """The value is named."""
    with pytest.raises(SettingsError, match="'newest'"):
        station.receiver(start="newest")


def test_a_missing_topic_is_refused_at_receive(station: Station) -> None:
    """And it works as soon as the topic exists."""
    receiver = station.receiver()
    with pytest.raises(DestinationRefused):
        receiver.receive(1, 0.0)
    station.topic()
    station.send("a")
    assert texts(drain(receiver, 1)) == ["a"]


def test_max_messages_is_kept_and_partitions_take_turns(station: Station) -> None:
    """A full partition does not hold up the others."""
    station.topic(partitions=2)
    sender = station.backend.sender("g")
    for partition in (0, 1):
        for index in range(300):
            sender.append(message(str(index)), partition)
    sender.close()
    receiver = station.receiver()
    seen = []
    for _ in range(4):
        batch = receiver.receive(50, 1.0)
        assert len(batch.received) == 50
        seen.append({one.position.partition for one in batch.received})
    assert seen in ([{0}, {1}, {0}, {1}], [{1}, {0}, {1}, {0}])


def test_more_than_is_read_at_once(station: Station) -> None:
    """Reading ahead in pieces loses, doubles and reorders nothing."""
    station.topic()
    sender = station.backend.sender("g")
    sender.send([message(str(index)) for index in range(1000)], 5.0)
    receiver = station.receiver()
    got = texts(drain(receiver, 300))
    sender.send([message(str(index)) for index in range(1000, 1100)], 5.0)
    got += texts(drain(receiver, 800))
    assert got == numbers(1100)


def test_large_records_are_read_a_few_at_a_time(station: Station) -> None:
    """Reading ahead is limited in bytes too, and every record still arrives."""
    station.topic()
    sender = station.backend.sender("g")
    sender.send([Envelope("t", b"%d" % index + b"x" * 700_000, "k") for index in range(4)], 5.0)
    assert [one[0] for one in texts(drain(station.receiver(), 4))] == numbers(4)


def test_seek_goes_back_and_forward(station: Station) -> None:
    """The position follows with the next ack, also backwards."""
    station.topic()
    station.send(*numbers(6))
    receiver = station.receiver()
    received = drain(receiver, 6)
    receiver.ack(received)
    receiver.seek(T0, 2)
    assert receiver.committed(T0) == Committed(6)
    again = drain(receiver, 2)
    assert texts(again) == ["2", "3"]
    receiver.ack(again[:1])
    assert receiver.committed(T0) == Committed(3)
    receiver.seek(T0, 5)
    assert texts(drain(receiver, 1)) == ["5"]


def test_seek_forgets_what_was_in_flight(station: Station) -> None:
    """Acks of deliveries of before a seek are without effect."""
    station.topic()
    station.send(*numbers(4))
    receiver = station.receiver()
    before = drain(receiver, 4)
    receiver.seek(T0, 0)
    receiver.ack(before)
    receiver.redeliver(before[0], 0.0)
    assert receiver.committed(T0) is None
    after = drain(receiver, 4)
    assert texts(after) == numbers(4)
    receiver.ack(before)
    assert receiver.committed(T0) is None
    receiver.ack(after[:2])
    assert receiver.committed(T0) == Committed(2)


def test_seek_beyond_the_end_waits(station: Station) -> None:
    """The next record is the first at or above the offset."""
    station.topic()
    station.send("0")
    receiver = station.receiver()
    receiver.receive(10, 0.0)
    receiver.seek(T0, 3)
    station.send("1", "2", "3")
    assert texts(drain(receiver, 1)) == ["3"]


def test_seek_time(station: Station) -> None:
    """The next record is the first stored at or after the time; none: the end."""
    station.topic()
    start = station.clock.wall_s()
    for index in range(5):
        station.send(str(index))
        station.clock.advance(1)
    receiver = station.receiver()
    drain(receiver, 5)
    receiver.seek_time(T0, start + 2.5)
    assert texts(drain(receiver, 2)) == ["3", "4"]
    receiver.seek_time(T0, start + 100)
    station.send("5")
    assert texts(drain(receiver, 1)) == ["5"]


def test_only_owned_partitions_can_be_sought(station: Station) -> None:
    """Before joining nothing is owned."""
    station.topic()
    receiver = station.receiver()
    with pytest.raises(Fenced):
        receiver.seek(T0, 0)
    with pytest.raises(Fenced):
        receiver.seek_time(T0, 0.0)


def test_a_manual_subscription_waits_for_seek(station: Station) -> None:
    """A gained partition delivers nothing until it is sought."""
    station.topic(partitions=2)
    station.send(*numbers(4), key=None)
    receiver = station.receiver(manual=True)
    batch = receiver.receive(10, 0.0)
    assert len(batch.gained) == 2 and not batch.received
    assert not receiver.receive(10, 0.0).received
    receiver.seek(T0, 1)
    received = drain(receiver, 1)
    assert [(one.position.partition, one.position.offset) for one in received] == [(0, 1)]
    assert not receiver.receive(10, 0.0).received


def test_pause_and_resume(station: Station) -> None:
    """A paused partition delivers nothing, read ahead or new; then it goes on where it was."""
    station.topic(partitions=2)
    station.send(*numbers(10), key=None)
    receiver = station.receiver()
    first = receiver.receive(2, 1.0)
    receiver.pause(frozenset({T0}))
    receiver.pause(frozenset({T0, TopicPartition("t", 9)}))
    rest = drain(receiver, 20, timeout_s=0.0, rounds=5)
    assert {one.position.partition for one in rest} <= {1}
    receiver.resume(frozenset({T0}))
    everything = [*first.received, *rest, *drain(receiver, 20, timeout_s=0.0, rounds=5)]
    assert sorted(texts(everything), key=int) == numbers(10)
    assert [one.position.offset for one in everything if one.position.where == T0] == [0, 1, 2, 3, 4]


def test_receiving_waits_for_the_whole_timeout(station: Station) -> None:
    """Nothing there: an empty batch when the time is over, heartbeats included."""
    station.topic()
    receiver = station.receiver(lease_s=10.0)
    receiver.receive(1, 0.0)
    before = station.clock.monotonic_s()
    batch = receiver.receive(1, 7.0)
    assert not batch.received and not batch.gained
    assert station.clock.monotonic_s() - before == pytest.approx(7.0, abs=0.1)


def test_a_foreign_delivery_is_refused(station: Station) -> None:
    """A delivery of a log, or of another backend, cannot be acknowledged."""
    station.topic()
    station.send("a")
    (record,), _ = station.backend.log("t").read(0, 0, 10, 1.0)
    with pytest.raises(SettingsError, match="was not received from"):
        station.receiver().ack([record])
