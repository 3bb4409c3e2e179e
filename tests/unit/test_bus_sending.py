"""Sending with a local transaction: whose it is, what it leaves behind, what it says afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session, sessionmaker

from tests.unit.shopfloor import Order, Reserved, count, floor, orders, reserved, sales
from txbus import AlreadyCommitted, ConfigurationError, Outcome
from txbus.errors import LocalTimeout, MessageRefused, NotOpen, Superseded
from txbus.events import Alarm, HalfStored, LocalBegan, LocalCommitted, LocalEnded, OutcomeTold


def test_a_committed_block_has_its_row_and_all_its_messages(tmp_path: Path) -> None:
    """Several messages to several topics become visible with the row of one block."""
    with floor(tmp_path) as shop, shop.working() as test:
        with shop.bus.transaction("shop") as tx:
            tx.connection.execute(insert(sales), {"sku": "a"})
            tx.send(orders, Order(sku="a"))
            tx.send(orders, Order(sku="b", customer="bob"))
            tx.send(reserved, Reserved(sku="a"))
        test.run_until_idle()
        assert {order.sku for order in test.sent(orders)} == {"a", "b"}
        assert test.sent(reserved) == [Reserved(sku="a")]
        assert count(shop.engine) == 1
        assert tx.outcome is Outcome.COMMITTED
        assert tx.receipts
        assert tx.database == "shop"


def test_a_block_left_by_an_exception_has_neither(tmp_path: Path) -> None:
    """The exception passes, and nothing of the block is ever visible."""
    with floor(tmp_path) as shop, shop.working() as test:
        with pytest.raises(ZeroDivisionError), shop.bus.transaction("shop") as tx:
            tx.connection.execute(insert(sales), {"sku": "a"})
            tx.send(orders, Order(sku="a"))
            raise ZeroDivisionError
        test.run_until_idle()
        assert test.sent(orders) == []
        assert count(shop.engine) == 0
        assert tx.outcome is Outcome.ROLLED_BACK


def test_an_engine_names_its_database_and_a_session_is_flushed(tmp_path: Path) -> None:
    """transaction(engine) is transaction(name); tx.session joins the same local transaction."""
    with floor(tmp_path) as shop, shop.working() as test:
        with shop.bus.transaction(shop.engine) as tx:
            tx.session.execute(insert(sales), {"sku": "a"})
            tx.send(orders, Order(sku="a"))
        test.run_until_idle()
        assert len(test.sent(orders)) == 1
        assert count(shop.engine) == 1


def test_the_half_is_durable_before_commit_and_the_outcome_follows_it(tmp_path: Path) -> None:
    """Begin, half, commit, outcome, end: in this order and once each."""
    with floor(tmp_path) as shop:
        with shop.bus.transaction("shop") as tx:
            tx.send(orders, Order(sku="a"))
        kinds = (LocalBegan, HalfStored, LocalCommitted, OutcomeTold, LocalEnded)
        assert [type(event) for event in shop.events if isinstance(event, kinds)] == list(kinds)


def test_a_constraint_that_fails_at_commit_sends_nothing(tmp_path: Path) -> None:
    """COMMIT refused for certain: the database's own error passes, no message is visible."""
    with floor(tmp_path) as shop, shop.working() as test:
        with shop.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TABLE child (sale INTEGER REFERENCES sales(id) DEFERRABLE INITIALLY DEFERRED)"
            )
        with pytest.raises(Exception, match="FOREIGN KEY"), shop.bus.transaction("shop") as tx:
            tx.connection.exec_driver_sql("INSERT INTO child VALUES (42)")
            tx.send(orders, Order(sku="a"))
        test.run_until_idle()
        assert test.sent(orders) == []
        assert tx.outcome is Outcome.ROLLED_BACK


