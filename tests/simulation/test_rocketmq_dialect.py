"""The RocketMQ dialect, behaviour by behaviour: a pure state machine driven by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.simulation.rocketmq_shown import SHOWN, shows
from txbus.spi import Outcome
from txbus_sim.dialects.behaviours import table
from txbus_sim.dialects.rocketmq import (
    BEHAVIOURS,
    DISCARD_TOPIC,
    Message,
    MessageType,
    Popped,
    Producer,
    Question,
    RocketmqBroker,
    Rules,
    ServerStatus,
    Stored,
    dead_letter_topic,
)
from txbus_sim.dialects.rocketmq_groups import Group
from txbus_sim.history import Checked, HalfStored, Record, Settled

S = 1_000_000_000
COMMITTED, ROLLED_BACK, UNKNOWN = Outcome.COMMITTED, Outcome.ROLLED_BACK, Outcome.UNKNOWN
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "sim-rocketmq.md"


@dataclass
class Bench:
    """A broker with short check times, its clock, and what it told."""

    rules: Rules = field(default_factory=lambda: Rules(check_after_ns=2 * S, check_interval_ns=2 * S, check_max=5))
    now_ns: int = 0
    history: list[Record] = field(default_factory=list)
    visible: list[Stored] = field(default_factory=list)
    ids: int = 0

    def __post_init__(self) -> None:
        def stored(one: Stored, process: str, now_ns: int) -> None:
            self.visible.append(one)

        self.broker = RocketmqBroker(self.rules, self.history.append, stored, lambda m: m.properties.get("ce_id", ""))
        self.broker.create_topic("half", MessageType.TRANSACTION, 2)
        self.broker.create_topic("plain", MessageType.NORMAL, 1)
        self.broker.create_topic("fifo", MessageType.FIFO, 4)
        self.broker.create_topic("delay", MessageType.DELAY, 1)

    def message(self, topic: str, text: str, **more: object) -> Message:
        self.ids += 1
        transactional = topic == "half"
        made = Message(f"M{self.ids}", topic, text.encode(), born_ns=self.now_ns, transactional=transactional)
        return replace(made, **more)  # type: ignore[arg-type]

    def send(self, topic: str, text: str, **more: object) -> Stored | None:
        return self.broker.send(self.message(topic, text, **more), "p", self.now_ns)

    def prepare(self, body: str = "half") -> str:
        return self.broker.prepare(self.message("half", body), "p", self.now_ns)

    def end(self, transaction_id: str, outcome: Outcome) -> None:
        self.broker.end(transaction_id, outcome, "p", self.now_ns)

    def answer(self, question: Question, outcome: Outcome) -> None:
        self.broker.end(question.transaction_id, outcome, "p", self.now_ns, round=question.round)

    def producer(self, *topics: str, checker: bool = True, process: str = "p") -> Producer:
        producer = Producer(process, frozenset(topics or ("half",)), checker)
        self.broker.register(producer, self.now_ns)
        return producer

    def wait(self, seconds: float) -> None:
        """Let time pass as the shell does: from deadline to deadline."""
        end_ns = self.now_ns + round(seconds * S)
        while (due_ns := self.broker.next_deadline_ns()) is not None and due_ns <= end_ns:
            self.now_ns = max(self.now_ns, due_ns)
            self.broker.advance(self.now_ns)
        self.now_ns = end_ns

    def group(self, name: str = "g", ordered: bool = False) -> Group:
        return self.broker.group(name, ordered=ordered)

    def receive(
        self, topic: str, group: Group | None = None, most: int = 32, invisible_s: float = 10, tags: str = ""
    ) -> list[Popped]:
        consumer = object()
        self.broker.begin_consumer(consumer, self.now_ns)
        wanted = frozenset(tags.split("|")) if tags else None
        invisible_ns = round(invisible_s * S)
        return self.broker.receive(consumer, group or self.group(), topic, wanted, most, invisible_ns, self.now_ns)

    def bodies(self, topic: str, group: str = "reader") -> list[str]:
        """What a group of its own has not seen yet."""
        return [one.stored.message.body.decode() for one in self.receive(topic, self.group(group))]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def bodies(popped: list[Popped]) -> list[str]:
    return [one.stored.message.body.decode() for one in popped]


def refused(status: pytest.ExceptionInfo[ServerStatus], code: int) -> bool:
    return status.value.code == code


# sending


@shows("durable-send")
def test_sent_messages_outlive_the_broker(bench: Bench) -> None:
    """What was acknowledged is received after broker and proxy were killed."""
    bench.send("plain", "a")
    bench.broker.restart_broker(bench.now_ns)
    bench.wait(6)
    assert bench.bodies("plain") == ["a"]


@shows("topic-type")
@pytest.mark.parametrize(
    ("topic", "more"), [("half", {"transactional": False}), ("fifo", {}), ("plain", {"group": "g"})]
)
def test_a_topic_takes_its_own_type(bench: Bench, topic: str, more: dict[str, object]) -> None:
    """A message of another type than the topic's is refused with 40014 and not stored."""
    with pytest.raises(ServerStatus) as status:
        bench.send(topic, "x", **more)
    assert refused(status, 40014) and not bench.visible


