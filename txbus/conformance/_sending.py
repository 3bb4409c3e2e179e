"""Sending: durable on return, ordered by key, all or none where that is promised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from txbus.conformance._harness import NotPromised
from txbus.conformance._stage import Stage, envelope, require
from txbus.conformance._suite import case
from txbus.errors import DestinationRefused, MessageRefused
from txbus.spi import Capability, Envelope, Receipt, Sender, TopicKind

DURABLE = Capability.DURABLE_SEND
ATOMIC = Capability.ATOMIC_SEND
ORDER = Capability.ORDER_BY_KEY

BIG_BYTES = 1 << 20


def _oversized(stage: Stage, topic: str) -> Envelope:
    """A message one byte above the payload limit."""
    limit = stage.first.capabilities().limits.payload_bytes_max
    if limit is None:
        raise NotPromised("payloads have no limit")
    return Envelope(topic, b"x" * (limit + 1), None, {"ce_id": "oversized"})


def _unknown(stage: Stage) -> Envelope:
    return envelope(stage.harness.unique("missing"), "lost")


# durable send


@case(DURABLE, property="a sent message is visible to another client once send has returned")
def visible_to_another_client(stage: Stage) -> None:
    topic = stage.topic()
    stage.send_texts(topic, "one")
    stage.until_texts(stage.member(stage.group(), topic), "one")


@case(DURABLE, property="a sent message survives the death of its sender")
def survives_the_death_of_the_sender(stage: Stage) -> None:
    topic, victim = stage.topic(), stage.client()
    stage.sender(victim).send([envelope(topic, "one"), envelope(topic, "two")], stage.harness.answer_s)
    stage.kill(victim)
    stage.never(stage.member(stage.group(), topic), "one", "two")


@case(DURABLE, property="an append whose result was given survives the death of its sender")
def awaited_append_survives_the_death_of_the_sender(stage: Stage) -> None:
    topic, victim = stage.topic(2), stage.client()
    stage.sender(victim).append(envelope(topic, "one"), 1).result(stage.harness.answer_s)
    stage.kill(victim)
    stage.never(stage.member(stage.group(), topic), "one")


@case(DURABLE, property="receipts come in the order of the envelopes, with id, topic and growing offsets")
def receipts_in_order(stage: Stage) -> None:
    topic = stage.topic()
    receipts = stage.send_texts(topic, *"abcdef")
    require([one.message_id for one in receipts] == list("abcdef"), f"ids out of order: {receipts}")
    require({(one.topic, one.partition) for one in receipts} == {(topic, 0)}, f"wrong place: {receipts}")
    offsets = _offsets(receipts)
    require(offsets == sorted(set(offsets)), f"offsets do not grow: {offsets}")


def _offsets(receipts: tuple[Receipt, ...]) -> list[int]:
    return [-1 if one.offset is None else one.offset for one in receipts]


@case(DURABLE, property="each receipt names the position at which the message is received, none twice")
def receipts_name_the_position(stage: Stage) -> None:
    topic = stage.topic(3)
    sent = [envelope(topic, f"m{n}", f"key{n}") for n in range(12)]
    receipts = stage.send(*sent[:7]) + stage.send(*sent[7:])
    member = stage.member(stage.group(), topic)
    stage.until_seen(12, member)
    told = {one.message_id: (one.partition, one.offset) for one in receipts}
    found = {one.envelope.id: (one.position.partition, one.position.offset) for one in member.seen}
    require(told == found, f"receipts say {told}, received at {found}")
    require(len(set(told.values())) == 12, f"a position is given twice: {told}")


@case(DURABLE, property="a payload of exactly the limit (1 MiB where there is none) arrives unchanged")
def payload_of_the_limit(stage: Stage) -> None:
    topic = stage.topic()
    size = stage.first.capabilities().limits.payload_bytes_max or BIG_BYTES
    payload = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    stage.send(Envelope(topic, payload, None, {"ce_id": "big"}))
    member = stage.member(stage.group(), topic)
    stage.until_seen(1, member)
    require(member.seen[0].envelope.payload == payload, f"{size} bytes came back changed")


@case(DURABLE, property="a payload above the limit is refused with MessageRefused and is not sent")
def payload_above_the_limit(stage: Stage) -> None:
    topic = stage.topic()
    oversized = _oversized(stage, topic)
    with stage.refused(MessageRefused, what=f"send of {len(oversized.payload)} bytes"):
        stage.send(oversized)
    stage.send_texts(topic, "after")
    stage.never(stage.member(stage.group(), topic), "after")


@case(DURABLE, property="headers above the limit are refused with MessageRefused and nothing is sent")
def headers_above_the_limit(stage: Stage) -> None:
    topic = stage.topic()
    limit = stage.first.capabilities().limits.headers_bytes_max
    if limit is None:
        raise NotPromised("headers have no limit")
    with stage.refused(MessageRefused, what=f"send of more than {limit} bytes of headers"):
        stage.send(envelope(topic, "heavy", headers={"weight": "x" * (limit + 1)}))
    stage.send_texts(topic, "after")
    stage.never(stage.member(stage.group(), topic), "after")


@case(DURABLE, property="an empty payload is a message")
def empty_payload(stage: Stage) -> None:
    topic = stage.topic()
    stage.send(Envelope(topic, b"", "key", {"ce_id": "empty"}))
    member = stage.member(stage.group(), topic)
    stage.until_seen(1, member)
    require(member.seen[0].envelope.payload == b"", f"got {member.seen[0].envelope.payload!r}")


@case(DURABLE, property="headers arrive as sent: empty values, non-ASCII names and values, foreign bytes")
def headers_survive(stage: Stage) -> None:
    topic = stage.topic()
    foreign = b"\xff\xfe raw".decode("utf-8", "surrogateescape")
    headers = {"plain": "v", "empty": "", "naïve-ключ": "値 🚚", "foreign": foreign, "lines": "a\nb\x00"}
    stage.send(envelope(topic, "one", headers=headers))
    member = stage.member(stage.group(), topic)
    stage.until_seen(1, member)
    got = {name: value for name, value in member.seen[0].envelope.headers.items() if name in headers}
    require(got == headers, f"sent {headers!r}, received {got!r}")


@case(DURABLE, property="key (none, non-ASCII) and payload bytes arrive as sent")
def key_and_payload_survive(stage: Stage) -> None:
    topic = stage.topic()
    wanted = [(None, b"\x00\xff"), ("ключ-値", b"\n"), ("k" * 200, b"{}")]
    stage.send(*(Envelope(topic, body, key, {"ce_id": str(n)}) for n, (key, body) in enumerate(wanted)))
    member = stage.member(stage.group(), topic)
    stage.until_seen(3, member)
    got = [(one.envelope.key, one.envelope.payload) for one in member.seen]
    require(got == wanted, f"sent {wanted!r}, received {got!r}")


@case(DURABLE, property="a topic that does not exist is refused with DestinationRefused")
def unknown_topic(stage: Stage) -> None:
    with stage.refused(DestinationRefused, what="send to a missing topic"):
        stage.send(_unknown(stage))


@case(DURABLE, property="appends to a named partition arrive there in the order of the calls")
def appends_keep_their_order(stage: Stage) -> None:
    topic, sender = stage.topic(3), stage.sender()
    wanted = [f"m{n}" for n in range(40)]
    pending = [sender.append(envelope(topic, text, key=text), 2) for text in wanted]
    receipts = tuple(one.result(stage.harness.answer_s) for one in pending)
    require({one.partition for one in receipts} == {2}, f"receipts of other partitions: {receipts}")
    require(_offsets(receipts) == sorted(_offsets(receipts)), f"offsets out of order: {_offsets(receipts)}")
    member = stage.member(stage.group(), topic)
    stage.until_texts(member, *wanted)
    require({one.position.partition for one in member.seen} == {2}, "an append arrived in another partition")


@case(DURABLE, property="the result of an append may be asked twice and by another task")
def append_result_is_repeatable(stage: Stage) -> None:
    topic, sender = stage.topic(), stage.sender()
    pending, answers = sender.append(envelope(topic, "one"), 0), list[Receipt]()
    answer_s = stage.harness.answer_s
    task = stage.harness.ports.runtime.spawn(lambda: answers.append(pending.result(answer_s)), "asker")
    answers.append(pending.result(answer_s))
    require(task.join(answer_s), "the second asker never got an answer")
    answers.append(pending.result(answer_s))
    require(len(answers) == 3 and len(set(answers)) == 1, f"the answers differ: {answers}")


@case(DURABLE, property="a refused append does not fail the appends beside it")
def refused_append_fails_alone(stage: Stage) -> None:
    topic, sender = stage.topic(), stage.sender()
    bad = _oversized(stage, topic)
    before = sender.append(envelope(topic, "before"), 0)
    with stage.refused(MessageRefused, what="append of a bad message"):
        sender.append(bad, 0).result(stage.harness.answer_s)
    after = sender.append(envelope(topic, "after"), 0)
    for one in (before, after):
        one.result(stage.harness.answer_s)
    stage.never(stage.member(stage.group(), topic), "before", "after")


@case(DURABLE, property="an append whose result nobody asks for is sent, at the latest by close")
def unawaited_append_is_sent(stage: Stage) -> None:
    topic, sender = stage.topic(), stage.sender()
    for text in ("one", "two", "three"):
        sender.append(envelope(topic, text), 0)
    sender.close()
    stage.never(stage.member(stage.group(), topic), "one", "two", "three")


@case(DURABLE, property="several tasks share one sender; all their messages arrive once")
def sender_is_shared(stage: Stage) -> None:
    topic, sender = stage.topic(2), stage.sender()
    names = [f"t{task}-{n}" for task in range(4) for n in range(10)]
    tasks = [
        stage.harness.ports.runtime.spawn(_send_all(stage, sender, topic, names[at::4]), f"sender {at}")
        for at in range(4)
    ]
    require(all(task.join(stage.harness.answer_s) for task in tasks), "a sending task did not end")
    member = stage.member(stage.group(), topic)
    stage.until_seen(len(names), member)
    stage.quiet(member)
    require(sorted(member.texts()) == sorted(names), f"sent {len(names)}, received {sorted(member.texts())}")


def _send_all(stage: Stage, sender: Sender, topic: str, names: list[str]) -> Callable[[], None]:
    def send() -> None:
        for name in names:
            sender.send([envelope(topic, name, key=name)], stage.harness.answer_s)

    return send


@case(DURABLE, property="close of a sender and of a backend is idempotent")
def close_is_idempotent(stage: Stage) -> None:
    client = stage.client()
    sender = stage.sender(client)
    sender.send([envelope(stage.topic(), "one")], stage.harness.answer_s)
    sender.close()
    sender.close()
    client.close()
    client.close()


# atomic send


def _refused_batch(stage: Stage, error: type[Exception], at: int, bad: Envelope, topic: str) -> None:
    """A batch with one bad message at an index is refused, and none of it is visible."""
    batch = [envelope(topic, f"m{n}", f"key{n}") for n in range(4)]
    batch.insert(at, bad)
    with stage.refused(error, what=f"a batch whose message {at} is bad"):
        stage.send(*batch)
    stage.send_texts(topic, "after")
    stage.never(stage.member(stage.group(), topic), "after")


@case(ATOMIC, property="a batch ending in an oversized message is refused and none of it is visible")
def oversized_message_refuses_the_batch(stage: Stage) -> None:
    topic = stage.topic(2)
    _refused_batch(stage, MessageRefused, 4, _oversized(stage, topic), topic)


@case(ATOMIC, property="a batch with a missing topic in its middle is refused and none of it is visible")
def unknown_topic_refuses_the_batch(stage: Stage) -> None:
    _refused_batch(stage, DestinationRefused, 2, _unknown(stage), stage.topic(2))


@case(ATOMIC, property="a batch over several topics and partitions arrives whole")
def batch_over_several_topics(stage: Stage) -> None:
    orders, stock = stage.topic(3, name="orders"), stage.topic(2, name="stock")
    stage.send(*(envelope(orders if n % 2 else stock, f"m{n}", f"key{n}") for n in range(10)))
    member = stage.member(stage.group(), orders, stock)
    stage.until_seen(10, member)
    require(sorted(member.texts()) == sorted(f"m{n}" for n in range(10)), f"got {member.texts()}")


@case(ATOMIC, property="a batch sent by a client that is then killed is visible whole")
def batch_survives_whole(stage: Stage) -> None:
    topic, victim = stage.topic(4), stage.client()
    batch = [envelope(topic, f"m{n}", f"key{n}") for n in range(20)]
    stage.sender(victim).send(batch, stage.harness.answer_s)
    stage.kill(victim)
    member = stage.member(stage.group(), topic)
    stage.until_seen(20, member)


@case(ATOMIC, property="a reader never sees a part of a batch", also=[Capability.LOG])
def no_part_of_a_batch_is_readable(stage: Stage) -> None:
    topic, sender = stage.topic(), stage.sender()

    def send() -> None:
        for batch in range(15):
            contents = [envelope(topic, f"b{batch}-{n}") for n in range(10)]
            sender.send(contents, stage.harness.answer_s)

    log, counts = stage.log(topic), list[int]()
    task, done = stage.harness.ports.runtime.spawn(send, "sender"), False
    while not done:
        # One more look after the sender has ended, so that its last batch is judged too.
        done = task.join(0.001)
        counts.append(len(log.read(0, 0, 1000, 0.0)[0]))
    require(all(count % 10 == 0 for count in counts), f"a batch was seen in parts: {counts}")
    require(counts[-1] == 150, f"150 sent, {counts[-1]} readable")


# order by key


@case(ORDER, property="all messages of a key go to one partition, whoever sends them", kind=TopicKind.ORDERED)
def key_has_one_partition(stage: Stage) -> None:
    topic, found = stage.topic(5, TopicKind.ORDERED), defaultdict[str, set[int]](set)
    for client in (stage.first, stage.client()):
        sent = [envelope(topic, f"m{n}", f"key{n % 8}") for n in range(24)]
        for one, receipt in zip(sent, stage.send(*sent, client=client), strict=True):
            found[one.key or ""].add(receipt.partition)
    require(all(len(partitions) == 1 for partitions in found.values()), f"a key moved: {dict(found)}")
    require(len({min(partitions) for partitions in found.values()}) > 1, f"all keys share one: {dict(found)}")


def _in_order(stage: Stage, topic: str, wanted: dict[str, list[str]]) -> None:
    """A new group receives each key's messages in this order."""
    member = stage.member(stage.group(), topic)
    stage.until_seen(sum(map(len, wanted.values())), member)
    got = defaultdict[str, list[str]](list)
    for one in member.seen:
        got[one.envelope.key or ""].append(one.envelope.payload.decode())
    require(dict(got) == wanted, f"expected {wanted}, received {dict(got)}")


