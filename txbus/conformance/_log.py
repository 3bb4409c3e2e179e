"""The log: start, readable end, reading from a position, truncating below one."""

from __future__ import annotations

from txbus.conformance._stage import Stage, envelope, require, texts
from txbus.conformance._suite import case
from txbus.errors import DestinationRefused
from txbus.spi import Capability, Log, Received, TopicPartition

LOG = Capability.LOG
TRANSACTION = Capability.BROKER_TRANSACTION


def _read_all(log: Log, offset: int, partition: int = 0, step: int = 100) -> list[Received]:
    """Everything readable from an offset on, until reading makes no more way."""
    found = list[Received]()
    while True:
        records, following = log.read(partition, offset, step, 0.0)
        found.extend(records)
        if following <= offset:
            return found
        offset = following


def _filled(stage: Stage, *contents: str) -> tuple[str, Log, list[int]]:
    """A topic with these in partition 0, its log, and their offsets."""
    topic = stage.topic()
    receipts = stage.fill(topic, 0, *contents)
    return topic, stage.log(topic), [-1 if one.offset is None else one.offset for one in receipts]


@case(LOG, property="an empty partition's start is its end, and reading it gives nothing")
def empty_log(stage: Stage) -> None:
    log = stage.log(stage.topic())
    require(log.start(0) == log.end(0), f"empty from {log.start(0)} to {log.end(0)}")
    records, following = log.read(0, log.start(0), 10, 0.0)
    require(not records and following == log.start(0), f"read {len(records)} records, go on from {following}")


@case(LOG, property="the end lies above every record whose send has returned")
def end_includes_what_was_sent(stage: Stage) -> None:
    topic, log, offsets = _filled(stage, *"abc")
    require(log.end(0) > offsets[-1], f"sent up to {offsets[-1]}, end {log.end(0)}")
    more = stage.fill(topic, 0, "d")[0].offset
    require(more is not None and log.end(0) > more, f"sent up to {more}, end {log.end(0)}")


@case(LOG, property="the end includes everything committed by a broker transaction", also=[TRANSACTION])
def end_includes_what_was_committed(stage: Stage) -> None:
    topic, log, _ = _filled(stage, "a")
    stage.commit(envelope(topic, "b"), envelope(topic, "c"))
    end, found = log.end(0), _read_all(log, log.start(0))
    require(texts(found) == ["a", "b", "c"], f"committed a, b, c; readable is {texts(found)}")
    require(end > found[-1].position.offset, f"c is at {found[-1].position.offset}, the end {end}")


@case(LOG, property="reading on and on reaches the end, over gaps too")
def reading_reaches_the_end(stage: Stage) -> None:
    topic, log, _ = _filled(stage, *"abc")
    if stage.declares(TRANSACTION):
        stage.commit(envelope(topic, "d"))
        transaction = stage.transactions(stage.harness.unique("id"), stage.first).begin()
        transaction.send(envelope(topic, "gone"), 0)
        transaction.abort()
    offset, end = log.start(0), log.end(0)
    for _ in range(end - offset + 1):
        _, offset = log.read(0, offset, 1, 0.0)
    require(offset >= end, f"one by one from {log.start(0)}, reading stops at {offset}, the end is {end}")


@case(LOG, property="read from the start gives every record at the offset of its receipt, in order")
def read_from_the_start(stage: Stage) -> None:
    _, log, offsets = _filled(stage, *"abcdef")
    got = [(one.position.offset, one.envelope.payload.decode()) for one in _read_all(log, log.start(0))]
    require(got == list(zip(offsets, "abcdef", strict=True)), f"receipts {offsets}, read {got}")


@case(LOG, property="read from an offset gives the record at it first")
def read_from_the_middle(stage: Stage) -> None:
    _, log, offsets = _filled(stage, *"abcdef")
    got = texts(_read_all(log, offsets[3]))
    require(got == ["d", "e", "f"], f"from the offset of d: {got}")


@case(LOG, property="read gives at most what was asked for, and goes on without loss or repetition")
def read_in_steps(stage: Stage) -> None:
    _, log, _ = _filled(stage, *(f"m{n}" for n in range(20)))
    records, _ = log.read(0, log.start(0), 3, 0.0)
    require(len(records) <= 3, f"asked for 3, got {len(records)}")
    got = texts(_read_all(log, log.start(0), step=3))
    require(got == [f"m{n}" for n in range(20)], f"in steps of 3: {got}")


@case(LOG, property="read at the readable end returns at once, with nothing, and stays there")
def read_at_the_end(stage: Stage) -> None:
    _, log, _ = _filled(stage, *"ab")
    end = log.end(0)
    records, following = log.read(0, end, 10, stage.harness.answer_s)
    require(not records and following == end, f"{len(records)} records at {end}, go on from {following}")


@case(LOG, property="partitions are separate logs")
def partitions_are_separate(stage: Stage) -> None:
    topic = stage.topic(3)
    stage.fill(topic, 0, *"ab")
    stage.fill(topic, 2, "z")
    log = stage.log(topic)
    got = [texts(_read_all(log, log.start(number), number)) for number in range(3)]
    require(got == [["a", "b"], [], ["z"]], f"read {got}")