def test_two_databases_of_a_service_keep_their_ledgers_apart(tmp_path: Path) -> None:
    """Each block asks its own database; what one rolls back says nothing about the other."""
    with floor(tmp_path, databases=("north", "south")) as shop, shop.working() as test:
        for name in ("north", "south"):
            with shop.bus.transaction(name) as tx:
                tx.connection.execute(insert(sales), {"sku": name})
                tx.send(orders, Order(sku=name))
        with pytest.raises(KeyError), shop.bus.transaction("south") as tx:
            tx.send(orders, Order(sku="never"))
            raise KeyError
        test.run_until_idle()
        assert sorted(order.sku for order in test.sent(orders)) == ["north", "south"]
        assert [count(engine) for engine in shop.engines.values()] == [1, 1]


def test_rule_09_a_relay_without_all_databases_of_its_service_fails_at_open(tmp_path: Path) -> None:
    """Once a process of the service had a second database, a relay must have it too; a bus without
    a relay need not."""
    with floor(tmp_path, databases=("north", "south"), relay="outside"):
        pass
    with pytest.raises(ConfigurationError, match=r"lacks 'south'"), floor(tmp_path, databases=("north",)):
        pass
    with floor(tmp_path, databases=("north",), relay="outside") as shop:
        with pytest.raises(ConfigurationError, match=r"lacks 'south'"):
            shop.bus.run_relay(until_idle=0.1)
    with floor(tmp_path, databases=("north", "south")):
        pass


def test_an_unknown_database_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with floor(tmp_path) as shop, pytest.raises(ConfigurationError, match=r"'shp'.*shop"):
        shop.bus.transaction("shp")


def test_the_same_id_commits_at_most_once(tmp_path: Path) -> None:
    """A block run again under its tx_id is not entered once it committed."""
    with floor(tmp_path) as shop, shop.working() as test:

        def place() -> None:
            with shop.bus.transaction("shop", tx_id="order-17") as tx:
                tx.connection.execute(insert(sales), {"sku": "a"})
                tx.send(orders, Order(sku="a"))

        place()
        with pytest.raises(AlreadyCommitted):
            place()
        test.run_until_idle()
        assert count(shop.engine) == 1
        assert len(test.sent(orders)) == 1
        assert shop.bus.outcome("order-17") is Outcome.COMMITTED


def test_a_block_that_failed_may_run_again_under_its_id(tmp_path: Path) -> None:
    """Attempts are numbered; a later one commits once the earlier ones are settled."""
    with floor(tmp_path) as shop, shop.working() as test:
        attempts = []
        for succeed in (False, False, True):
            try:
                with shop.bus.transaction("shop", tx_id="order-18") as tx:
                    attempts.append(tx.attempt)
                    tx.send(orders, Order(sku="a"))
                    if not succeed:
                        raise TimeoutError
            except TimeoutError:
                pass
        test.run_until_idle()
        assert attempts == sorted(set(attempts))
        assert len(test.sent(orders)) == 1
        assert shop.bus.outcome("order-18") is Outcome.COMMITTED


def test_asking_for_an_outcome_settles_it(tmp_path: Path) -> None:
    """Once outcome() said ROLLED_BACK, a block of that id that is still running cannot commit."""
    with floor(tmp_path) as shop, shop.working() as test:
        with pytest.raises(Superseded), shop.bus.transaction("shop") as tx:
            tx.send(orders, Order(sku="a"))
            assert shop.bus.outcome(tx.id) is Outcome.ROLLED_BACK
        test.run_until_idle()
        assert test.sent(orders) == []


def test_a_block_that_is_too_late_is_rolled_back_with_an_alarm(tmp_path: Path) -> None:
    """local_timeout_s counts from entering; beyond it there is an error, an alarm and no effect."""
    with floor(tmp_path, local_timeout_s=0.2, half_timeout_s=0.1, lock_wait_s=0.1) as shop:
        with pytest.raises(LocalTimeout, match="local_timeout_s"), shop.bus.transaction("shop") as tx:
            tx.connection.execute(insert(sales), {"sku": "a"})
            tx.send(orders, Order(sku="a"))
            shop.bus.opened.ports.clock.sleep_s(0.25)
        assert count(shop.engine) == 0
        assert [alarm.what for alarm in shop.of(Alarm)] == ["local timeout"]


