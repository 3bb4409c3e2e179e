"""Delay and redelivery: not before their time, not forgotten, counted, and set aside in the end."""

from __future__ import annotations

from txbus.conformance._harness import NotPromised
from txbus.conformance._stage import Member, Stage, envelope, require
from txbus.conformance._suite import case
from txbus.errors import Fenced, MessageRefused
from txbus.spi import Capability, Envelope, TopicKind

DELAY = Capability.DELAYED_DELIVERY
REDELIVERY = Capability.NATIVE_REDELIVERY
ATTEMPTS = Capability.ATTEMPTS_COUNTED
SET_ASIDE = Capability.NATIVE_DEAD_LETTER
DELAYED = TopicKind.DELAYED


# delayed delivery


def _delay_s(stage: Stage) -> float:
    """Long enough for several quiet times, so that "too early" can be told from "in time"."""
    return max(4 * stage.harness.quiet_s, 2.0)


def _later(stage: Stage, topic: str, text: str, after_s: float) -> Envelope:
    return envelope(topic, text, deliver_at_s=stage.harness.ports.clock.wall_s() + after_s)


@case(DELAY, property="a delayed message is received after its time and not before", kind=DELAYED)
def delayed_comes_in_its_time(stage: Stage) -> None:
    topic, delay_s = stage.topic(kind=DELAYED), _delay_s(stage)
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)
    stage.send(_later(stage, topic, "later", delay_s))
    stage.quiet(member)
    require(not member.seen, f"received before its {delay_s} s were over")
    stage.pass_time(delay_s, member)
    stage.never(member, "later")


@case(DELAY, property="a delayed message does not hold up what is sent after it", kind=DELAYED)
def delayed_holds_up_nobody(stage: Stage) -> None:
    topic, delay_s = stage.topic(kind=DELAYED), _delay_s(stage)
    stage.send(_later(stage, topic, "later", delay_s))
    stage.send_texts(topic, "now")
    member = stage.member(stage.group(), topic)
    stage.never(member, "now")
    stage.pass_time(delay_s, member)
    stage.never(member, "now", "later")


@case(DELAY, property="delayed messages come in the order of their times, not of their sending", kind=DELAYED)
def delayed_come_by_time(stage: Stage) -> None:
    topic, delay_s = stage.topic(kind=DELAYED), _delay_s(stage)
    stage.send(_later(stage, topic, "second", 2 * delay_s))
    stage.send(_later(stage, topic, "first", delay_s))
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)
    stage.pass_time(delay_s, member)
    stage.never(member, "first")
    stage.pass_time(delay_s, member)
    stage.never(member, "first", "second")


@case(DELAY, property="a time that is over already means at once", kind=DELAYED)
def overdue_comes_at_once(stage: Stage) -> None:
    topic = stage.topic(kind=DELAYED)
    stage.send(_later(stage, topic, "overdue", -60.0))
    stage.never(stage.member(stage.group(), topic), "overdue")


@case(DELAY, property="a delayed message survives the death of its sender", kind=DELAYED)
def delayed_survives_its_sender(stage: Stage) -> None:
    topic, delay_s, victim = stage.topic(kind=DELAYED), _delay_s(stage), stage.client()
    stage.send(_later(stage, topic, "later", delay_s), client=victim)
    stage.kill(victim)
    stage.harness.advance(1.5 * delay_s)
    stage.never(stage.member(stage.group(), topic), "later")


@case(DELAY, property="a group that acknowledged all the others still gets the delayed one", kind=DELAYED)
def delayed_is_not_passed_over(stage: Stage) -> None:
    topic, delay_s, group = stage.topic(kind=DELAYED), _delay_s(stage), stage.group()
    stage.send(_later(stage, topic, "later", delay_s))
    stage.send_texts(topic, "now")
    first = stage.member(group, topic)
    stage.never(first, "now")
    first.ack_all()
    first.receiver.close()
    stage.harness.advance(1.5 * delay_s)
    second = stage.member(group, topic)
    stage.never(second, "later")
    second.ack_all()
    second.receiver.close()
    stage.never(stage.member(group, topic))


@case(DELAY, property="a delay above the limit is refused with MessageRefused", kind=DELAYED)
def delay_above_the_limit(stage: Stage) -> None:
    limit_s = stage.first.capabilities(DELAYED).limits.delay_s_max
    if limit_s is None:
        raise NotPromised("delays have no limit")
    topic = stage.topic(kind=DELAYED)
    with stage.refused(MessageRefused, what=f"a delay of more than {limit_s} s"):
        stage.send(_later(stage, topic, "never", limit_s + 3600.0))
    stage.only(topic)


# redelivery


def _one_received(stage: Stage, *others: str) -> tuple[str, str, Member]:
    """A group's member that received "again" and then the others."""
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, "again", *others)
    member = stage.member(group, topic)
    stage.until_texts(member, "again", *others)
    return topic, group, member


@case(REDELIVERY, property="a redelivered message does not come before its delay is over")
def redelivery_waits(stage: Stage) -> None:
    _, _, member = _one_received(stage)
    member.receiver.redeliver(member.seen[0], _delay_s(stage))
    stage.quiet(member)
    require(len(member.seen) == 1, "redelivered before its delay was over")


@case(REDELIVERY, property="a redelivered message comes once after its delay, unchanged, one attempt higher")
def redelivery_comes_after_the_delay(stage: Stage) -> None:
    _, _, member = _one_received(stage)
    for _ in range(2):
        count = len(member.seen)
        member.receiver.redeliver(member.seen[-1], _delay_s(stage))
        stage.pass_time(1.2 * _delay_s(stage), member)
        stage.until_seen(count + 1, member)
        stage.quiet(member)
    first = member.seen[0]
    got = [one.attempt for one in member.seen]
    require(got == [first.attempt, first.attempt + 1, first.attempt + 2], f"attempts {got}")
    require(all(one.envelope == first.envelope for one in member.seen), "the envelope came back changed")


@case(REDELIVERY, property="redelivery without a delay comes soon")
def redelivery_at_once(stage: Stage) -> None:
    _, _, member = _one_received(stage)
    member.receiver.redeliver(member.seen[0], 0.0)
    stage.never(member, "again", "again")


@case(REDELIVERY, property="others of the partition are not held up while one waits for its redelivery")
def redelivery_holds_up_nobody(stage: Stage) -> None:
    topic, _, member = _one_received(stage, "b")
    member.receiver.redeliver(member.seen[0], _delay_s(stage))
    member.receiver.ack(member.seen[1:])
    stage.send_texts(topic, "c")
    stage.until_texts(member, "again", "b", "c")


@case(REDELIVERY, property="a redelivery survives the crash of its receiver, delay included")
def redelivery_survives_a_crash(stage: Stage) -> None:
    topic, group, victim = _one_received(stage, "b")
    delay_s = 2.5 * stage.harness.lease_s + _delay_s(stage)
    victim.receiver.redeliver(victim.seen[0], delay_s)
    victim.receiver.ack(victim.seen[1:])
    stage.kill(victim.client)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.settle(topic, 1, heir)
    stage.quiet(heir)
    require(not heir.seen, f"received {heir.texts()} before the delay was over")
    stage.pass_time(delay_s, heir)
    stage.never(heir, "again")


@case(REDELIVERY, property="a redelivery goes to whoever owns the partition then")
def redelivery_goes_to_the_new_owner(stage: Stage) -> None:
    topic, group, first = _one_received(stage, "b")
    first.receiver.redeliver(first.seen[0], _delay_s(stage))
    first.receiver.ack(first.seen[1:])
    first.receiver.close()
    second = stage.member(group, topic)
    stage.settle(topic, 1, second)
    stage.pass_time(1.2 * _delay_s(stage), second)
    stage.never(second, "again")
    require(second.seen[0].attempt > first.seen[0].attempt, f"attempt {second.seen[0].attempt}")


@case(REDELIVERY, property="the position does not pass a message that waits for its redelivery")
def redelivery_is_not_passed_over(stage: Stage) -> None:
    topic, group, first = _one_received(stage, *"bcd")
    first.receiver.redeliver(first.seen[0], _delay_s(stage))
    first.receiver.ack(first.seen[1:])
    first.receiver.close()
    stage.harness.advance(1.5 * _delay_s(stage))
    second = stage.member(group, topic)
    stage.until(lambda: "again" in second.texts(), second, what="the redelivered message")


@case(REDELIVERY, property="acknowledged after its redelivery a message is gone")
def redelivered_and_acknowledged_is_gone(stage: Stage) -> None:
    topic, group, first = _one_received(stage, "b")
    first.receiver.redeliver(first.seen[0], 0.0)
    stage.until_seen(3, first)
    first.receiver.ack(first.seen[1:])
    first.receiver.close()
    stage.send_texts(topic, "later")
    stage.never(stage.member(group, topic), "later")


@case(REDELIVERY, property="redeliver by a former owner is Fenced")
def redelivery_by_a_former_owner(stage: Stage) -> None:
    topic, group, silent = _one_received(stage)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.settle(topic, 1, heir)
    with stage.refused(Fenced, what="redeliver by a former owner"):
        silent.receiver.redeliver(silent.seen[0], 0.0)


# attempts


@case(ATTEMPTS, property="the first hand-over of every message is attempt 1")
def first_attempt_is_one(stage: Stage) -> None:
    topic = stage.topic(2)
    stage.send_texts(topic, *"abcdef")
    member = stage.member(stage.group(), topic)
    stage.until_seen(6, member)
    require({one.attempt for one in member.seen} == {1}, f"attempts {[one.attempt for one in member.seen]}")


@case(ATTEMPTS, property="a hand-over that ended in a crash counts, each time")
def crashes_count(stage: Stage) -> None:
    topic, group, attempts = stage.topic(), stage.group(), list[int]()
    stage.send_texts(topic, "one")
    for _ in range(4):
        member = stage.member(group, topic)
        member.poll()
        stage.expire(member)
        stage.until_seen(1, member)
        attempts.append(member.seen[0].attempt)
        stage.kill(member.client)
    require(attempts == [1, 2, 3, 4], f"over three crashes the attempts were {attempts}")


@case(ATTEMPTS, property="a hand-over that ended with an orderly close and no ack counts")
def close_without_ack_counts(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, "one")
    for attempt in (1, 2, 3):
        member = stage.member(group, topic)
        stage.until_seen(1, member)
        require(member.seen[0].attempt == attempt, f"attempt {member.seen[0].attempt} instead of {attempt}")
        member.receiver.close()


@case(ATTEMPTS, property="a hand-over before the loss of the partition counts")
def lost_lease_counts(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, "one")
    silent = stage.member(group, topic)
    stage.until_seen(1, silent)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.until_seen(1, heir)
    require(heir.seen[0].attempt == 2, f"attempt {heir.seen[0].attempt} after a lost lease")


@case(ATTEMPTS, property="each message is counted for itself: what was never handed over is at attempt 1")
def counted_for_each_message(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abcd")
    first = stage.member(group, topic)
    stage.until_seen(2, first, at_most=2)
    first.receiver.close()
    second = stage.member(group, topic)
    stage.until_seen(4, second)
    got = {one.envelope.payload.decode(): one.attempt for one in second.seen}
    require(got == {"a": 2, "b": 2, "c": 1, "d": 1}, f"a and b had been handed over; attempts {got}")


@case(ATTEMPTS, property="attempts are counted for each group")
def counted_for_each_group(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, "one")
    for name, attempt in ((group, 1), (group, 2), (stage.group(), 1)):
        member = stage.member(name, topic)
        stage.until_seen(1, member)
        require(member.seen[0].attempt == attempt, f"attempt {member.seen[0].attempt} instead of {attempt}")
        member.receiver.close()


@case(ATTEMPTS, property="redeliveries and crashes add up", also=[REDELIVERY])
def redeliveries_and_crashes_add_up(stage: Stage) -> None:
    topic, group, member = _one_received(stage)
    member.receiver.redeliver(member.seen[0], 0.0)
    stage.until_seen(2, member)
    stage.kill(member.client)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.until_seen(1, heir)
    got = [one.attempt for one in (*member.seen, *heir.seen)]
    require(got == [1, 2, 3], f"first, redelivered, after a crash: {got}")


# the broker's own dead letters


def _given_up(stage: Stage, *others: str) -> tuple[str, str, Member]:
    """A member that asked for "again" until the broker set it aside."""
    topic, group, member = _one_received(stage, *others)
    attempts = stage.harness.attempts_max
    assert attempts is not None, "a harness of a broker with NATIVE_DEAD_LETTER says attempts_max"
    for attempt in range(1, attempts + 1):
        own = [one for one in member.seen if one.envelope.payload == b"again"]
        require(len(own) == attempt, f"attempt {attempt} of {attempts}: handed over {len(own)} times")
        member.receiver.redeliver(own[-1], 0.0)
        if attempt < attempts:
            stage.until_seen(attempt + 1 + len(others), member)
    return topic, group, member


@case(SET_ASIDE, property="after its last attempt a message does not come again")
def set_aside_after_the_attempts(stage: Stage) -> None:
    _, _, member = _given_up(stage)
    count = len(member.seen)
    stage.quiet(member)
    require(len(member.seen) == count, f"{count + 1} attempts")


@case(SET_ASIDE, property="what was set aside can be read from the dead-letter topic, unchanged")
def set_aside_is_kept(stage: Stage) -> None:
    topic, group, member = _given_up(stage)
    dead = stage.member(stage.group(), stage.harness.dead_letter_topic(topic, group))
    stage.until_texts(dead, "again")
    require(dead.seen[0].envelope.key == member.seen[0].envelope.key, "its key changed")


@case(SET_ASIDE, property="the group goes on behind what was set aside")
def set_aside_holds_up_nobody(stage: Stage) -> None:
    topic, group, member = _given_up(stage, "b")
    member.receiver.ack([one for one in member.seen if one.envelope.payload == b"b"])
    member.receiver.close()
    stage.send_texts(topic, "later")
    stage.never(stage.member(group, topic), "later")


@case(SET_ASIDE, property="a message acknowledged at its last attempt is not set aside")
def acknowledged_is_not_set_aside(stage: Stage) -> None:
    topic, group, member = _one_received(stage)
    for attempt in range(2, (stage.harness.attempts_max or 0) + 1):
        member.receiver.redeliver(member.seen[-1], 0.0)
        stage.until_seen(attempt, member)
    member.receiver.ack(member.seen[-1:])
    stage.never(stage.member(stage.group(), stage.harness.dead_letter_topic(topic, group)))


@case(SET_ASIDE, property="what one group gave up is still there for another")
def set_aside_for_one_group(stage: Stage) -> None:
    topic, _, _ = _given_up(stage)
    stage.never(stage.member(stage.group(), topic), "again")
