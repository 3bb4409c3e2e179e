"""The core on the simulated RocketMQ: orders and bills, whatever goes wrong at any point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.simulation.rocketmq_shop import Shop, ShopRun
from txbus._checkback import Answer, LedgerAnswers, Question
from txbus._nativehalves import NativeHalves
from txbus._outcome import Outcome
from txbus.spi import Check
from txbus.stores.contract import Database
from txbus_sim._world import StopReason
from txbus_sim.faults import Fault
from txbus_sim.history import Checked, Settled, Visible
from txbus_sim.schedule import Deviation, Schedule

S = 1_000_000_000
AMOUNTS = {
    Fault.PAUSE_BEFORE: 90 * S,
    Fault.PAUSE_AFTER: 90 * S,
    Fault.DELAY: 3 * S,
    Fault.CHECK_LATE: 5 * S,
    Fault.CLOCK_STEP: 60 * S,
    Fault.LATE_END: 3 * S,
}
FOR_EVER = (Fault.KILL_BEFORE, Fault.KILL_AFTER)
PROTOCOL = ("broker.", "sql.commit", "sql.insert:shop.txbus_ledger", "sql.insert:bills.txbus_inbox")


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with Shop().installed() as installed:
        yield installed


def single_faults(run: ShopRun) -> list[Deviation]:
    """Every fault at every operation of the protocol."""
    return [
        Deviation(point.address, fault, AMOUNTS.get(fault, 0))
        for point in run.history.points()
        if point.at_ns < 3 * S and point.label.startswith(PROTOCOL)
        for fault in point.faults
        if fault not in FOR_EVER
    ]


def checked(run: ShopRun) -> int:
    return sum(isinstance(one, Checked) and one.answer is not None for one in run.history)


def test_without_faults(shop: Shop) -> None:
    """Both orders are billed once, and nobody is asked anything."""
    run = shop.run()
    assert run.wrong == () and run.reason is StopReason.QUIET
    assert checked(run) == 0 and sum(isinstance(one, Visible) for one in run.history) == 4


def test_every_single_fault_at_every_point_of_the_protocol(shop: Shop) -> None:
    """No order is lost, none billed that was not placed, none twice; and the faults did reach the windows:
    questions were answered COMMITTED and ROLLED_BACK, and messages were delivered twice."""
    deviations = single_faults(shop.run())
    assert len(deviations) > 200
    answers: set[Outcome] = set()
    doubled = 0
    for deviation in deviations:
        run = shop.run(Schedule((deviation,)))
        assert run.wrong == (), f"{deviation}: {run.wrong}"
        assert run.unreached == () and run.reason is StopReason.QUIET, f"{deviation}: {run.reason}"
        answers |= {one.answer for one in run.history if isinstance(one, Checked) and one.answer is not None}
        ids = [one.message_id for one in run.history if isinstance(one, Visible)]
        doubled += len(ids) - len(set(ids))
    assert answers >= {Outcome.COMMITTED, Outcome.ROLLED_BACK} and doubled > 0


TWO = [
    ("orders/sql.commit:shop#2 crash-after", "answers/broker.answer:placed#1 crash-before"),
    ("orders/broker.prepare:billed#1 crash-after", "answers/broker.answer:billed#1 request-lost"),
    ("orders/broker.finish:placed#1 memory-lost", "bills/broker.ack:bills.bill#1 crash-before"),
    ("orders/sql.commit:shop#2 answer-lost", "orders/broker.finish:placed#1 crash-before"),
    ("orders/sql.commit:shop#2 pause-before 45s", "answers/broker.checks:orders#1 crash-after"),
    ("orders/broker.finish:placed#1 late-end 9s", "bills/broker.receive:bills.bill#1 answer-lost"),
]


@pytest.mark.parametrize("deviations", TWO, ids=lambda two: f"{two[0]} + {two[1]}")
def test_two_faults(shop: Shop, deviations: tuple[str, str]) -> None:
    """The second one hits the recovery from the first."""
    run = shop.run(Schedule.of(map(Deviation.parse, deviations)))
    assert run.wrong == () and run.unreached == ()


# the rules put back to their naive form: each dies of the books


def test_a_checker_that_looks_loses_messages(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROLLED_BACK without the fence: an application that stood still commits afterwards, and its messages are lost."""

    def look(
        self: LedgerAnswers, database: Database, asked: Sequence[Question], deadline_s: float
    ) -> list[tuple[Answer, str]]:
        return [(Answer(question, Outcome.ROLLED_BACK), "") for question in asked]

    monkeypatch.setattr(LedgerAnswers, "_fence", look)
    run = shop.run(Schedule.of([Deviation.parse("orders/sql.commit:shop#2 pause-before 45s")]))
    assert any("lost" in wrong for wrong in run.wrong)


def test_a_checker_that_always_commits_makes_phantoms(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """COMMITTED for a local transaction that was rolled back: bills for orders that nobody placed."""

    def always(self: NativeHalves, checks: Sequence[Check]) -> list[tuple[Question | None, Outcome]]:
        return [(None, Outcome.COMMITTED) for _ in checks]

    monkeypatch.setattr(NativeHalves, "_outcomes", always)
    run = shop.run(Schedule.of([Deviation.parse("orders/broker.prepare:billed#1 crash-after")]))
    ids = [one.message_id for one in run.history if isinstance(one, Visible) and one.topic == "placed"]
    assert len(ids) == 3, "the half of the crashed attempt became visible beside the one of the next"


def test_without_answers_messages_are_lost(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome was lost with the process, and nobody answers: the broker gives the half up."""
    monkeypatch.setattr(NativeHalves, "turn", lambda self, timeout_s: len(self._halves.checks(timeout_s)))
    run = shop.run(Schedule.of([Deviation.parse("orders/broker.finish:placed#1 crash-before")]))
    assert any("lost" in wrong for wrong in run.wrong)
    assert any(isinstance(one, Settled) and one.discarded for one in run.history)