@shows("mixed-type")
def test_mixed_topics_take_everything_where_they_are_allowed() -> None:
    """Without the broker's setting a MIXED topic cannot be made; with it, it takes any message."""
    with pytest.raises(ServerStatus):
        Bench().broker.create_topic("any", MessageType.MIXED, 1)
    bench = Bench(Rules(mixed_types=True))
    bench.broker.create_topic("any", MessageType.MIXED, 1)
    bench.send("any", "plain")
    bench.send("any", "fifo", group="g")
    half = bench.broker.prepare(bench.message("any", "half", transactional=True), "p", 0)
    bench.end(half, COMMITTED)
    assert bench.bodies("any") == ["plain", "fifo", "half"]


@shows("exclusive-kinds")
def test_group_delay_and_transaction_exclude_each_other(bench: Bench) -> None:
    """A message that asks for two of them is refused by the client."""
    with pytest.raises(ServerStatus) as status:
        bench.send("fifo", "x", group="g", deliver_at_ns=S)
    assert refused(status, 0)


@shows("missing-topic")
def test_a_missing_topic_has_no_route(bench: Bench) -> None:
    """Sending to it and receiving from it are 40402."""
    for call in (lambda: bench.send("nowhere", "x"), lambda: bench.receive("nowhere")):
        with pytest.raises(ServerStatus) as status:
            call()
        assert refused(status, 40402)


@shows("system-topics", "discard-topic")
def test_the_discard_topic_is_out_of_reach(bench: Bench) -> None:
    """A half beyond its budget stands in the discard topic, and gRPC cannot read it."""
    bench.prepare("lost")
    bench.wait(20)
    assert [message.body for message in bench.broker.discarded] == [b"lost"]
    for call in (
        lambda: bench.receive(DISCARD_TOPIC),
        lambda: bench.broker.create_topic(DISCARD_TOPIC, MessageType.NORMAL, 1),
    ):
        with pytest.raises(ServerStatus) as status:
            call()
        assert refused(status, 40002)


@shows("proxy-selects-queue")
def test_the_proxy_selects_the_queue(bench: Bench) -> None:
    """In turn; a message group always goes to the queue of its consistent hash."""
    bench.broker.create_topic("wide", MessageType.NORMAL, 3)
    for n in range(4):
        bench.send("wide", str(n))
    assert [one.queue for one in bench.visible] == [0, 1, 2, 0]
    bench.visible.clear()
    for group in ("a", "b", "c", "group-1", "a", "b", "c", "group-1"):
        bench.send("fifo", group, group=group)
    queues = [one.queue for one in bench.visible]
    assert queues[:4] == queues[4:] and len(set(queues)) > 1


@shows("body-limits", "property-limits", "property-names", "tag-characters")
@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"body": b""}, 0),
        ({"body": b"x" * (4 * 1024 * 1024 + 1)}, 41301),
        ({"properties": {f"p{n}": "v" for n in range(129)}}, 43101),
        ({"properties": {"p": "v" * 16 * 1024}}, 43101),
        ({"properties": {"UNIQ_KEY": "v"}}, 40007),
        ({"properties": {"p": "a\nb"}}, 40007),
        ({"properties": {"p\x00": "v"}}, 40007),
        ({"tag": "a|b"}, 40003),
        ({"tag": " "}, 40003),
    ],
)
def test_limits(bench: Bench, more: dict[str, object], code: int) -> None:
    """What is too large, or named so that it cannot be, is refused with its code and not stored."""
    with pytest.raises(ServerStatus) as status:
        bench.send("plain", "x", **more)
    assert refused(status, code) and not bench.visible


