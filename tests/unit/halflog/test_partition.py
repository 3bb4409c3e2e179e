"""One owned half partition, step by step, over a broker in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.halflog.broker import Connection, State
from tests.unit.halflog.builders import (
    COMMITTED,
    NEVER,
    ROLLED_BACK,
    TOPIC,
    WHERE,
    Bench,
    Owner,
    d,
    h,
    half,
    id_of,
    s,
)
from tests.unit.halflog.world import Process, World
from txbus._halflog.partition import HalfPartition, PartitionBudget, Phase
from txbus._halflog.records import HalfEntry, ReleaseEntry, StepEntry, decode, encode
from txbus._halflog.survey import survey
from txbus._message import Envelope
from txbus._telemetry import Alarm, HalfParked, TakeOver
from txbus.errors import BackendUnavailable, CommitUnknown, DestinationRefused, MessageRefused, StepAborted
from txbus.spi import BrokerTransaction, Committed, Membership

SMALL = PartitionBudget(reappend_records=4, truncate_records=6, backoff_s=(0.1, 1.0))


def alarms(bench: Bench) -> list[str]:
    return [event.detail for event in bench.events if isinstance(event, Alarm)]


def failing(bench: Bench, monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> None:
    """Let the coming commits fail in turn, each without effect; None lets one pass."""
    from tests.unit.halflog.broker import _Transaction

    commit = _Transaction.commit
    waiting = list(errors)

    def fail(self: _Transaction) -> None:
        error = waiting.pop(0) if waiting else None
        if error is not None:
            raise error
        commit(self)

    monkeypatch.setattr(_Transaction, "commit", fail)


def test_rule_12_an_old_snapshot_of_the_assignment_is_refused() -> None:
    """The step of a member whose generation is over is aborted whole, and its client is rebuilt."""
    bench = Bench()
    bench.append(h("A"), d("A"))
    owner = bench.owner().take_over()
    bench.broker.rebalance([owner.process.name], [WHERE])
    assert owner.partition.work(owner.membership) is False
    assert bench.published() == [] and owner.partition.phase is Phase.DOWN


def test_rule_12_the_newest_snapshot_works_after_a_rebalance_that_keeps_the_partition() -> None:
    """The snapshot of the poll that read the record would refuse the rightful owner."""
    bench = Bench()
    bench.append(h("A"), d("A"))
    owner = bench.owner().take_over()
    bench.broker.rebalance([owner.process.name], [WHERE])
    owner.read()
    owner.work()
    assert bench.published() == ["A.0"]


def test_rule_13_a_fenced_owner_that_is_assigned_rebuilds_after_a_backoff() -> None:
    """It does not give up, and it does not fight at once."""
    bench = Bench()
    bench.append(h("A"), d("A"))
    owner = bench.owner().take_over()
    Connection(bench.broker, Process("other")).broker_transactions(f"{TOPIC}.0", 60.0)
    owner.work()
    assert owner.partition.phase is Phase.DOWN and bench.published() == []
    owner.partition.take_over(owner.membership)
    assert owner.partition.phase is Phase.DOWN, "the backoff has not passed"
    bench.world.now_s += 20.0
    owner.take_over().work()
    assert bench.published() == ["A.0"]


def test_rule_13_the_transactional_id_names_service_and_partition() -> None:
    """Two owners of one half partition meet under one id."""
    bench = Bench()
    bench.owner().take_over()
    assert list(bench.broker.owners) == ["txbus.half.shop.0"]


def hang(bench: Bench, topic: str, partition: int, envelope: Envelope) -> None:
    """A record of a fenced owner whose abort marker the broker lost."""
    bench.broker.topics[topic][partition].append(envelope, f"{TOPIC}.0", State.OPEN)


def test_rule_14_a_hanging_record_of_the_half_partition_is_aborted_before_reading() -> None:
    """It would hold back the readable end, or become visible with our first step."""
    bench = Bench()
    hang(bench, TOPIC, 0, Envelope(TOPIC, encode([s(9, "A")])))
    bench.append(h("A"), d("A"))
    bench.owner().take_over().work()
    assert bench.published() == ["A.0"]


@pytest.mark.parametrize("key", ["k", None])
def test_rule_14_hanging_messages_are_aborted_before_the_first_step_there(key: str | None) -> None:
    """In every partition of a destination: a message without a key may have gone to any of them."""
    bench = Bench()
    bench.append(h("A", key), d("A"))
    for partition in range(2):
        hang(bench, "a", partition, Envelope("a", b"x", key, {"ce_id": "A.0"}))
    bench.owner().take_over().work()
    assert bench.published() == ["A.0"]


def test_rule_15_a_step_ends_with_s_and_holds_messages_in_order() -> None:
    """Several halves share it; its number stands beside the position."""
    bench = Bench()
    bench.append(h("A", "k"), h("B", "k"), d("B"), d("A"), h("C", "k"))
    owner = bench.owner().take_over()
    owner.work()
    assert bench.published() == ["A.0", "B.0"]
    (step,) = bench.steps()
    assert (step.step, [row.id.tx_id for row in step.settled]) == (1, ["A", "B"])
    assert bench.broker.positions[WHERE] == Committed(bench_offset(bench, "C"), "1 0")


def bench_offset(bench: Bench, tx_id: str) -> int:
    for offset, entries in bench.log():
        if any(isinstance(e, HalfEntry) and e.half.id == id_of(tx_id) for e in entries):
            return offset
    raise AssertionError(tx_id)


def test_rule_15_the_position_stays_behind_steps_whose_ledger_rows_are_not_marked() -> None:
    """A new owner reads their S again and confirms; marked, the position goes on."""
    bench = Bench()
    bench.append(h("A"), d("A"))
    first = bench.owner().take_over()
    first.work()
    bench.append(h("B"), d("B"))
    first.read()
    first.work()
    assert [step for step, _ in bench.settled] == [1, 2]
    bench.settled.clear()
    second = bench.owner().take_over()
    assert [(step, rows[0].id.tx_id) for step, rows in bench.settled] == [(1, "A"), (2, "B")]
    for step in (1, 2):
        second.partition.confirmed(step)
    bench.append(h("C"), d("C"))
    second.read()
    second.work()
    bench.settled.clear()
    bench.owner().take_over()
    assert [step for step, _ in bench.settled] == [3]


def test_rule_19_everything_unsettled_is_appended_again_by_distance() -> None:
    """Held, decided and undecided ones, with first position and outcome; never by time."""
    bench = Bench(SMALL)
    bench.append(h("A", "k"), h("B", "k"), d("B"))
    owner = bench.owner().take_over()
    bench.world.now_s += 10_000.0
    owner.work()
    assert bench.again() == []
    bench.append(*(d("nobody") for _ in range(6)))
    owner.read()
    owner.work()
    assert [(e.half.id.tx_id, e.outcome) for e in bench.again()] == [("A", None), ("B", COMMITTED)]
    assert [e.first for e in bench.again()] == [(bench_offset(bench, tx_id), 0) for tx_id in ("A", "B")]
    bench.append(d("A"))
    second = bench.owner().take_over()
    second.work()
    assert bench.published() == ["A.0", "B.0"]
    assert second.partition.records_read < 12


def test_rule_19_a_log_of_nothing_but_settled_halves_moves_the_position() -> None:
    """Words on halves that are settled do not grow what a new owner must read."""
    bench = Bench(SMALL)
    bench.append(h("A"), d("A"))
    owner = bench.owner().take_over()
    owner.work()
    owner.partition.confirmed(1)
    for _ in range(20):
        bench.append(d("A"))
        owner.read()
        owner.work()
    assert bench.again() == []
    second = bench.owner().take_over()
    assert second.partition.records_read <= 7 and second.partition.phase is Phase.ACTIVE


def test_rule_20_nothing_is_published_before_the_s_beside_the_position_was_read() -> None:
    """Records before it are fed one by one; only then is the owner active."""
    bench = Bench()
    bench.append(h("A", "k"), d("A"))
    bench.owner().take_over().work()
    bench.broker.positions[WHERE] = Committed(0, "1 0")
    owner = bench.owner()
    owner.partition.take_over(owner.membership)
    while owner.partition.phase is Phase.READING:
        assert not owner.partition.work(owner.membership)
        for received in owner.receiver.receive(1, 0.0).received:
            if owner.partition.phase is Phase.READING:
                last = received
            owner.partition.feed(received, 0.0)
    assert isinstance(decode(last.envelope.payload)[-1], StepEntry)
    owner.work()
    assert bench.published() == ["A.0"]


def test_rule_20_a_full_window_stops_reading_and_says_so_until_halves_are_settled() -> None:
    """And goes on reading while only an operator, whose word must be read, can make room."""
    bench = Bench(replace(SMALL, window_halves_max=4))
    bench.append(*(h(f"A{n}", f"k{n}") for n in range(8)))
    owner = bench.owner().take_over()
    owner.read()
    bench.append(*(h(f"B{n}", f"k{n}") for n in range(8)))
    owner.read()
    open_halves = len(owner.partition.index.halves)
    assert open_halves < 16 and any("reading stops" in detail for detail in alarms(bench))
    for waiting in list(owner.partition.index.undecided()):
        owner.partition.index.park(waiting, "too old to know")
    owner.read()
    assert len(owner.partition.index.halves) == open_halves, "it waits for the next step's look"
    assert owner.partition.work(owner.membership) is False
    owner.read()
    assert len(owner.partition.index.halves) > open_halves


def test_rule_20_payloads_beyond_the_budget_are_read_again() -> None:
    """The index stays within its bytes, before and after a re-append; nothing is lost by it."""
    bench = Bench(replace(SMALL, payload_budget_bytes=3_000, reappend_records=60))
    bench.append(*(HalfEntry(half(f"A{n:02}", "k", size=400)) for n in range(40)))
    owner = bench.owner().take_over()
    assert owner.partition.index.payload_bytes <= 3_000
    bench.append(*(d("nobody") for _ in range(70)))
    owner.read()
    owner.work()
    assert len({e.half.id for e in bench.again()}) == 40
    assert owner.partition.index.payload_bytes <= 3_000
    bench.append(*(d(f"A{n:02}") for n in range(40)))
    owner.read()
    owner.work()
    assert bench.published() == [f"A{n:02}.0" for n in range(40)]


def test_rule_21_an_unknown_step_is_looked_up_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was committed or not, after a new take-over each message is there once."""
    from tests.unit.halflog.broker import _Transaction

    for happened in (True, False):
        bench = Bench()
        bench.append(h("A"), d("A"))
        owner = bench.owner().take_over()
        commit = _Transaction.commit

        def unknown(self: _Transaction, happened: bool = happened, commit: Callable[..., None] = commit) -> None:
            if happened:
                commit(self)
            raise CommitUnknown("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(_Transaction, "commit", unknown)
            owner.partition.work(owner.membership)
        assert owner.partition.phase is Phase.DOWN
        bench.world.now_s += 20.0
        owner.take_over().work()
        assert bench.published() == ["A.0"]


def test_rule_22_a_step_that_fails_is_tried_again_with_half_the_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to one, and back to many; each failure is waited out."""
    bench = Bench()
    bench.append(*(h(f"A{n}", f"k{n}") for n in range(8)), *(d(f"A{n}") for n in range(8)))
    owner = bench.owner().take_over()
    failing(bench, monkeypatch, StepAborted("no"), BackendUnavailable("no"), StepAborted("no"))
    for _ in range(3):
        owner.work()
        assert bench.published() == []
        bench.world.now_s += 20.0
    owner.work()
    assert len(bench.published()) == 8
    assert any("steps fail" in detail for detail in alarms(bench))


def test_rule_22_a_message_that_is_refused_parks_exactly_its_half() -> None:
    """In a step of its own, with the reason; its neighbours are published, its key is held."""
    bench = Bench()
    bench.broker.refused["B.0"] = MessageRefused
    bench.append(h("A", "k"), h("B", "m"), h("C", "k"), h("D", "m"), *(d(tx) for tx in "ABCD"))
    owner = bench.owner().take_over()
    owner.work()
    assert sorted(bench.published()) == ["A.0", "C.0"]
    (parked,) = [event for event in bench.events if isinstance(event, HalfParked)]
    assert parked.tx_id == "B" and "takes no B.0" in parked.reason
    second = bench.owner().take_over()
    assert [p.parked for p in second.partition.index.parked()] == [parked.reason]
    second.work()
    assert sorted(bench.published()) == ["A.0", "C.0"]


def test_rule_22_a_refusal_that_only_commit_tells_is_narrowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """By halving, until the step has one half."""
    from tests.unit.halflog.broker import _Transaction

    bench = Bench()
    commit = _Transaction.commit

    def refuse(self: _Transaction) -> None:
        records = [r for p in bench.broker.topics["a"] for r in p.records if r.state is State.OPEN]
        if any(r.envelope is not None and r.envelope.id == "A5.0" for r in records):
            raise MessageRefused("too large for somebody")
        commit(self)

    monkeypatch.setattr(_Transaction, "commit", refuse)
    bench.append(*(h(f"A{n}", f"k{n}") for n in range(9)), *(d(f"A{n}") for n in range(9)))
    owner = bench.owner().take_over()
    for _ in range(10):
        owner.work()
    assert sorted(bench.published()) == [f"A{n}.0" for n in range(9) if n != 5]
    assert [p.id.tx_id for p in owner.partition.index.parked()] == ["A5"]


def test_rule_22_a_destination_that_is_missing_holds_its_own_halves_only() -> None:
    """The rest flows; one alarm, not one a try; once it is there, everything is published in order."""
    bench = Bench()
    both = (*half("M", "m").envelopes, *half("N", "n", topic="b").envelopes)
    mixed = HalfEntry(replace(half("M", "m"), envelopes=both))
    bench.append(h("A", "k"), h("B", "k", topic="b"), mixed, h("C", "x", topic="b"), h("D", "k"), h("E", "m"))
    bench.append(*(d(tx) for tx in ["A", "B", "M", "C", "D", "E"]))
    gone = bench.broker.topics.pop("b")
    owner = bench.owner().take_over()
    for _ in range(3):
        owner.work()
        bench.world.now_s += 6.0
    assert sorted(bench.published()) == ["A.0", "D.0"], "E waits for the key of M, which needs both"
    assert len([detail for detail in alarms(bench) if "'b'" in detail]) == 1
    bench.broker.topics["b"] = gone
    bench.world.now_s += 6.0
    owner.work()
    assert sorted(bench.published() + bench.published("b")) == ["A.0", "B.0", "C.0", "D.0", "E.0", "M.0", "N.0"]


def test_rule_22_a_destination_refused_in_the_step_is_held_too() -> None:
    """Not only when it is repaired at first use."""
    bench = Bench()
    bench.append(h("A", "k"), d("A"))
    owner = bench.owner().take_over()
    owner.work()
    bench.broker.refused["a"] = DestinationRefused
    bench.append(h("B", "k"), h("C", "k", topic="b"), d("B"), d("C"))
    owner.read()
    owner.work()
    assert bench.published() == ["A.0"] and bench.published("b") == ["C.0"]
    bench.broker.refused.clear()
    bench.world.now_s += 6.0
    owner.work()
    assert bench.published() == ["A.0", "B.0"]


def test_rule_23_the_log_is_truncated_below_committed_positions_only() -> None:
    """And never above a payload that must be read again."""
    bench = Bench(replace(SMALL, payload_budget_bytes=1))
    bench.append(*(h(f"A{n}", f"k{n}") for n in range(3)))
    owner = bench.owner().take_over()
    for n in range(40):
        bench.append(h(f"B{n}", "b"), d(f"B{n}"))
        owner.read()
        owner.work()
        for step in list(owner.partition._unconfirmed):
            owner.partition.confirmed(step)
        assert bench.broker.at(WHERE).start <= bench.broker.positions[WHERE].offset
    assert bench.broker.at(WHERE).start > 20
    bench.append(*(d(f"A{n}") for n in range(3)))
    owner.read()
    owner.work()
    assert len(bench.published()) == 43


def test_rule_23_payloads_out_of_memory_outlive_the_step_that_appends_them_again() -> None:
    """Until their H′ were read back they are read at their old place, which is not truncated."""
    bench = Bench(replace(SMALL, payload_budget_bytes=1, truncate_records=0))
    bench.append(h("A", "k"), h("B", "m"), *(d("nobody") for _ in range(8)))
    owner = bench.owner().take_over()
    assert owner.partition.work(owner.membership) and len(bench.again()) == 2
    owner.partition.index.decide(owner.partition.index.halves[id_of("A")], COMMITTED, False)
    owner.partition.work(owner.membership)
    assert bench.published() == ["A.0"]


def test_rule_23_a_truncation_that_fails_does_not_undo_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is committed by then; the operator hears of it."""
    from tests.unit.halflog.broker import _Log

    def fail(self: object, partition: int, before: int) -> None:
        raise BackendUnavailable("not now")

    monkeypatch.setattr(_Log, "truncate", fail)
    bench = Bench(replace(SMALL, truncate_records=0))
    bench.append(h("A"), d("A"), h("B"), d("B"))
    bench.owner().take_over().work()
    assert bench.published() == ["A.0", "B.0"] and any("truncated" in detail for detail in alarms(bench))


def test_rule_24_without_a_position_the_whole_log_is_read_before_anything_is_published() -> None:
    """A group's position can expire; what was settled since the log's start is not published again."""
    bench = Bench()
    bench.append(h("A"), d("A"), h("B"))
    bench.owner().take_over().work()
    del bench.broker.positions[WHERE]
    second = bench.owner().take_over()
    second.work()
    assert bench.published() == ["A.0"]
    bench.append(d("B"))
    second.read()
    second.work()
    assert bench.published() == ["A.0", "B.0"]
    assert [step.step for step in bench.steps()] == [1, 2], "numbers go on, so that S can be told apart"


def test_a_damaged_record_is_skipped_with_an_alarm_and_a_newer_one_is_not() -> None:
    """Skipping a record of a newer txbus would lose its halves: the partition waits for the upgrade."""
    bench = Bench()
    bench.broker.at(WHERE).append(Envelope(TOPIC, b"nonsense"), None, State.READABLE)
    bench.append(h("A"), d("A"))
    owner = bench.owner().take_over()
    owner.work()
    assert bench.published() == ["A.0"] and "skipped" in alarms(bench)[0]
    bench.broker.at(WHERE).append(Envelope(TOPIC, b"TXH9" + encode([])[4:]), None, State.READABLE)
    bench.append(h("B"), d("B"))
    owner.read()
    owner.work()
    assert owner.partition.phase is Phase.DOWN and bench.published() == ["A.0"]
    assert "upgrade" in alarms(bench)[-1]


def test_a_zombie_publishes_nothing_and_appends_nothing() -> None:
    """Its step is fenced whole: no message, no H′, no S, no position."""
    bench = Bench(SMALL)
    bench.append(h("A"), h("Z", "z"), d("A"), *(d("nobody") for _ in range(8)))
    zombie = bench.owner().take_over()
    heir = bench.owner().take_over()
    heir.work()
    before = (bench.published(), len(bench.log()), dict(bench.broker.positions))
    zombie.partition.work(zombie.membership)
    assert zombie.partition.phase is Phase.DOWN
    assert (bench.published(), len(bench.log()), dict(bench.broker.positions)) == before
    assert before[0] == ["A.0"]


def test_rule_28_the_flag_and_the_release_survive_the_owner() -> None:
    """Parked with its reason; an operator's release and outcome are read from the log."""
    bench = Bench()
    bench.append(h("A", "k"), h("B", "k"), d("B"))
    owner = bench.owner().take_over()
    owner.partition.park(id_of("A"), "x" * 2_000)
    owner.work()
    (parked,) = bench.owner().take_over().partition.index.parked()
    assert parked.parked == "x" * 500, "reasons are cut so that H′ fits where H did"
    bench.append(ReleaseEntry(id_of("A")))
    third = bench.owner().take_over()
    third.work()
    assert bench.published() == ["B.0"]
    bench.append(d("A", COMMITTED, operator=True))
    third.read()
    third.work()
    assert bench.published() == ["B.0", "A.0"]


def test_rule_28_a_half_decided_meanwhile_is_not_parked() -> None:
    """The D that arrives before the step counts."""
    bench = Bench()
    bench.append(h("A"))
    owner = bench.owner().take_over()
    owner.partition.park(id_of("A"), "why")
    bench.append(d("A", ROLLED_BACK))
    owner.read()
    owner.work()
    assert not any(isinstance(event, HalfParked) for event in bench.events)
    assert not owner.partition.index.halves and bench.published() == []


def test_the_survey_shows_what_a_new_owner_would_know() -> None:
    """Undecided, decided, parked with the reason and those behind; nothing is changed by looking."""
    bench = Bench()
    bench.append(h("A", "k"), h("B", "k", "m"), h("C", "c"), d("B"), h("S", "s"), d("S"))
    owner = bench.owner().take_over()
    owner.partition.park(id_of("A"), "too old to know")
    owner.work()
    before = len(bench.broker.at(WHERE).records)
    rows = survey(owner.connection, "shop", bench.world.ports(owner.process).clock)
    assert [(r.tx_id, r.state, r.parked, r.behind) for r in rows] == [
        ("A", "parked", "too old to know", 1),
        ("B", "committed", None, 0),
        ("C", "undecided", None, 0),
    ]
    assert rows[1].keys == (("a", "k"), ("a", "m")) and rows[1].messages == 2
    assert (rows[0].database, rows[0].ledger_id, rows[0].partition, rows[0].age_s) == ("one", "ledger-one", 0, 0.0)
    assert len(bench.broker.at(WHERE).records) == before
    assert survey(owner.connection, "unheard-of", bench.world.ports(owner.process).clock) == ()


def settle_many(settled: int, open_halves: int) -> tuple[Bench, Owner]:
    """A log in which so many halves were settled between and after open ones."""
    bench = Bench(world=World(1, NEVER))
    owner = bench.owner().take_over()
    joined = 50
    for start in range(0, settled, joined):
        entries = [h(f"tx{n}", f"k{n % 97}") for n in range(start, min(start + joined, settled))]
        bench.append(*entries, together=True)
        bench.append(*(d(e.half.id.tx_id) for e in entries), together=True)
        for n in range(start * open_halves // settled, (start + joined) * open_halves // settled):
            bench.append(h(f"open{n}", f"o{n}"))
        owner.read()
        owner.work()
        for step in list(owner.partition._unconfirmed):
            owner.partition.confirmed(step)
    return bench, owner


def test_recovery_reads_the_unsettled_and_a_constant() -> None:
    """100,000 settled and 1,000 open halves: a new owner reads at most the open ones and twice the
    distance of a re-append, and needs at most 1.1 times the memory that 1,000 settled ones ask for."""
    peaks = {}
    for settled in (1_000, 100_000):
        bench, _ = settle_many(settled, 1_000)
        assert len(set(bench.published())) == settled
        bench.settled.clear()
        tracemalloc.start()
        heir = bench.owner().take_over()
        peaks[settled] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(heir.partition.index.halves) == 1_000
        assert heir.partition.records_read <= 1_000 + 2 * bench.budget.reappend_records
        (took_over,) = [e for e in bench.events if isinstance(e, TakeOver)][1:]
        assert took_over.records_read == heir.partition.records_read
    assert peaks[100_000] <= 1.1 * peaks[1_000]


def test_protocols() -> None:
    """The names that the tests above patch are the SPI's (a guard)."""
    assert hasattr(BrokerTransaction, "commit") and hasattr(HalfPartition, "work")
    assert Membership(frozenset()).token is None
