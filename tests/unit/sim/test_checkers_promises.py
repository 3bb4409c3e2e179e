"""The promises of an application's messages: each kept, and each broken."""

from __future__ import annotations

import pytest

from tests.unit.sim.checkers_story import Row, Shop, Story, dead_letter, faultless, inbox, learned, ledger, queue_broker
from txbus_sim.checkers import Attempts, Effect, Expectation, Pair
from txbus_sim.faults import Fault
from txbus_sim.result import VerdictKind

PAIR = Pair("shop.orders", "id", "orders", "id")
EFFECT = Effect("orders", "id", "stock.reservations", "order_id", group="stock.reserve")
LEARNED = learned(faultless())


@pytest.fixture
def story() -> Story:
    made = Story()
    made.start("orders", "stock")
    return made


@pytest.fixture
def shop(story: Story) -> Shop:
    return Shop(story)


def naive(story: Story, number: int, process: str = "orders") -> None:
    """Commit, then publish."""
    story.commit(process, "shop", orders={"id": f"o-{number}"})
    story.send(process, "orders", f"m{number}", {"id": f"o-{number}"})


# no-loss


def test_a_committed_row_without_its_message_is_a_loss(story: Story) -> None:
    """Commit, then publish, and a crash between them: the verdict names row, process and topic."""
    naive(story, 1)
    story.commit("orders", "shop", orders={"id": "o-2"})
    story.crash("orders", "orders+1")
    naive(story, 3, "orders+1")
    story.end("orders+1", "stock")
    report = story.check(PAIR)
    (verdict,) = report.verdicts
    assert (verdict.kind, verdict.name) == (VerdictKind.PROPERTY, "no-loss")
    assert "process orders committed the row shop.orders id=o-2" in verdict.sentence
    assert "no message of topic orders" in verdict.sentence
    assert any("committed in shop.orders: inserted id='o-2'" in line for line in verdict.details)
    assert any("process orders crashed" in line for line in verdict.details)
    assert report.premises["no-loss"] == 3


def test_a_row_that_a_restart_publishes_is_no_loss(story: Story) -> None:
    """An application's own outbox is asked at the end only."""
    story.commit("orders", "shop", orders={"id": "o-1"})
    story.crash("orders", "orders+1")
    story.send("orders+1", "orders", "m1", {"id": "o-1"})
    story.end("orders+1", "stock")
    assert story.accused(PAIR) == []


def test_nothing_is_lost_while_somebody_who_could_send_it_is_dead_for_good(story: Story) -> None:
    """What should happen in the end cannot be asked of a process that nobody started anew."""
    story.commit("orders", "shop", orders={"id": "o-1"})
    story.crash("orders")
    story.end("stock")
    assert story.accused(PAIR) == []


def test_a_replica_that_lives_can_be_asked() -> None:
    """`orders.2` is there for `orders.1`."""
    story = Story()
    story.start("orders.1", "orders.2")
    story.commit("orders.1", "shop", orders={"id": "o-1"})
    story.crash("orders.1")
    story.end("orders.2")
    assert story.accused(PAIR) == ["no-loss"]


def test_a_ledger_row_without_its_message_is_a_loss(shop: Shop, story: Story) -> None:
    """Nothing needs to be learned: the ledger says committed, and the bus was given the message."""
    shop.order(1)
    shop.place(2)
    story.end("orders", "stock")
    (verdict,) = story.check().verdicts
    assert verdict.name == "no-loss"
    assert "local transaction tx2" in verdict.sentence and "message m2" in verdict.sentence


def test_a_half_whose_relays_are_gone_is_not_lost_yet(shop: Shop, story: Story) -> None:
    """It is in the half log, and the next relay publishes it."""
    shop.order(1)
    shop.place(2)
    story.end("orders", how="returned")
    story.end("stock")
    assert story.accused(*LEARNED) == []


def test_the_message_of_an_attempt_that_rolled_back_is_not_missed(story: Story) -> None:
    """Only the attempt in the ledger counts, whether its number was noted or not."""
    for attempt in (1, 2):
        story.send("orders", "orders", f"m{attempt}", {}, tx_id="tx", attempt=attempt)
    story.commit("orders", "shop", txbus_ledger=ledger("tx", attempt=2))
    story.publish("orders", "orders", "m2", {"id": "o-1"})
    for number in (3, 4):
        story.send("orders", "orders", f"m{number}", {}, tx_id="other")
    story.commit("orders", "shop", txbus_ledger=ledger("other"))
    story.publish("orders", "orders", "m4", {"id": "o-2"})
    story.end("orders", "stock")
    assert story.accused() == []


def test_an_outbox_row_that_was_deleted_unsent_is_a_loss(story: Story) -> None:
    """`emptied`: every row of the table wants its message, also when it is gone."""
    row = {"id": "o-1"}
    story.commit("orders", "shop", outbox=row)
    story.commit("orders", "shop", ("outbox", row, None))
    story.end("orders", "stock")
    assert story.accused(Pair("shop.outbox", "id", "orders", "id")) == []
    assert story.accused(Pair("shop.outbox", "id", "orders", "id", emptied=True)) == ["no-loss"]


# no-phantom and precommitted-read


def test_a_message_whose_row_was_rolled_back_is_a_phantom(story: Story) -> None:
    """Publish, then commit, and the commit fails."""
    naive(story, 1)
    story.send("orders", "orders", "m2", {"id": "o-2"})
    story.rollback("orders", "shop", "refused")
    story.end("orders", "stock")
    (verdict,) = story.check(PAIR).verdicts
    assert verdict.name == "no-phantom"
    assert "message m2 (orders/0@1)" in verdict.sentence and "id=o-2" in verdict.sentence
    assert any("rolled back in shop (refused)" in line for line in verdict.details)


def test_a_message_of_a_row_from_before_the_run_is_no_phantom(story: Story) -> None:
    """The schema may have brought rows with it; the file tells."""
    story.file("shop", "CREATE TABLE orders (id)", "INSERT INTO orders VALUES ('o-0')")
    story.send("orders", "orders", "m0", {"id": "o-0"})
    naive(story, 1)
    story.end("orders", "stock")
    assert story.accused(PAIR) == []


@pytest.mark.parametrize("tombstone", [True, False])
def test_a_message_whose_local_transaction_never_committed_is_a_phantom(
    shop: Shop, story: Story, tombstone: bool
) -> None:
    """A checker that always says COMMITTED; with a ROLLED_BACK row, or with none."""
    shop.order(1)
    shop.place(2, commit=False)
    if tombstone:
        story.commit("orders", "shop", txbus_ledger=ledger("tx2", outcome="rolled_back", messages=0))
    shop.relay(2)
    story.end("orders", "stock")
    assert story.accused()[0] == "no-phantom"
    assert story.accused(*LEARNED)[0] == "no-phantom"


def test_a_restart_does_not_heal_a_message_that_was_early(shop: Shop, story: Story) -> None:
    """At the end every message has its row; whoever looked before saw none."""
    story.send("orders", "orders", "m1", {"id": "o-1"})
    story.crash("orders", "orders+1")
    story.commit("orders+1", "shop", orders={"id": "o-1"})
    story.end("orders+1", "stock")
    (verdict,) = story.check(PAIR).verdicts
    assert verdict.name == "precommitted-read"
    assert "o-1" in verdict.sentence


def test_a_message_before_its_ledger_row_is_early(shop: Shop, story: Story) -> None:
    """The outcome was told before the commit."""
    story.send("orders", "orders", "m1", {}, tx_id="tx1")
    shop.relay(1)
    story.commit("orders", "shop", txbus_ledger=ledger("tx1"))
    story.end("orders", "stock")
    assert story.accused() == ["precommitted-read"]


def test_publishing_first_is_held_against_an_application_only_where_it_shows(story: Story) -> None:
    """Where the run without faults publishes first, a row that comes by a restart is a phantom healed;
    sent again under one and the same id it is at-least-once on purpose."""
    first = Pair("shop.orders", "id", "orders", "id", publishes_first=True)
    story.send("orders", "orders", "m1", {"id": "o-1"})
    story.commit("orders", "shop", orders={"id": "o-1"})
    assert story.accused(first) == []
    story.send("orders", "orders", "m2", {"id": "o-2"})
    story.crash("orders", "orders+1")
    story.send("orders+1", "orders", "m2", {"id": "o-2"})
    story.commit("orders+1", "shop", orders={"id": "o-2"})
    assert story.accused(first) == []
    story.send("orders+1", "orders", "m3", {"id": "o-3"})
    story.rollback("orders+1", "shop", "refused")
    story.send("orders+1", "orders", "m4", {"id": "o-3"})
    story.commit("orders+1", "shop", orders={"id": "o-3"})
    story.end("orders+1", "stock")
    assert story.accused(first) == ["precommitted-read"]


# effect-exactly-once


def test_a_second_effect_of_one_message_is_found(shop: Shop, story: Story) -> None:
    """A handler without an inbox: the effect, a crash before the ack, the effect again."""
    shop.order(1)
    shop.place(2)
    offset = shop.relay(2)
    for process in ("stock", "stock+1"):
        story.deliver(process, "stock.reserve", "orders", offset, "m2")
        story.commit(process, "stock", reservations={"n": 1, "order_id": "o-2"})
        if process == "stock":
            story.crash("stock", "stock+1")
    story.end("orders", "stock+1")
    (verdict,) = story.check(EFFECT).verdicts
    assert verdict.name == "effect-exactly-once"
    assert "message m2" in verdict.sentence and "2 rows in stock.reservations with order_id=o-2" in verdict.sentence
    assert sum("was given m2" in line for line in verdict.details) == 2


def test_a_second_effect_that_was_taken_back_later_is_found(shop: Shop, story: Story) -> None:
    """The books at the end are right; they were not in between."""
    shop.order(1)
    again = {"n": 7, "order_id": "o-1"}
    story.commit("stock", "stock", reservations=again)
    story.commit("stock", "stock", ("reservations", again, None))
    story.end("orders", "stock")
    assert story.accused(*LEARNED) == ["effect-exactly-once"]


def test_two_messages_of_one_row_have_one_effect(story: Story) -> None:
    """One order told twice under different ids is one order, where the rows behind it are known."""
    for number in (1, 2):
        story.send("orders", "orders", f"m{number}", {"id": "o-1"})
        story.deliver("stock", "stock.reserve", "orders", number - 1, f"m{number}")
        story.commit("stock", "stock", reservations={"n": number, "order_id": "o-1"})
    story.end("orders", "stock")
    assert story.accused(EFFECT) == []
    assert Story.accused(_with_row(story), PAIR, EFFECT) == ["precommitted-read", "effect-exactly-once"]


def _with_row(story: Story) -> Story:
    story.commit("orders", "shop", orders={"id": "o-1"})
    return story


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_message_without_its_effect_is_a_lost_effect(shop: Shop, story: Story, acknowledged: bool) -> None:
    """Acknowledged before its effect, or never handled though the group was there until the end."""
    shop.order(1)
    shop.place(2)
    story.deliver("stock", "stock.reserve", "orders", shop.relay(2), "m2")
    if acknowledged:
        story.position("stock", "stock.reserve", "orders", 2)
    story.crash("stock", "stock+1")
    story.end("orders", "stock+1")
    found = [one for one in story.check(EFFECT).verdicts if "0 of 1 rows" in f"{one.sentence} {one.details}"]
    assert [verdict.name for verdict in found] == ["effect-exactly-once"]


def test_an_effect_that_is_still_to_come_is_not_lost(shop: Shop, story: Story) -> None:
    """Its consumer is dead for good, and nobody said that the message was done."""
    shop.order(1)
    shop.place(2)
    story.deliver("stock", "stock.reserve", "orders", shop.relay(2), "m2")
    story.crash("stock")
    story.end("orders")
    assert story.accused(*LEARNED, EFFECT) == []


def test_an_inbox_row_without_its_effect_is_a_lost_effect(shop: Shop, story: Story) -> None:
    """The handler swallowed the error, or the inbox row went in a transaction of its own."""
    shop.order(1)
    shop.place(2)
    story.deliver("stock", "stock.reserve", "orders", shop.relay(2), "m2")
    story.commit("stock", "stock", txbus_inbox=inbox("reserve", "m2"))
    story.position("stock", "stock.reserve", "orders", 2)
    story.end("orders", "stock")
    assert story.accused() == []
    assert story.accused(*LEARNED) == ["effect-exactly-once"]


def test_acknowledging_before_the_inbox_row_is_found_without_a_crash(shop: Shop, story: Story) -> None:
    """Event by event: the row comes a moment later, and a crash between them would have lost it."""
    shop.order(1)
    shop.place(2)
    story.deliver("stock", "stock.reserve", "orders", shop.relay(2), "m2")
    story.position("stock", "stock.reserve", "orders", 2)
    story.commit("stock", "stock", reservations={"n": 2, "order_id": "o-2"}, txbus_inbox=inbox("reserve", "m2"))
    story.end("orders", "stock")
    (verdict,) = story.check(*LEARNED).verdicts
    assert verdict.name == "effect-exactly-once" and "acknowledged before its effect" in verdict.sentence


def test_a_message_handled_twice_in_a_scope_is_found(shop: Shop, story: Story) -> None:
    """Its inbox row was gone when it came again."""
    shop.order(1)
    row = inbox("reserve", "m1")
    story.commit("stock", "stock", ("txbus_inbox", row, None))
    story.commit("stock", "stock", txbus_inbox=row)
    story.end("orders", "stock")
    (verdict,) = story.check().verdicts
    assert verdict.name == "effect-exactly-once" and "handled message m1 2 times" in verdict.sentence


def test_a_dead_letter_stands_for_the_effect(shop: Shop, story: Story) -> None:
    """A message that was given up on is not lost, in a table or in a topic."""
    shop.order(1)
    for number, topic in ((2, False), (3, True)):
        shop.place(number)
        offset = shop.relay(number)
        story.deliver("stock", "stock.reserve", "orders", offset, f"m{number}")
        if topic:
            headers = {"txbus-dead-scope": "reserve", "txbus-dead-attempts": "3", "txbus-dead-error": "app.Broken: no"}
            story.store("stock", "orders.dead.stock", f"m{number}", {"id": f"o-{number}"}, headers=headers)
        else:
            letter = dead_letter("reserve", "m2")
            story.commit("stock", "stock", txbus_dead_letters=letter, txbus_inbox=inbox("reserve", "m2"))
        story.position("stock", "stock.reserve", "orders", offset + 1)
    story.end("orders", "stock")
    report = story.check(*LEARNED, Attempts("reserve", 3))
    assert report.verdicts == () and report.premises["dead-letter-iff-exhausted"] == 2


# dead-letter-iff-exhausted


def test_a_dead_letter_of_a_message_that_had_its_effect_is_found(shop: Shop, story: Story) -> None:
    """Either the effect or the dead letter."""
    shop.order(1)
    story.commit("stock", "stock", txbus_dead_letters=dead_letter("reserve", "m1"))
    story.end("orders", "stock")
    assert story.accused(*LEARNED) == ["dead-letter-iff-exhausted"]


@pytest.mark.parametrize(
    ("attempts", "error", "right"),
    [
        (3, "app.Broken: no", True),
        (4, "app.Broken: no", True),
        (2, "app.Broken: no", False),
        (6, "app.Broken: no", False),
        (1, "txbus.errors.GiveUp: it will never do", True),
        (1, "app.Hopeless: it will never do", True),
        (0, "txbus.errors.DecodeError: no JSON", True),
    ],
)
def test_a_dead_letter_comes_when_the_attempts_are_used_up(
    shop: Shop, story: Story, attempts: int, error: str, right: bool
) -> None:
    """Not before, not after; one run may have gone uncounted by a crash."""
    shop.order(1)
    shop.place(2)
    story.deliver("stock", "stock.reserve", "orders", shop.relay(2), "m2")
    letter = dead_letter("reserve", "m2", attempts=attempts, error=error)
    story.commit("stock", "stock", txbus_dead_letters=letter, txbus_inbox=inbox("reserve", "m2"))
    story.end("orders", "stock")
    declared = Attempts("reserve", 3, at_once=("Hopeless",))
    assert story.accused(*LEARNED, declared) == ([] if right else ["dead-letter-iff-exhausted"])


