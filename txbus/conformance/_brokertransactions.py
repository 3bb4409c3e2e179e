"""Broker transactions: visible together or never, and one owner of an id."""

from __future__ import annotations

from txbus.conformance._harness import NotPromised
from txbus.conformance._stage import Stage, envelope, require, send_each
from txbus.conformance._suite import case
from txbus.errors import DestinationRefused, Fenced, MessageRefused, StepAborted
from txbus.spi import BrokerTransaction, Capability, Envelope

TRANSACTION = Capability.BROKER_TRANSACTION


def _id(stage: Stage) -> str:
    return stage.harness.unique("id")


@case(TRANSACTION, property="commit makes all messages visible, in the order in which they were added")
def commit_makes_visible(stage: Stage) -> None:
    topic = stage.topic()
    stage.commit(*(envelope(topic, text) for text in "abcde"))
    stage.never(stage.member(stage.group(), topic), *"abcde")


@case(TRANSACTION, property="nothing of an open broker transaction is visible")
def open_is_invisible(stage: Stage) -> None:
    topic = stage.topic()
    member = stage.member(stage.group(), topic)
    stage.settle(topic, 1, member)
    transaction = stage.transactions(_id(stage)).begin()
    send_each(transaction, envelope(topic, "a"), envelope(topic, "b"))
    stage.quiet(member)
    require(not member.seen, f"visible before the commit: {member.texts()}")
    transaction.commit()
    stage.never(member, "a", "b")


@case(TRANSACTION, property="abort makes nothing visible, and may be repeated")
def abort_is_invisible(stage: Stage) -> None:
    topic, owner = stage.topic(), stage.transactions(_id(stage))
    transaction = owner.begin()
    send_each(transaction, envelope(topic, "a"), envelope(topic, "b"))
    transaction.abort()
    transaction.abort()
    stage.only(topic)


@case(TRANSACTION, property="one id runs many broker transactions in turn; aborted ones leave nothing")
def transactions_follow_each_other(stage: Stage) -> None:
    topic, owner = stage.topic(), stage.transactions(_id(stage))
    for n in range(6):
        transaction = owner.begin()
        transaction.send(envelope(topic, f"m{n}"))
        if n % 3 == 1:
            transaction.abort()
        else:
            transaction.commit()
    owner.close()
    stage.only(topic, "m0", "m2", "m3", "m5")


@case(TRANSACTION, property="several topics and partitions become visible with one commit")
def several_topics(stage: Stage) -> None:
    orders, stock = stage.topic(3, name="orders"), stage.topic(2, name="stock")
    contents = [envelope(orders if n % 2 else stock, f"m{n}", f"key{n}") for n in range(12)]
    stage.commit(*contents)
    member = stage.member(stage.group(), orders, stock)
    stage.until_seen(12, member)
    require(sorted(member.texts()) == sorted(f"m{n}" for n in range(12)), f"received {member.texts()}")


@case(TRANSACTION, property="a message for a named partition arrives there, whatever its key")
def named_partition(stage: Stage) -> None:
    topic = stage.topic(5)
    stage.commit(*(envelope(topic, f"m{n}", f"key{n}") for n in range(6)), partition=3)
    member = stage.member(stage.group(), topic)
    stage.until_texts(member, *(f"m{n}" for n in range(6)))
    require({one.position.partition for one in member.seen} == {3}, "a message is in another partition")


@case(TRANSACTION, property="a broker transaction without messages commits")
def empty_commit(stage: Stage) -> None:
    owner = stage.transactions(_id(stage))
    owner.begin().commit()
    topic = stage.topic()
    transaction = owner.begin()
    transaction.send(envelope(topic, "after"))
    transaction.commit()
    stage.only(topic, "after")


# owners


def _replaced(stage: Stage, *contents: Envelope) -> BrokerTransaction:
    """An open broker transaction with these messages, whose id has a newer owner."""
    id_ = _id(stage)
    transaction = stage.transactions(id_).begin()
    send_each(transaction, *contents)
    stage.transactions(id_)
    return transaction


@case(TRANSACTION, property="a newer owner fences the commit of the older; nothing of it is visible")
def fenced_at_commit(stage: Stage) -> None:
    topic = stage.topic()
    transaction = _replaced(stage, envelope(topic, "old"))
    with stage.refused(Fenced, what="commit of a former owner"):
        transaction.commit()
    stage.only(topic)


@case(TRANSACTION, property="a newer owner of the id fences the older's next begin, or what follows it")
def fenced_at_begin(stage: Stage) -> None:
    topic, id_ = stage.topic(), _id(stage)
    old = stage.transactions(id_)
    stage.transactions(id_)
    with stage.refused(Fenced, what="begin, send and commit of a former owner"):
        transaction = old.begin()
        transaction.send(envelope(topic, "old"))
        transaction.commit()
    stage.only(topic)


@case(TRANSACTION, property="a newer owner of the id fences the commit of an empty broker transaction")
def fenced_at_empty_commit(stage: Stage) -> None:
    transaction = _replaced(stage)
    with stage.refused(Fenced, what="empty commit of a former owner"):
        transaction.commit()


