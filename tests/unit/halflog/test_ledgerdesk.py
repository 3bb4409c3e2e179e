"""What the relay asks and tells the ledgers, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.unit.halflog.builders import COMMITTED, NEVER, ROLLED_BACK, WHERE, half, id_of
from tests.unit.halflog.ledger import ModelDatabase, ModelTransaction, Tables
from tests.unit.halflog.world import WALL_S, Process, World
from txbus._halflog.ledgerdesk import Answer, LedgerDesk, LedgerDeskBudget, OwnChecker, Question
from txbus._halflog.records import Settled
from txbus._halves import HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome
from txbus._telemetry import Alarm, CheckBack, CheckerFailed, Event
from txbus.errors import StoreUnavailable
from txbus.stores.contract import LedgerRow

RETENTION_S = 1_000.0


class Recording(ModelDatabase):
    """Writes down who was asked what; can be away, or fail in a way that is no StoreError."""

    def __init__(self, tables: Tables, world: World) -> None:
        super().__init__(tables, world, Process("relay"))
        self.looked: list[list[str]] = []
        self.fenced: list[list[str]] = []
        self.error: Exception | None = None
        self.slow_s = 0.0

    def identity(self) -> str:
        if self.error is not None:
            raise self.error
        return super().identity()

    def look(self, ids: Sequence[HalfId]) -> Mapping[HalfId, LedgerRow]:
        self.looked.append([id.tx_id for id in ids])
        return super().look(ids)

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        self.fenced.append([id.tx_id for id in ids])
        self.world.now_s += self.slow_s
        return super().settle(ids, now_s, lock_wait_s)

    def confirm(self, ids: Sequence[HalfId], now_s: float) -> None:
        if self.error is not None:
            raise self.error
        super().confirm(ids, now_s)


class Desk:
    """A desk with one database, ``one``; `ask` takes a turn and gives the answers."""

    def __init__(self, checkers: Mapping[str, OwnChecker] | None = None) -> None:
        self.world = World(1, NEVER)
        self.database = Recording(Tables("one", "ledger-one"), self.world)
        self.answers: list[Answer] = []
        self.confirmed: list[int] = []
        self.events: list[Event] = []
        self.desk = LedgerDesk(
            "shop",
            {"one": self.database},
            checkers or {},
            self.world.ports(Process("relay")),
            self.events.append,
            LedgerDeskBudget(retention_s=RETENTION_S, check_max=3),
            self.answers.extend,
            lambda steps: self.confirmed.extend(step for _, step in steps),
        )

    def ask(self, *questions: Question) -> dict[str, Answer]:
        self.answers.clear()
        self.desk.ask(questions)
        self.desk.turn()
        assert len(self.answers) == len(questions), "every question has one answer"
        return {answer.question.id.tx_id: answer for answer in self.answers}

    def row(self, tx_id: str, outcome: Outcome = COMMITTED) -> None:
        id = id_of(tx_id)
        self.database.tables.rows[id] = LedgerRow(id, outcome, "one", 1, WALL_S)

    def alarms(self) -> list[str]:
        return [event.detail for event in self.events if isinstance(event, Alarm)]


def question(
    tx_id: str,
    database: str = "one",
    ledger: str = "ledger-one",
    created_s: float = WALL_S,
    checks: int = 0,
    envelope: Envelope | None = None,
) -> Question:
    return Question(WHERE, id_of(tx_id), ledger, database, created_s, 2.0, checks, envelope)


def test_rule_08_another_ledger_of_the_same_name_is_not_fenced() -> None:
    """A restored backup, a staging copy, another shard: no answer, nothing written, an alarm."""
    desk = Desk()
    answer = desk.ask(question("A", ledger="ledger-of-a-copy"))["A"]
    assert (answer.outcome, answer.park, answer.counted) == (Outcome.UNKNOWN, None, False)
    assert not desk.database.tables.rows and "copy or a restored backup" in desk.alarms()[0]


def test_rule_09_an_unknown_database_is_no_answer_and_alerts_once() -> None:
    """It is not counted, not parked, and nothing is written; others are answered."""
    desk = Desk()
    for _ in range(3):
        answers = desk.ask(question("A", database="elsewhere"), question("B"))
        assert (answers["A"].outcome, answers["A"].counted, answers["A"].park) == (Outcome.UNKNOWN, False, None)
        assert answers["B"].outcome is ROLLED_BACK
    assert len(desk.alarms()) == 1 and "elsewhere" in desk.alarms()[0]


def test_a_question_without_an_answer_is_told_quietly_from_the_second_time_on() -> None:
    """For each half by itself; an answer is always told aloud."""
    desk = Desk()
    told: list[list[bool]] = []
    for _ in range(3):
        desk.events.clear()
        desk.ask(question("A", database="elsewhere"), question("B", ledger="a-copy"), question("C"))
        told.append([event.again for event in desk.events if isinstance(event, CheckBack)])
    assert told == [[False, False, False], [True, True, False], [True, True, False]]
    desk.events.clear()
    desk.ask(question("B"))
    assert [event.again for event in desk.events if isinstance(event, CheckBack)] == [False]


@pytest.mark.parametrize("age_s", [499.0, 501.0])
def test_rule_10_a_missing_row_means_rolled_back_only_for_a_young_half(age_s: float) -> None:
    """Beyond half of the retention the row may have been purged: parked, nothing written."""
    desk = Desk()
    desk.world.now_s = 5_000.0
    answer = desk.ask(question("A", created_s=WALL_S + 5_000.0 - age_s))["A"]
    if age_s < 500.0:
        assert answer.outcome is ROLLED_BACK
    else:
        assert answer.outcome is Outcome.UNKNOWN and answer.park is not None
        assert "too old to know" in answer.park and not desk.database.tables.rows


def test_rule_10_an_old_half_with_a_row_is_answered_by_it() -> None:
    """Its row was not purged, so it tells."""
    desk = Desk()
    desk.row("A")
    desk.world.now_s = 5_000.0
    assert desk.ask(question("A"))["A"].outcome is COMMITTED


def test_rule_26_one_select_for_all_then_fences_for_those_without_a_row() -> None:
    """Rows that are there cost no lock."""
    desk = Desk()
    for n in range(0, 40, 2):
        desk.row(f"tx{n}")
    answers = desk.ask(*(question(f"tx{n}") for n in range(40)))
    assert len(desk.database.looked) == 1 and len(desk.database.looked[0]) == 40
    assert sorted(tx_id for ids in desk.database.fenced for tx_id in ids) == sorted(f"tx{n}" for n in range(1, 40, 2))
    assert {a.outcome for tx, a in answers.items() if int(tx[2:]) % 2 == 0} == {COMMITTED}
    assert {a.outcome for tx, a in answers.items() if int(tx[2:]) % 2 == 1} == {ROLLED_BACK}


def test_rule_26_a_round_has_a_time_budget() -> None:
    """Slow locks end a round; what is left is asked again, and nobody goes without an answer."""
    desk = Desk()
    desk.database.slow_s = 0.6
    answers = desk.ask(*(question(f"tx{n}") for n in range(40)))
    settled = [tx for tx, answer in answers.items() if answer.outcome is ROLLED_BACK]
    assert len(settled) == 10, "two calls of five, then the second is over"
    reasons = {event.reason for event in desk.events if isinstance(event, CheckBack)}
    assert "no time left in this round" in reasons


def test_rule_26_an_open_local_transaction_is_waited_for_and_never_guessed() -> None:
    """Its row is uncommitted: no answer, no harm; committed, it is the answer."""
    desk = Desk()
    local = desk.database.begin(1.0)
    assert isinstance(local, ModelTransaction)
    local.insert_ledger(LedgerRow(id_of("A"), COMMITTED, "one", 1, WALL_S))
    assert desk.ask(question("A"))["A"] == Answer(question("A"), Outcome.UNKNOWN)
    local.end(commit=True)
    assert desk.ask(question("A"))["A"].outcome is COMMITTED


def test_rule_26_the_fence_makes_a_late_local_transaction_fail() -> None:
    """The answer ROLLED_BACK is a row, which its ledger insert meets."""
    from txbus.errors import Superseded

    desk = Desk()
    assert desk.ask(question("A"))["A"].outcome is ROLLED_BACK
    with pytest.raises(Superseded):
        desk.database.begin(1.0).insert_ledger(LedgerRow(id_of("A"), COMMITTED, "one", 1, WALL_S))


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a bug of a driver")])
def test_rule_27_the_built_in_checker_never_parks(error: Exception) -> None:
    """However often there is no answer; an error that is no StoreError raises an alarm besides."""
    desk = Desk()
    desk.database.error = error
    for _ in range(50):
        answer = desk.ask(question("A", checks=0))["A"]
        assert (answer.outcome, answer.counted, answer.park) == (Outcome.UNKNOWN, False, None)
    assert bool(desk.alarms()) == isinstance(error, RuntimeError)
    desk.database.error = None
    assert desk.ask(question("A"))["A"].outcome is ROLLED_BACK


def envelope() -> Envelope:
    return half("A").envelopes[0]


def test_rule_27_only_answers_of_an_own_checker_are_counted_until_check_max() -> None:
    """It gets the number of the check; the third UNKNOWN parks."""
    numbers: list[int] = []

    def unsure(envelope: Envelope, number: int) -> Outcome:
        numbers.append(number)
        return Outcome.UNKNOWN

    desk = Desk({"a": unsure})
    answers = [desk.ask(question("A", checks=n, envelope=envelope()))["A"] for n in range(3)]
    assert numbers == [1, 2, 3] and all(answer.counted for answer in answers)
    assert [answer.park is not None for answer in answers] == [False, False, True]


def test_rule_27_a_checker_that_fails_or_answers_nonsense_is_no_answer() -> None:
    """UNKNOWN and an event; not counted, so a bug cannot park what a fixed checker could answer."""

    def broken(envelope: Envelope, number: int) -> Outcome:
        if number == 1:
            raise ZeroDivisionError
        return "committed"  # type: ignore[return-value]  # what an untyped application may do

    desk = Desk({"a": broken})
    for checks in (0, 1):
        answer = desk.ask(question("A", checks=checks, envelope=envelope()))["A"]
        assert (answer.outcome, answer.counted, answer.park) == (Outcome.UNKNOWN, False, None)
    assert len([event for event in desk.events if isinstance(event, CheckerFailed)]) == 2


def test_the_ledgers_row_wins_over_an_own_checker_and_its_no_is_fenced() -> None:
    """A row is the truth; ROLLED_BACK counts when it stands in the ledger."""
    desk = Desk({"a": lambda envelope, number: ROLLED_BACK})
    desk.row("A")
    assert desk.ask(question("A", envelope=envelope()))["A"].outcome is COMMITTED
    assert desk.ask(question("B", envelope=envelope()))["B"].outcome is ROLLED_BACK
    assert desk.database.tables.rows[id_of("B")].outcome is ROLLED_BACK
    local = desk.database.begin(1.0)
    local.insert_ledger(LedgerRow(id_of("C"), COMMITTED, "one", 1, WALL_S))
    assert desk.ask(question("C", envelope=envelope()))["C"].outcome is Outcome.UNKNOWN


def published(tx_id: str, part: int = 0, parts: int = 1) -> Settled:
    return Settled(id_of(tx_id), COMMITTED, "one", part, parts)


def confirmed_s(desk: Desk, tx_id: str) -> float | None:
    return desk.database.tables.rows[id_of(tx_id)].confirmed_s


def test_rule_03_a_row_is_confirmed_when_all_parts_are_published() -> None:
    """Whoever publishes them, in whatever order, however often."""
    desk = Desk()
    desk.row("A")
    desk.desk.confirm((WHERE, 1), [published("A", 1, 2), published("A", 1, 2)])
    desk.desk.turn()
    assert confirmed_s(desk, "A") is None and desk.confirmed == [1]
    desk.desk.confirm((WHERE, 2), [published("A", 0, 2)])
    desk.desk.hurry()
    desk.desk.turn()
    assert confirmed_s(desk, "A") is not None and desk.confirmed == [1, 2]


def test_confirmations_wait_for_a_database_that_is_away() -> None:
    """They are written again until they are; only then is the step known as marked."""
    desk = Desk()
    desk.row("A")
    desk.database.error = StoreUnavailable("away")
    desk.desk.confirm((WHERE, 1), [published("A")])
    desk.desk.turn()
    assert desk.confirmed == [] and not desk.desk.idle
    desk.database.error = None
    desk.world.now_s += 2.0
    desk.desk.turn()
    assert desk.confirmed == [1] and confirmed_s(desk, "A") is not None and desk.desk.idle


def test_the_desk_outlives_what_it_did_not_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug answers UNKNOWN and alarms: a question without an answer would never be asked again."""
    desk = Desk()

    def bug(self: LedgerDesk, questions: Sequence[Question]) -> None:
        raise ZeroDivisionError("bug")

    with monkeypatch.context() as patch:
        patch.setattr(LedgerDesk, "_answer_all", bug)
        assert desk.ask(question("A"))["A"].outcome is Outcome.UNKNOWN
    assert "ZeroDivisionError" in desk.alarms()[0]
    assert desk.ask(question("A"))["A"].outcome is ROLLED_BACK
