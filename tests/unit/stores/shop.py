"""A shop's SQLite file with the store's tables, as several processes have it: an Engine for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, String, Table, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped

from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus._system import system_ports
from txbus._telemetry import Event
from txbus.stores.contract import LedgerRow, LocalTransaction
from txbus.stores.sql import SqlDatabase

BRIEF_S = 0.02
"""A lock wait for locks that are not given."""
PATIENT_S = 30.0
"""A lock wait for locks that are."""
NOW_S = 1_000.0

METADATA = MetaData()
EFFECTS = Table("effects", METADATA, Column("name", String, primary_key=True))
PARENTS = Table("parents", METADATA, Column("id", Integer, primary_key=True))
# Checked by COMMIT: the one error that a COMMIT of SQLite raises at will.
CHILDREN = Table(
    "children",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("parent", ForeignKey("parents.id", deferrable=True, initially="DEFERRED")),
)


class Base(DeclarativeBase):
    metadata = METADATA


class Effect(Base):
    __table__ = EFFECTS
    name: Mapped[str]


class Shop:
    """One database file; `engine` is what another process would open."""

    def __init__(self, path: Path, journal: str) -> None:
        self.path = path
        self.journal = journal
        self.ports = system_ports()
        self.events: list[Event] = []
        self._engines: list[Engine] = []
        METADATA.create_all(self.engine())
        self.database().create_schema()

    def engine(self, **options: Any) -> Engine:
        engine = create_engine(f"sqlite:///{self.path}", **options)
        journal = self.journal

        def connected(connection: Any, record: object) -> None:
            connection.execute(f"PRAGMA journal_mode={journal}")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("PRAGMA busy_timeout=20")

        event.listen(engine, "connect", connected)
        self._engines.append(engine)
        return engine

    def database(self, engine: Engine | None = None) -> SqlDatabase:
        return SqlDatabase("shop", engine or self.engine(), self.ports, self.events.append)

    def effects(self) -> set[str]:
        with self.engine().connect() as connection:
            return set(connection.scalars(select(EFFECTS.c.name)))

    def close(self) -> None:
        for engine in self._engines:
            engine.dispose()


def row(id: HalfId, messages: int = 1, created_s: float = NOW_S) -> LedgerRow:
    """The row that an application inserts."""
    return LedgerRow(id, Outcome.COMMITTED, "shop", messages, created_s)


def effect(transaction: LocalTransaction, name: str) -> None:
    """A business row in a local transaction."""
    transaction.connection.execute(EFFECTS.insert(), {"name": name})


def committed(database: SqlDatabase, id: HalfId, messages: int = 1, created_s: float = NOW_S) -> None:
    """A local transaction that has committed."""
    transaction = database.begin(PATIENT_S)
    try:
        transaction.insert_ledger(row(id, messages, created_s))
        transaction.commit()
        assert transaction.commit_error is None
    finally:
        transaction.rollback()


def begins_itself(engine: Engine) -> Engine:
    """Make an Engine begin by its own events, as SQLAlchemy's documentation tells users of SQLite."""

    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine
