"""Receiving: positions, unfinished deliveries, groups, pausing, waking, filtering."""

from __future__ import annotations

from contextlib import suppress

from txbus.conformance._stage import Stage, envelope, require
from txbus.conformance._suite import case
from txbus.errors import DestinationRefused, TxbusError
from txbus.spi import Capability, Committed, TopicPartition

TAGS = Capability.TAG_FILTER


# positions and unfinished deliveries


@case(None, property="what was acknowledged does not come again after an orderly close; the rest does")
def position_resumes_after_close(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abcde")
    first = stage.member(group, topic)
    stage.until_texts(first, *"abcde")
    first.receiver.ack(first.seen[:2])
    first.receiver.close()
    stage.never(stage.member(group, topic), *"cde")


@case(None, property="what a crashed member did not acknowledge comes again, and nothing else")
def unfinished_comes_again_after_a_crash(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abcde")
    victim = stage.member(group, topic)
    stage.until_texts(victim, *"abcde")
    victim.receiver.ack(victim.seen[:3])
    stage.kill(victim.client)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.never(heir, *"de")


@case(None, property="a group that acknowledged everything gets only what is sent later")
def acknowledged_does_not_come_again(stage: Stage) -> None:
    topic, group = stage.topic(2), stage.group()
    stage.fill(topic, 0, *"abc")
    stage.fill(topic, 1, *"xyz")
    first = stage.member(group, topic)
    stage.until_seen(6, first)
    first.ack_all()
    first.receiver.close()
    stage.fill(topic, 1, "later")
    stage.never(stage.member(group, topic), "later")


@case(None, property="the position never passes an unfinished delivery when acks come out of order")
def position_stops_at_the_unfinished(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abcde")
    first = stage.member(group, topic)
    stage.until_texts(first, *"abcde")
    first.receiver.ack([first.seen[4], first.seen[1]])
    first.receiver.ack([first.seen[3]])
    first.receiver.close()
    second = stage.member(group, topic)
    # A broker with one position per partition gives more again; it may not give less.
    stage.until(lambda: {"a", "c"} <= set(second.texts()), second, what="the unfinished a and c come again")


@case(None, property="once the gap is acknowledged too, the position stands behind all of them")
def position_passes_a_closed_gap(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abcd")
    first = stage.member(group, topic)
    stage.until_texts(first, *"abcd")
    for at in (3, 1, 2, 0):
        first.receiver.ack([first.seen[at]])
    first.receiver.close()
    stage.send_texts(topic, "later")
    stage.never(stage.member(group, topic), "later")


@case(None, property="an ack may be repeated")
def ack_is_idempotent(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abc")
    first = stage.member(group, topic)
    stage.until_texts(first, *"abc")
    first.receiver.ack(first.seen[:2])
    first.receiver.ack(first.seen[:2])
    first.receiver.ack(first.seen[:1])
    first.receiver.ack([])
    first.receiver.close()
    stage.never(stage.member(group, topic), "c")


@case(None, property="committed is None for a new group and the next offset to read after an ack")
def committed_follows_the_acks(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abc")
    member, where = stage.member(group, topic), TopicPartition(topic, 0)
    stage.until_texts(member, *"abc")
    before = member.receiver.committed(where)
    require(before is None, f"a group that never acknowledged has the position {before}")
    member.receiver.ack(member.seen[:2])
    after = member.receiver.committed(where)
    low, high = member.seen[1].position.offset, member.seen[2].position.offset
    require(
        isinstance(after, Committed) and low < after.offset <= high,
        f"acknowledged up to offset {low}, next record at {high}, committed {after}",
    )


# where a group starts, and what it reads


@case(None, property="a new group that starts at the earliest gets what was sent before it")
def start_earliest(stage: Stage) -> None:
    topic = stage.topic()
    stage.send_texts(topic, *"abc")
    stage.never(stage.member(stage.group(), topic, start="earliest"), *"abc")


@case(None, property="a new group that starts at the latest gets only what is sent from then on")
def start_latest(stage: Stage) -> None:
    topic = stage.topic()
    stage.send_texts(topic, *"abc")
    member = stage.member(stage.group(), topic, start="latest")
    stage.settle(topic, 1, member)
    stage.quiet(member)
    stage.send_texts(topic, *"de")
    stage.never(member, *"de")


@case(None, property="the start holds only while the group has no position")
def start_yields_to_the_position(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abc")
    first = stage.member(group, topic)
    stage.until_texts(first, *"abc")
    first.receiver.ack(first.seen[:1])
    first.receiver.close()
    stage.never(stage.member(group, topic, start="latest"), *"bc")


@case(None, property="groups are independent: each gets everything and has positions of its own")
def groups_are_independent(stage: Stage) -> None:
    topic, groups = stage.topic(), [stage.group() for _ in range(3)]
    stage.send_texts(topic, *"abc")
    for group in groups:
        member = stage.member(group, topic)
        stage.until_texts(member, *"abc")
        member.ack_all()
        member.receiver.close()
    stage.send_texts(topic, "d")
    for group in groups:
        stage.never(stage.member(group, topic), "d")


@case(None, property="one subscription reads several topics")
def several_topics(stage: Stage) -> None:
    orders, stock = stage.topic(2, name="orders"), stage.topic(name="stock")
    stage.fill(orders, 1, "order")
    stage.fill(stock, 0, "stock")
    member = stage.member(stage.group(), orders, stock)
    stage.until_seen(2, member)
    got = {(one.position.where, one.envelope.topic) for one in member.seen}
    wanted = {(TopicPartition(orders, 1), orders), (TopicPartition(stock, 0), stock)}
    require(got == wanted, f"received {sorted(map(str, got))}")


@case(None, property="each partition's records come in the order of their offsets, whatever the batch size")
def partitions_come_in_order(stage: Stage) -> None:
    topic = stage.topic(3)
    for number in range(3):
        stage.fill(topic, number, *(f"p{number}-{n}" for n in range(15)))
    member = stage.member(stage.group(), topic)
    stage.until_seen(45, member, at_most=4)
    for number in range(3):
        got = [one for one in member.texts() if one.startswith(f"p{number}-")]
        require(got == [f"p{number}-{n}" for n in range(15)], f"partition {number}: {got}")


@case(None, property="receive returns at most max_messages")
def batches_are_limited(stage: Stage) -> None:
    topic = stage.topic(2)
    stage.fill(topic, 0, *(f"a{n}" for n in range(9)))
    stage.fill(topic, 1, *(f"b{n}" for n in range(9)))
    member = stage.member(stage.group(), topic)
    stage.until_seen(18, member, at_most=4)
    most = max(len(batch.received) for batch in member.batches)
    require(most <= 4, f"asked for 4 at most, got {most}")


@case(None, property="messages without a key all arrive, each once")
def keyless_messages_arrive(stage: Stage) -> None:
    topic = stage.topic(4)
    wanted = {f"m{n}" for n in range(40)}
    for at in range(0, 40, 10):
        stage.send_texts(topic, *(f"m{n}" for n in range(at, at + 10)))
    member = stage.member(stage.group(), topic)
    stage.until_seen(40, member)
    stage.quiet(member)
    require(sorted(member.texts()) == sorted(wanted), f"received {sorted(member.texts())}")


@case(None, property="a missing topic is refused with DestinationRefused, at the latest by a poll")
def subscription_to_a_missing_topic(stage: Stage) -> None:
    with stage.refused(DestinationRefused, what="a subscription to a missing topic"):
        member = stage.member(stage.group(), stage.harness.unique("missing"))
        stage.until(lambda: False, member, what="a refusal of the missing topic")


# waiting, waking, pausing


@case(None, property="receive on an empty topic returns without records when its time is over")
def empty_receive_returns(stage: Stage) -> None:
    member = stage.member(stage.group(), stage.topic())
    batches = [member.poll() for _ in range(3)]
    require(not any(batch.received for batch in batches), "records on an empty topic")
    batch = member.receiver.receive(10, 0.0)
    require(not batch.received, "records on an empty topic")


@case(None, property="a waiting receive returns when a message arrives")
def message_ends_the_wait(stage: Stage) -> None:
    topic = stage.topic()
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)
    got = list[int]()

    def wait() -> None:
        got.append(len(member.receiver.receive(10, stage.harness.answer_s).received))

    task = stage.harness.ports.runtime.spawn(wait, "waiting member")
    require(not task.join(stage.harness.poll_s), "receive did not wait at all")
    stage.send_texts(topic, "one")
    stage.until(lambda: task.join(stage.harness.poll_s), what="a message ends the wait of receive")
    require(got == [1], f"the wait ended with {got} records")


@case(None, property="wake, from another task, ends a waiting receive")
def wake_ends_the_wait(stage: Stage) -> None:
    topic = stage.topic()
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)

    def wait() -> None:
        # When the case has failed already, the client may be closed while this still waits.
        with suppress(TxbusError):
            member.receiver.receive(10, stage.harness.answer_s)

    task = stage.harness.ports.runtime.spawn(wait, "waiting member")

    def woken() -> bool:
        member.receiver.wake()
        return task.join(stage.harness.poll_s)

    stage.until(woken, what="wake ends the wait of receive")


@case(None, property="a paused partition delivers nothing until it is resumed; the others go on")
def pause_holds_back(stage: Stage) -> None:
    topic = stage.topic(2)
    member, held = stage.member(stage.group(), topic), frozenset({TopicPartition(topic, 0)})
    stage.settle(topic, 2, member)
    member.receiver.pause(held)
    member.receiver.pause(held)
    stage.fill(topic, 0, "held")
    stage.fill(topic, 1, "free")
    stage.never(member, "free")
    member.receiver.resume(held)
    member.receiver.resume(held)
    stage.never(member, "free", "held")


@case(None, property="a paused partition stays owned; what was received of it can be acknowledged")
def pause_keeps_ownership(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"ab")
    member, held = stage.member(group, topic), frozenset({TopicPartition(topic, 0)})
    stage.until_texts(member, *"ab")
    member.receiver.pause(held)
    stage.expire(member)
    require(member.owned == held, f"owns {sorted(member.owned)} after a pause")
    member.receiver.ack(member.seen[:1])
    member.receiver.close()
    stage.never(stage.member(group, topic), "b")


# tags


def _coloured(stage: Stage, topic: str) -> None:
    colours = ["red", "blue", None, "green", "red"]
    stage.send(*(envelope(topic, f"m{n}", tag=colour) for n, colour in enumerate(colours)))


@case(TAGS, property="a subscription with a tag gets only messages with that tag")
def one_tag(stage: Stage) -> None:
    topic = stage.topic()
    _coloured(stage, topic)
    stage.never(stage.member(stage.group(), topic, tags=frozenset({"red"})), "m0", "m4")


@case(TAGS, property="a subscription with several tags gets messages with any of them")
def several_tags(stage: Stage) -> None:
    topic = stage.topic()
    _coloured(stage, topic)
    stage.never(stage.member(stage.group(), topic, tags=frozenset({"blue", "green"})), "m1", "m3")


@case(TAGS, property="a subscription without tags gets every message, with its tag")
def no_tags(stage: Stage) -> None:
    topic = stage.topic()
    _coloured(stage, topic)
    member = stage.member(stage.group(), topic)
    stage.until_seen(5, member)
    tags = [one.envelope.tag for one in member.seen]
    require(tags == ["red", "blue", None, "green", "red"], f"tags came back as {tags}")


@case(TAGS, property="what a filter leaves out does not hold back the group's position")
def filtered_out_is_finished(stage: Stage) -> None:
    topic, group, red = stage.topic(), stage.group(), frozenset({"red"})
    _coloured(stage, topic)
    member = stage.member(group, topic, tags=red)
    stage.until_texts(member, "m0", "m4")
    member.ack_all()
    member.receiver.close()
    stage.send(envelope(topic, "m5", tag="red"))
    stage.never(stage.member(group, topic, tags=red), "m5")


@case(TAGS, property="groups filter independently")
def filters_are_per_group(stage: Stage) -> None:
    topic = stage.topic()
    _coloured(stage, topic)
    blue = stage.member(stage.group(), topic, tags=frozenset({"blue"}))
    green = stage.member(stage.group(), topic, tags=frozenset({"green"}))
    stage.never(blue, "m1")
    stage.never(green, "m3")