def test_the_limits_themselves_are_taken(bench: Bench) -> None:
    """A body of 4 MiB and 128 properties pass."""
    bench.send("plain", "x", body=b"x" * 4 * 1024 * 1024, properties={f"p{n}": "v" for n in range(128)})
    assert len(bench.visible) == 1


@shows("delay", "overdue")
def test_delayed_delivery(bench: Bench) -> None:
    """In its time and not before; a time that is over means at once."""
    bench.send("delay", "later", deliver_at_ns=3 * S)
    bench.send("delay", "now", deliver_at_ns=-S)
    assert bench.bodies("delay") == ["now"]
    bench.wait(2.9)
    assert bench.bodies("delay") == []
    bench.wait(0.1)
    assert bench.bodies("delay") == ["later"]


@shows("delay-limit")
def test_delay_of_more_than_a_day(bench: Bench) -> None:
    """24 h pass, more is refused."""
    bench.send("delay", "x", deliver_at_ns=24 * 3600 * S)
    with pytest.raises(ServerStatus) as status:
        bench.send("delay", "x", deliver_at_ns=24 * 3600 * S + 1)
    assert refused(status, 40012)


# half messages


@shows("half-invisible", "half-outcome")
def test_outcomes(bench: Bench) -> None:
    """A half is invisible; committed it is received once, rolled back never, and neither is asked about."""
    producer, kept, gone = bench.producer(), bench.prepare("kept"), bench.prepare("gone")
    assert bench.bodies("half") == []
    bench.end(kept, COMMITTED)
    bench.end(gone, ROLLED_BACK)
    bench.wait(30)
    assert bench.bodies("half") == ["kept"] and not producer.questions


@shows("half-retry-doubles")
def test_a_repeated_half_is_an_orphan(bench: Bench) -> None:
    """The same message prepared twice has two transaction ids, and the first one is asked about."""
    producer, message = bench.producer(), bench.message("half", "x")
    first, second = (bench.broker.prepare(message, "p", 0) for _ in range(2))
    bench.end(second, COMMITTED)
    bench.wait(5)
    assert first != second and {one.transaction_id for one in producer.questions} == {first}


@shows("one-way-end")
def test_a_lost_outcome_is_asked_about(bench: Bench) -> None:
    """commit() said OK, the broker never heard of it: nothing is visible, and a check comes."""
    producer, half = bench.producer(), bench.prepare()
    bench.broker.end(half, COMMITTED, "p", 0, lost=True)
    bench.wait(5)
    assert not bench.visible and producer.questions[0].transaction_id == half


@shows("first-check")
def test_the_first_check_counts_from_the_born_time(bench: Bench) -> None:
    """A half is asked about in the first round after the timeout, counted from its client's time."""
    producer = bench.producer()
    bench.wait(1)
    bench.broker.prepare(bench.message("half", "young"), "p", bench.now_ns)
    bench.wait(1.5)
    assert not producer.questions
    bench.wait(1.5)
    assert [one.asked_ns for one in producer.questions] == [4 * S]
    bench = Bench()
    producer = bench.producer()
    bench.broker.prepare(bench.message("half", "old", born_ns=-5 * S), "p", 0)
    bench.wait(2)
    assert [one.asked_ns for one in producer.questions] == [2 * S]


@shows("rounds-reappend")
def test_each_round_asks_with_its_number(bench: Bench) -> None:
    """Unanswered it is asked about in every round, with 1, 2, 3."""
    producer = bench.producer()
    bench.prepare()
    bench.wait(8)
    assert [one.round for one in producer.questions] == [1, 2, 3]


@shows("round-stops-at-young")
def test_a_young_half_holds_up_the_round() -> None:
    """A re-appended half that stands behind one too young is left out of the round."""
    bench = Bench(Rules(check_after_ns=3 * S, check_interval_ns=2 * S))
    producer = bench.producer()
    bench.prepare("old")
    bench.wait(3.5)
    bench.prepare("young")
    bench.wait(0.5)
    assert bodies_of(producer.questions) == ["old"]
    bench.wait(2)
    assert bodies_of(producer.questions) == ["old"]
    bench.wait(2)
    assert bodies_of(producer.questions) == ["old", "young", "old"]


def bodies_of(questions: list[Question]) -> list[str]:
    return [one.message.body.decode() for one in questions]


