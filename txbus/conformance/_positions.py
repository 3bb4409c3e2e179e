"""Consumer positions in broker transactions: consume, transform, produce, each effect once."""

from __future__ import annotations

from txbus.conformance._stage import Member, Stage, envelope, require, send_each, texts
from txbus.conformance._suite import case
from txbus.errors import Fenced
from txbus.spi import Backend, BrokerTransaction, Capability, Committed, TopicPartition

POSITIONS = Capability.POSITIONS_IN_BROKER_TRANSACTION


def _id(stage: Stage) -> str:
    return stage.harness.unique("id")


def _reader(stage: Stage, partitions: int = 1) -> tuple[str, str, Member]:
    """A topic with three messages in each partition, a group, and its member that received all."""
    topic, group = stage.topic(partitions, name="input"), stage.group()
    for number in range(partitions):
        stage.fill(topic, number, *(f"p{number}-{n}" for n in range(3)))
    member = stage.member(group, topic)
    stage.until_seen(3 * partitions, member)
    return topic, group, member


def _after(member: Member, partition: int, count: int) -> tuple[TopicPartition, int]:
    """The partition, and the offset behind the first ``count`` records received of it."""
    own = [one for one in member.seen if one.position.partition == partition]
    return own[0].position.where, own[count - 1].position.offset + 1


def _move(
    stage: Stage,
    group: str,
    member: Member,
    *moves: tuple[TopicPartition, int],
    note: str = "",
    client: Backend | None = None,
) -> BrokerTransaction:
    """An open broker transaction that moves positions with the member's newest snapshot."""
    transaction = stage.transactions(_id(stage), client).begin()
    wanted = {where: Committed(offset, note) for where, offset in moves}
    transaction.positions(group, member.batches[-1].membership, wanted)
    return transaction


@case(POSITIONS, property="commit moves the position: what lies before it does not come again")
def commit_moves_the_position(stage: Stage) -> None:
    topic, group, member = _reader(stage)
    _move(stage, group, member, _after(member, 0, 2)).commit()
    member.receiver.close()
    stage.never(stage.member(group, topic), "p0-2")


@case(POSITIONS, property="abort does not move the position, and neither does an open transaction")
def abort_does_not_move_the_position(stage: Stage) -> None:
    topic, group, member = _reader(stage)
    where = TopicPartition(topic, 0)
    transaction = _move(stage, group, member, _after(member, 0, 2))
    transaction.abort()
    require(member.receiver.committed(where) is None, f"abort left {member.receiver.committed(where)}")
    member.receiver.close()
    stage.never(stage.member(group, topic), "p0-0", "p0-1", "p0-2")


@case(POSITIONS, property="a note stored beside a position is read back by the next owner")
def note_is_read_back(stage: Stage) -> None:
    topic, group, member = _reader(stage)
    where, offset = _after(member, 0, 2)
    note = "step 17 · " + "ж値x" * 330
    _move(stage, group, member, (where, offset), note=note[:1000]).commit()
    member.receiver.close()
    heir = stage.member(group, topic)
    stage.settle(topic, 1, heir)
    got = heir.receiver.committed(where)
    require(got == Committed(offset, note[:1000]), f"stored {offset} with a note, read {got!r:.200}")


@case(POSITIONS, property="positions of several partitions move with one commit")
def several_positions(stage: Stage) -> None:
    topic, group, member = _reader(stage, 2)
    _move(stage, group, member, _after(member, 0, 1), _after(member, 1, 2)).commit()
    member.receiver.close()
    heir = stage.member(group, topic)
    stage.until_seen(3, heir)
    stage.quiet(heir)
    require(sorted(heir.texts()) == ["p0-1", "p0-2", "p1-2"], f"after the commit {heir.texts()} came again")


@case(POSITIONS, property="messages and positions are one: an abort takes back both")
def messages_and_positions_are_one(stage: Stage) -> None:
    topic, group, member = _reader(stage)
    output = stage.topic(name="output")
    for end in ("abort", "commit"):
        transaction = _move(stage, group, member, _after(member, 0, 3))
        transaction.send(envelope(output, end))
        transaction.abort() if end == "abort" else transaction.commit()
    stage.only(output, "commit")
    member.receiver.close()
    stage.send_texts(topic, "later")
    stage.never(stage.member(group, topic), "later")


