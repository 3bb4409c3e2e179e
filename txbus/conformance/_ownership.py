"""One owner per partition: sharing, handing over, taking over, and fencing the former owner."""

from __future__ import annotations

from contextlib import suppress

from txbus.conformance._stage import Member, Stage, require
from txbus.conformance._suite import case
from txbus.errors import Fenced
from txbus.spi import Capability, TopicPartition

OWNER = Capability.SINGLE_OWNER


def _taken_over(stage: Stage, *contents: str) -> tuple[Member, Member]:
    """A member that received everything and fell silent, and the heir that has its partition."""
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *contents)
    silent = stage.member(group, topic)
    stage.until_texts(silent, *contents)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.settle(topic, 1, heir)
    return silent, heir


@case(OWNER, property="two members share all partitions, and no partition has two owners")
def two_members_share(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    first, second = stage.member(group, topic), stage.member(group, topic)
    stage.settle(topic, 4, first, second)
    for number in range(4):
        stage.fill(topic, number, f"p{number}")
    stage.until_seen(4, first, second)
    stage.quiet(first, second)
    got = sorted(first.texts() + second.texts())
    require(got == ["p0", "p1", "p2", "p3"], f"both together received {got}")


@case(OWNER, property="a member alone owns everything; one that joins gets a part of it")
def joining_gets_a_part(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    first = stage.member(group, topic)
    stage.settle(topic, 4, first)
    second = stage.member(group, topic)
    stage.settle(topic, 4, first, second)
    stage.quiet(first, second)
    require(len(first.owned) == len(second.owned) == 2, f"{len(first.owned)} and {len(second.owned)} of 4")


@case(OWNER, property="the partitions of a member that closes are free at once, before any lease is over")
def leaving_frees_at_once(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    first, second = stage.member(group, topic), stage.member(group, topic)
    stage.settle(topic, 4, first, second)
    first.receiver.close()
    stage.settle(topic, 4, second)


@case(OWNER, property="a silent member's partitions are taken over when its lease is over")
def takeover_after_the_lease(stage: Stage) -> None:
    _, heir = _taken_over(stage, *"abc")
    stage.never(heir, *"abc")


@case(OWNER, property="a killed member's partitions are taken over when its lease is over")
def takeover_after_a_crash(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    victim, other = stage.member(group, topic), stage.member(group, topic)
    stage.settle(topic, 4, victim, other)
    stage.kill(victim.client)
    stage.expire(other)
    stage.settle(topic, 4, other)


@case(OWNER, property="the former owner's ack is Fenced")
def former_owner_is_fenced(stage: Stage) -> None:
    silent, _ = _taken_over(stage, *"ab")
    with stage.refused(Fenced, what="ack of a former owner"):
        silent.receiver.ack(silent.seen)


@case(OWNER, property="a former owner's ack has no effect: the group's position stays")
def late_ack_does_nothing(stage: Stage) -> None:
    silent, heir = _taken_over(stage, *"ab")
    before = heir.receiver.committed(silent.seen[0].position.where)
    # Whether it is Fenced is another case; here only the effect counts.
    with suppress(Fenced):
        silent.receiver.ack(silent.seen)
    after = heir.receiver.committed(silent.seen[0].position.where)
    require(before == after, f"the ack moved the position from {before} to {after}")


@case(OWNER, property="what the former owner acknowledged in time does not come to the new owner")
def timely_ack_counts(stage: Stage) -> None:
    topic, group = stage.topic(), stage.group()
    stage.send_texts(topic, *"abcd")
    silent = stage.member(group, topic)
    stage.until_texts(silent, *"abcd")
    silent.receiver.ack(silent.seen[:2])
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.never(heir, *"cd")


@case(OWNER, property="a former owner that polls again is told what it lost before it gets anything")
def loss_is_reported(stage: Stage) -> None:
    silent, heir = _taken_over(stage, *"ab")
    where = silent.seen[0].position.where
    first = silent.poll()
    require(where not in first.membership.partitions, f"still thinks it owns {where}")
    require(not first.received, "got records together with the loss of its only partition")
    stage.until(lambda: where in silent.lost, silent, heir, what=f"the loss of {where} is reported")


@case(OWNER, property="a partition is reported as gained, once, no later than with its first record")
def gain_comes_before_records(stage: Stage) -> None:
    topic = stage.topic(3)
    for number in range(3):
        stage.fill(topic, number, *"ab")
    member = stage.member(stage.group(), topic)
    stage.until_seen(6, member)
    gained = list[TopicPartition]()
    for batch in member.batches:
        gained.extend(batch.gained)
        early = {one.position.where for one in batch.received} - set(gained)
        require(not early, f"records of {sorted(early)} before it was reported as gained")
    require(len(gained) == 3, f"gained was reported as {gained}")


@case(OWNER, property="a batch holds records of its own membership only, through joins and leaves")
def membership_is_what_is_delivered(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    for number in range(4):
        stage.fill(topic, number, *(f"p{number}-{n}" for n in range(20)))
    members = [stage.member(group, topic)]
    for _ in range(3):
        members[0].poll(5)
    members.append(stage.member(group, topic))
    for _ in range(10):
        for member in members:
            member.poll(3)
    members[1].receiver.close()
    for _ in range(5):
        members[0].poll(5)
    for batch in (batch for member in members for batch in member.batches):
        foreign = {one.position.where for one in batch.received} - batch.membership.partitions
        require(not foreign, f"records of {sorted(foreign)} outside of the membership snapshot")


@case(OWNER, property="gained and lost of all batches add up to the membership snapshot")
def changes_add_up(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    first = stage.member(group, topic)
    stage.settle(topic, 4, first)
    second = stage.member(group, topic)
    stage.settle(topic, 4, first, second)
    second.receiver.close()
    stage.settle(topic, 4, first)
    for member in (first, second):
        owned = frozenset[TopicPartition]()
        for batch in member.batches:
            owned = (owned - batch.lost) | batch.gained
            require(
                owned == batch.membership.partitions,
                f"gained and lost give {sorted(owned)}, the snapshot {sorted(batch.membership.partitions)}",
            )


@case(OWNER, property="what a member keeps when another joins is not interrupted")
def kept_is_not_interrupted(stage: Stage) -> None:
    topic, group = stage.topic(4), stage.group()
    for number in range(4):
        stage.fill(topic, number, f"p{number}")
    first = stage.member(group, topic)
    stage.until_seen(4, first)
    second = stage.member(group, topic)
    stage.settle(topic, 4, first, second)
    require(not first.lost & first.owned, f"lost and regained {sorted(first.lost & first.owned)}")
    kept = [one for one in first.seen if one.position.where in first.owned]
    first.receiver.ack(kept)
    stage.quiet(first, second)
    require(len(first.seen) == 4, f"the staying member received again: {first.texts()}")


@case(OWNER, property="what moved to a joining member is Fenced for the old owner, comes to the new")
def moved_is_handed_over(stage: Stage) -> None:
    topic, group = stage.topic(2), stage.group()
    for number in range(2):
        stage.fill(topic, number, f"p{number}")
    first = stage.member(group, topic)
    stage.until_seen(2, first)
    second = stage.member(group, topic)
    stage.settle(topic, 2, first, second)
    moved = [one for one in first.seen if one.position.where in second.owned]
    with stage.refused(Fenced, what="ack of a delivery whose partition moved"):
        first.receiver.ack(moved)
    stage.never(second, *(one.envelope.payload.decode() for one in moved))


@case(OWNER, property="four members on 16 partitions: all owned, none twice, every message received once")
def four_members_on_sixteen_partitions(stage: Stage) -> None:
    topic, group = stage.topic(16), stage.group()
    members = [stage.member(group, topic) for _ in range(4)]
    stage.settle(topic, 16, *members)
    stage.quiet(*members)
    require(all(len(m.owned) == 4 for m in members), f"shares of {[len(m.owned) for m in members]}")
    for number in range(16):
        stage.fill(topic, number, f"p{number}-a", f"p{number}-b")
    stage.until_seen(32, *members)
    stage.quiet(*members)
    got = sorted(text for member in members for text in member.texts())
    require(got == sorted({*got}) and len(got) == 32, f"received {got}")


def _two_with_one_each(stage: Stage) -> tuple[Member, Member]:
    """Two settled members of one group that have received one message each."""
    topic, group = stage.topic(2), stage.group()
    members = stage.member(group, topic), stage.member(group, topic)
    stage.settle(topic, 2, *members)
    for number in range(2):
        stage.fill(topic, number, f"p{number}")
    stage.until(lambda: all(member.seen for member in members), *members, what="one delivery each")
    return members


@case(OWNER, property="a member that polls keeps its partitions for longer than the lease")
def polling_keeps_the_lease(stage: Stage) -> None:
    first, second = _two_with_one_each(stage)
    before = (len(first.batches), len(second.batches))
    stage.pass_time(2.5 * stage.harness.lease_s, first, second)
    later = [*first.batches[before[0] :], *second.batches[before[1] :]]
    require(not any(batch.lost for batch in later), f"lost while polling: {[batch.lost for batch in later]}")
    first.ack_all()
    second.ack_all()


@case(OWNER, property="a member that works for less than its lease is not robbed by one that waits")
def within_the_lease_nobody_takes_over(stage: Stage) -> None:
    busy, waiting = _two_with_one_each(stage)
    stage.pass_time(stage.harness.lease_s * 0.5, waiting)
    require(len(waiting.seen) == 1, f"the waiting member got a living one's deliveries: {waiting.texts()}")
    busy.ack_all()


@case(OWNER, property="members of different groups do not share")
def groups_do_not_share(stage: Stage) -> None:
    topic = stage.topic(3)
    members = [stage.member(stage.group(), topic) for _ in range(2)]
    for member in members:
        stage.settle(topic, 3, member)


@case(OWNER, property="group_status names one owner for each owned partition, and none after all have left")
def status_names_the_owner(stage: Stage) -> None:
    topic, group = stage.topic(2), stage.group()
    first, second = stage.member(group, topic), stage.member(group, topic)
    stage.settle(topic, 2, first, second)
    admin = stage.first.admin()
    owners = {row.owner for row in admin.group_status(group, [topic])}
    require(None not in owners and len(owners) == 2, f"two members own one each, the status says {owners}")
    for member in (first, second):
        member.receiver.close()
    owners = {row.owner for row in admin.group_status(group, [topic])}
    require(owners == {None}, f"all have left, the status says {owners}")
