"""Half messages of the broker's own: all or none, answered from the ledger, the same for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.unit.halflog.ledger import ModelDatabase, Tables
from tests.unit.halflog.world import Chances, Process, World
from txbus._checkback import CheckBudget, OwnChecker
from txbus._halves import Half, HalfId
from txbus._message import Envelope
from txbus._nativehalves import ATTEMPT, ID, PART, SERVICE, NativeHalves, NativeHalvesBudget
from txbus._outcome import Outcome
from txbus._telemetry import Alarm, CheckBack, CheckerFailed, Event
from txbus.errors import BackendUnavailable, HalfFailed, MessageRefused, NotOpen, SendUnknown, StoreUnavailable
from txbus.spi import Check
from txbus.stores.contract import LedgerRow

NEVER = Chances(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
COMMITTED, ROLLED_BACK, UNKNOWN = Outcome.COMMITTED, Outcome.ROLLED_BACK, Outcome.UNKNOWN
TAKES_S = 0.5


class Broker:
    """Keeps halves and outcomes, and asks what a test tells it to ask (`HalfMessages`)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.halves: list[Envelope] = []
        self.finished: list[tuple[int, Outcome]] = []
        self.answers: list[tuple[str | None, Outcome]] = []
        self.questions: list[Check] = []
        self.fails: dict[int, Exception] = {}
        self.away: Exception | None = None
        self.closed = False

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        self.world.now_s += TAKES_S
        error = self.fails.get(len(self.halves))
        if error is not None:
            raise error
        self.halves.append(envelope)
        return len(self.halves) - 1

    def finish(self, handle: object, outcome: Outcome) -> None:
        if self.away is not None:
            raise self.away
        assert isinstance(handle, int)
        self.finished.append((handle, outcome))

    def checks(self, timeout_s: float) -> Sequence[Check]:
        if self.away is not None:
            raise self.away
        asked, self.questions = self.questions, []
        return asked

    def answer(self, check: Check, outcome: Outcome) -> None:
        self.answers.append((check.envelope.id, outcome))

    def close(self) -> None:
        self.closed = True


class Shop:
    """One process of the service with one database, and the broker; `ask` gives the answers by message."""

    def __init__(self, checkers: Mapping[str, OwnChecker] | None = None, headers_bytes_max: int | None = None) -> None:
        self.world = World(1, NEVER)
        self.database = ModelDatabase(Tables("one", "ledger-one"), self.world, Process("shop"))
        self.rows = self.database.tables.rows
        self.broker = Broker(self.world)
        self.events: list[Event] = []
        self.headers_bytes_max = headers_bytes_max
        self.channel = self.process(checkers or {})

    def process(self, checkers: Mapping[str, OwnChecker]) -> NativeHalves:
        """Another process of the service at the same broker."""
        return NativeHalves(
            "shop",
            self.broker,
            {"one": self.database},
            checkers,
            self.world.ports(Process("shop")),
            self.events.append,
            NativeHalvesBudget(headers_bytes_max=self.headers_bytes_max, check=CheckBudget(check_max=3)),
        )

    def half(self, tx_id: str, *topics: str) -> Half:
        envelopes = tuple(
            Envelope(topic, b"x", None, {"ce_id": f"{tx_id}-{n}"}) for n, topic in enumerate(topics or ("orders",))
        )
        return Half(HalfId(tx_id, 1), "ledger-one", "one", self.world.now_s + 1_000_000_000.0, envelopes)

    def stored(self, tx_id: str, *topics: str) -> Half:
        half = self.half(tx_id, *topics)
        self.channel.store(half, 60.0)
        return half

    def row(self, half: Half, outcome: Outcome = COMMITTED) -> None:
        self.rows[half.id] = LedgerRow(half.id, outcome, "one", len(half.envelopes), half.created_s)

    def ask(self, *envelopes: Envelope, round: int = 1, channel: NativeHalves | None = None) -> list[Outcome]:
        """The broker asks about these, all that it has by default, in one go."""
        self.broker.answers.clear()
        self.broker.questions = [Check(one, round) for one in envelopes or self.broker.halves]
        (channel or self.channel).turn(0.0)
        return [outcome for _, outcome in self.broker.answers]

    def alarms(self) -> list[str]:
        return [event.detail for event in self.events if isinstance(event, Alarm)]