def test_a_message_that_runs_for_ever_is_found(shop: Shop, story: Story) -> None:
    """The attempts that a database counted are more than were declared."""
    shop.order(1)
    row = {"scope": "reserve", "source": "/txbus/shop", "message_id": "m1", "attempts": 5}
    story.commit("stock", "stock", txbus_attempts=row)
    story.end("orders", "stock")
    assert story.accused(Attempts("reserve", 4)) == []
    assert story.accused(Attempts("reserve", 3)) == ["dead-letter-iff-exhausted"]


# duplicate


def test_a_transactional_send_published_twice_is_a_duplicate(shop: Shop, story: Story) -> None:
    """The half log promises one; native half messages may give two."""
    shop.order(1)
    shop.relay(1)
    shop.story.end("orders", "stock")
    assert story.accused(*LEARNED)[:1] == ["duplicate"]
    assert "duplicate" not in story.accused(*LEARNED, broker=queue_broker)


def test_a_plain_send_tried_again_is_allowed(story: Story) -> None:
    """At least once, under one id: the receivers' inbox is for that."""
    for _ in range(2):
        story.send("orders", "orders", "m1", {"id": "o-1"})
    story.end("orders", "stock")
    assert story.accused() == []


def test_a_local_transaction_run_again_under_a_new_id_is_a_duplicate() -> None:
    """Its commit stood; only the answer was lost. The same under the same id is no second one."""
    story = Story()
    story.start("orders", "stock")
    shop = Shop(story)
    shop.order(1)
    for number, name in ((2, "o-2"), (3, "o-3")):
        story.send("orders", "orders", f"m{number}", {}, tx_id=f"tx{number}", attempt=1)
        if number == 2:
            story.fault(Fault.ANSWER_LOST, label="sql.commit:shop")
        order: Row = {"id": name, "customer": "c2", "cents": 700}
        story.commit("orders", "shop", answered=number == 3, orders=order, txbus_ledger=ledger(f"tx{number}"))
        offset = story.publish("orders", "orders", f"m{number}", {"id": name, "cents": 700})
        story.deliver("stock", "stock.reserve", "orders", offset, f"m{number}")
        reservation: Row = {"n": number, "order_id": name}
        story.commit("stock", "stock", reservations=reservation, txbus_inbox=inbox("reserve", f"m{number}"))
    story.end("orders", "stock")
    told: list[Expectation] = [*learned(_two_orders(500, 700))]
    (verdict,) = story.check(*told).verdicts
    assert verdict.name == "duplicate" and "tx2" in verdict.sentence and "tx3" in verdict.sentence
    # Two orders that say the same are two orders, where the run without faults has them too.
    assert story.accused(*learned(_two_orders(500, 700, 700))) == []


def _two_orders(*cents: int) -> Story:
    story = Story()
    story.start("orders", "stock")
    for number, amount in enumerate(cents, 1):
        story.send("orders", "orders", f"m{number}", {}, tx_id=f"tx{number}", attempt=1)
        row: Row = {"id": f"o-{number}", "cents": amount}
        story.commit("orders", "shop", orders=row, txbus_ledger=ledger(f"tx{number}"))
        story.publish("orders", "orders", f"m{number}", row)
    story.end("orders", "stock")
    return story


# order-per-key


@pytest.mark.parametrize("key", ["ada", None])
def test_transactional_sends_of_a_key_keep_their_order(shop: Shop, story: Story, key: str | None) -> None:
    """The first was committed before the second was handed over; without a key there is no order."""
    shop.place(1, key=key)
    shop.place(2, key=key)
    shop.relay(2, key=key)
    shop.relay(1, key=key)
    story.end("orders", "stock")
    assert story.accused(*LEARNED) == (["order-per-key"] if key else [])
    assert story.accused(*LEARNED, broker=queue_broker) == []


