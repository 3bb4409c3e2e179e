"""Partitions of the Kafka model: offsets, replication, idempotence, deletion."""

from __future__ import annotations

import pytest

from tests.simulation.kafka_bench import MS, Bench, P, Q, S, refused, shows
from txbus.spi import TopicPartition
from txbus_sim.dialects.kafka import Code, Message, Producer
from txbus_sim.errors import NotModelled


@shows("append-all-or-none")
def test_a_batch_is_stored_whole() -> None:
    """Three records of one batch have consecutive offsets; a batch with one that is too large has none."""
    bench = Bench()
    assert bench.produce("a", "b", "c") == 0
    big = [Message("d", 10), Message("e", 2_000_000)]
    assert refused(lambda: bench.cluster.produce(P, big, bench.producer(), "p", 0)) is Code.MESSAGE_TOO_LARGE
    bench.pass_ns(MS)
    assert bench.read() == ["a", "b", "c"] and bench.cluster.log(P).end == 3


@shows("acked-when-replicated")
def test_it_is_acknowledged_and_readable_once_it_is_replicated() -> None:
    """Between the leader's log and the replicas a record is neither acknowledged nor readable."""
    bench = Bench()
    bench.produce("a")
    assert not bench.cluster.is_replicated(P, 0) and bench.read() == [] and bench.told == []
    bench.pass_ns(bench.cluster.options.replication_ns)
    assert bench.cluster.is_replicated(P, 0) and bench.read() == ["a"]
    assert bench.told == [("stored", 0), ("visible", "a")]


@shows("failover-keeps-acked", "failover-loses-unreplicated")
def test_a_failover_loses_what_was_not_acknowledged_and_nothing_else() -> None:
    """The unreplicated record is gone, its offset is given again, and the retry of it is no duplicate."""
    bench = Bench()
    bench.send("a")
    producer = bench.producer()
    assert bench.cluster.produce(P, [Message("b", 10)], producer, "p", bench.now_ns) == 1
    bench.cluster.fail_over(P, bench.now_ns)
    again = refused(lambda: bench.cluster.produce(P, [Message("b", 10)], producer, "p", bench.now_ns))
    assert again is Code.NOT_LEADER_OR_FOLLOWER
    bench.pass_ns(bench.cluster.options.election_ns)
    assert bench.read() == ["a"] and bench.cluster.log(P).end == 1
    assert bench.cluster.produce(P, [Message("b", 10)], producer, "p", bench.now_ns) == 1
    bench.pass_ns(MS)
    assert bench.read() == ["a", "b"]


@shows("failover-keeps-acked")
def test_heal_ends_an_election() -> None:
    """In calm weather every partition has a leader at once."""
    bench = Bench()
    bench.cluster.fail_over(P, 0)
    bench.cluster.heal(0)
    bench.send("a")
    assert bench.read() == ["a"]


@shows("retry-is-deduplicated")
def test_a_batch_that_is_sent_again_is_not_stored_again() -> None:
    """Each of the last five batches has its first offset as the answer to a retry."""
    bench = Bench()
    producers = []
    for body in "abcde":
        producers.append(bench.producer())
        bench.send(body)
    for offset, producer in enumerate(producers):
        assert bench.cluster.produce(P, [Message("again", 10)], producer, "p", bench.now_ns) == offset
    assert bench.read() == list("abcde")


@shows("sequence-gap-is-refused")
def test_a_gap_in_the_sequence_is_refused() -> None:
    """A lost batch cannot be overtaken by the next one; a new epoch begins with 0."""
    bench = Bench()
    bench.send("a")
    message = [Message("c", 10)]
    gap = Producer(bench.producer().id, 0, 2)
    assert refused(lambda: bench.cluster.produce(P, message, gap, "p", 0)) is Code.OUT_OF_ORDER_SEQUENCE_NUMBER
    newer = Producer(gap.id, 1, 1)
    assert refused(lambda: bench.cluster.produce(P, message, newer, "p", 0)) is Code.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert bench.cluster.produce(P, message, Producer(gap.id, 1, 0), "p", 0) == 1