@case(LOG, property="key, headers and payload are read as they were sent")
def records_are_read_as_sent(stage: Stage) -> None:
    topic = stage.topic()
    sent = envelope(topic, "one", "ключ", headers={"naïve": "値"})
    stage.send(sent)
    log = stage.log(topic)
    got = _read_all(log, log.start(0))[0].envelope
    wanted = (topic, sent.key, sent.payload, {**sent.headers})
    require((got.topic, got.key, got.payload, {**got.headers}) == wanted, f"sent {sent}, read {got}")


@case(
    LOG,
    property="an open broker transaction is not readable; it comes at or above the end",
    also=[TRANSACTION],
)
def open_is_not_readable(stage: Stage) -> None:
    topic, log, _ = _filled(stage, "a")
    transaction = stage.transactions(stage.harness.unique("id")).begin()
    transaction.send(envelope(topic, "b"), 0)
    end = log.end(0)
    got = texts(_read_all(log, log.start(0)))
    require(got == ["a"], f"readable while open: {got}")
    transaction.commit()
    late = [one for one in _read_all(log, log.start(0)) if one.envelope.payload == b"b"]
    require(len(late) == 1, f"{len(late)} records of the committed transaction")
    require(late[0].position.offset >= end, f"came at {late[0].position.offset}, below the end {end}")


@case(
    LOG,
    property="an aborted broker transaction is never readable; reading goes on behind it",
    also=[TRANSACTION],
)
def aborted_is_not_readable(stage: Stage) -> None:
    topic, log, _ = _filled(stage, "a")
    transaction = stage.transactions(stage.harness.unique("id")).begin()
    transaction.send(envelope(topic, "gone"), 0)
    transaction.abort()
    stage.fill(topic, 0, "b")
    got = texts(_read_all(log, log.start(0), step=1))
    require(got == ["a", "b"], f"read {got}")


@case(LOG, property="truncate deletes what lies below and keeps what lies at and above")
def truncate_deletes_below(stage: Stage) -> None:
    _, log, offsets = _filled(stage, *"abcdef")
    log.truncate(0, offsets[2])
    require(log.start(0) == offsets[2], f"truncated below {offsets[2]}, start {log.start(0)}")
    got = texts(_read_all(log, log.start(0)))
    require(got == ["c", "d", "e", "f"], f"kept {got}")


@case(LOG, property="truncate may be repeated, and a lower one afterwards changes nothing")
def truncate_is_idempotent(stage: Stage) -> None:
    _, log, offsets = _filled(stage, *"abcdef")
    for before in (offsets[3], offsets[3], offsets[1]):
        log.truncate(0, before)
        require(log.start(0) == offsets[3], f"truncate below {before} moved the start to {log.start(0)}")


@case(LOG, property="read below a truncation starts at the start")
def read_below_the_truncation(stage: Stage) -> None:
    _, log, offsets = _filled(stage, *"abcdef")
    log.truncate(0, offsets[4])
    records, following = log.read(0, offsets[0], 10, 0.0)
    require(texts(records) == ["e", "f"], f"read {texts(records)} from below the start")
    require(following >= log.end(0), f"go on from {following}, end {log.end(0)}")


@case(LOG, property="truncated to its end a partition is empty, and its offsets go on growing")
def truncate_everything(stage: Stage) -> None:
    topic, log, offsets = _filled(stage, *"abc")
    end = log.end(0)
    log.truncate(0, end)
    require(log.start(0) == log.end(0) == end, f"from {log.start(0)} to {log.end(0)}, it ended at {end}")
    following = stage.fill(topic, 0, "d")[0].offset
    require(following is not None and following >= end, f"offset {following} after {offsets[-1]}, end {end}")
    require(texts(_read_all(log, offsets[0])) == ["d"], "only the later record is left")


@case(LOG, property="truncate leaves the other partitions alone")
def truncate_one_partition(stage: Stage) -> None:
    topic = stage.topic(2)
    for number in range(2):
        stage.fill(topic, number, *"ab")
    log = stage.log(topic)
    log.truncate(0, log.end(0))
    got = texts(_read_all(log, log.start(1), 1))
    require(got == ["a", "b"], f"partition 1 has {got}")


@case(LOG, property="a group that starts in a truncated partition starts at what is left")
def group_starts_behind_the_truncation(stage: Stage) -> None:
    topic, log, offsets = _filled(stage, *"abc")
    log.truncate(0, offsets[2])
    stage.never(stage.member(stage.group(), topic), "c")


@case(LOG, property="reading the log moves no group's position")
def reading_moves_no_group(stage: Stage) -> None:
    topic, log, _ = _filled(stage, *"abc")
    group = stage.group()
    member = stage.member(group, topic)
    stage.until_texts(member, *"abc")
    member.receiver.ack(member.seen[:1])
    before = member.receiver.committed(TopicPartition(topic, 0))
    _read_all(log, log.start(0))
    log.close()
    require(member.receiver.committed(TopicPartition(topic, 0)) == before, "reading moved a position")
    member.receiver.close()
    stage.never(stage.member(group, topic), *"bc")


@case(LOG, property="the log of a missing topic is refused with DestinationRefused, at the latest by a read")
def log_of_a_missing_topic(stage: Stage) -> None:
    with stage.refused(DestinationRefused, what="the log of a missing topic"):
        stage.log(stage.harness.unique("missing")).end(0)
