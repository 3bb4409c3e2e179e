"""What an open bus does now and then, in one background task: purge, and note held keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from txbus._ports import Ports, Task
from txbus._telemetry import Alarm, Emit
from txbus.errors import StoreError
from txbus.stores.contract import Database

__all__ = ["Maintenance", "MaintenanceBudget"]

Key = tuple[str, str]
_REPORT_FROM = 3


@dataclass(frozen=True, slots=True)
class MaintenanceBudget:
    """Times in seconds; ``purge_batch`` rows at most are deleted at once."""

    interval_s: float = 1.0
    purge_interval_s: float = 60.0
    purge_batch: int = 1_000
    ledger_retention_s: float = 7 * 86_400.0
    inbox_horizon_s: float = 14 * 86_400.0
    held_key_max: int = 1_000


class Maintenance:
    """Purges ledger and inbox rows beyond their time, and shares which keys are held (rule 28).

    Held keys live in the service's first database by name, so that every process of the service
    refuses new halves for them, wherever the relay runs.
    """

    def __init__(
        self, service: str, databases: Mapping[str, Database], ports: Ports, emit: Emit, budget: MaintenanceBudget
    ) -> None:
        self._service = service
        self._databases = databases
        self._home = databases[min(databases)] if databases else None
        self._clock = ports.clock
        self._emit = emit
        self._budget = budget
        self._condition = ports.runtime.condition()
        self._held: frozenset[Key] = frozenset()
        self._to_write: dict[int, Mapping[Key, int]] = {}
        self._written: dict[int, Mapping[Key, int]] = {}
        self._stopping = False
        self._purge_at_s = self._clock.monotonic_s() + budget.purge_interval_s
        self._runtime = ports.runtime
        self._task: Task | None = None

    def start(self) -> None:
        """Begin, where there is a database to look after."""
        if self._databases:
            self._task = self._runtime.spawn(self._run, f"txbus-maintenance-{self._service}")

    def held_keys(self) -> frozenset[Key]:
        """Keys behind whose parked halves too many wait: as of the last look, every ``interval_s``."""
        return self._held

    def note_held(self, partition: int, held: Mapping[Key, int]) -> None:
        """The keys that parked halves of one owned half partition hold; written in the background."""
        over = {key: waiting for key, waiting in held.items() if waiting >= self._budget.held_key_max}
        with self._condition:
            self._to_write[partition] = over
            self._condition.notify_all()

    def stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._task is not None:
            self._task.join(5.0)

    def _run(self) -> None:
        failures = 0
        while True:
            try:
                self._share_held()
                if self._clock.monotonic_s() >= self._purge_at_s:
                    self._purge()
                failures = 0
            except Exception as exc:
                failures += 1
                # A busy database is nothing to report; one that stays away is reported once.
                if failures == _REPORT_FROM or not isinstance(exc, StoreError):
                    self._emit(Alarm(self._service, "", "maintenance", f"{type(exc).__name__}: {exc}"))
            with self._condition:
                if self._stopping:
                    return
                if failures or not self._to_write:
                    self._condition.wait(self._budget.interval_s)
                if self._stopping:
                    return

    def _share_held(self) -> None:
        assert self._home is not None
        with self._condition:
            to_write = dict(self._to_write)
        # Mostly nothing is held and nothing is noted: then no lock of the application's database is taken.
        noted = bool(to_write and self._home.held_keys())
        for partition, held in to_write.items():
            if self._written.get(partition) != held and (held or noted or self._written.get(partition)):
                self._home.replace_held(partition, held)
                self._written[partition] = held
            with self._condition:
                # Only what is written is done; the relay tells each change once.
                if self._to_write.get(partition) is held:
                    del self._to_write[partition]
        self._held = self._home.held_keys()

    def _purge(self) -> None:
        """One small batch for each table and database; more when a batch was full."""
        now_s = self._clock.wall_s()
        full = False
        for database in self._databases.values():
            rows = database.purge_ledger(now_s - self._budget.ledger_retention_s, self._budget.purge_batch)
            handled = database.purge_inbox(now_s - self._budget.inbox_horizon_s, self._budget.purge_batch)
            full = full or max(rows, handled) >= self._budget.purge_batch
        wait_s = self._budget.interval_s if full else self._budget.purge_interval_s
        self._purge_at_s = self._clock.monotonic_s() + wait_s