@shows("budget-burns")
def test_the_budget_burns_without_anybody(bench: Bench) -> None:
    """With no producer the half is discarded after its rounds, and a producer that comes is not asked."""
    half = bench.prepare()
    bench.wait(20)
    producer = bench.producer()
    bench.wait(20)
    assert not producer.questions and not bench.visible
    settled = [one for one in bench.history if isinstance(one, Settled)]
    assert [(one.half, one.discarded) for one in settled] == [(half, True)]


@shows("rescue")
def test_rescue_is_not_idempotent(bench: Bench) -> None:
    """A rescued half is asked about again with a new budget; rescued twice it is delivered twice."""
    bench.prepare("late")
    bench.wait(20)
    producer, message = bench.producer(), bench.broker.discarded[0]
    for _ in range(2):
        bench.broker.resume(message.id, bench.now_ns)
    bench.wait(3)
    assert [one.round for one in producer.questions] == [1, 1]
    for one in producer.questions:
        bench.answer(one, COMMITTED)
    bench.wait(10)
    assert bench.bodies("half") == ["late", "late"] and len(producer.questions) == 2


@shows("answer-marks-asked")
def test_an_answer_settles_what_was_asked(bench: Bench) -> None:
    """A timely answer ends the checks; a second one to the same question is 50001; one to a question of
    an earlier round settles nothing that is still asked about."""
    producer, first, second = bench.producer(), bench.prepare("first"), bench.prepare("second")
    bench.wait(4)
    assert {one.transaction_id for one in producer.questions} == {first, second}
    bench.answer(producer.questions[0], ROLLED_BACK)
    with pytest.raises(ServerStatus) as status:
        bench.answer(producer.questions[0], COMMITTED)
    assert refused(status, 50001)
    bench.wait(2)
    assert bodies_of(producer.questions) == ["first", "second", "second"]
    bench.answer(producer.questions[1], ROLLED_BACK)
    bench.wait(2)
    assert bodies_of(producer.questions) == ["first", "second", "second", "second"]


@shows("checks-go-on", "answer-doubles", "duplicate-attempt-1")
def test_an_outcome_after_the_first_round_does_not_stop_the_checks(bench: Bench) -> None:
    """commit() after the first round is OK and visible; the half is asked about again, and a COMMIT answer
    delivers a second time, with attempt 1."""
    producer, half = bench.producer(), bench.prepare()
    bench.wait(4)
    bench.end(half, COMMITTED)
    assert len(bench.visible) == 1
    bench.wait(2)
    assert [one.round for one in producer.questions] == [1, 2]
    bench.answer(producer.questions[1], COMMITTED)
    assert [one.attempt for one in bench.receive("half")] == [1, 1]
    bench.wait(10)
    assert len(producer.questions) == 2


@shows("answer-doubles")
def test_a_commit_answer_delivers_what_was_rolled_back(bench: Bench) -> None:
    """rollback() after the first round, then COMMIT from a checker: a phantom."""
    producer, half = bench.producer(), bench.prepare()
    bench.wait(4)
    bench.end(half, ROLLED_BACK)
    bench.wait(2)
    bench.answer(producer.questions[-1], COMMITTED)
    assert bench.bodies("half") == ["half"]


@shows("late-outcome")
def test_the_proxy_forgets(bench: Bench) -> None:
    """A second commit, and one 34 s late, are 50001."""
    half = bench.prepare()
    bench.end(half, COMMITTED)
    with pytest.raises(ServerStatus) as status:
        bench.end(half, COMMITTED)
    assert refused(status, 50001)
    slow = Bench(Rules(check_after_ns=60 * S))
    half = slow.prepare()
    slow.wait(34)
    with pytest.raises(ServerStatus) as status:
        slow.end(half, COMMITTED)
    assert refused(status, 50001) and not slow.visible


@shows("op-marks-in-memory")
def test_a_killed_broker_asks_about_acknowledged_outcomes(bench: Bench) -> None:
    """Outcomes of the last second are forgotten with the broker, older ones are not."""
    old, kept, gone = (bench.prepare(text) for text in ("old", "kept", "gone"))
    bench.end(old, COMMITTED)
    bench.wait(1)
    bench.end(kept, COMMITTED)
    bench.end(gone, ROLLED_BACK)
    assert bench.broker.restart_broker(bench.now_ns) == 2
    bench.wait(5)
    producer = bench.producer()
    bench.wait(2)
    assert bodies_of(producer.questions) == ["kept", "gone"]
    for one in producer.questions:
        bench.answer(one, COMMITTED)
    assert sorted(bench.bodies("half")) == ["gone", "kept", "kept", "old"]