@case(ORDER, property="one send keeps the order of each of its keys", kind=TopicKind.ORDERED)
def order_within_one_send(stage: Stage) -> None:
    topic = stage.topic(3, TopicKind.ORDERED)
    wanted = {f"key{k}": [f"k{k}-{n}" for n in range(10)] for k in range(5)}
    stage.send(*(envelope(topic, f"k{k}-{n}", f"key{k}") for n in range(10) for k in range(5)))
    _in_order(stage, topic, wanted)


@case(ORDER, property="many sends keep the order of each key", kind=TopicKind.ORDERED)
def order_over_many_sends(stage: Stage) -> None:
    topic, sender = stage.topic(3, TopicKind.ORDERED), stage.sender()
    wanted = {f"key{k}": [f"k{k}-{n}" for n in range(6)] for k in range(3)}
    for n in range(6):
        for k in range(3):
            sender.send([envelope(topic, f"k{k}-{n}", f"key{k}")], stage.harness.answer_s)
    _in_order(stage, topic, wanted)


@case(ORDER, property="two senders, one after the other, keep the order of a key", kind=TopicKind.ORDERED)
def order_across_two_senders(stage: Stage) -> None:
    topic = stage.topic(3, TopicKind.ORDERED)
    clients, wanted = (stage.client(), stage.client()), [f"m{n}" for n in range(10)]
    for n, text in enumerate(wanted):
        stage.send(envelope(topic, text, "key"), client=clients[n % 2])
    _in_order(stage, topic, {"key": wanted})


@case(ORDER, property="unfinished messages of a key come again in their order", kind=TopicKind.ORDERED)
def order_when_they_come_again(stage: Stage) -> None:
    topic, group = stage.topic(2, TopicKind.ORDERED), stage.group()
    stage.send(*(envelope(topic, f"m{n}", "key") for n in range(8)))
    first = stage.member(group, topic)
    stage.until_seen(8, first)
    first.receiver.ack(first.seen[:3])
    first.receiver.close()
    stage.never(stage.member(group, topic), *(f"m{n}" for n in range(3, 8)))


@case(
    ORDER,
    property="a broker transaction puts a key where a plain send puts it",
    kind=TopicKind.ORDERED,
    also=[Capability.BROKER_TRANSACTION],
)
def key_has_one_partition_in_transactions_too(stage: Stage) -> None:
    topic = stage.topic(5, TopicKind.ORDERED)
    stage.send(*(envelope(topic, f"a{k}", f"key{k}") for k in range(8)))
    stage.commit(*(envelope(topic, f"b{k}", f"key{k}") for k in range(8)))
    _in_order(stage, topic, {f"key{k}": [f"a{k}", f"b{k}"] for k in range(8)})
