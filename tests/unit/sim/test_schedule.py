"""Schedules as text: what can be written can be read, and what cannot be read says where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txbus_sim.errors import MalformedSchedule
from txbus_sim.faults import Fault
from txbus_sim.schedule import Address, Deviation, Schedule

NAMES = st.from_regex(r"[a-z][a-z0-9._-]{0,8}(\+[1-9])?", fullmatch=True)
LABELS = st.from_regex(r"[a-z]+\.[a-z]+:[a-zA-Z0-9_./#-]{1,12}", fullmatch=True)
ADDRESSES = st.builds(Address, NAMES, LABELS, st.integers(1, 10**6))
TIMED = (Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY, Fault.CLOCK_STEP)
AMOUNTS = st.one_of(st.integers(0, 10**13), st.integers(0, 10**4).map(lambda s: s * 10**9))
DEVIATIONS = st.one_of(
    st.builds(Deviation, ADDRESSES, st.sampled_from(TIMED), AMOUNTS),
    st.builds(Deviation, ADDRESSES, st.just(Fault.TORN), st.integers(0, 10**6)),
    st.builds(Deviation, ADDRESSES, st.sampled_from([Fault.CRASH_BEFORE, Fault.ANSWER_LOST, Fault.REBALANCE])),
)
SCHEDULES = st.lists(DEVIATIONS, max_size=6, unique_by=lambda one: one.address).map(Schedule.of)


@given(SCHEDULES)
def test_a_schedule_is_read_as_it_was_written(schedule: Schedule) -> None:
    """Text and back gives the same deviations in the same order, amounts to the nanosecond."""
    assert Schedule.parse(str(schedule)) == schedule


@given(SCHEDULES, st.lists(st.from_regex(r"[A-Za-z0-9 ,:]{0,20}", fullmatch=True), max_size=3))
def test_notes_are_kept_and_change_nothing(schedule: Schedule, notes: list[str]) -> None:
    """A note is written as comments before the deviations."""
    noted = Schedule(schedule.deviations, "\n".join(notes))
    assert Schedule.parse(str(noted)).deviations == schedule.deviations


@given(ADDRESSES)
def test_an_address_is_read_as_it_was_written(address: Address) -> None:
    """Labels may hold ``#`` and ``/``; the last ``#`` counts."""
    assert Address.parse(str(address)) == address


def test_the_format_of_the_documentation() -> None:
    """Comments, empty lines, several units."""
    text = """txbus schedule 1
# The answer is lost, and the process dies in the recovery.
orders/sql.commit:shop#1 answer-lost

  orders+1/broker.send:orders#2 crash-after   # behind it
stock/broker.receive:stock.reserve#3 pause-before 1.5s
files/file.fsync:outbox#1 torn 17B
"""
    assert list(Schedule.parse(text)) == [
        Deviation(Address("orders", "sql.commit:shop", 1), Fault.ANSWER_LOST),
        Deviation(Address("orders+1", "broker.send:orders", 2), Fault.CRASH_AFTER),
        Deviation(Address("stock", "broker.receive:stock.reserve", 3), Fault.PAUSE_BEFORE, 1_500_000_000),
        Deviation(Address("files", "file.fsync:outbox", 1), Fault.TORN, 17),
    ]
    assert "dies in the recovery" in Schedule.parse(text).note


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("orders/sql.commit:shop#1", "line 3: .*no deviation"),
        ("orders/sql.commit:shop#1 explode", "line 3: .*crash-before"),
        ("orders/sql.commit:shop answer-lost", "line 3: .*no address"),
        ("orders/sql.commit:shop#0 answer-lost", "line 3: .*no address"),
        ("sql.commit:shop#1 answer-lost", "line 3: .*no address"),
        ("orders/sql.commit:shop#1 delay 90", "line 3: .*no amount"),
        ("orders/sql.commit:shop#1 delay -1s", "line 3: .*no amount"),
        ("orders/sql.commit:shop#1 delay 1 s", "line 3: .*no deviation"),
    ],
)
def test_what_cannot_be_read_says_where_and_why(line: str, says: str) -> None:
    """The number of the line, what is wrong, and what is possible."""
    with pytest.raises(MalformedSchedule, match=says):
        Schedule.parse(f"txbus schedule 1\n# a note\n{line}\n")


@pytest.mark.parametrize("text", ["", "\n", "txbus schedule 2\n", "orders/sql.commit:shop#1 answer-lost\n"])
def test_another_version_is_refused(text: str) -> None:
    """A file without the first line of this version is not guessed at."""
    with pytest.raises(MalformedSchedule, match="line 1"):
        Schedule.parse(text)


def test_an_address_takes_one_fault() -> None:
    """Two deviations at one address would leave open which one happens."""
    one = Deviation(Address("orders", "sql.commit:shop", 1), Fault.CRASH_AFTER)
    other = Deviation(one.address, Fault.ANSWER_LOST)
    with pytest.raises(MalformedSchedule, match="named twice"):
        Schedule((one, other))
    assert Schedule((one,)).with_().without(one) == Schedule()