@shows("outdated-epoch-is-refused")
def test_an_outdated_epoch_is_refused() -> None:
    """What a producer of a lower epoch sends is not stored."""
    bench = Bench()
    message = [Message("a", 10)]
    bench.cluster.produce(P, message, Producer(9, 3, 0), "p", 0)
    old = Producer(9, 2, 0)
    assert refused(lambda: bench.cluster.produce(P, message, old, "p", 0)) is Code.INVALID_PRODUCER_EPOCH
    assert bench.cluster.log(P).end == 1


@shows("too-large-is-refused")
def test_a_record_above_the_topics_limit_is_refused() -> None:
    """max.message.bytes is the topic's own."""
    bench = Bench()
    bench.cluster.create_topic("wide", 1, {"max.message.bytes": "3000000"})
    big, producer = [Message("a", 2_000_000)], Producer(9, 0, 0)
    assert refused(lambda: bench.cluster.produce(P, big, producer, "p", 0)) is Code.MESSAGE_TOO_LARGE
    assert bench.cluster.produce(TopicPartition("wide", 0), big, producer, "p", 0) == 0


@shows("timestamps-of-the-broker", "offset-for-time")
def test_the_offset_for_a_time() -> None:
    """Records at 0, 1 and 2 s: each time finds the first at or after it, a late one the end."""
    bench = Bench()
    for body in "abc":
        bench.send(body)
        bench.pass_ns(S - MS)
    log = bench.cluster.log(P)
    assert [log.offset_at(at_ms) for at_ms in (-5, 0, 1, 1000, 1500, 2000, 2001)] == [0, 0, 1, 1, 2, 2, 3]
    owner = bench.init()
    bench.add(owner, "open")
    bench.send("behind")
    assert log.offset_at(3_000) == log.stable == 3


@shows("delete-records")
def test_delete_records() -> None:
    """It moves the start, never back; beyond the high watermark it is refused; beyond the last stable
    offset it is not."""
    bench = Bench()
    bench.send(*"abcd")
    bench.cluster.delete_records(P, 2, bench.now_ns)
    bench.cluster.delete_records(P, 1, bench.now_ns)
    assert bench.cluster.log(P).start == 2 and bench.read() == ["c", "d"]
    assert refused(lambda: bench.cluster.delete_records(P, 5, bench.now_ns)) is Code.OFFSET_OUT_OF_RANGE
    assert refused(lambda: bench.cluster.fetch(P, 1, 10, bench.now_ns)) is Code.OFFSET_OUT_OF_RANGE
    bench.add(bench.init(), "open")
    assert bench.cluster.log(P).stable == 4
    bench.cluster.delete_records(P, 5, bench.now_ns)
    assert bench.cluster.log(P).start == 5


def test_what_does_not_exist_is_refused() -> None:
    """Topics and partitions that nobody created, and a topic that exists already."""
    bench = Bench()
    assert refused(lambda: bench.cluster.log(TopicPartition("t", 2))) is Code.UNKNOWN_TOPIC_OR_PARTITION
    assert refused(lambda: bench.cluster.fetch(TopicPartition("u", 0), 0, 1, 0)) is Code.UNKNOWN_TOPIC_OR_PARTITION
    assert refused(lambda: bench.cluster.create_topic("t", 1)) is Code.TOPIC_ALREADY_EXISTS
    assert refused(lambda: bench.cluster.create_topic("u", 0)) is Code.INVALID_PARTITIONS
    bench.send("a", where=Q)
    assert bench.read() == [] and bench.read(Q) == ["a"]


@pytest.mark.parametrize(
    "settings", [{"cleanup.policy": "compact"}, {"message.timestamp.type": "CreateTime"}, {"segment.ms": "1"}]
)
def test_settings_that_are_not_modelled_say_so(settings: dict[str, str]) -> None:
    """A compacted topic, the senders' timestamps and small segments would behave differently."""
    with pytest.raises(NotModelled, match="not modelled"):
        Bench().cluster.create_topic("u", 1, settings)
