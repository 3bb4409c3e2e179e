"""Deliberately broken stores fail exactly the cases meant for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.conformance.test_sql_store import SqliteHarness
from txbus._halves import HalfId
from txbus.conformance import run_store
from txbus.errors import StoreBusy
from txbus.spi import Outcome
from txbus.stores._sql_local import OwnTransaction
from txbus.stores.contract import AttemptRow, Database, DeadLetter
from txbus.stores.sql import SqlDatabase


class LooksInsteadOfFencing(SqlDatabase):
    """A missing row is answered ROLLED_BACK, and nothing keeps its transaction from committing."""

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        found = self.look(ids)
        return {id: found[id].outcome if id in found else Outcome.ROLLED_BACK for id in ids}


class GuessesAboutOpenRows(SqlDatabase):
    """What is locked counts as rolled back."""

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        return dict.fromkeys(ids, Outcome.ROLLED_BACK) | dict(super().settle(ids, now_s, lock_wait_s))


class ReservesWithoutSettling(SqlDatabase):
    """The next number is counted from the rows that are there."""

    def reserve(self, tx_id: str, now_s: float, lock_wait_s: float) -> int:
        return len(self.attempts_of(tx_id)) + 1


class LosesAttempts(SqlDatabase):
    """Attempts are counted in the memory of one process."""

    _counted: dict[tuple[str, str, str], AttemptRow]

    def record_attempt(self, row: AttemptRow) -> None:
        self._counted = {**getattr(self, "_counted", {}), (row.scope, row.source, row.message_id): row}

    def attempt(self, scope: str, source: str, message_id: str) -> AttemptRow | None:
        return getattr(self, "_counted", {}).get((scope, source, message_id))


class LowersStartedRuns(SqlDatabase):
    """The last word about started runs counts, not the highest."""

    _below: dict[tuple[str, str, int], int]

    def start_runs(self, scope: str, topic: str, partition: int, below: int) -> None:
        super().start_runs(scope, topic, partition, below)
        LowersStartedRuns._below = {**getattr(self, "_below", {}), (scope, topic, partition): below}

    def runs_started(self, scope: str, topic: str, partition: int) -> int | None:
        return getattr(self, "_below", {}).get((scope, topic, partition))


class DeadLettersOnly(SqlDatabase):
    """A dead letter is kept, and its message not marked as handled."""

    def record_dead_letter(self, letter: DeadLetter) -> None:
        transaction = self.begin(30.0)
        transaction.insert_dead_letter(letter)
        transaction.commit()


class ConfirmsNothing(SqlDatabase):
    """Evidence of publication is not kept."""

    def confirm(self, ids: Sequence[HalfId], now_s: float) -> None:
        pass


class ConfirmsByOnePart(SqlDatabase):
    """The first part that is published confirms the whole row."""

    def confirm_parts(self, parts: Sequence[tuple[HalfId, int, int]], now_s: float) -> None:
        self.confirm([id for id, _, _ in parts], now_s)


class ForgetsTheServicesDatabases(SqlDatabase):
    """Whoever joins a service is told its own names."""

    def join_service(self, service: str, names: Set[str]) -> frozenset[str]:
        super().join_service(service, names)
        return frozenset(names)


class TakesWhatIsInFlight(SqlDatabase):
    """A message that another open handler holds counts as handled."""

    def begin(self, local_timeout_s: float, hooks: Any = None) -> OwnTransaction:
        transaction = super().begin(local_timeout_s, hooks)
        insert = transaction.insert_inbox

        def skip_the_busy(scope: str, source: str, message_id: str, lock_wait_s: float) -> bool:
            try:
                return insert(scope, source, message_id, lock_wait_s)
            except StoreBusy:
                return False

        transaction.insert_inbox = skip_the_busy  # type: ignore[method-assign]
        return transaction


class BrokenHarness(SqliteHarness):
    """Clients of one broken kind on one SQLite file."""

    def __init__(self, directory: str, kind: type[SqlDatabase]) -> None:
        self._kind = kind
        super().__init__(directory)

    def database(self) -> Database:
        engine: Engine = self._new_engine()
        return self._kind("shop", engine, self.ports, lambda event: None)


NOTICED: dict[type[SqlDatabase], set[str]] = {
    SqlDatabase: set(),
    LooksInsteadOfFencing: {
        "ledgers.attempts_are_apart",
        "ledgers.missing_row_is_fenced",
        "ledgers.open_row_is_not_answered",
        "ledgers.operator_decides_what_is_open",
    },
    GuessesAboutOpenRows: {"ledgers.open_row_is_not_answered"},
    ReservesWithoutSettling: {
        "ledgers.reservations_differ",
        "ledgers.reserve_after_commit",
        "ledgers.reserve_while_open",
    },
    ConfirmsNothing: {"ledgers.purge_keeps_what_is_needed", "ledgers.unconfirmed_until_confirmed"},
    ConfirmsByOnePart: {"ledgers.parts_are_confirmed_together"},
    ForgetsTheServicesDatabases: {"ledgers.joining_again_changes_nothing", "ledgers.service_names_add_up"},
    LosesAttempts: {
        "inboxes.attempts_are_cleared_with_the_effect",
        "inboxes.attempts_are_kept",
        "inboxes.dead_letter_ends_the_message",
    },
    LowersStartedRuns: {"inboxes.started_runs_only_grow"},
    DeadLettersOnly: {"inboxes.dead_letter_ends_the_message"},
    TakesWhatIsInFlight: {"inboxes.message_in_flight_is_busy"},
}


@pytest.mark.parametrize("kind", NOTICED, ids=lambda kind: kind.__name__)
def test_exactly_the_cases_meant_for_it_fail(kind: type[SqlDatabase], tmp_path: Path) -> None:
    """A broken store fails the cases that name its defect, and no others."""
    report = run_store(BrokenHarness(str(tmp_path), kind))
    assert report.failed == NOTICED[kind], "\n".join(map(str, report.failures))
