"""Which rows and messages belong together: what is learned, what is not, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.sim.checkers_story import Row, Story, faultless, learned
from txbus_sim import checkers, history
from txbus_sim.checkers import Effect, Pair, Repeat

UUIDS = [f"1234567{n}-89ab-cdef-0123-456789abcdef" for n in range(3)]


def sender(rows: list[Row], payloads: list[dict[str, Any]], table: str = "orders", ddl: str = "") -> Story:
    """A service commits and publishes, one after the other."""
    story = Story()
    story.start("orders")
    if ddl:
        story.file("shop", ddl)
    for number, (row, payload) in enumerate(zip(rows, payloads, strict=True)):
        story.commit("orders", "shop", (table, None, row))
        story.send("orders", "orders", f"message-{number}", payload)
    story.end("orders")
    return story


def receiver(
    rows: list[list[Row]], payloads: list[dict[str, Any]], table: str = "reservations", ddl: str = ""
) -> Story:
    """A service commits so many rows for each message."""
    story = Story()
    story.start("orders", "stock")
    if ddl:
        story.file("stock", ddl)
    for number, payload in enumerate(payloads):
        story.send("orders", "orders", f"message-{number}", payload)
        story.deliver("stock", "stock.reserve", "orders", number, f"message-{number}")
        for row in rows[number]:
            story.commit("stock", "stock", (table, None, row))
        story.position("stock", "stock.reserve", "orders", number + 1)
    story.end("orders", "stock")
    return story


def pairs(story: Story) -> list[tuple[str, str]]:
    return [(f"{one.table}.{one.column}", one.field) for one in learned(story) if isinstance(one, Pair)]


def effects(story: Story) -> list[tuple[str, str, int]]:
    return [(one.field, f"{one.table}.{one.column}", one.rows) for one in learned(story) if isinstance(one, Effect)]


def test_what_is_learned_says_so_in_words() -> None:
    """For the report: which columns, how many of how many."""
    pair, effect, repeat = learned(faultless())
    assert isinstance(pair, Pair) and isinstance(effect, Effect) and isinstance(repeat, Repeat)
    assert pair.why == (
        "learned from the run without faults: every row of shop.orders (id) has one message in topic orders "
        "(payload.id): 3 of 3"
    )
    assert effect.why == (
        "learned from the run without faults: every message of topic orders (payload.id) has one row in "
        "stock.reservations (order_id): 3 of 3"
    )
    assert effect.group == "stock.reserve" and not effect.strict and not pair.publishes_first


@pytest.mark.parametrize(
    ("column", "values", "field"),
    [
        ("id", ["o-1", "o-2", "o-3"], "id"),
        ("ref", UUIDS, "order"),
        ("number", [70001, 70002, 70004], "number"),
        ("id", [7, 8, 9], "order_id"),
    ],
)
def test_values_that_match_one_to_one_make_a_pair(column: str, values: list[Any], field: str) -> None:
    """Text, UUIDs and numbers, under one name or two that are alike."""
    story = sender([{column: value} for value in values], [{field: value} for value in values])
    assert pairs(story) == [(f"shop.orders.{column}", field)]


def test_a_uuid_is_the_same_with_and_without_dashes() -> None:
    """SQLAlchemy's Uuid is 32 digits in SQLite, JSON has dashes; bytes are another form."""
    story = sender([{"id": one.replace("-", "")} for one in UUIDS], [{"id": one} for one in UUIDS])
    assert pairs(story) == [("shop.orders.id", "id")]
    story = sender([{"id": bytes.fromhex(one.replace("-", ""))} for one in UUIDS], [{"id": one} for one in UUIDS])
    assert pairs(story) == [("shop.orders.id", "id")]


def test_a_nested_field_and_the_message_id_can_tell() -> None:
    """One level deep; the CloudEvents id where the payload says nothing."""
    story = sender([{"id": f"o-{n}"} for n in range(3)], [{"order": {"id": f"o-{n}"}, "n": 1} for n in range(3)])
    assert pairs(story) == [("shop.orders.id", "order.id")]
    story = sender([{"sent_as": f"message-{n}"} for n in range(3)], [{"n": 1} for n in range(3)])
    assert pairs(story) == [("shop.orders.sent_as", "ce_id")]