@shows("asked-by-topic")
def test_strangers_are_asked_in_turn(bench: Bench) -> None:
    """Two processes announced the topic: each gets every other question; a stranger's word is final."""
    mine, stranger = bench.producer(process="mine"), bench.producer(process="stranger")
    bench.prepare()
    bench.wait(8)
    assert [len(mine.questions), len(stranger.questions)] == [2, 1]
    bench.answer(mine.questions[-1], ROLLED_BACK)
    bench.wait(10)
    assert [len(mine.questions), len(stranger.questions)] == [2, 1] and not bench.visible


@shows("no-checker-burns")
def test_a_producer_without_a_checker_burns_rounds(bench: Bench) -> None:
    """It is asked in its turn, and nobody hears of it."""
    mine = bench.producer()
    bench.producer(checker=False, process="mute")
    bench.prepare()
    bench.wait(8)
    assert [one.round for one in mine.questions] == [1, 3]
    checked = [one for one in bench.history if isinstance(one, Checked)]
    assert [one.process for one in checked] == ["p", "mute", "p"]


@shows("unannounced-topic")
def test_topics_that_were_not_announced_are_not_asked_about(bench: Bench) -> None:
    """A producer of another topic gets no question; the budget burns."""
    producer = bench.producer("other")
    bench.prepare()
    bench.wait(20)
    assert not producer.questions and len(bench.broker.discarded) == 1


@shows("dead-producer")
def test_the_successor_of_a_dead_producer_is_asked(bench: Bench) -> None:
    """A producer whose connection broke gets nothing any more, a new one the next question."""
    dead = bench.producer()
    bench.prepare()
    bench.broker.unregister(dead)
    bench.wait(3)
    heir = bench.producer()
    bench.wait(2)
    assert not dead.questions and len(heir.questions) == 1


def test_history_of_a_half(bench: Bench) -> None:
    """Stored, asked, settled: with the half's id and the message's."""
    bench.producer()
    half = bench.broker.prepare(bench.message("half", "x", properties={"ce_id": "id"}), "orders", 0)
    bench.wait(4)
    bench.end(half, ROLLED_BACK)
    kinds = [type(one) for one in bench.history]
    assert kinds == [HalfStored, Checked, Settled]
    assert all(one.half == half and one.message_id == "id" for one in bench.history)  # type: ignore[union-attr]


# receiving


@shows("invisible-time")
def test_invisible_time_has_bounds(bench: Bench) -> None:
    """Under 10 s and over 12 h are refused; within, nobody of the group gets it meanwhile."""
    for seconds in (9.9, 12 * 3600 + 1):
        with pytest.raises(ServerStatus) as status:
            bench.receive("plain", invisible_s=seconds)
        assert refused(status, 40011)
    bench.send("plain", "a")
    assert bodies(bench.receive("plain")) == ["a"]
    bench.wait(9.9)
    assert bench.receive("plain") == []


@shows("late-redelivery", "attempts")
def test_redelivery_is_late(bench: Bench) -> None:
    """It comes 3 s after the invisible time, one attempt higher."""
    bench.send("plain", "a")
    assert bench.receive("plain")[0].attempt == 1
    bench.wait(12.9)
    assert bench.receive("plain") == []
    bench.wait(0.1)
    assert bench.receive("plain")[0].attempt == 2
    assert bench.receive("plain", bench.group("other"))[0].attempt == 1


@shows("change-invisible", "expired-receipt")
def test_change_of_the_invisible_time(bench: Bench) -> None:
    """0 brings it back after 3 s; the old receipt is over, the new one holds."""
    bench.send("plain", "a")
    group, first = bench.group(), bench.receive("plain")[0]
    second = bench.broker.change_invisible(group, first.receipt, 20 * S, bench.now_ns)
    with pytest.raises(ServerStatus) as status:
        bench.broker.ack(group, first.receipt, bench.now_ns)
    assert refused(status, 40013)
    third = bench.broker.change_invisible(group, second.receipt, 0, bench.now_ns)
    bench.wait(3)
    assert bench.receive("plain")[0].attempt == 2 and third.receipt != second.receipt


