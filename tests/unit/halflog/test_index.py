"""The pure knowledge of one half partition: order, holds, positions, questions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.unit.halflog.builders import COMMITTED, ROLLED_BACK, d, h, id_of, s
from txbus._halflog import index as index_module
from txbus._halflog.index import HalfIndex, OpenHalf
from txbus._halflog.records import Entry, HalfEntry, ReleaseEntry
from txbus._outcome import Outcome

MANY = 10**9


def fed(*entries: Entry, now_s: float = 0.0, start: int = 0) -> HalfIndex:
    """An index that read these, one to a record."""
    index = HalfIndex()
    for offset, entry in enumerate(entries, start):
        index.apply(entry, offset, 0, now_s)
    return index


def publishable(index: HalfIndex, halves_max: int = MANY, avoid: frozenset[str] = frozenset()) -> list[str]:
    return [half.id.tx_id for half in index.publishable(halves_max, MANY, MANY, avoid)]


def again(entry: HalfEntry, first: tuple[int, int], **known: object) -> HalfEntry:
    return replace(entry, first=first, **known)  # type: ignore[arg-type]  # the fields of H′


def test_rule_03_a_half_is_held_by_any_of_its_keys() -> None:
    """Held by its second key only, it waits nevertheless, and so does what follows it."""
    index = fed(h("A", "k2"), h("B", "k1", "k2"), h("C", "k1"), h("D", "k3"), d("B"), d("C"), d("D"))
    assert publishable(index) == ["D"]
    index.apply(d("A"), 7, 0, 0.0)
    assert publishable(index) == ["A", "B", "C", "D"]


def test_rule_07_order_is_offset_then_index_in_the_record() -> None:
    """Entries of one record are in the order of its bytes."""
    index = HalfIndex()
    for number, tx_id in enumerate(["A", "B"]):
        index.apply(h(tx_id), 5, number, 0.0)
    index.apply(h("C"), 6, 0, 0.0)
    for tx_id in ("C", "B", "A"):
        index.apply(d(tx_id), 7, 0, 0.0)
    assert publishable(index) == ["A", "B", "C"]


def test_rule_17_an_undecided_half_holds_its_keys_and_no_others() -> None:
    """Other keys pass it; one rolled back holds nothing."""
    index = fed(h("A", "k"), h("B", "k"), h("C", "m"), d("B"), d("C"))
    assert publishable(index) == ["C"]
    index.apply(d("A", ROLLED_BACK), 5, 0, 0.0)
    assert publishable(index) == ["A", "B", "C"]


def test_rule_17_a_message_without_a_key_is_held_by_nothing() -> None:
    """It has no order."""
    assert publishable(fed(h("A", "k"), h("B", None), d("B"))) == ["B"]


def test_rule_17_a_chain_of_one_key_goes_in_one_step() -> None:
    """What is freed by the step itself follows in the same step, in order."""
    index = fed(*(h(f"{n:03}", "k") for n in range(50)), *(d(f"{n:03}") for n in range(50)))
    assert publishable(index) == [f"{n:03}" for n in range(50)]
    assert publishable(index, 7) == [f"{n:03}" for n in range(7)]


def test_a_destination_that_is_avoided_holds_its_halves_and_their_keys_only() -> None:
    """The rest flows (rule 22)."""
    index = fed(h("A", "k", topic="a"), h("B", "k", topic="a"), h("C", "k", topic="b"), d("A"), d("B"), d("C"))
    assert publishable(index, avoid=frozenset({"a"})) == ["C"]


def test_limits_of_a_step_never_stop_a_single_half() -> None:
    """A half larger than the step's limits goes alone."""
    index = fed(h("A", "k", "k", "k"), h("B", "k"), d("A"), d("B"))
    assert [half.id.tx_id for half in index.publishable(MANY, 2, MANY)] == ["A"]
    assert [half.id.tx_id for half in index.publishable(MANY, MANY, 1)] == ["A"]


def naive_publishable(index: HalfIndex) -> list[str]:
    """The rule in its plainest words: walk in order, collect the keys of those that stay."""
    blocked: set[tuple[str, str]] = set()
    chosen: list[str] = []
    for half in index.in_order():
        if half.outcome is ROLLED_BACK or (half.outcome is COMMITTED and blocked.isdisjoint(half.keys)):
            chosen.append(half.id.tx_id)
        elif half.holds:
            blocked.update(half.keys)
    return chosen