def test_of_several_columns_the_identity_is_taken() -> None:
    """Each order has another customer by chance; its id says more."""
    rows: list[Row] = [{"customer": f"Customer {n}", "id": f"o{n}"} for n in range(3)]
    assert pairs(sender(rows, [{"customer": f"Customer {n}", "order_id": f"o{n}"} for n in range(3)])) == [
        ("shop.orders.id", "order_id")
    ]


@pytest.mark.parametrize(
    ("rows", "payloads"),
    [
        ([{"pieces": n} for n in (1, 2, 3)], [{"shelf": n} for n in (1, 2, 3)]),
        ([{"id": n} for n in (1, 2, 3)], [{"shelf": n} for n in (1, 2, 3)]),
        ([{"id": "a"}, {"id": "b"}, {"id": "c"}], [{"id": "a"}, {"id": "b"}, {"id": "b"}]),
        ([{"id": "a"}, {"id": "b"}, {"id": None}], [{"id": "a"}, {"id": "b"}, {"id": "c"}]),
        ([{"paid": True}, {"paid": False}], [{"paid": True}, {"paid": False}]),
        ([{"eur": 1.5}, {"eur": 2.5}], [{"eur": 1.5}, {"eur": 2.5}]),
        ([{"id": "a"}], [{"id": "a"}]),
    ],
    ids=["small numbers", "rowid", "told twice", "null", "booleans", "floats", "only one"],
)
def test_what_may_be_a_coincidence_makes_no_pair(rows: list[Row], payloads: list[dict[str, Any]]) -> None:
    """Rather too few than one that accuses a right application."""
    assert pairs(sender(rows, payloads)) == []


def test_rows_that_are_not_all_announced_make_no_pair() -> None:
    """A filter: one row has no message, or one message no row."""
    story = sender([{"id": "a"}, {"id": "b"}], [{"id": "a"}, {"id": "b"}])
    story.commit("orders", "shop", orders={"id": "c"})
    assert pairs(story) == []
    story = sender([{"id": "a"}, {"id": "b"}], [{"id": "a"}, {"id": "b"}])
    story.history.records.pop()
    story.send("orders", "orders", "m9", {"id": "c"})
    assert pairs(story) == []


@pytest.mark.parametrize("field", ["id", "order_id"])
def test_a_rowid_pairs_with_the_field_that_carries_its_name(field: str) -> None:
    """`orders.id` and `order_id` of topic orders; a receiver's own counting never."""
    ddl = "CREATE TABLE orders (id INTEGER PRIMARY KEY)"
    story = sender([{"id": n} for n in (1, 2, 3)], [{field: n} for n in (1, 2, 3)], ddl=ddl)
    assert pairs(story) == [("shop.orders.id", field)]
    ddl = "CREATE TABLE reservations (id INTEGER PRIMARY KEY)"
    story = receiver([[{"id": n}] for n in (1, 2, 3)], [{field: n} for n in (1, 2, 3)], ddl=ddl)
    assert effects(story) == []


def test_an_effect_may_be_several_rows_of_each_message() -> None:
    """As many of each; a number under a name that says of what."""
    rows: list[list[Row]] = [[{"line": f"{n}{m}", "order_id": n} for m in "ab"] for n in (1, 2, 3)]
    assert effects(receiver(rows, [{"id": n} for n in (1, 2, 3)])) == [("id", "stock.reservations.order_id", 2)]
    rows[2].pop()
    assert effects(receiver(rows, [{"id": n} for n in (1, 2, 3)])) == []


def test_rows_of_a_process_that_was_not_handed_the_message_are_no_effect() -> None:
    """Nor are its own rows the effect of what it sent."""
    story = receiver([[{"order_id": f"o-{n}"}] for n in range(3)], [{"id": f"o-{n}"} for n in range(3)])
    assert effects(story) == [("id", "stock.reservations.order_id", 1)]
    assert pairs(story) == []
    for n in range(3):
        story.commit("third", "third", seen={"order_id": f"o-{n}"})
    assert effects(story) == [("id", "stock.reservations.order_id", 1)]


