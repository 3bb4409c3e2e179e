"""Replay: a group's position moved to an offset or a time."""

from __future__ import annotations

from txbus.conformance._stage import Member, Stage, require
from txbus.conformance._suite import case
from txbus.spi import Capability, TopicPartition

POSITION = Capability.REPLAY_BY_POSITION
TIME = Capability.REPLAY_BY_TIME


def _reader(stage: Stage, *contents: str) -> tuple[TopicPartition, str, Member]:
    """A group's member that received all of these from one partition."""
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *contents)
    member = stage.member(group, topic)
    stage.until_texts(member, *contents)
    return TopicPartition(topic, 0), group, member


@case(POSITION, property="seek back delivers again from that offset on, in order")
def seek_back(stage: Stage) -> None:
    where, _, member = _reader(stage, *"abcde")
    member.ack_all()
    member.receiver.seek(where, member.seen[2].position.offset)
    stage.never(member, *"abcde", *"cde")


@case(POSITION, property="seek forward leaves out what lies between")
def seek_forward(stage: Stage) -> None:
    where, group, first = _reader(stage, *"abcde")
    first.receiver.close()
    second = stage.member(group, where.topic, manual=True)
    stage.settle(where.topic, 1, second)
    second.receiver.seek(where, first.seen[3].position.offset)
    stage.never(second, *"de")


@case(POSITION, property="a manual subscription delivers nothing of a gained partition until it is sought")
def manual_waits_for_seek(stage: Stage) -> None:
    topic = stage.topic(2)
    for number in range(2):
        stage.fill(topic, number, f"p{number}")
    member = stage.member(stage.group(), topic, manual=True)
    stage.settle(topic, 2, member)
    stage.quiet(member)
    require(not member.seen, f"received {member.texts()} before any seek")
    member.receiver.seek(TopicPartition(topic, 1), 0)
    stage.never(member, "p1")


@case(POSITION, property="seek behind the last record delivers only what is sent later")
def seek_to_the_end(stage: Stage) -> None:
    where, _, member = _reader(stage, *"abc")
    member.receiver.seek(where, member.seen[-1].position.offset + 1)
    stage.send_texts(where.topic, "d")
    stage.never(member, *"abc", "d")


@case(POSITION, property="seek below the first retained record delivers from that one on")
def seek_below_the_start(stage: Stage) -> None:
    where, _, member = _reader(stage, *"abc")
    member.receiver.seek(where, 0)
    stage.never(member, *"abc", *"abc")


@case(POSITION, property="seek to an offset between records delivers the next record", also=[Capability.LOG])
def seek_into_a_gap(stage: Stage) -> None:
    where, _, member = _reader(stage, *"abcde")
    log = stage.log(where.topic)
    log.truncate(0, member.seen[3].position.offset)
    member.receiver.seek(where, member.seen[1].position.offset)
    stage.never(member, *"abcde", *"de")


@case(POSITION, property="seek forgets what was not acknowledged; the next ack moves the position")
def seek_forgets_the_unfinished(stage: Stage) -> None:
    where, group, first = _reader(stage, *"abcde")
    first.receiver.seek(where, first.seen[3].position.offset)
    stage.until_texts(first, *"abcde", *"de")
    first.receiver.ack(first.seen[5:])
    first.receiver.close()
    stage.send_texts(where.topic, "later")
    stage.never(stage.member(group, where.topic), "later")


@case(POSITION, property="seek alone does not move the group's durable position")
def seek_is_not_durable(stage: Stage) -> None:
    where, group, first = _reader(stage, *"abcde")
    first.receiver.ack(first.seen[:3])
    first.receiver.seek(where, first.seen[0].position.offset)
    stage.until_seen(6, first)
    first.receiver.close()
    stage.never(stage.member(group, where.topic), *"de")


@case(POSITION, property="after a seek back the next ack moves the group's position back")
def ack_after_seek_back(stage: Stage) -> None:
    where, group, first = _reader(stage, *"abcde")
    first.ack_all()
    first.receiver.seek(where, first.seen[0].position.offset)
    stage.until_texts(first, *"abcde", *"abcde")
    first.receiver.ack(first.seen[5:7])
    first.receiver.close()
    stage.never(stage.member(group, where.topic), *"cde")


@case(POSITION, property="seek moves one partition and leaves the others")
def seek_one_partition(stage: Stage) -> None:
    topic = stage.topic(2)
    for number in range(2):
        stage.fill(topic, number, f"p{number}-a", f"p{number}-b")
    member = stage.member(stage.group(), topic)
    stage.until_seen(4, member)
    member.receiver.seek(TopicPartition(topic, 1), 0)
    stage.until_seen(6, member)
    stage.quiet(member)
    require(member.texts()[4:] == ["p1-a", "p1-b"], f"after the seek came {member.texts()[4:]}")


# by time


def _spaced(stage: Stage, *contents: str) -> tuple[str, list[float]]:
    """A topic whose messages were sent with time between them, and their times at the broker."""
    topic = stage.topic()
    for text in contents:
        stage.send_texts(topic, text)
        stage.harness.advance(0.2)
    member = stage.member(stage.group(), topic)
    stage.until_texts(member, *contents)
    member.receiver.close()
    return topic, [one.stored_at_s for one in member.seen]


def _sought(stage: Stage, topic: str, wall_s: float) -> Member:
    member = stage.member(stage.group(), topic, manual=True)
    stage.settle(topic, 1, member)
    member.receiver.seek_time(TopicPartition(topic, 0), wall_s)
    return member


@case(TIME, property="stored_at_s of later messages is later")
def stored_times_grow(stage: Stage) -> None:
    _, times = _spaced(stage, *"abc")
    require(times[0] < times[1] < times[2], f"0.2 s lie between the messages, stored at {times}")


@case(TIME, property="seek to a time between two messages delivers from the later one on")
def seek_between(stage: Stage) -> None:
    topic, times = _spaced(stage, *"abcd")
    stage.never(_sought(stage, topic, (times[1] + times[2]) / 2), *"cd")


@case(TIME, property="seek to a time before everything delivers everything")
def seek_before_everything(stage: Stage) -> None:
    topic, times = _spaced(stage, *"ab")
    stage.never(_sought(stage, topic, times[0] - 3600.0), *"ab")


@case(TIME, property="seek to a time after everything delivers only what is sent later")
def seek_after_everything(stage: Stage) -> None:
    topic, times = _spaced(stage, *"ab")
    member = _sought(stage, topic, times[1] + 0.1)
    stage.send_texts(topic, "c")
    stage.never(member, "c")


@case(TIME, property="seek to the very time of a message includes it")
def seek_is_inclusive(stage: Stage) -> None:
    topic, times = _spaced(stage, *"abc")
    stage.never(_sought(stage, topic, times[1]), *"bc")


@case(TIME, property="a new group may start at a time")
def start_at_a_time(stage: Stage) -> None:
    topic, times = _spaced(stage, *"abc")
    stage.never(stage.member(stage.group(), topic, start=(times[0] + times[1]) / 2), *"bc")


@case(TIME, property="seek back in time delivers again what was acknowledged")
def seek_back_in_time(stage: Stage) -> None:
    topic, times = _spaced(stage, *"abc")
    member = stage.member(stage.group(), topic)
    stage.until_texts(member, *"abc")
    member.ack_all()
    member.receiver.seek_time(TopicPartition(topic, 0), (times[0] + times[1]) / 2)
    stage.never(member, *"abc", *"bc")