# storing


def test_each_message_is_a_half_that_says_whose_it_is() -> None:
    """Every half message carries the local transaction's id, attempt, ledger, database and its part."""
    shop = Shop()
    half = shop.half("A", "orders", "stock")
    receipts = shop.channel.store(half, 60.0)
    assert [(one.message_id, one.topic) for one in receipts] == [("A-0", "orders"), ("A-1", "stock")]
    assert [one.headers[PART] for one in shop.broker.halves] == ["1/2", "2/2"]
    assert {(one.headers[ID], one.headers[ATTEMPT]) for one in shop.broker.halves} == {("A", "1")}
    assert not shop.rows and not shop.broker.finished


def test_the_third_of_five_fails() -> None:
    """The first two are rolled back, the ledger is fenced, nothing is ever committed."""
    shop = Shop()
    shop.broker.fails[2] = SendUnknown("no answer")
    half = shop.half("A", *["orders"] * 5)
    with pytest.raises(HalfFailed, match="orders"):
        shop.channel.store(half, 60.0)
    shop.channel.tell(half, ROLLED_BACK)
    shop.channel.flush()
    assert shop.broker.finished == [(0, ROLLED_BACK), (1, ROLLED_BACK)]
    assert shop.rows[half.id].outcome is ROLLED_BACK
    assert shop.ask() == [ROLLED_BACK, ROLLED_BACK]


def test_a_half_of_which_nothing_exists_writes_no_fence() -> None:
    """The broker is away, so nothing was done: an application that tries again and again leaves no rows."""
    shop = Shop()
    shop.broker.fails[0] = BackendUnavailable("away")
    half = shop.half("A", "orders", "stock")
    with pytest.raises(HalfFailed):
        shop.channel.store(half, 60.0)
    shop.channel.tell(half, ROLLED_BACK)
    shop.channel.flush()
    assert not shop.rows and not shop.broker.finished


def test_a_permanent_refusal_passes_as_it_is() -> None:
    """What the broker never takes is told to the application as such."""
    shop = Shop()
    shop.broker.fails[0] = MessageRefused("too large")
    with pytest.raises(MessageRefused):
        shop.channel.store(shop.half("A"), 60.0)


def test_the_time_is_for_all_messages_together() -> None:
    """Five messages of half a second each do not fit into two seconds."""
    shop = Shop()
    with pytest.raises(HalfFailed, match=r"half_timeout_s=2"):
        shop.channel.store(shop.half("A", *["orders"] * 5), 2.0)
    assert len(shop.broker.halves) == 4


def test_headers_that_leave_no_room_are_refused_before_any_lock() -> None:
    """The headers of the half count against the broker's limit."""
    shop = Shop(headers_bytes_max=150)
    with pytest.raises(MessageRefused, match="at most|more than"):
        shop.channel.check(shop.half("A"))
    Shop(headers_bytes_max=1_000).channel.check(shop.half("A"))


# outcomes


def test_outcomes_are_handed_over_and_noted_as_published() -> None:
    """COMMITTED reaches each half; once all parts are told the row is confirmed."""
    shop = Shop()
    half = shop.stored("A", "orders", "stock")
    shop.row(half)
    shop.channel.tell(half, COMMITTED)
    assert not shop.channel.wait_quiet(0.0)
    shop.channel.flush()
    assert shop.broker.finished == [(0, COMMITTED), (1, COMMITTED)]
    assert shop.rows[half.id].confirmed_s is not None and shop.channel.wait_quiet(0.0)


