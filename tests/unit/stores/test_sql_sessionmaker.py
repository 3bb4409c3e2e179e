"""A whole sessionmaker adopted: each transaction of its sessions, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.unit.stores.shop import EFFECTS, Effect, Shop
from tests.unit.stores.test_sql_attach import Hooks
from txbus.errors import ConfigurationError
from txbus.stores.sql import SqlDatabase


class Adopted:
    """A sessionmaker with hooks for every transaction, in the order in which they began."""

    def __init__(self, database: SqlDatabase) -> None:
        self.maker = sessionmaker(database.engine)
        self.hooks: list[Hooks] = []
        self.detach = database.adopt_sessions(self.maker, self._hooks_for)

    def _hooks_for(self, session: Session) -> Hooks:
        hooks = Hooks(f"tx-{len(self.hooks)}")
        self.hooks.append(hooks)
        return hooks

    @property
    def heard(self) -> list[list[str]]:
        return [hooks.heard for hooks in self.hooks]


@pytest.fixture
def adopted(database: SqlDatabase) -> Iterator[Adopted]:
    adopted = Adopted(database)
    yield adopted
    adopted.detach()


COMMITTED = ["before_commit", "after_commit"]


def test_every_transaction_has_hooks_of_its_own(shop: Shop, adopted: Adopted) -> None:
    """Each commit of a session of the maker runs hooks that were asked for in that transaction."""
    with adopted.maker() as session:
        for name in ("one", "two"):
            session.add(Effect(name=name))
            session.commit()
        session.add(Effect(name="three"))
        session.flush()
        session.rollback()
    with adopted.maker.begin() as session:
        session.add(Effect(name="four"))
    assert adopted.heard == [COMMITTED, COMMITTED, ["rolled_back"], COMMITTED]
    assert shop.effects() == {"one", "two", "four"}


def test_session_without_work_asks_for_nothing(adopted: Adopted) -> None:
    """A session that does not reach the database asks for no hooks; one that reads does."""
    with adopted.maker() as session:
        session.commit()
    assert adopted.hooks == []
    with adopted.maker() as session:
        session.execute(select(EFFECTS))
    assert adopted.heard == [["rolled_back"]]


def test_session_that_only_sends_is_made_to_begin(database: SqlDatabase, adopted: Adopted) -> None:
    """Asking for the adopted transaction begins it, so that a session which only sends commits."""
    with adopted.maker() as session:
        transaction = database.adopted(session)
        assert transaction is not None and database.adopted(session) is transaction
        assert database.adopted(session.connection()) is transaction
        session.commit()
        assert adopted.heard == [COMMITTED]
    with Session(database.engine) as other:
        assert database.adopted(other) is None


def test_savepoints_of_its_sessions(shop: Shop, adopted: Adopted) -> None:
    """Savepoints are told, the first statement of a session included."""
    with adopted.maker() as session:
        with session.begin_nested():
            session.add(Effect(name="kept"))
        session.begin_nested().rollback()
        session.commit()
    assert adopted.heard == [
        [
            "savepoint 1 begins",
            "savepoint 1 released",
            "savepoint 2 begins",
            "savepoint 2 rolled back",
            *COMMITTED,
        ]
    ]
    assert shop.effects() == {"kept"}


def test_other_sessions_are_left_alone(shop: Shop, database: SqlDatabase, adopted: Adopted) -> None:
    """Sessions of another maker, of no maker, and of a maker that was detached have no hooks."""
    for other in (sessionmaker(database.engine)(), Session(database.engine)):
        with other as session:
            session.execute(select(EFFECTS))
            session.commit()
    adopted.detach()
    adopted.detach()
    with adopted.maker() as session:
        session.add(Effect(name="alone"))
        session.commit()
    assert adopted.hooks == [] and shop.effects() == {"alone"}


def test_detaching_leaves_the_open_transaction(adopted: Adopted) -> None:
    """A transaction that was adopted before the detachment still runs its hooks."""
    with adopted.maker() as session:
        session.add(Effect(name="open"))
        session.flush()
        adopted.detach()
        session.commit()
        session.execute(select(EFFECTS))
        session.commit()
    assert adopted.heard == [COMMITTED]


def test_close_detaches(shop: Shop) -> None:
    """close() of the database leaves the application's sessionmaker as it was."""
    database = shop.database()
    adopted = Adopted(database)
    database.close()
    database.close()
    with adopted.maker() as session:
        session.execute(select(EFFECTS))
        session.commit()
    assert adopted.hooks == []


def test_adoption_by_hand_comes_first(database: SqlDatabase, adopted: Adopted) -> None:
    """A session that was adopted by hand keeps those hooks for that transaction."""
    with adopted.maker() as session:
        mine = Hooks("mine")
        database.adopt(session, mine)
        session.add(Effect(name="mine"))
        session.commit()
        assert mine.heard == COMMITTED and adopted.hooks == []


def test_scoped_sessions_in_threads(shop: Shop, database: SqlDatabase, adopted: Adopted) -> None:
    """A scoped_session is its maker; its sessions in four threads commit apart from each other."""
    registry = scoped_session(adopted.maker)
    assert database.recognises(registry)

    def place(number: int) -> None:
        try:
            registry.execute(EFFECTS.insert(), {"name": str(number)})
            registry.commit()
        finally:
            registry.remove()

    with ThreadPoolExecutor(1) as pool:
        list(pool.map(place, range(4)))
    assert adopted.heard == [COMMITTED] * 4
    assert shop.effects() == {"0", "1", "2", "3"}


def test_foreign_sessionmaker_is_refused(database: SqlDatabase) -> None:
    """A sessionmaker of another database is refused by name."""
    foreign = sessionmaker(create_engine("sqlite:///elsewhere.db"))
    assert database.recognises(sessionmaker(binds={Effect: database.engine}))
    for maker in (foreign, sessionmaker()):
        assert not database.recognises(maker)
        with pytest.raises(ConfigurationError, match="no sessionmaker of database 'shop'"):
            database.adopt_sessions(maker, lambda session: Hooks())
