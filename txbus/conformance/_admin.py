"""What every backend owes: opening, closing, saying what it can, and its topics and groups."""

from __future__ import annotations

from txbus.conformance._harness import NotPromised
from txbus.conformance._stage import Stage, require
from txbus.conformance._suite import case
from txbus.errors import DestinationRefused
from txbus.spi import Capability, TopicKind, TopicPartition, TopicSpec


@case(None, property="open may be repeated on an open client")
def open_is_idempotent(stage: Stage) -> None:
    client = stage.client()
    client.open()
    client.open()
    stage.only(stage.topic())


@case(None, property="the declared capabilities belong together, for every kind of topic")
def capabilities_belong_together(stage: Stage) -> None:
    for kind in TopicKind:
        declared = stage.first.capabilities(kind)
        if Capability.POSITIONS_IN_BROKER_TRANSACTION in declared:
            require(Capability.BROKER_TRANSACTION in declared, f"{kind}: positions without broker transactions")
        both = [one.value for one in declared.conditional if one in declared]
        require(not both, f"{kind}: {both} are declared and conditional at once")


@case(None, property="create makes a topic with its partitions; describe shows it, None for a missing one")
def create_and_describe(stage: Stage) -> None:
    topic, missing = stage.topic(3), stage.harness.unique("missing")
    found = stage.first.admin().describe([topic, missing])
    description = found[topic]
    require(description is not None and description.partitions == 3, f"3 partitions wanted: {description}")
    require(description is not None and description.name == topic, f"described as {description}")
    require(found[missing] is None, f"a missing topic is described as {found[missing]}")


@case(None, property="create may be repeated and leaves an existing topic, with its messages, as it is")
def create_is_idempotent(stage: Stage) -> None:
    topic, admin = stage.topic(2), stage.first.admin()
    stage.fill(topic, 1, "kept")
    admin.create([TopicSpec(topic, 2)])
    admin.create([TopicSpec(topic, 5), TopicSpec(topic, 2)])
    description = admin.describe([topic])[topic]
    require(description is not None and description.partitions == 2, f"changed to {description}")
    stage.never(stage.member(stage.group(), topic), "kept")


@case(None, property="a topic made by one client is there for another")
def created_for_everybody(stage: Stage) -> None:
    topic, other = stage.topic(), stage.client()
    stage.until(lambda: other.admin().describe([topic])[topic] is not None, what="the other client sees it")


@case(None, property="verify is content with a topic that create made, internal ones included")
def verify_accepts_what_create_made(stage: Stage) -> None:
    admin = stage.first.admin()
    plain = TopicSpec(stage.harness.unique("plain"), 2)
    internal = TopicSpec(stage.harness.unique("internal"), 3, retention_s=None, internal=True)
    admin.create([plain, internal])
    for spec in (plain, internal):
        complaints = admin.verify(spec)
        require(not complaints, f"{spec.name} was just created, and verify says {list(complaints)}")


@case(None, property="verify says that the number of partitions differs, more or fewer")
def verify_counts_partitions(stage: Stage) -> None:
    admin, name = stage.first.admin(), stage.topic(2)
    for wanted in (1, 5):
        require(bool(admin.verify(TopicSpec(name, wanted))), f"{wanted} partitions wanted, 2 there: no word")


@case(None, property="verify says that a topic which must keep everything deletes by age")
def verify_looks_at_the_retention(stage: Stage) -> None:
    if not stage.harness.deletes_by_age:
        raise NotPromised("nothing is deleted by age")
    admin, name = stage.first.admin(), stage.harness.unique("short")
    admin.create([TopicSpec(name, 2, retention_s=3600.0)])
    complaints = admin.verify(TopicSpec(name, 2, retention_s=None, internal=True))
    require(bool(complaints), "unlimited retention wanted, one hour there: no word")


@case(None, property="verify of a missing topic is refused with DestinationRefused")
def verify_of_a_missing_topic(stage: Stage) -> None:
    with stage.refused(DestinationRefused, what="verify of a missing topic"):
        stage.first.admin().verify(TopicSpec(stage.harness.unique("missing"), 1))


@case(None, property="group_status has a row for each partition, with the group's position and the end")
def status_of_a_group(stage: Stage) -> None:
    topic, group = stage.topic(2), stage.group()
    stage.fill(topic, 1, *"abc")
    member = stage.member(group, topic)
    stage.until_texts(member, *"abc")
    member.receiver.ack(member.seen[:2])
    rows = {row.where: row for row in stage.first.admin().group_status(group, [topic])}
    require(set(rows) == {TopicPartition(topic, 0), TopicPartition(topic, 1)}, f"rows for {sorted(rows)}")
    row, low = rows[TopicPartition(topic, 1)], member.seen[1].position.offset
    high = member.seen[2].position.offset
    require(row.committed is not None and low < row.committed <= high, f"acknowledged up to {low}: {row}")
    require(row.end > high, f"the last record is at {high}: {row}")


@case(None, property="group_status of a group that never read has no positions and no owners")
def status_of_an_unknown_group(stage: Stage) -> None:
    topic = stage.topic(2)
    rows = stage.first.admin().group_status(stage.group(), [topic])
    require(len(rows) == 2, f"{len(rows)} rows for 2 partitions")
    require(all(row.committed is None and row.owner is None for row in rows), f"unknown to all, yet {rows}")


@case(None, property="closing a backend closes what it handed out: its group members leave at once")
def close_closes_everything(stage: Stage) -> None:
    topic, group, client = stage.topic(), stage.group(), stage.client()
    stage.send_texts(topic, "one")
    member = stage.member(group, topic, client=client)
    stage.until_texts(member, "one")
    client.close()
    stage.never(stage.member(group, topic), "one")
