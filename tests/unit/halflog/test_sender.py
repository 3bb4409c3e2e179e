"""The sending side with threads: joined records, deadlines, errors that stay with their caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from tests.unit.halflog.builders import COMMITTED, ROLLED_BACK, half
from txbus._halflog.records import DecisionEntry, Entry, HalfEntry, decode, half_partition
from txbus._halflog.sender import HalfLogSender, HalfSenderBudget
from txbus._halves import Half
from txbus._message import Envelope, Receipt
from txbus._system import system_ports
from txbus._telemetry import Alarm, Event
from txbus.errors import (
    BackendUnavailable,
    HalfFailed,
    KeyHeld,
    MessageRefused,
    NotOpen,
    SendUnknown,
)

LONG_S = 60.0


@dataclass(slots=True)
class Wire:
    """A sender whose answers wait until they are let through, and that refuses what it is told to."""

    records: list[tuple[int, Sequence[Entry]]] = field(default_factory=list)
    open: threading.Event = field(default_factory=threading.Event)
    appended: threading.Condition = field(default_factory=threading.Condition)
    refuse: Callable[[Sequence[Entry]], BaseException | None] = lambda entries: None
    fail: Callable[[Sequence[Entry]], BaseException | None] = lambda entries: None
    closed: bool = False

    def append(self, envelope: Envelope, partition: int) -> Pending:
        entries = decode(envelope.payload)
        error = self.fail(entries)
        if error is not None:
            raise error
        with self.appended:
            self.records.append((partition, entries))
            offset = len(self.records) - 1
            self.appended.notify_all()
        return Pending(self, Receipt("", envelope.topic, partition, offset), self.refuse(entries))

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def wait(self, count: int) -> None:
        with self.appended:
            assert self.appended.wait_for(lambda: len(self.records) >= count, LONG_S)

    def entries(self, kind: type[Entry]) -> list[str]:
        return [
            e.id.tx_id if isinstance(e, DecisionEntry) else e.half.id.tx_id  # type: ignore[union-attr]
            for _, record in self.records
            for e in record
            if isinstance(e, kind)
        ]


@dataclass(slots=True)
class Pending:
    wire: Wire
    receipt: Receipt
    error: BaseException | None

    def result(self, timeout_s: float) -> Receipt:
        if not self.wire.open.wait(timeout_s):
            raise SendUnknown(f"no answer within {timeout_s:g} s")
        if self.error is not None:
            raise self.error
        return self.receipt


@contextmanager
def sending(
    wire: Wire, partitions: int = 1, events: list[Event] | None = None, **budget: float
) -> Iterator[HalfLogSender]:
    sender = HalfLogSender(
        wire,
        "txbus.half.shop",
        partitions,
        system_ports(),
        HalfSenderBudget(**budget),  # type: ignore[arg-type]  # byte limits are whole numbers
        lambda: frozenset({("a", "held")}),
        events.append if events is not None else None,
    )
    try:
        yield sender
    finally:
        wire.open.set()
        sender.close()


class Caller(threading.Thread):
    """Stores one half; ``got`` are its receipts or its error."""

    def __init__(self, sender: HalfLogSender, stored: Half, timeout_s: float = LONG_S) -> None:
        super().__init__(daemon=True)
        self.sender, self.stored, self.timeout_s = sender, stored, timeout_s
        self.got: tuple[Receipt, ...] | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.got = self.sender.store(self.stored, self.timeout_s)
        except BaseException as exc:
            self.got = exc

    def done(self) -> tuple[Receipt, ...] | BaseException | None:
        self.join(LONG_S)
        assert not self.is_alive()
        return self.got


def queued(sender: HalfLogSender, count: int) -> None:
    """Wait until so many callers stand in the queue."""
    tick = threading.Event()
    for _ in range(6_000):
        with sender._condition:
            if len(sender._queue) >= count:
                return
        tick.wait(0.01)
    raise AssertionError(f"never {count} in the queue")


def test_rule_07_callers_that_wait_together_share_a_record() -> None:
    """While the first record is on its way, ten more callers gather: they take one record."""
    wire = Wire()
    with sending(wire) as sender:
        first = Caller(sender, half("first"))
        wire.wait(1)
        rest = [Caller(sender, half(f"tx{n}")) for n in range(10)]
        queued(sender, 10)
        wire.open.set()
        assert all(isinstance(caller.done(), tuple) for caller in [first, *rest])
    assert [len(entries) for _, entries in wire.records] == [1, 10]


def test_rule_07_a_bad_entry_does_not_fail_its_neighbours() -> None:
    """The record that it spoils is sent again entry by entry, each by its own caller."""
    wire = Wire()
    bad = MessageRefused("too large")
    wire.refuse = lambda entries: (
        bad if any(isinstance(e, HalfEntry) and e.half.id.tx_id == "bad" for e in entries) else None
    )
    with sending(wire) as sender:
        first = Caller(sender, half("first"))
        wire.wait(1)
        callers = {name: Caller(sender, half(name)) for name in ("good1", "bad", "good2")}
        queued(sender, 3)
        wire.open.set()
        assert isinstance(first.done(), tuple)
        assert isinstance(callers["good1"].done(), tuple) and isinstance(callers["good2"].done(), tuple)
        assert isinstance(callers["bad"].done(), MessageRefused)


def test_rule_07_a_large_entry_travels_alone_and_one_beyond_the_limit_is_refused_before() -> None:
    """Joining stops at record_bytes_max; entry_bytes_max leaves the reserve of H′ and S."""
    wire = Wire()
    with sending(wire, record_bytes_max=2_000, entry_bytes_max=5_000) as sender:
        first = Caller(sender, half("first"))
        wire.wait(1)
        callers = [Caller(sender, half(f"tx{n}", size=3_000 if n == 1 else 10)) for n in range(3)]
        queued(sender, 3)
        wire.open.set()
        assert all(isinstance(caller.done(), tuple) for caller in [first, *callers])
        assert sorted(len(entries) for _, entries in wire.records) in ([1, 1, 1, 1], [1, 1, 2])
        with pytest.raises(MessageRefused, match="5000"):
            sender.check(half("huge", size=6_000))


def test_rule_05_the_deadline_of_a_caller_covers_its_queueing() -> None:
    """Behind a record that gets no answer it leaves the queue by itself, and is never sent."""
    wire = Wire()
    with sending(wire) as sender:
        first = Caller(sender, half("first"))
        wire.wait(1)
        late = Caller(sender, half("late"), 0.2)
        assert isinstance(late.done(), HalfFailed) and isinstance(late.got, HalfFailed)
        assert isinstance(late.got.__cause__, BackendUnavailable) and not sender._queue
        wire.open.set()
        assert isinstance(first.done(), tuple)
    assert wire.entries(HalfEntry) == ["first"]


def test_rule_05_a_follower_has_its_own_deadline_not_its_leaders() -> None:
    """A leader whose time is over leaves; those in the same record wait for their own time."""
    wire = Wire()
    with sending(wire) as sender:
        opening = Caller(sender, half("opening"), 0.5)
        wire.wait(1)
        patient = [Caller(sender, half(f"tx{n}")) for n in range(3)]
        queued(sender, 3)
        assert isinstance(opening.done(), HalfFailed)
        wire.wait(2)
        wire.open.set()
        assert all(isinstance(caller.done(), tuple) for caller in patient)


def test_rule_04_an_h_of_unknown_fate_is_not_sent_again() -> None:
    """HalfFailed, one record; the next attempt will have the next number."""
    wire = Wire()
    with sending(wire) as sender:
        caller = Caller(sender, half("tx"), 0.1)
        error = caller.done()
        assert isinstance(error, HalfFailed) and isinstance(error.__cause__, SendUnknown)
    assert wire.entries(HalfEntry) == ["tx"]


def test_a_leader_that_is_interrupted_leaves_nobody_waiting() -> None:
    """Whatever happens to it, its followers learn at once that nothing of theirs was sent."""
    wire = Wire()
    with sending(wire) as sender:
        first = Caller(sender, half("first"))
        wire.wait(1)
        wire.fail = lambda entries: KeyboardInterrupt()
        callers = [Caller(sender, half(f"tx{n}")) for n in range(4)]
        queued(sender, 4)
        wire.open.set()
        assert isinstance(first.done(), tuple)
        got = [caller.done() for caller in callers]
        assert sum(isinstance(error, KeyboardInterrupt) for error in got) == 1
        assert sum(isinstance(error, HalfFailed) for error in got) == 3
        wire.fail = lambda entries: None
        assert isinstance(Caller(sender, half("later")).done(), tuple)


def test_rule_01_the_outcome_is_not_awaited_and_rides_along() -> None:
    """tell() returns while nothing is answered; the D is sent by the flusher, or with the next batch."""
    wire = Wire()
    with sending(wire) as sender:
        sender.tell(half("tx"), COMMITTED)
        wire.wait(1)
        assert wire.entries(DecisionEntry) == ["tx"] and not wire.open.is_set()


def test_rule_03_each_half_partition_of_a_half_gets_its_part_and_its_word() -> None:
    """All parts are awaited; the D goes to each of them."""
    keys = ["k0", "k1", "k2", "k3"]
    homes = {half_partition(key, 4) for key in keys}
    assert len(homes) > 1
    wire = Wire()
    wire.open.set()
    with sending(wire, partitions=4) as sender:
        assert {r.partition for r in sender.store(half("tx", *keys), LONG_S)} == homes
        sender.tell(half("tx", *keys), ROLLED_BACK)
        wire.wait(2 * len(homes))
    assert {p for p, entries in wire.records if isinstance(entries[0], DecisionEntry)} == homes


@pytest.mark.parametrize("error", [BackendUnavailable("away"), RuntimeError("a bug")])
def test_hints_never_block_or_kill(error: Exception) -> None:
    """A sender that fails loses hints and nothing else: the next half goes through."""
    wire = Wire()
    wire.open.set()
    events: list[Event] = []
    failed = threading.Event()

    def fail(entries: Sequence[Entry]) -> BaseException | None:
        if isinstance(entries[0], DecisionEntry):
            failed.set()
            return error
        return None

    wire.fail = fail
    with sending(wire, events=events) as sender:
        sender.tell(half("tx"), COMMITTED)
        assert failed.wait(LONG_S)
        assert isinstance(sender.store(half("next"), LONG_S), tuple)
        wire.fail = lambda entries: None
        sender.tell(half("again"), COMMITTED)
        wire.wait(2)
    assert any(isinstance(event, Alarm) for event in events) == isinstance(error, RuntimeError)


def test_too_many_hints_are_dropped() -> None:
    """They are bounded; a lost one costs a check."""
    wire = Wire()
    with sending(wire, hints_max=3, hint_linger_s=0.0) as sender:
        leader = Caller(sender, half("leader"))
        wire.wait(1)
        for n in range(10):
            sender.tell(half(f"tx{n}"), COMMITTED)
        assert len(sender._hints) == 3
        wire.open.set()
        leader.done()


def test_rule_28_a_key_behind_which_too_many_wait_refuses_new_halves() -> None:
    """Before any row is locked; other keys go on."""
    with sending(Wire()) as sender:
        with pytest.raises(KeyHeld, match="held"):
            sender.check(half("tx", "held"))
        sender.check(half("tx", "free"))


def test_a_key_that_is_no_text_is_refused_before() -> None:
    """A lone surrogate can be hashed, but never be sent."""
    with sending(Wire()) as sender, pytest.raises(MessageRefused):
        sender.check(half("tx", "\ud800"))


def test_closing_sends_the_waiting_hints_and_refuses_new_halves() -> None:
    """And is bounded, also when nothing is answered."""
    wire = Wire()
    with sending(wire, hint_linger_s=0.0) as sender:
        for n in range(5):
            sender.tell(half(f"tx{n}"), COMMITTED)
        sender.close()
        assert len(wire.entries(DecisionEntry)) == 5 and wire.closed
        with pytest.raises(NotOpen):
            sender.store(half("late"), LONG_S)
        sender.tell(half("late"), COMMITTED)