@pytest.mark.parametrize("seed", range(60))
def test_rule_17_readiness_kept_up_to_date_equals_a_walk_over_everything(seed: int) -> None:
    """Whatever is read, parked, released, decided or settled, in any order."""
    chance = random.Random(seed)
    index = HalfIndex()
    known: list[str] = []
    for offset in range(150):
        if not known or chance.random() < 0.4:
            tx_id = f"tx{offset}"
            known.append(tx_id)
            entry = h(tx_id, *chance.choices(["k1", "k2", "k3", None], k=chance.randint(1, 3)))
            if chance.random() < 0.2:
                # An H′ may come before or after halves that stand behind it.
                entry = again(entry, (chance.randrange(offset + 1), 0), outcome=chance.choice([None, COMMITTED]))
            index.apply(entry, offset, 1, 0.0)
            continue
        tx_id = chance.choice(known)
        half = index.halves.get(id_of(tx_id))
        match chance.randrange(5):
            case 0 if half is not None and half.outcome is not ROLLED_BACK:
                index.park(half, "why")
            case 1:
                index.apply(ReleaseEntry(id_of(tx_id)), offset, 0, 0.0)
            case 2 if publishable(index):
                for settled in publishable(index, chance.randint(1, 3)):
                    index.settled(id_of(settled))
            case _:
                index.apply(d(tx_id, chance.choice([COMMITTED, ROLLED_BACK]), True), offset, 0, 0.0)
        assert publishable(index) == naive_publishable(index)
        assert index.idle == (not publishable(index) and not any(True for _ in index.undecided()))
        expected = min((half.since for half in index.halves.values()), default=offset)
        assert index.position(offset + 1) == min(expected, offset + 1) or not index.halves


def test_the_first_d_in_log_order_wins() -> None:
    """A zombie's later word changes nothing."""
    index = fed(h("A"), d("A", ROLLED_BACK), d("A", COMMITTED))
    assert index.halves[id_of("A")].outcome is ROLLED_BACK


@pytest.mark.parametrize("word", [d("A"), s(1, "A"), ReleaseEntry(id_of("A"))])
def test_words_on_halves_that_are_not_here_are_harmless(word: Entry) -> None:
    """D before H, D after S, S of what was settled before the position."""
    assert fed(word).idle


def test_rule_16_the_position_is_the_oldest_unsettled_and_never_past_what_was_read() -> None:
    """Without halves it is what was read; those settled with it do not count."""
    index = fed(h("A", "k1"), h("B", "k2"), h("C", "k3"), start=10)
    assert index.position(13) == 10
    assert index.position(13, [id_of("A")]) == 11
    assert index.position(13, [id_of("A")]) == 11, "asking changes nothing"
    assert index.position(13, [id_of("A"), id_of("B"), id_of("C")]) == 13
    assert HalfIndex().position(4) == 4


def test_rule_18_an_own_h_read_back_after_its_s_opens_nothing() -> None:
    """Between a re-append and its reading, the half may have been settled by us."""
    index = fed(h("A"), d("A"))
    index.settled(id_of("A"))
    index.apply(again(h("A"), (0, 0), outcome=COMMITTED), 5, 0, 0.0)
    assert publishable(index) == []
    index.apply(s(2, "A"), 6, 0, 0.0)
    assert index.idle and not index._ahead


def test_rule_19_a_half_appended_again_keeps_its_place_and_its_outcome() -> None:
    """First position, outcome, checks, the flag and the release come back from H′."""
    index = fed(h("B", "k"), again(h("A", "k"), (0, 0), outcome=None, checks=3), d("B"), start=7)
    assert publishable(index) == []
    assert index.halves[id_of("A")].checks == 3
    index.apply(d("A"), 9, 0, 0.0)
    assert publishable(index) == ["A", "B"]


def test_rule_19_an_operators_word_that_an_h_does_not_carry_stays_in_reach() -> None:
    """H′ was written before the D was read: the position must not pass that D."""
    index = fed(h("A", "k"), start=0)
    index.park(index.halves[id_of("A")], "why")
    index.reappended(index.in_order(), 10)
    index.apply(d("A", COMMITTED, operator=True), 10, 0, 0.0)
    index.apply(again(h("A", "k"), (0, 0), parked="why"), 11, 0, 0.0)
    assert index.position(12) == 10
    assert publishable(index) == ["A"], "the word stands although H′ still says parked"
    successor = fed(d("A", COMMITTED, operator=True), again(h("A", "k"), (0, 0), parked="why"))
    assert successor.halves[id_of("A")].parked == "why", "which is why it must not be lost"