def test_a_message_that_could_never_be_published_is_refused_where_it_is_sent(tmp_path: Path) -> None:
    """Too large, or to a topic that the bus does not know: an error in the block, nothing committed."""
    with floor(tmp_path) as shop:
        with pytest.raises(MessageRefused, match="'orders'"), shop.bus.transaction("shop") as tx:
            tx.connection.execute(insert(sales), {"sku": "a"})
            tx.send(orders, Order(sku="x" * 20_000_000))
        assert count(shop.engine) == 0


def test_messages_of_a_rolled_back_savepoint_of_an_own_block_are_not_sent(tmp_path: Path) -> None:
    """Savepoints count for bus.transaction as they do for an attached session."""
    with floor(tmp_path) as shop, shop.working() as test:
        with shop.bus.transaction("shop") as tx:
            tx.send(orders, Order(sku="kept"))
            with tx.connection.begin_nested() as savepoint:
                tx.connection.execute(insert(sales), {"sku": "dropped"})
                tx.send(orders, Order(sku="dropped"))
                savepoint.rollback()
        test.run_until_idle()
        assert [order.sku for order in test.sent(orders)] == ["kept"]
        assert count(shop.engine) == 0


def test_a_scope_is_for_one_block(tmp_path: Path) -> None:
    """Sending after the block, and entering it twice, are refused."""
    with floor(tmp_path) as shop:
        with shop.bus.transaction("shop") as tx:
            pass
        with pytest.raises(NotOpen):
            tx.send(orders, Order(sku="a"))
        with pytest.raises(NotOpen), tx:
            pass


def test_send_options_travel(tmp_path: Path) -> None:
    """Key, headers, message id, tag, correlation and causation arrive as they were given."""
    with floor(tmp_path) as shop, shop.working() as test:
        with shop.bus.transaction("shop") as tx:
            given = tx.send(
                orders,
                Order(sku="a"),
                key="k",
                headers={"x-note": "ä"},
                message_id="m-1",
                tag="red",
                correlation_id="c",
                causation_id="d",
            )
        assert given == "m-1"
        test.run_until_idle()
        (received,) = test.received(orders)
        headers = received.envelope.headers
        assert (received.envelope.key, received.envelope.id, headers["x-note"]) == ("k", "m-1", "ä")
        assert headers["txbus-correlation-id"] == "c"
        assert headers["txbus-causation-id"] == "d"
        assert headers["ce_specversion"] == "1.0"
        assert headers["ce_source"] == "/txbus/shop"


def test_bus_send_returns_durable_receipts(tmp_path: Path) -> None:
    """send and send_many, without a database, say where each message is."""
    with floor(tmp_path) as shop, shop.working() as test:
        receipt = shop.bus.send(orders, Order(sku="a"))
        more = shop.bus.send_many(orders, [Order(sku="b"), Order(sku="c")])
        assert receipt.topic == "orders"
        assert len({(r.partition, r.offset) for r in (receipt, *more)}) == 3
        assert len(test.sent(orders)) == 3


def test_an_atomic_block_is_visible_together_or_never(tmp_path: Path) -> None:
    """Two topics in one broker transaction; an exception leaves neither."""
    with floor(tmp_path) as shop, shop.working() as test:
        with shop.bus.atomic() as step:
            step.send(orders, Order(sku="a"))
            assert test.sent(orders) == []
            step.send(reserved, Reserved(sku="a"))
        with pytest.raises(KeyError), shop.bus.atomic() as step:
            step.send(orders, Order(sku="b"))
            raise KeyError
        assert [order.sku for order in test.sent(orders)] == ["a"]
        assert len(test.sent(reserved)) == 1


