"""Check-back: what becomes of halves whose sender never said how its local transaction ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from tests.unit.shopfloor import Floor, Order, Reserved, count, floor, orders, reserved, sales, skus, until
from txbus import Bus, Envelope, Outcome, Topic
from txbus._halves import Half, HalfId
from txbus.errors import KeyHeld, StoreUnavailable, Superseded
from txbus.events import Alarm, CheckBack, CheckerFailed, HalfParked
from txbus.stores._sql_tables import LEDGER
from txbus.stores.contract import CommitResult, LedgerRow, LocalTransaction
from txbus.stores.sql import SqlDatabase

DAY_S = 86_400.0
OwnChecker = Callable[[Envelope, int], Outcome]


class Sender:
    """A process that sends with local transactions and dies wherever a test wants it to.

    It does what `bus.transaction` does, step by step, and never tells an outcome.
    """

    def __init__(self, shop: Floor, database: str = "shop") -> None:
        self._opened = shop.bus.opened
        self._database = self._opened.databases[database]
        self.name = database

    def half(
        self,
        tx_id: str,
        *orders_: Order,
        ledger_id: str | None = None,
        database: str | None = None,
        age_s: float = 0.0,
        topic: Topic[Order] = orders,
    ) -> Half:
        """Store a half, durable on return."""
        envelopes = tuple(
            Envelope(
                topic.name,
                topic.encode(order),
                key=order.customer,
                headers={"ce_specversion": "1.0", "ce_id": f"{tx_id}-{number}", "ce_source": "/txbus/shop"},
            )
            for number, order in enumerate(orders_)
        )
        half = Half(
            HalfId(tx_id, 1),
            ledger_id or self._database.identity(),
            database or self.name,
            time.time() - age_s,
            envelopes,
        )
        assert self._opened.channel is not None
        self._opened.channel.store(half, 5.0)
        return half

    def begin(self, half_id: HalfId) -> LocalTransaction:
        """A local transaction with its ledger row and an effect, not committed."""
        local = self._database.begin(30.0)
        try:
            local.insert_ledger(LedgerRow(half_id, Outcome.COMMITTED, self.name, 1, time.time()))
        except Superseded:
            local.rollback()
            raise
        local.connection.execute(insert(sales), {"sku": half_id.tx_id})
        return local


def ledger_rows(shop: Floor, database: str = "shop") -> int:
    with shop.engines[database].connect() as connection:
        return connection.scalar(select(func.count()).select_from(LEDGER)) or 0


def row_of(shop: Floor, half: Half) -> LedgerRow | None:
    return shop.bus.opened.databases["shop"].look([half.id]).get(half.id)


def checks_of(shop: Floor, half: Half) -> list[CheckBack]:
    return [check for check in shop.of(CheckBack) if check.tx_id == half.id.tx_id]


class TestTheLedgerAnswers:
    def test_a_sender_that_dies_after_the_half_is_rolled_back_for_ever(self, tmp_path: Path) -> None:
        """The question fences: the messages are never visible, and the local transaction cannot commit
        any more, should it come back."""
        with floor(tmp_path) as shop, shop.working() as test:
            sender = Sender(shop)
            half = sender.half("t-1", Order(sku="a"))
            test.run_until_idle()
            assert test.sent(orders) == []
            (check,) = checks_of(shop, half)
            assert (check.outcome, check.database, check.attempt, check.reason) == (Outcome.ROLLED_BACK, "shop", 1, "")
            assert check.age_s >= 0.1
            row = row_of(shop, half)
            assert row is not None
            assert row.outcome is Outcome.ROLLED_BACK
            with pytest.raises(Superseded):
                sender.begin(half.id)
            assert shop.bus.outcome("t-1") is Outcome.ROLLED_BACK
            assert count(shop.engine) == 0

    def test_a_sender_that_dies_after_its_commit_has_its_messages_published(self, tmp_path: Path) -> None:
        """Committed and never told: the ledger's row says so, and it is confirmed as published."""
        with floor(tmp_path) as shop, shop.working() as test:
            sender = Sender(shop)
            local = sender.begin(HalfId("t-1", 1))
            half = sender.half("t-1", Order(sku="a"), Order(sku="b", customer="bob"))
            assert local.commit() is CommitResult.COMMITTED
            test.run_until_idle()
            assert sorted(order.sku for order in test.sent(orders)) == ["a", "b"]
            assert {check.outcome for check in checks_of(shop, half)} == {Outcome.COMMITTED}
            row = row_of(shop, half)
            assert row is not None
            assert row.confirmed_s is not None

    @pytest.mark.parametrize("commits", [True, False])
    def test_an_open_local_transaction_is_waited_for(self, tmp_path: Path, commits: bool) -> None:
        """While its row is there and not committed there is no answer, however often it is asked; then
        whatever it does counts."""
        with floor(tmp_path, check_max=2) as shop, shop.working() as test:
            sender = Sender(shop)
            local = sender.begin(HalfId("t-1", 1))
            half = sender.half("t-1", Order(sku="a"))
            until(lambda: len(checks_of(shop, half)) >= 3)
            assert {check.outcome for check in checks_of(shop, half)} == {Outcome.UNKNOWN}
            assert "still open" in checks_of(shop, half)[0].reason
            assert shop.of(HalfParked) == []
            if commits:
                local.commit()
            else:
                local.rollback()
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == (["a"] if commits else [])
            assert skus(shop.engine) == (["t-1"] if commits else [])

    def test_another_bus_of_the_service_answers_without_having_sent(self, tmp_path: Path) -> None:
        """A relay in a fresh process, whose application has sent nothing yet, settles what a dead one
        left, for both databases of the service."""
        url = f"embedded://{tmp_path}/bus.db"
        databases = ("north", "south")
        with floor(tmp_path, url=url, relay="outside", databases=databases) as shop:
            for name in databases:
                sender = Sender(shop, name)
                local = sender.begin(HalfId(f"kept-{name}", 1))
                sender.half(f"kept-{name}", Order(sku=f"kept-{name}", customer=name))
                local.commit()
                sender.half(f"lost-{name}", Order(sku=f"lost-{name}", customer=name))
        with floor(tmp_path, url=url, databases=databases) as shop, shop.working() as test:
            test.run_until_idle()
            assert sorted(order.sku for order in test.sent(orders)) == ["kept-north", "kept-south"]
            asked = {(check.database, check.outcome.name) for check in shop.of(CheckBack)}
            assert asked == {(name, outcome) for name in databases for outcome in ("COMMITTED", "ROLLED_BACK")}
            # Each ledger has its own two rows and none of the other's.
            assert [ledger_rows(shop, name) for name in databases] == [2, 2]

    def test_a_database_that_is_away_is_asked_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No answer consumes nothing and parks nothing; when it is back the half is settled."""
        away = [StoreUnavailable("no route to host")] * 4
        look = SqlDatabase.look

        def failing(database: SqlDatabase, ids: Sequence[HalfId]) -> object:
            if away:
                raise away.pop()
            return look(database, ids)

        with floor(tmp_path, check_max=1) as shop, shop.working() as test:
            monkeypatch.setattr(SqlDatabase, "look", failing)
            half = Sender(shop).half("t-1", Order(sku="a"))
            test.run_until_idle()
            answers = [check.outcome for check in checks_of(shop, half)]
            assert answers == [Outcome.UNKNOWN] * 4 + [Outcome.ROLLED_BACK]
            assert "no route to host" in checks_of(shop, half)[0].reason
            assert shop.of(HalfParked) == []

    def test_a_half_too_old_for_its_ledger_is_parked(self, tmp_path: Path) -> None:
        """Beyond half the retention a missing row says nothing: an operator decides, nothing is written."""
        with floor(tmp_path, ledger_retention_s=DAY_S) as shop, shop.working() as test:
            old = Sender(shop).half("t-1", Order(sku="a"), age_s=0.6 * DAY_S)
            young = Sender(shop).half("t-2", Order(sku="b", customer="bob"), age_s=0.4 * DAY_S)
            test.run_until_idle()
            (parked,) = shop.of(HalfParked)
            assert parked.tx_id == old.id.tx_id
            assert "too old to know" in parked.reason
            assert "ledger_retention_s=86400" in parked.reason
            assert row_of(shop, old) is None
            assert row_of(shop, young) is not None


class TestForeignHalves:
    @pytest.mark.parametrize(
        ("foreign", "texts"),
        [
            ({"database": "warehouse"}, ["unknown database 'warehouse'", "this service has: shop"]),
            ({"ledger_id": "0" * 32}, [f"the half's is {'0' * 32}", "restored backup"]),
        ],
    )
    def test_a_half_of_another_ledger_is_not_asked_about(
        self, tmp_path: Path, foreign: dict[str, str], texts: list[str]
    ) -> None:
        """Unknown name or another identity: UNKNOWN, nothing written, one alarm. Its key is held, other
        keys are published, and it is neither counted nor parked."""
        with floor(tmp_path, check_max=1) as shop:
            sender = Sender(shop)
            half = sender.half("t-1", Order(sku="foreign"), **foreign)  # type: ignore[arg-type]
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="behind"))
                tx.send(orders, Order(sku="other", customer="bob"))
            until(lambda: len(checks_of(shop, half)) >= 3)
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="more", customer="carol"))
            with shop.working() as test:
                until(lambda: "more" in [order.sku for order in test.sent(orders)])
                assert not {"foreign", "behind"} & {order.sku for order in test.sent(orders)}
            checks = checks_of(shop, half)
            assert {check.outcome for check in checks} == {Outcome.UNKNOWN}
            (alarm,) = [alarm for alarm in shop.of(Alarm) if alarm.what == "foreign half"]
            for text in texts:
                assert text in alarm.detail
                assert text in checks[0].reason
            assert row_of(shop, half) is None
            assert ledger_rows(shop) == 2
            assert shop.of(HalfParked) == []


class TestOwnCheckers:
    def test_it_gets_the_envelope_and_the_number_of_the_check(self, tmp_path: Path) -> None:
        """UNKNOWN is asked again, check_max times in all; then the half is parked and asked no more."""
        asked: list[tuple[str | None, Order, int]] = []

        def declare(bus: Bus) -> None:
            @bus.checker(orders)
            def check(envelope: Envelope, attempt: int) -> Outcome:
                asked.append((envelope.id, orders.decode(envelope.payload), attempt))
                return Outcome.UNKNOWN

        with floor(tmp_path, declare, check_max=3) as shop, shop.working() as test:
            half = Sender(shop).half("t-1", Order(sku="a"))
            test.run_until_idle()
            (parked,) = shop.of(HalfParked)
            assert parked.tx_id == "t-1"
            assert "UNKNOWN 3 times (check_max=3)" in parked.reason
            assert asked == [("t-1-0", Order(sku="a"), number) for number in (1, 2, 3)]
            assert test.sent(orders) == []
            assert row_of(shop, half) is None
            until(lambda: shop.bus.health().relay.parked == 1)  # type: ignore[union-attr]

    def test_committed_counts_without_a_ledger_row(self, tmp_path: Path) -> None:
        """That is what an own checker is for: a truth that is not in the ledger."""
        with (
            floor(tmp_path, lambda bus: answering(bus, lambda envelope, attempt: Outcome.COMMITTED)) as shop,
            shop.working() as test,
        ):
            Sender(shop).half("t-1", Order(sku="a"))
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["a"]

    def test_rolled_back_is_fenced_before_it_counts(self, tmp_path: Path) -> None:
        """The local transaction cannot commit afterwards; and while it is open, the answer does not
        count: committed after all, its messages are published."""
        with (
            floor(tmp_path, lambda bus: answering(bus, lambda envelope, attempt: Outcome.ROLLED_BACK)) as shop,
            shop.working() as test,
        ):
            sender = Sender(shop)
            dead = sender.half("t-1", Order(sku="dead"))
            test.run_until_idle()
            row = row_of(shop, dead)
            assert row is not None
            assert row.outcome is Outcome.ROLLED_BACK
            with pytest.raises(Superseded):
                sender.begin(dead.id)
            local = sender.begin(HalfId("t-2", 1))
            alive = sender.half("t-2", Order(sku="alive"))
            until(lambda: len(checks_of(shop, alive)) >= 2)
            local.commit()
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["alive"]

    def test_the_ledger_s_row_wins(self, tmp_path: Path) -> None:
        """Where there is one, the checker is not even asked."""
        asked: list[int] = []

        def wrong(envelope: Envelope, attempt: int) -> Outcome:
            asked.append(attempt)
            return Outcome.ROLLED_BACK

        with floor(tmp_path, lambda bus: answering(bus, wrong)) as shop, shop.working() as test:
            sender = Sender(shop)
            local = sender.begin(HalfId("t-1", 1))
            local.commit()
            sender.half("t-1", Order(sku="a"))
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["a"]
            assert asked == []

    def test_raising_and_nonsense_are_unknown_and_an_event(self, tmp_path: Path) -> None:
        """They are no answers: not counted against check_max, and asked again."""
        answers: list[object] = [ValueError("no such order"), "yes", True, None, Outcome.COMMITTED]

        def check(envelope: Envelope, attempt: int) -> Outcome:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[return-value]

        with floor(tmp_path, lambda bus: answering(bus, check), check_max=1) as shop, shop.working() as test:
            half = Sender(shop).half("t-1", Order(sku="a"))
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["a"]
            failed = shop.of(CheckerFailed)
            assert [(event.tx_id, event.topic) for event in failed] == [("t-1", "orders")] * 4
            assert "ValueError: no such order" in failed[0].error
            assert "'yes'" in failed[1].error
            outcomes = [check.outcome for check in checks_of(shop, half)]
            assert outcomes == [Outcome.UNKNOWN] * 4 + [Outcome.COMMITTED]
            assert shop.of(HalfParked) == []

    def test_other_topics_have_the_built_in_checker(self, tmp_path: Path) -> None:
        """A checker is for halves that carry a message of its topic."""
        asked: list[str] = []

        def check(envelope: Envelope, attempt: int) -> Outcome:
            asked.append(envelope.topic)
            return Outcome.COMMITTED

        other = Topic("other", Order)

        def declare(bus: Bus) -> None:
            answering(bus, check)
            bus.on(other, scope="other", database=None)(lambda order: None)

        with floor(tmp_path, declare) as shop, shop.working() as test:
            Sender(shop).half("t-1", Order(sku="a"), topic=other)
            Sender(shop).half("t-2", Order(sku="b", customer="bob"))
            test.run_until_idle()
            assert test.sent(other) == []
            assert [order.sku for order in test.sent(orders)] == ["b"]
            assert asked == ["orders"]


def answering(bus: Bus, checker: OwnChecker) -> None:
    bus.checker(orders)(checker)


class TestHeldKeys:
    def test_a_key_with_too_many_waiting_refuses_new_halves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a parked half its key waits; beyond held_key_max the local transaction is rolled back,
        in every process of the service. Other keys go on. That the database is away when the keys are
        noted delays it and loses nothing."""
        away = [StoreUnavailable("no route to host")] * 2
        replace = SqlDatabase.replace_held

        def failing(database: SqlDatabase, partition: int, held: dict[tuple[str, str], int]) -> None:
            if held and away:
                raise away.pop()
            replace(database, partition, held)

        monkeypatch.setattr(SqlDatabase, "replace_held", failing)
        with floor(
            tmp_path,
            lambda bus: answering(bus, lambda envelope, attempt: Outcome.UNKNOWN),
            check_max=1,
            held_key_max=2,
        ) as shop:
            Sender(shop).half("t-1", Order(sku="parked"))
            until(lambda: shop.of(HalfParked))
            for number in range(2):
                with shop.bus.transaction("shop") as tx:
                    tx.send(orders, Order(sku=f"behind{number}"))
            held = shop.bus.opened.databases["shop"].held_keys
            until(held)
            assert away == []
            until(lambda: shop.bus.opened.maintenance.held_keys())
            with (
                pytest.raises(KeyHeld, match=r"'orders', key 'ada'.*unresolved list"),
                shop.bus.transaction("shop") as tx,
            ):
                tx.connection.execute(insert(sales), {"sku": "refused"})
                tx.send(orders, Order(sku="refused"))
            assert tx.outcome is Outcome.ROLLED_BACK
            with Bus(shop.url, service="shop", databases=shop.engines, topics=[orders], relay="outside") as other:
                until(lambda: other.opened.maintenance.held_keys())
                with pytest.raises(KeyHeld), other.transaction("shop") as tx:
                    tx.send(orders, Order(sku="refused"))
            with shop.bus.transaction("shop") as tx:
                tx.send(orders, Order(sku="other", customer="bob"))
                tx.send(reserved, Reserved(sku="no key"))
            with shop.working() as test:
                until(lambda: [order.sku for order in test.sent(orders)] == ["other"])
            assert skus(shop.engine) == []