def test_rule_25_a_question_is_due_by_the_time_since_it_was_read() -> None:
    """By our own clock; the sender's is not compared."""
    index = HalfIndex()
    index.apply(h("A"), 0, 0, 100.0)
    index.apply(h("B"), 1, 0, 101.0)
    assert index.next_check_s(2.0, 1.0) == 102.0
    assert [half.id.tx_id for half in index.due(102.0, 2.0, 1.0, False)] == ["A"]
    assert index.due(102.0, 2.0, 1.0, False) == []
    index.ask_again(index.halves[id_of("A")])
    assert index.next_check_s(2.0, 1.0) == 103.0
    assert [half.id.tx_id for half in index.due(103.0, 2.0, 1.0, False)] == ["B", "A"]


def test_rule_20_a_full_window_asks_about_the_young_at_once_but_nobody_twice() -> None:
    """Those asked before keep their interval, or a busy database would be asked all the time."""
    index = HalfIndex()
    index.apply(h("A"), 0, 0, 100.0)
    assert len(index.due(100.0, 2.0, 1.0, True)) == 1
    index.ask_again(index.halves[id_of("A")])
    assert index.due(100.5, 2.0, 1.0, True) == []


def test_rule_28_a_parked_half_is_not_asked_about_and_holds_its_keys() -> None:
    """It counts those that wait; released it lets them pass; an operator's D settles it."""
    index = fed(h("A", "k"), h("B", "k"), h("C", "k"), d("B"), d("C"))
    parked = index.halves[id_of("A")]
    index.park(parked, "why")
    assert index.due(99.0, 2.0, 1.0, True) == [] and index.idle
    assert index.held_keys() == {("a", "k"): 2} and index.behind(parked) == 2
    assert publishable(index) == []
    index.apply(ReleaseEntry(id_of("A")), 9, 0, 0.0)
    assert publishable(index) == ["B", "C"]
    assert index.held_keys() == {} and index.behind(parked) == 0
    index.apply(d("A", COMMITTED, operator=True), 10, 0, 0.0)
    assert publishable(index) == ["A", "B", "C"] and parked.parked is None


def test_rule_28_the_flag_outlives_the_outcome_that_could_not_be_carried_out() -> None:
    """A half whose message is refused is parked although its sender said COMMITTED before."""
    index = fed(h("A"), d("A"), again(h("A"), (0, 0), parked="cannot be published"))
    assert index.halves[id_of("A")].parked is not None and publishable(index) == []


def test_released_is_for_parked_halves_only() -> None:
    """Nobody gives up order by releasing what is not set aside."""
    index = fed(h("A", "k"), ReleaseEntry(id_of("A")), h("B", "k"), d("B"))
    assert publishable(index) == []


def test_a_step_costs_nothing_for_halves_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 open halves: the halves that are looked at while 2,000 others are settled, one by one,
    do not grow with them."""
    looked = 0
    holds = OpenHalf.holds.fget  # type: ignore[attr-defined]  # a property, to mypy its value

    def counted(self: OpenHalf) -> bool:
        nonlocal looked
        looked += 1
        return bool(holds(self))

    index = fed(*(h(f"open{n}", f"k{n}") for n in range(20_000)))
    monkeypatch.setattr(index_module.OpenHalf, "holds", property(counted))
    for n in range(2_000):
        index.apply(h(f"tx{n}", "k"), 20_000 + n, 0, 0.0)
        index.apply(d(f"tx{n}"), 20_000 + n, 0, 0.0)
        assert publishable(index) == [f"tx{n}"]
        assert index.position(30_000, [id_of(f"tx{n}")]) == 0
        index.settled(id_of(f"tx{n}"))
        index.apply(s(n, f"tx{n}"), 20_000 + n, 0, 0.0)
    assert looked < 2_000 * 20


def test_what_was_settled_leaves_no_trace() -> None:
    """Lists that are cleaned up lazily stay in proportion to the open halves."""
    index = fed(h("open", "k0"))
    for n in range(5_000):
        index.apply(h(f"tx{n}", "k"), n, 0, 0.0)
        index.apply(s(n, f"tx{n}"), n, 0, 0.0)
    sizes = {name: len(getattr(index, name)) for name in index.__slots__ if hasattr(getattr(index, name), "__len__")}
    assert max(sizes.values()) < 200, sizes
    assert index.payload_bytes == sum(half.size for half in index.halves.values())


def test_outcomes_are_two() -> None:
    """UNKNOWN is no outcome of a half (a guard of the tests above)."""
    assert {COMMITTED, ROLLED_BACK} == set(Outcome) - {Outcome.UNKNOWN}
