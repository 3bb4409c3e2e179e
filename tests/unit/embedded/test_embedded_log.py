"""The log by position, retention, topics and group status."""

from __future__ import annotations

import sqlite3

import pytest

from tests.unit.embedded.station import Station, drain, message, texts
from txbus.errors import DestinationRefused, NotOpen, SettingsError
from txbus.spi import Committed, Envelope, TopicKind, TopicPartition, TopicSpec

T0 = TopicPartition("t", 0)


def test_reading_goes_on_from_where_it_ended(station: Station) -> None:
    """Each read tells the next offset; at the end it returns at once with nothing."""
    station.topic()
    station.send(*[str(index) for index in range(10)])
    log = station.backend.log("t")
    seen: list[str] = []
    offset = log.start(0)
    while offset < log.end(0):
        records, offset = log.read(0, offset, 4, 1.0)
        seen += texts(records)
    assert seen == [str(index) for index in range(10)]
    assert log.read(0, offset, 4, 30.0) == ((), 10)


def test_a_read_is_limited_in_bytes(station: Station) -> None:
    """At least one record, and not much more than 8 MiB at once."""
    station.topic()
    sender = station.backend.sender("s")
    for _ in range(4):
        sender.send([Envelope("t", b"x" * 5_000_000, "k")], 30.0)
    log = station.backend.log("t")
    assert [log.read(0, offset, 100, 1.0)[1] for offset in (0, 2)] == [2, 4]


def test_truncate_deletes_below(station: Station) -> None:
    """Reading begins at the new start; doing it again, or lower, changes nothing."""
    station.topic()
    station.send(*[str(index) for index in range(2500)])
    log = station.backend.log("t")
    log.truncate(0, 2400)
    log.truncate(0, 2400)
    log.truncate(0, 5)
    assert (log.start(0), log.end(0)) == (2400, 2500)
    records, next_offset = log.read(0, 0, 1, 1.0)
    assert texts(records) == ["2400"] and next_offset == 2401
    log.truncate(0, 99_999)
    assert log.start(0) == log.end(0) == 2500
    station.send("next")
    assert texts(drain(station.receiver(), 1)) == ["next"]


def test_a_group_below_the_start_goes_on_at_the_start(station: Station) -> None:
    """A position that was truncated away is no gap to stumble over, owned or not."""
    station.topic()
    station.send(*[str(index) for index in range(6)])
    receiver = station.receiver()
    receiver.ack(drain(receiver, 1))
    receiver.close()
    station.backend.log("t").truncate(0, 4)
    other = station.receiver()
    assert texts(drain(other, 1)) == ["4"]
    station.send("6", "7")
    third = station.receiver("new")
    third.receive(1, 0.0)
    station.backend.log("t").truncate(0, 7)
    assert "7" in texts(drain(third, 9, 0.0, rounds=5))


def test_rows_left_below_the_start_are_not_delivered(file_station: Station) -> None:
    """A truncation that died between moving the start and deleting is finished for every reader,
    and the next one deletes the rows."""
    station = file_station
    station.topic()
    receiver = station.receiver()
    receiver.receive(1, 0.0)
    station.send("0", "1", "2")
    connection = sqlite3.connect(station.url.location)
    connection.execute("UPDATE partitions SET start_offset = 2")
    connection.commit()
    assert texts(drain(receiver, 1)) == ["2"]
    log = station.backend.log("t")
    assert texts(log.read(0, 0, 10, 1.0)[0]) == ["2"]
    log.truncate(0, 2)
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (1,)
    connection.close()


def test_logs_of_missing_topics_and_partitions(station: Station) -> None:
    """Named in the error; a log opened early works when the topic is there."""
    log = station.backend.log("t")
    with pytest.raises(DestinationRefused):
        log.end(0)
    station.topic()
    assert log.end(0) == 0
    with pytest.raises(DestinationRefused, match="0 to 0, not 1"):
        log.end(1)
    log.close()
    log.close()
    with pytest.raises(NotOpen):
        log.end(0)


def test_retention_deletes_old_records_in_passing(station: Station) -> None:
    """What is older than the topic's retention goes, what is younger stays, other topics keep all."""
    station.topic(retention_s=100.0)
    station.topic("keep", retention_s=None)
    station.send(*[str(index) for index in range(1200)])
    station.send("old", topic="keep")
    station.clock.advance(60)
    station.send("young")
    station.clock.advance(50)
    log = station.backend.log("t")
    for _ in range(8):
        station.clock.advance(0.3)
        station.send("x", topic="keep")
    assert log.start(0) == 1200
    assert texts(log.read(0, 0, 10, 1.0)[0]) == ["young"]
    assert station.backend.log("keep").start(0) == 0


def test_retention_is_a_receivers_work_too(station: Station) -> None:
    """A process that only receives deletes as well."""
    station.topic(retention_s=100.0)
    station.send("0")
    receiver = station.receiver(lease_s=1000.0)
    receiver.ack(drain(receiver, 1))
    station.clock.advance(200)
    receiver.receive(1, 20.0)
    assert station.backend.log("t").start(0) == 1


def test_create_is_idempotent_and_leaves_topics_as_they_are(station: Station) -> None:
    """A second declaration changes nothing; verify says what differs."""
    admin = station.backend.admin()
    spec = TopicSpec("t", 4, TopicKind.ORDERED, retention_s=60.0, internal=False)
    admin.create([spec, TopicSpec("u", 1)])
    admin.create([TopicSpec("t", 8, retention_s=None, internal=True)])
    described = admin.describe(["t", "nope"])
    assert described["nope"] is None and described["t"] is not None
    assert described["t"].partitions == 4
    assert dict(described["t"].settings) == {"kind": "ordered", "retention_s": "60", "internal": "false"}
    assert admin.verify(spec) == []
    wrong = admin.verify(TopicSpec("t", 8, retention_s=None, internal=True))
    assert len(wrong) == 3 and "4 partitions, not 8" in wrong[0] and "unlimited" in wrong[1]
    with pytest.raises(DestinationRefused):
        admin.verify(TopicSpec("nope", 1))


@pytest.mark.parametrize(
    "spec", [TopicSpec("t", 0), TopicSpec("t", 2000), TopicSpec("", 1), TopicSpec("t", 1, retention_s=0.0)]
)
def test_impossible_topics_are_refused(station: Station, spec: TopicSpec) -> None:
    """Zero or too many partitions, no name, no retention."""
    with pytest.raises(SettingsError):
        station.backend.admin().create([spec])


def test_group_status(station: Station) -> None:
    """One row a partition: position, end and the live owner; missing topics have none."""
    station.topic(partitions=2)
    station.topic("u")
    sender = station.backend.sender("s")
    for index in range(3):
        sender.append(message(str(index)), 0)
    sender.close()
    receiver = station.receiver(lease_s=10.0)
    receiver.ack(drain(receiver, 3)[:2])
    rows = station.backend.admin().group_status("g", ["t", "nope", "u"])
    assert [(str(row.where), row.committed, row.end) for row in rows] == [
        ("t/0", 2, 3),
        ("t/1", None, 0),
        ("u/0", None, 0),
    ]
    assert rows[0].owner is not None and rows[0].owner.startswith(f"{station.runtime.pid}-")
    assert rows[0].owner == rows[1].owner and rows[2].owner is None
    station.clock.advance(11)
    assert station.backend.admin().group_status("g", ["t"])[0].owner is None
    assert receiver.committed(T0) == Committed(2)