def test_concurrent_sends_of_a_key_have_no_order(shop: Shop, story: Story) -> None:
    """Both were handed over before either committed."""
    for number in (1, 2):
        story.send("orders", "orders", f"m{number}", {}, tx_id=f"tx{number}", key="ada")
    for number in (1, 2):
        story.commit("orders", "shop", orders={"id": f"o-{number}"}, txbus_ledger=ledger(f"tx{number}"))
    shop.relay(2, key="ada")
    shop.relay(1, key="ada")
    story.end("orders", "stock")
    assert story.accused() == []


def test_a_third_message_behind_the_first_is_enough(shop: Shop, story: Story) -> None:
    """The second is in order with its neighbour, the third overtook the first."""
    for number in (1, 2, 3):
        shop.place(number, key="ada")
    for number in (3, 1, 2):
        shop.relay(number, key="ada")
    story.end("orders", "stock")
    (verdict,) = story.check(*LEARNED).verdicts
    assert verdict.name == "order-per-key"
    assert "message m3 (orders/0@0) was sent after message m2 (orders/0@2)" in verdict.sentence


def test_a_scope_handles_a_key_in_the_order_of_its_partition(shop: Shop, story: Story) -> None:
    """Inbox rows tell; another key may be handled whenever it comes."""
    for number, key in ((1, "ada"), (2, "bob"), (3, "bob"), (4, "ada")):
        shop.place(number, key=key)
        shop.relay(number, key=key)
    for number in (2, 1, 3, 4):
        shop.reserve(number, number - 1, ack=False)
    assert story.accused(*LEARNED) == []
    story = Story()
    shop = Shop(story)
    for number in (1, 2):
        shop.place(number, key="ada")
        shop.relay(number, key="ada")
    for number in (2, 1):
        shop.reserve(number, number - 1, ack=False)
    assert story.accused(*LEARNED) == ["order-per-key"]


def test_the_worst_comes_first(shop: Shop, story: Story) -> None:
    """Loss before phantom before double, whatever came first; the same names in any run."""
    shop.order(1)
    story.commit("stock", "stock", reservations={"n": 7, "order_id": "o-1"})
    shop.place(2, commit=False)
    shop.relay(2)
    shop.place(3)
    story.end("orders", "stock")
    assert story.accused(*LEARNED)[:3] == ["no-loss", "no-phantom", "effect-exactly-once"]


def test_a_brokers_own_dead_letter_stands_for_the_effect(shop: Shop, story: Story) -> None:
    """RocketMQ sets the message itself aside, in the group's topic."""
    shop.order(1)
    shop.place(2)
    story.deliver("stock", "stock.reserve", "orders", shop.relay(2), "m2")
    story.end("orders", "stock")
    assert story.accused(*LEARNED, broker=queue_broker) == ["effect-exactly-once"]
    del story.history.records[-2:]
    story.store("stock", "%DLQ%stock.reserve", "m2", {"id": "o-2"})
    story.end("orders", "stock")
    assert story.accused(*LEARNED, broker=queue_broker) == []


@pytest.mark.parametrize("tags", [True, False])
def test_a_message_that_a_subscription_by_tags_leaves_out_is_done_without_an_effect(
    shop: Shop, story: Story, tags: bool
) -> None:
    """Tagged otherwise, or not at all; without any tag in the topic it is an effect that was lost."""
    shop.order(1)
    story.store("orders", "orders", "m8", {}, headers={"txbus-tag": "eu"} if tags else {})
    story.store("orders", "orders", "m9", {})
    for offset, message_id in ((1, "m8"), (2, "m9")):
        story.deliver("stock", "stock.reserve", "orders", offset, message_id)
        story.position("stock", "stock.reserve", "orders", offset + 1)
    story.end("orders", "stock")
    assert story.accused() == ([] if tags else ["effect-exactly-once"])
