"""An application's database in memory: row locks, a ledger, COMMITs whose answer is lost or late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from tests.unit.halflog.world import Process, World
from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus.errors import StoreBusy, StoreUnavailable, Superseded
from txbus.stores.contract import (
    AttachHooks,
    AttemptRow,
    CommitResult,
    DeadLetter,
    LedgerRow,
    LocalTransaction,
    SavepointHooks,
)

__all__ = ["ModelDatabase", "ModelTransaction", "Tables"]


@dataclass(slots=True, eq=False)
class Tables:
    """What the server keeps: committed rows, and the open transactions with their locks."""

    name: str
    identity: str
    rows: dict[HalfId, LedgerRow] = field(default_factory=dict)
    parts: dict[HalfId, set[int]] = field(default_factory=dict)
    open_rows: dict[HalfId, ModelTransaction] = field(default_factory=dict)
    locks: dict[str, ModelTransaction] = field(default_factory=dict)
    undecided: list[ModelTransaction] = field(default_factory=list)
    """Of clients that died, or whose COMMIT is still on its way: the server ends them later."""
    business: list[tuple[str | None, str]] = field(default_factory=list)
    """(row, message id) of every committed business change, in the order of the COMMITs."""


class ModelDatabase:
    """A process's way to the tables."""

    def __init__(self, tables: Tables, world: World, process: Process) -> None:
        self.tables = tables
        self.world = world
        self.process = process

    @property
    def name(self) -> str:
        return self.tables.name

    def _reach(self) -> None:
        self.world.point(self.process)
        if self.world.happens(self.world.chances.unavailable):
            raise StoreUnavailable("the database is away")

    def identity(self) -> str:
        self._reach()
        return self.tables.identity

    def begin(self, local_timeout_s: float, hooks: SavepointHooks | None = None) -> LocalTransaction:
        self._reach()
        return ModelTransaction(self)

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        self._reach()
        answers: dict[HalfId, Outcome] = {}
        for id in ids:
            if id in self.tables.open_rows:
                continue
            fence = LedgerRow(id, Outcome.ROLLED_BACK, self.name, 0, now_s)
            answers[id] = self.tables.rows.setdefault(id, fence).outcome
        self.world.point(self.process)
        return answers

    def look(self, ids: Sequence[HalfId]) -> Mapping[HalfId, LedgerRow]:
        self._reach()
        return {id: self.tables.rows[id] for id in ids if id in self.tables.rows}

    def decide(self, row: LedgerRow) -> Outcome:
        if row.id in self.tables.open_rows:
            raise StoreBusy(f"{row.id} is open")
        return self.tables.rows.setdefault(row.id, row).outcome

    def confirm(self, ids: Sequence[HalfId], now_s: float) -> None:
        self._reach()
        for id in ids:
            row = self.tables.rows.get(id)
            if row is not None and row.outcome is Outcome.COMMITTED and row.confirmed_s is None:
                self.tables.rows[id] = replace(row, confirmed_s=now_s)

    def confirm_parts(self, parts: Sequence[tuple[HalfId, int, int]], now_s: float) -> None:
        self._reach()
        for id, part, count in parts:
            known = self.tables.parts.setdefault(id, set())
            known.add(part)
            if len(known) == count:
                self.confirm([id], now_s)

    def purge_ledger(self, created_before_s: float, limit: int) -> int:
        old = [
            row.id
            for row in self.tables.rows.values()
            if row.created_s < created_before_s
            and (row.outcome is Outcome.ROLLED_BACK or row.confirmed_s is not None or row.messages == 0)
        ]
        for id in old[:limit]:
            del self.tables.rows[id]
        return len(old[:limit])

    def attempts_of(self, tx_id: str) -> Sequence[LedgerRow]:
        return sorted((r for r in self.tables.rows.values() if r.id.tx_id == tx_id), key=lambda r: r.id)

    def unconfirmed(self, older_than_s: float, limit: int) -> Sequence[LedgerRow]:
        return [
            row
            for row in self.tables.rows.values()
            if row.outcome is Outcome.COMMITTED and row.messages and row.confirmed_s is None
        ]

    # what a half log does not need

    def verify(self) -> Sequence[str]:
        return ()

    def create_schema(self) -> None: ...

    def schema_sql(self) -> str:
        return ""

    def adopt(self, owner: Any, hooks: AttachHooks) -> LocalTransaction:
        raise NotImplementedError

    def adopt_sessions(self, maker: Any, hooks_for: Callable[[Any], AttachHooks]) -> Callable[[], None]:
        raise NotImplementedError

    def hooks_of(self, owner: Any) -> AttachHooks | None:
        return None

    def makes_sessions(self, owner: Any) -> bool:
        return False

    def recognises(self, owner: Any) -> bool:
        return False

    def reserve(self, tx_id: str, now_s: float, lock_wait_s: float) -> int:
        raise NotImplementedError

    def replace_held(self, partition: int, held: Mapping[tuple[str, str], int]) -> None: ...

    def join_service(self, service: str, names: Set[str]) -> frozenset[str]:
        return frozenset(names)

    def held_keys(self) -> frozenset[tuple[str, str]]:
        return frozenset()

    def handled(self, scope: str, source: str, message_id: str) -> bool:
        raise NotImplementedError

    def purge_inbox(self, handled_before_s: float, limit: int) -> int:
        return 0

    def attempt(self, scope: str, source: str, message_id: str) -> AttemptRow | None:
        raise NotImplementedError

    def record_attempt(self, row: AttemptRow) -> None:
        raise NotImplementedError

    def runs_started(self, scope: str, topic: str, partition: int) -> int | None:
        raise NotImplementedError

    def start_runs(self, scope: str, topic: str, partition: int, below: int) -> None:
        raise NotImplementedError

    def record_dead_letter(self, letter: DeadLetter) -> None:
        raise NotImplementedError

    def dead_letters(self, scope: str | None, limit: int) -> Sequence[DeadLetter]:
        return ()

    def count_dead_letters(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None: ...


class ModelTransaction:
    """One open transaction. Dies with its process, though the server may notice that late."""

    connection = None
    session = None

    def __init__(self, database: ModelDatabase) -> None:
        self._database = database
        self._tables = database.tables
        self._world = database.world
        self._row: LedgerRow | None = None
        self._changes: list[tuple[str | None, str]] = []
        self._error: BaseException | None = None
        self.ended = False
        self.committing = False
        database.tables.undecided.append(self)

    @property
    def commit_error(self) -> BaseException | None:
        return self._error

    @property
    def orphan(self) -> bool:
        """Nobody waits for it any more; the server may end it."""
        return not self.ended and (self.committing or not self._database.process.alive)

    def change(self, row: str | None, message_id: str) -> None:
        """A business change, under the lock of its row, which is held until the end."""
        self._world.point(self._database.process)
        if row is not None and self._tables.locks.setdefault(row, self) is not self:
            raise StoreBusy(f"row {row} is locked")
        self._changes.append((row, message_id))

    def flush(self) -> None:
        self._world.point(self._database.process)

    def insert_ledger(self, row: LedgerRow) -> None:
        self._database._reach()
        if row.id in self._tables.rows or row.id in self._tables.open_rows:
            raise Superseded(f"{row.id} is settled")
        self._tables.open_rows[row.id] = self
        self._row = row
        self._world.point(self._database.process)

    def commit(self) -> CommitResult:
        self._world.point(self._database.process)
        if self._world.happens(self._world.chances.commit_answer_lost):
            self._error = StoreUnavailable("the connection broke in COMMIT")
            fate = self._world.chance.random()
            if fate < 0.4:
                self.end(commit=True)
            elif fate < 0.7:
                self.end(commit=False)
            else:
                self.committing = True
            return CommitResult.UNKNOWN
        self.end(commit=True)
        self._world.point(self._database.process)
        return CommitResult.COMMITTED

    def rollback(self) -> None:
        self._world.point(self._database.process)
        self.end(commit=False)

    def end(self, commit: bool) -> None:
        """The server ends it."""
        if self.ended:
            return
        self.ended = True
        self._tables.undecided.remove(self)
        if commit:
            self._tables.business += self._changes
        if self._row is not None:
            del self._tables.open_rows[self._row.id]
            if commit:
                self._tables.rows[self._row.id] = self._row
        for row in [row for row, holder in self._tables.locks.items() if holder is self]:
            del self._tables.locks[row]

    def insert_inbox(self, scope: str, source: str, message_id: str, lock_wait_s: float) -> bool:
        raise NotImplementedError

    def clear_attempt(self, scope: str, source: str, message_id: str) -> None:
        raise NotImplementedError

    def insert_dead_letter(self, letter: DeadLetter) -> None:
        raise NotImplementedError