def _fenced_move(stage: Stage, transaction: BrokerTransaction, output: str) -> None:
    with stage.refused(Fenced, what="commit of positions without membership"):
        transaction.send(envelope(output, "phantom"))
        transaction.commit()
    stage.only(output)


@case(POSITIONS, property="a partition taken over by another is Fenced: no message, no position counts")
def lost_partition_is_fenced(stage: Stage) -> None:
    topic, group, silent = _reader(stage)
    where, output = TopicPartition(topic, 0), stage.topic(name="output")
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.settle(topic, 1, heir)
    with stage.refused(Fenced, what="positions of a lost partition"):
        transaction = _move(stage, group, silent, _after(silent, 0, 3))
        transaction.send(envelope(output, "phantom"))
        transaction.commit()
    stage.only(output)
    require(heir.receiver.committed(where) is None, f"the position moved to {heir.receiver.committed(where)}")


@case(POSITIONS, property="ownership is judged at the commit: lost between positions and commit is Fenced")
def lost_before_commit_is_fenced(stage: Stage) -> None:
    topic, group, silent = _reader(stage)
    output = stage.topic(name="output")
    transaction = _move(stage, group, silent, _after(silent, 0, 3))
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.settle(topic, 1, heir)
    _fenced_move(stage, transaction, output)


@case(POSITIONS, property="a snapshot from before a partition went away and came back is outdated: Fenced")
def outdated_membership_is_fenced(stage: Stage) -> None:
    topic, group, member = _reader(stage)
    outdated, move = member.batches[-1].membership, _after(member, 0, 3)
    heir = stage.member(group, topic)
    heir.poll()
    stage.expire(heir)
    stage.settle(topic, 1, heir)
    heir.receiver.close()
    where = move[0]
    stage.until(lambda: where in member.lost & member.owned, member, what="the partition comes back")
    output = stage.topic(name="output")
    with stage.refused(Fenced, what="an outdated membership"):
        transaction = stage.transactions(_id(stage)).begin()
        transaction.positions(group, outdated, {move[0]: Committed(move[1])})
        transaction.send(envelope(output, "phantom"))
        transaction.commit()
    stage.only(output)


@case(POSITIONS, property="after a member joined, the newest snapshot commits what was kept")
def newest_snapshot_commits_what_was_kept(stage: Stage) -> None:
    topic, group, first = _reader(stage, 2)
    second = stage.member(group, topic)
    stage.settle(topic, 2, first, second)
    kept = min(first.owned)
    where, offset = _after(first, kept.partition, 2)
    _move(stage, group, first, (where, offset)).commit()
    got = first.receiver.committed(where)
    require(got is not None and got.offset == offset, f"moved to {offset}, committed says {got}")


@case(POSITIONS, property="consume, transform, produce with crashes between: each effect is there once")
def consume_transform_produce(stage: Stage) -> None:
    topic, group, id_ = stage.topic(name="input"), stage.group(), _id(stage)
    output = stage.topic(name="output")
    stage.send_texts(topic, *"abcd")
    # One life after another; each handles two messages and is killed after the named step.
    for killed_after in ("send", "positions", "commit", "positions", "commit"):
        client = stage.client()
        owner = stage.transactions(id_, client)
        member = stage.member(group, topic, client=client)
        member.poll()
        stage.expire(member)
        stage.until_seen(2, member)
        transaction, hand = owner.begin(), member.seen[:2]
        send_each(transaction, *(envelope(output, f"{text}!") for text in texts(hand)))
        if killed_after != "send":
            behind = Committed(hand[-1].position.offset + 1)
            transaction.positions(group, member.batches[-1].membership, {hand[-1].position.where: behind})
        if killed_after == "commit":
            transaction.commit()
        stage.kill(client)
    stage.transactions(id_)
    stage.only(output, "a!", "b!", "c!", "d!")