@shows("expired-receipt")
def test_receipts(bench: Bench) -> None:
    """An ack in time may be repeated; one that is late is 40013 and the message comes again."""
    bench.send("plain", "a")
    bench.send("plain", "b")
    group, (first, second) = bench.group(), bench.receive("plain")
    assert bench.broker.ack(group, first.receipt, bench.now_ns) is not None
    assert bench.broker.ack(group, first.receipt, bench.now_ns) is None
    bench.wait(10)
    with pytest.raises(ServerStatus) as status:
        bench.broker.ack(group, second.receipt, bench.now_ns)
    assert refused(status, 40013)
    bench.wait(3)
    assert bodies(bench.receive("plain")) == ["b"]


@shows("dead-letter", "dead-letter-when-asked")
def test_dead_letters() -> None:
    """After retries + 1 attempts it stands in the dead-letter topic, once somebody has asked."""
    bench = Bench(Rules(retries_max=2))
    bench.send("plain", "a", properties={"k": "v"})
    attempts = []
    for _ in range(3):
        attempts += [one.attempt for one in bench.receive("plain")]
        bench.wait(13)
    assert attempts == [1, 2, 3]
    dead = dead_letter_topic("g")
    with pytest.raises(ServerStatus):
        bench.receive(dead)
    assert bench.receive("plain") == []
    found = bench.receive(dead, bench.group("undertaker"))
    assert bodies(found) == ["a"] and found[0].stored.message.properties == {"k": "v"}
    bench.wait(60)
    assert bench.receive("plain") == []


@shows("no-owner", "groups-independent", "start-at-zero")
def test_members_share_and_groups_do_not(bench: Bench) -> None:
    """Two polls of one group share a queue's messages; another group, new, gets all of them."""
    for text in "abc":
        bench.send("plain", text)
    assert bodies(bench.receive("plain", most=2)) == ["a", "b"]
    assert bodies(bench.receive("plain")) == ["c"]
    assert bodies(bench.receive("plain", bench.group("other"))) == ["a", "b", "c"]


@shows("reset-offset")
def test_reset_to_the_newest(bench: Bench) -> None:
    """What was stored before the reset is not received."""
    bench.send("plain", "a")
    bench.group().reset(bench.broker.topic("plain"))
    bench.send("plain", "b")
    assert bodies(bench.receive("plain")) == ["b"]


@shows("tag-filter")
def test_tags(bench: Bench) -> None:
    """Only the tags asked for; the others are passed over for good."""
    for n, tag in enumerate(("red", "blue", None, "red")):
        bench.send("plain", str(n), tag=tag)
    assert bodies(bench.receive("plain", tags="red")) == ["0", "3"]
    assert bench.broker.group("g").oldest_open(bench.broker.topic("plain"), 0) == 0
    assert bench.receive("plain") == []


@shows("receive-max")
def test_more_than_32_at_once(bench: Bench) -> None:
    """33 are refused."""
    with pytest.raises(ServerStatus) as status:
        bench.receive("plain", most=33)
    assert refused(status, 50001)


@shows("fifo-blocks")
def test_an_ordered_group_waits_for_what_is_out(bench: Bench) -> None:
    """Nothing of the queue is handed out while a message is; it comes again exactly after its time."""
    group = bench.group("ordered", ordered=True)
    for text in "abc":
        bench.send("fifo", text, group="k")
    first = bench.receive("fifo", group, most=1)
    assert bodies(first) == ["a"] and bench.receive("fifo", group) == []
    bench.broker.ack(group, first[0].receipt, bench.now_ns)
    assert bodies(bench.receive("fifo", group, most=1)) == ["b"]
    bench.wait(9.999)
    assert bench.receive("fifo", group) == []
    bench.wait(0.001)
    assert bodies(bench.receive("fifo", group)) == ["b", "c"]


@shows("fifo-attempts")
def test_attempts_of_an_ordered_group(bench: Bench) -> None:
    """Counted for the batch: 1, 2, 3 while it is the same, from 1 again when it differs."""
    group = bench.group("ordered", ordered=True)
    bench.send("fifo", "a", group="k")
    attempts = []
    for _ in range(3):
        attempts += [one.attempt for one in bench.receive("fifo", group)]
        bench.wait(10)
    bench.send("fifo", "b", group="k")
    attempts += [one.attempt for one in bench.receive("fifo", group)]
    assert attempts == [1, 2, 3, 1, 1]