def test_an_outcome_that_was_not_taken_is_not_published() -> None:
    """The broker is away: nothing is confirmed, and its question is answered later."""
    shop = Shop()
    half = shop.stored("A")
    shop.row(half)
    shop.broker.away = BackendUnavailable("away")
    shop.channel.tell(half, COMMITTED)
    shop.channel.flush()
    assert shop.rows[half.id].confirmed_s is None and "away" in shop.channel.health().last_error
    with pytest.raises(BackendUnavailable):
        shop.channel.turn(0.0)
    shop.broker.away = None
    assert shop.ask() == [COMMITTED]
    shop.world.now_s += 2.0
    shop.channel.flush()
    assert shop.rows[half.id].confirmed_s is not None


def test_a_whole_half_rolled_back_writes_no_fence() -> None:
    """Every handle is known, so each is told, and the ledger stays as it is."""
    shop = Shop()
    half = shop.stored("A", "orders", "stock")
    shop.channel.tell(half, ROLLED_BACK)
    shop.channel.flush()
    assert shop.broker.finished == [(0, ROLLED_BACK), (1, ROLLED_BACK)] and not shop.rows


def test_closing_hands_over_what_waits() -> None:
    """close() ends with the halves; afterwards nothing is stored."""
    shop = Shop()
    half = shop.stored("A")
    shop.row(half)
    shop.channel.tell(half, COMMITTED)
    shop.channel.close()
    shop.channel.close()
    assert shop.broker.closed and shop.broker.finished == [(0, COMMITTED)]
    assert shop.rows[half.id].confirmed_s is not None
    with pytest.raises(NotOpen):
        shop.channel.store(shop.half("B"), 60.0)


def test_an_outcome_that_nobody_learns_is_forgotten_once_it_is_answered() -> None:
    """After OutcomeUnknown nobody tells: the check settles it, and the bus is quiet."""
    shop = Shop()
    half = shop.stored("A")
    shop.row(half)
    assert not shop.channel.wait_quiet(0.0)
    assert shop.ask() == [COMMITTED]
    assert shop.channel.wait_quiet(0.0)


# answers


def test_a_missing_row_is_fenced() -> None:
    """No row: ROLLED_BACK is written before it is said, so a commit that comes later fails."""
    shop = Shop()
    half = shop.stored("A")
    assert shop.ask() == [ROLLED_BACK]
    assert shop.rows[half.id].outcome is ROLLED_BACK


@pytest.mark.parametrize("outcome", [COMMITTED, ROLLED_BACK])
def test_the_answer_is_the_same_for_ever(outcome: Outcome) -> None:
    """Asked again, by any process, after an outcome was told, in any round."""
    shop = Shop()
    half = shop.stored("A", "orders", "stock")
    if outcome is COMMITTED:
        shop.row(half)
    others = shop.process({})
    for round in range(1, 5):
        assert shop.ask(round=round) == [outcome, outcome]
        assert shop.ask(round=round, channel=others) == [outcome, outcome]
        shop.channel.tell(half, outcome)
        shop.channel.flush()


def test_an_open_local_transaction_is_waited_for() -> None:
    """Its row is there, uncommitted: no answer, nothing written; COMMITTED once it has committed."""
    shop = Shop()
    half = shop.stored("A")
    local = shop.database.begin(30.0)
    local.insert_ledger(LedgerRow(half.id, COMMITTED, "one", 1, 0.0))
    assert shop.ask() == [UNKNOWN] and not shop.rows
    local.commit()
    assert shop.ask() == [COMMITTED]


def test_a_database_that_is_away_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """UNKNOWN, with the reason in the event; the next question finds it."""
    shop = Shop()
    shop.row(shop.stored("A"))

    def away(ids: Sequence[HalfId]) -> Mapping[HalfId, LedgerRow]:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(shop.database, "look", away)
        assert shop.ask() == [UNKNOWN]
    assert any(isinstance(event, CheckBack) and "away" in event.reason for event in shop.events)
    assert shop.ask() == [COMMITTED]


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({SERVICE: "other"}, "service 'other'"),
        ({SERVICE: ""}, "not one of txbus"),
        ({"txbus-half-database": "two"}, "unknown database 'two'"),
        ({"txbus-half-ledger": "ledger-of-a-copy"}, "copy or a restored backup"),
        ({ATTEMPT: "first"}, "damaged"),
    ],
)
def test_what_is_not_ours_is_not_answered(change: dict[str, str], alarm: str) -> None:
    """A foreign service, an unknown database, another ledger, a damaged half: UNKNOWN, counted as an event,
    nothing written, one alarm however often it is asked."""
    shop = Shop()
    shop.stored("A")
    foreign = replace(shop.broker.halves[0], headers={**shop.broker.halves[0].headers, **change})
    assert shop.ask(foreign) == [UNKNOWN] and shop.ask(foreign) == [UNKNOWN]
    assert not shop.rows
    assert len(shop.alarms()) == 1 and alarm in shop.alarms()[0]
    assert sum(isinstance(event, CheckBack) and event.outcome is UNKNOWN for event in shop.events) == 2


