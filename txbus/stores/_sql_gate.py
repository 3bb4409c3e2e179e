"""Short transactions of the store's own, on connections of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from txbus._ports import Clock, Entropy
from txbus.errors import StoreUnavailable
from txbus.stores._sql_errors import raise_translated
from txbus.stores._sql_flavour import Flavour
from txbus.stores.contract import CommitResult

__all__ = ["CHUNK", "LOCK_WAIT_S", "Gate"]

LOCK_WAIT_S = 5.0
"""How long the store's own writes wait for a lock where the caller names no time."""
CHUNK = 400
"""How many keys one statement names: below SQLite's 999 variables at two a key."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The way to the application's database. Thread-safe as the engine is."""

    name: str
    engine: Engine
    flavour: Flavour
    clock: Clock
    entropy: Entropy

    @contextmanager
    def read(self, doing: str) -> Iterator[Connection]:
        """A connection for reading; its transaction is rolled back in the end."""
        try:
            with self.engine.connect() as connection:
                yield connection
        except Exception as exc:
            raise_translated(exc, self.engine.dialect, doing, self.name)

    @contextmanager
    def write(self, doing: str, wait_s: float = LOCK_WAIT_S) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block, or rolled back by an error.

        StoreUnavailable when the COMMIT's outcome is unknown: every write here is idempotent."""
        flavour = self.flavour
        try:
            with self.engine.connect() as connection:
                transaction = connection.begin()
                flavour.isolate(connection)
                with flavour.waiting(connection, wait_s):
                    try:
                        flavour.begin_write(connection)
                        yield connection
                    except BaseException:
                        transaction.rollback()
                        raise
                    try:
                        transaction.commit()
                    except BaseException as exc:
                        result = flavour.after_failed_commit(connection, exc)
                        if result is CommitResult.UNKNOWN and isinstance(exc, Exception):
                            raise StoreUnavailable(
                                f"database {self.name!r}: {doing}: the outcome of COMMIT is unknown: {exc}"
                            ) from exc
                        raise
        except Exception as exc:
            raise_translated(exc, self.engine.dialect, doing, self.name)
