"""The store kit: an implementation of `Database` proves its ledger, inbox, attempts and dead letters.

``run_store(harness)`` runs every case on one database that several clients reach at once. The cases
share that database and use ids of their own. At most one local transaction writes at a time, so
databases with one writer (SQLite) can prove themselves too.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from txbus.conformance._harness import PromiseBroken, Report, Result, Status
from txbus.spi import Ports
from txbus.stores.contract import Database, LocalTransaction

__all__ = [
    "BoundStoreCase",
    "StoreCase",
    "StoreHarness",
    "StoreStage",
    "run_store",
    "store_case",
    "store_cases",
]


class StoreHarness(abc.ABC):
    """One application database with the store's tables, and a table for effects.

    All durations are seconds. ``local_timeout_s`` is how long a local transaction may take,
    ``busy_s`` how long a case waits for a lock that it will not get.
    """

    local_timeout_s: float = 30.0
    busy_s: float = 0.05

    def __init__(self, ports: Ports) -> None:
        self.ports = ports

    @abc.abstractmethod
    def database(self) -> Database:
        """A new client of the same database, under the same name, as another process has it. Its
        schema need not exist yet; the kit creates it."""

    @abc.abstractmethod
    def write(self, transaction: LocalTransaction, effect: str) -> None:
        """The application's own statement: insert this text in the transaction."""

    @abc.abstractmethod
    def effects(self) -> frozenset[str]:
        """The texts that are committed, read on a connection of its own."""

    def unique(self, name: str) -> str:
        """An id that no case has used yet."""
        return f"{name}-{self.ports.entropy.unique_id()[:12]}"

    def close(self) -> None:  # noqa: B027 - there may be nothing to let go of
        """Let go of the database. The kit does not call it."""


class StoreStage:
    """What one case uses of a store harness; it ends what the case left open."""

    def __init__(self, harness: StoreHarness) -> None:
        self.harness = harness
        self._databases: list[Database] = []
        self._begun: list[LocalTransaction] = []

    @property
    def database(self) -> Database:
        return self._databases[0] if self._databases else self.client()

    def client(self) -> Database:
        """A new client, its schema made if it was missing."""
        database = self.harness.database()
        self._databases.append(database)
        # Making the schema takes a lock; a second client must not wait for a case's open transaction.
        if database.verify():
            database.create_schema()
        return database

    def begin(self, database: Database | None = None) -> LocalTransaction:
        transaction = (database or self.database).begin(self.harness.local_timeout_s)
        self._begun.append(transaction)
        return transaction

    def now_s(self) -> float:
        return self.harness.ports.clock.wall_s()

    def close(self) -> None:
        # Rollback is idempotent and of no effect after a commit, so it ends whatever is open.
        for transaction in self._begun:
            transaction.rollback()
        for database in self._databases:
            database.close()


@dataclass(frozen=True, slots=True)
class StoreCase:
    """One observable fact about every store."""

    name: str
    property: str
    prove: Callable[[StoreStage], None]

    def run(self, harness: StoreHarness) -> Result:
        """Run with clients of its own. Any exception of the store is a failure with its reason."""
        stage = StoreStage(harness)
        try:
            self.prove(stage)
            stage.close()
        except Exception as exc:
            with suppress(Exception):
                stage.close()
            kind = "" if isinstance(exc, PromiseBroken) else f"{type(exc).__name__}: "
            return Result(self.name, None, self.property, Status.FAILED, f"{kind}{exc}")
        return Result(self.name, None, self.property, Status.PASSED)


@dataclass(frozen=True, slots=True)
class BoundStoreCase:
    """A case with the harness to run it on; calling it raises PromiseBroken if it fails."""

    case: StoreCase
    harness: StoreHarness = field(repr=False)

    @property
    def name(self) -> str:
        return self.case.name

    def __call__(self) -> Result:
        result = self.case.run(self.harness)
        Report((result,)).raise_for_failures()
        return result


_REGISTRY: dict[str, StoreCase] = {}


def store_case(*, property: str) -> Callable[[Callable[[StoreStage], None]], Callable[[StoreStage], None]]:
    """Register a function over a store stage as the case ``module.function``."""

    def register(prove: Callable[[StoreStage], None]) -> Callable[[StoreStage], None]:
        name = f"{prove.__module__.rpartition('._')[2]}.{prove.__name__}"
        assert name not in _REGISTRY, f"two cases are called {name}"
        _REGISTRY[name] = StoreCase(name, property, prove)
        return prove

    return register


def store_cases(harness: StoreHarness) -> tuple[BoundStoreCase, ...]:
    """All cases bound to a harness: parametrize a test with them, ``ids=lambda case: case.name``."""
    return tuple(BoundStoreCase(one, harness) for one in _REGISTRY.values())


def run_store(harness: StoreHarness) -> Report:
    """Run all cases. Never raises for a failing case."""
    return Report(tuple(one.run(harness) for one in _REGISTRY.values()))