def test_an_ordered_batch_comes_again_without_what_was_acknowledged(bench: Bench) -> None:
    """Of a, b, c with b acknowledged come a and c again, in order."""
    group = bench.group("ordered", ordered=True)
    for text in "abc":
        bench.send("fifo", text, group="k")
    batch = bench.receive("fifo", group)
    bench.broker.ack(group, batch[1].receipt, bench.now_ns)
    bench.wait(10)
    assert bodies(bench.receive("fifo", group)) == ["a", "c"]


@shows("redelivery-position", "group-position")
def test_positions(bench: Bench) -> None:
    """A redelivery keeps its offset, and a group's position does not pass it."""
    for text in "abc":
        bench.send("plain", text)
    group, topic = bench.group(), bench.broker.topic("plain")
    assert group.oldest_open(topic, 0) is None
    popped = bench.receive("plain")
    for one in popped[1:]:
        bench.broker.ack(group, one.receipt, bench.now_ns)
    assert group.oldest_open(topic, 0) == 0
    bench.wait(13)
    again = bench.receive("plain")
    assert [one.stored.offset for one in again] == [0] and group.oldest_open(topic, 0) == 0
    bench.broker.ack(group, again[0].receipt, bench.now_ns)
    assert group.oldest_open(topic, 0) == 3


@shows("queue-turn")
def test_queues_take_turns(bench: Bench) -> None:
    """One message at a time comes from one queue after the other; a redelivery comes after what is new."""
    bench.broker.create_topic("wide", MessageType.NORMAL, 2)
    for text in "abcd":
        bench.send("wide", text)
    got = [bodies(bench.receive("wide", most=1))[0] for _ in range(4)]
    assert sorted(got[:2]) == ["a", "b"] and sorted(got) == ["a", "b", "c", "d"]
    bench.wait(13)
    bench.send("wide", "new")
    assert bodies(bench.receive("wide"))[0] == "new"


# restarts


@shows("proxy-restart-consumer", "down-time", "first-receive")
def test_an_old_consumer_is_dead_after_a_restart(bench: Bench) -> None:
    """Calls fail while the proxy is away; then an old consumer gets 50001 for ever, a new one messages.
    A consumer whose settings have not arrived yet gets 50001 too."""
    bench.send("plain", "a")
    consumer, group = object(), bench.group()
    bench.broker.begin_consumer(consumer, 0)

    def receive() -> list[Popped]:
        return bench.broker.receive(consumer, group, "plain", None, 1, 10 * S, bench.now_ns)

    bench.broker.restart_proxy(bench.now_ns)
    for wait_s, code in ((0, 14), (4.9, 14), (0.1, 50001), (600, 50001)):
        bench.wait(wait_s)
        with pytest.raises(ServerStatus) as status:
            receive()
        assert refused(status, code)
    bench.broker.end_consumer(consumer)
    bench.broker.begin_consumer(consumer, bench.now_ns)
    assert bodies(receive()) == ["a"]


@shows("proxy-restart-producer", "proxy-restart-halves")
def test_an_old_producer_is_not_asked_after_a_restart(bench: Bench) -> None:
    """It sends again and gets no check, until it is registered anew; outcomes of older halves are 50001."""
    producer, half = bench.producer(), bench.prepare()
    bench.broker.restart_proxy(bench.now_ns)
    bench.wait(5)
    with pytest.raises(ServerStatus) as status:
        bench.end(half, COMMITTED)
    assert refused(status, 50001)
    bench.prepare("another")
    bench.wait(4)
    assert not producer.questions and not bench.broker.is_registered(producer)
    bench.broker.register(producer, bench.now_ns)
    bench.wait(2)
    assert half in {one.transaction_id for one in producer.questions}


# the table


def test_every_behaviour_is_shown_by_a_test() -> None:
    """Each row of the table is named by a test here, and no test names a row that is not there."""
    assert sorted(SHOWN) == sorted(one.id for one in BEHAVIOURS)
    assert len({one.id for one in BEHAVIOURS}) == len(BEHAVIOURS)


def test_the_reference_has_the_table() -> None:
    """docs/reference/sim-rocketmq.md shows exactly the rows of the dialect."""
    assert table(BEHAVIOURS) in REFERENCE.read_text()