@case(TRANSACTION, property="what a replaced owner adds is never visible; abort stays possible")
def fenced_while_sending(stage: Stage) -> None:
    topic = stage.topic()
    transaction = _replaced(stage, envelope(topic, "before"))
    with stage.refused(Fenced, what="send and commit of a former owner"):
        transaction.send(envelope(topic, "after"))
        transaction.commit()
    transaction.abort()
    stage.only(topic)


@case(TRANSACTION, property="the newer owner works while the older is still there")
def newer_owner_works(stage: Stage) -> None:
    topic, id_ = stage.topic(), _id(stage)
    old = stage.transactions(id_).begin()
    old.send(envelope(topic, "old"))
    new = stage.transactions(id_).begin()
    new.send(envelope(topic, "new"))
    new.commit()
    stage.only(topic, "new")


@case(TRANSACTION, property="owners of different ids do not disturb each other")
def ids_are_independent(stage: Stage) -> None:
    topic = stage.topic()
    first, second = stage.transactions(_id(stage)).begin(), stage.transactions(_id(stage)).begin()
    first.send(envelope(topic, "first"))
    second.send(envelope(topic, "second"))
    second.commit()
    first.commit()
    member = stage.member(stage.group(), topic)
    stage.until_seen(2, member)
    require(sorted(member.texts()) == ["first", "second"], f"received {member.texts()}")


@case(TRANSACTION, property="killed before its commit: nothing of it is visible, and a new owner goes on")
def killed_before_commit(stage: Stage) -> None:
    topic, id_, victim = stage.topic(), _id(stage), stage.client()
    stage.transactions(id_, victim).begin().send(envelope(topic, "lost"))
    stage.kill(victim)
    heir = stage.transactions(id_).begin()
    heir.send(envelope(topic, "kept"))
    heir.commit()
    stage.only(topic, "kept")


@case(TRANSACTION, property="killed after its commit: all of it is visible")
def killed_after_commit(stage: Stage) -> None:
    topic, victim = stage.topic(), stage.client()
    transaction = stage.transactions(_id(stage), victim).begin()
    send_each(transaction, envelope(topic, "a"), envelope(topic, "b"))
    transaction.commit()
    stage.kill(victim)
    stage.only(topic, "a", "b")


@case(TRANSACTION, property="taking over an id ends a killed owner's open transaction: readers go on")
def takeover_ends_the_open_one(stage: Stage) -> None:
    topic, id_, victim = stage.topic(), _id(stage), stage.client()
    stage.transactions(id_, victim).begin().send(envelope(topic, "lost"))
    stage.kill(victim)
    stage.transactions(id_)
    stage.only(topic)


@case(TRANSACTION, property="a silent owner holds readers up until its timeout at most")
def silence_ends_it(stage: Stage) -> None:
    topic = stage.topic()
    transaction = stage.transactions(_id(stage)).begin()
    send_each(transaction, envelope(topic, "late-1"), envelope(topic, "late-2"))
    stage.send_texts(topic, "behind")
    stage.harness.advance(stage.harness.transaction_timeout_s * 1.5)
    member = stage.member(stage.group(), topic)
    stage.until_texts(member, "behind")
    # A broker that keeps nothing open has nothing to end: there the commit may still succeed.
    late = ["late-1", "late-2"]
    try:
        transaction.commit()
    except (Fenced, StepAborted):
        late = []
    stage.never(member, "behind", *late)


# ending otherwise than by commit


@case(TRANSACTION, property="close aborts what is open, and is idempotent")
def close_aborts(stage: Stage) -> None:
    topic, owner = stage.topic(), stage.transactions(_id(stage))
    owner.begin().send(envelope(topic, "open"))
    owner.close()
    owner.close()
    stage.only(topic)


@case(TRANSACTION, property="abandon lets go at once; after a new owner's take-over nothing of it is visible")
def abandon_leaves_nothing(stage: Stage) -> None:
    topic, id_ = stage.topic(), _id(stage)
    owner = stage.transactions(id_)
    owner.begin().send(envelope(topic, "open"))
    owner.abandon()
    owner.abandon()
    stage.transactions(id_)
    stage.only(topic)


def _refused(stage: Stage, topic: str, bad: Envelope, error: type[Exception]) -> None:
    owner = stage.transactions(_id(stage))
    with stage.refused(error, what="a broker transaction with a bad message"):
        transaction = owner.begin()
        send_each(transaction, envelope(topic, "a"), bad, envelope(topic, "b"))
        transaction.commit()
    transaction.abort()
    again = owner.begin()
    again.send(envelope(topic, "again"))
    again.commit()
    stage.only(topic, "again")


@case(TRANSACTION, property="an oversized message aborts the whole broker transaction; the next one works")
def oversized_message_aborts_all(stage: Stage) -> None:
    limit, topic = stage.first.capabilities().limits.payload_bytes_max, stage.topic()
    if limit is None:
        raise NotPromised("payloads have no limit")
    _refused(stage, topic, Envelope(topic, b"x" * (limit + 1), None, {"ce_id": "big"}), MessageRefused)


@case(TRANSACTION, property="a missing topic aborts the whole broker transaction; the next one works")
def unknown_topic_aborts_all(stage: Stage) -> None:
    _refused(stage, stage.topic(), envelope(stage.harness.unique("missing"), "lost"), DestinationRefused)