class TestAttach:
    """The caller begins and commits; txbus hooks into that commit."""

    def test_a_session_that_commits_sends(self, tmp_path: Path) -> None:
        with floor(tmp_path) as shop, shop.working() as test:
            with Session(shop.engine) as session:
                session.execute(insert(sales), {"sku": "a"})
                scope = shop.bus.attach(session)
                scope.send(orders, Order(sku="a"))
                assert shop.of(HalfStored) == []
                session.commit()
            test.run_until_idle()
            assert scope.outcome is Outcome.COMMITTED
            assert len(test.sent(orders)) == count(shop.engine) == 1

    @pytest.mark.parametrize("how", ["rollback", "close"])
    def test_a_session_that_does_not_commit_sends_nothing(self, tmp_path: Path, how: str) -> None:
        with floor(tmp_path) as shop, shop.working() as test:
            with Session(shop.engine) as session:
                session.execute(insert(sales), {"sku": "a"})
                scope = shop.bus.attach(session)
                scope.send(orders, Order(sku="a"))
                getattr(session, how)()
            test.run_until_idle()
            assert scope.outcome is Outcome.ROLLED_BACK
            assert test.sent(orders) == []

    def test_a_second_commit_needs_a_second_attach(self, tmp_path: Path) -> None:
        """What was attached belongs to one local transaction; sending later is refused."""
        with floor(tmp_path) as shop, shop.working() as test:
            with Session(shop.engine) as session:
                first = shop.bus.attach(session)
                first.send(orders, Order(sku="a"))
                session.commit()
                with pytest.raises(NotOpen):
                    first.send(orders, Order(sku="b"))
                second = shop.bus.attach(session)
                second.send(orders, Order(sku="c"))
                session.commit()
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["a", "c"]

    def test_messages_of_a_rolled_back_savepoint_are_not_sent(self, tmp_path: Path) -> None:
        with floor(tmp_path) as shop, shop.working() as test:
            with Session(shop.engine) as session:
                scope = shop.bus.attach(session)
                session.execute(insert(sales), {"sku": "a"})
                scope.send(orders, Order(sku="kept"))
                with session.begin_nested() as savepoint:
                    scope.send(orders, Order(sku="dropped"))
                    savepoint.rollback()
                with session.begin_nested():
                    scope.send(orders, Order(sku="released"))
                session.commit()
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["kept", "released"]

    def test_a_connection_may_be_attached(self, tmp_path: Path) -> None:
        with floor(tmp_path) as shop, shop.working() as test:
            with shop.engine.connect() as connection, connection.begin():
                connection.execute(insert(sales), {"sku": "a"})
                shop.bus.attach(connection).send(orders, Order(sku="a"))
            test.run_until_idle()
            assert len(test.sent(orders)) == count(shop.engine) == 1

    @pytest.mark.parametrize("how", ["rollback", "close"])
    def test_a_session_that_had_not_begun_drops_its_messages_too(self, tmp_path: Path, how: str) -> None:
        """What was sent before any statement does not go with a later, unrelated commit."""
        with floor(tmp_path) as shop, shop.working() as test:
            with Session(shop.engine) as session:
                shop.bus.attach(session).send(orders, Order(sku="never"))
                getattr(session, how)()
                session.execute(insert(sales), {"sku": "a"})
                session.commit()
            test.run_until_idle()
            assert test.sent(orders) == []

    def test_a_connection_that_has_not_begun_is_refused(self, tmp_path: Path) -> None:
        with floor(tmp_path) as shop, shop.engine.connect() as connection:
            scope = shop.bus.attach(connection)
            with pytest.raises(ConfigurationError, match="begin"):
                scope.send(orders, Order(sku="never"))

    def test_a_connection_in_autocommit_is_refused(self, tmp_path: Path) -> None:
        with floor(tmp_path) as shop, shop.engine.connect() as connection:
            autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                shop.bus.attach(autocommit)

    def test_every_session_of_a_sessionmaker_sends(self, tmp_path: Path) -> None:
        """Attached once; each session then has its scope for the local transaction in hand."""
        with floor(tmp_path) as shop, shop.working() as test:
            maker = sessionmaker(shop.engine)
            sending = shop.bus.attach(maker)
            with maker.begin() as session:
                session.execute(insert(sales), {"sku": "a"})
                sending(session).send(orders, Order(sku="a"))
                shop.bus.attach(session).send(orders, Order(sku="b"))
            test.run_until_idle()
            assert [order.sku for order in test.sent(orders)] == ["a", "b"]

    def test_a_session_of_another_database_is_refused(self, tmp_path: Path) -> None:
        with floor(tmp_path) as shop:
            with Session(create_engine("sqlite://")) as session, pytest.raises(ConfigurationError, match="shop"):
                shop.bus.attach(session)