def test_a_half_that_is_too_old_is_not_answered() -> None:
    """Its row may have been purged: UNKNOWN, an alarm, no fence."""
    shop = Shop()
    shop.stored("A")
    shop.world.now_s += 4 * 86400.0
    assert shop.ask() == [UNKNOWN] and not shop.rows
    assert "too old to know" in shop.alarms()[0]


# an application's own checkers


class Own:
    """A checker that says what it is told to."""

    def __init__(self, says: object) -> None:
        self.says = says
        self.asked: list[tuple[str | None, int]] = []

    def __call__(self, envelope: Envelope, attempt: int) -> Outcome:
        self.asked.append((envelope.id, attempt))
        if isinstance(self.says, Exception):
            raise self.says
        return self.says  # type: ignore[return-value]


def test_an_own_checker_answers_for_the_whole_local_transaction() -> None:
    """It is asked with its message and the round; its COMMITTED stands in the ledger, so that the other
    messages get it too, whatever it would say later."""
    own = Own(COMMITTED)
    shop = Shop({"stock": own})
    half = shop.stored("A", "orders", "stock")
    assert [one.id for one in shop.broker.halves] == ["A-1", "A-0"], "the one whose checker is asked comes first"
    stock, orders = shop.broker.halves
    assert shop.ask(orders, round=2) == [UNKNOWN] and not shop.rows, "another one's checker decides"
    assert shop.ask(stock, round=3) == [COMMITTED] and own.asked == [("A-1", 3)]
    own.says = ROLLED_BACK
    assert shop.rows[half.id].outcome is COMMITTED
    assert shop.ask(orders, stock) == [COMMITTED, COMMITTED] and len(own.asked) == 1


def test_an_own_checkers_rolled_back_is_fenced() -> None:
    """It counts once it stands in the ledger, and then for every message."""
    shop = Shop({"stock": Own(ROLLED_BACK)})
    half = shop.stored("A", "orders", "stock")
    assert shop.ask() == [ROLLED_BACK, ROLLED_BACK]
    assert shop.rows[half.id].outcome is ROLLED_BACK


def test_a_row_wins_over_an_own_checker() -> None:
    """The ledger is asked first."""
    own = Own(ROLLED_BACK)
    shop = Shop({"orders": own})
    shop.row(shop.stored("A"))
    assert shop.ask() == [COMMITTED] and not own.asked


@pytest.mark.parametrize("says", [UNKNOWN, None, "committed", ZeroDivisionError("bug")])
def test_an_own_checker_that_does_not_know(says: object) -> None:
    """UNKNOWN, an exception, or something that is no outcome: nothing is written, and it is asked again."""
    own = Own(says)
    shop = Shop({"orders": own})
    shop.stored("A")
    assert [shop.ask(round=round) for round in (1, 2, 3)] == [[UNKNOWN]] * 3
    assert len(own.asked) == 3 and not shop.rows
    failed = [event for event in shop.events if isinstance(event, CheckerFailed)]
    assert len(failed) == (0 if says is UNKNOWN else 3)


def test_a_process_without_the_checker_fences() -> None:
    """As everywhere in the service where no checker is registered: the ledger decides."""
    shop = Shop({"orders": Own(COMMITTED)})
    shop.stored("A")
    assert shop.ask(channel=shop.process({})) == [ROLLED_BACK]