@pytest.mark.parametrize("table", ["delivery_attempts", "audit_log", "order_history", "log"])
def test_a_log_of_tries_is_no_effect(table: str) -> None:
    """A second row in it is a second try, by its name."""
    rows: list[list[Row]] = [[{"order_id": f"o-{n}"}] for n in range(3)]
    assert effects(receiver(rows, [{"id": f"o-{n}"} for n in range(3)], table)) == []
    assert effects(receiver(rows, [{"id": f"o-{n}"} for n in range(3)], "catalogue")) != []


def test_rows_that_come_and_go_are_no_effect() -> None:
    """A queue of jobs in the receiver's database."""
    rows: list[list[Row]] = [[{"order_id": f"o-{n}"}] for n in range(3)]
    story = receiver(rows, [{"id": f"o-{n}"} for n in range(3)])
    story.commit("stock", "stock", ("reservations", rows[0][0], None))
    assert effects(story) == []


def test_of_an_outbox_and_its_orders_the_orders_are_taken() -> None:
    """The outbox is empty in the end; alone, it says so."""
    story = Story()
    story.start("orders")
    for n in range(3):
        story.commit("orders", "shop", orders={"id": f"o-{n}"}, pending={"id": f"o-{n}"})
        story.send("orders", "orders", f"m{n}", {"id": f"o-{n}"})
        story.commit("orders", "shop", ("pending", {"id": f"o-{n}"}, None))
    assert pairs(story) == [("shop.orders.id", "id")]
    for record in list(story.history.records):
        if isinstance(record, history.LocalCommitted) and record.rows and len(record.rows) == 2:
            alone = history.LocalCommitted(record.at_ns, record.process, "shop", 1, {}, True, record.rows[1:])
            story.history.records[story.history.records.index(record)] = alone
    (pair,) = [one for one in learned(story) if isinstance(one, Pair)]
    assert (pair.table, pair.emptied) == ("shop.pending", True)


def test_publishing_before_the_commit_is_learned_as_such() -> None:
    """Every time; sometimes is nothing to rely on."""
    for firsts, expected in ((3, [True]), (1, [])):
        story = Story()
        story.start("orders")
        for n in range(3):
            if n < firsts:
                story.send("orders", "orders", f"m{n}", {"id": f"o-{n}"})
            story.commit("orders", "shop", orders={"id": f"o-{n}"})
            if n >= firsts:
                story.send("orders", "orders", f"m{n}", {"id": f"o-{n}"})
        assert [one.publishes_first for one in learned(story) if isinstance(one, Pair)] == expected


def test_a_topic_that_says_the_same_has_it_counted() -> None:
    """Without what tells the messages apart."""
    story = sender([{"id": f"o-{n}"} for n in range(3)], [{"id": f"o-{n}", "cents": n // 2} for n in range(3)])
    (repeat,) = [one for one in learned(story) if isinstance(one, Repeat)]
    assert repeat.identity == "id"
    assert {json.loads(rest)["cents"]: times for rest, times in repeat.times.items()} == {0: 2, 1: 1}


def test_nothing_is_learned_where_commits_do_not_tell_their_rows() -> None:
    """Then only what is declared is asked for, of the files as they are at the end."""
    story = Story(rows_noted=False)
    story.start("orders", "stock")
    for n in range(3):
        story.commit("orders", "shop", orders={"id": f"o-{n}"})
        story.send("orders", "orders", f"m{n}", {"id": f"o-{n}"})
    pair = Pair("shop.orders", "id", "orders", "id")
    assert learned(story) == ()
    assert story.accused(pair) == []
    story.send("orders", "orders", "m8", {"id": "o-8"})
    story.commit("orders", "shop", orders={"id": "o-9"})
    story.end("orders", "stock")
    assert story.accused(pair) == ["no-loss", "no-phantom"]


def test_what_is_learned_does_not_depend_on_chance() -> None:
    """The same history gives the same expectations in the same order."""
    assert learned(faultless()) == learned(faultless())
    assert checkers.learn(Story().history, Story()) == ()
