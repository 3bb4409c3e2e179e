"""Half messages: prepared in the journal, asked about until they have an outcome."""

from __future__ import annotations

from collections.abc import Sequence

from dirbus.journal import Journal
from dirbus.rules import check, partition_of
from dirbus.state import envelope_to
from txbus.spi import Check, Envelope, Outcome, Ports

__all__ = ["DirHalves"]

LOOK_EVERY_S = 0.01


class DirHalves:
    """The half messages of one producer group. Thread-safe."""

    def __init__(self, journal: Journal, group: str, check_after_s: float, ports: Ports) -> None:
        self._journal = journal
        self._group = group
        self._check_after_s = check_after_s
        self._ports = ports

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        id_, now_s = self._ports.entropy.unique_id(), self._ports.clock.monotonic_s()
        with self._journal.locked() as state:
            check(state, envelope)
            half = {"op": "half", "id": id_, "group": self._group, "now_s": now_s}
            self._journal.append({**half, "envelope": envelope_to(envelope)})
        return id_

    def finish(self, handle: object, outcome: Outcome) -> None:
        with self._journal.locked() as state:
            half = state.halves[str(handle)]
            if outcome is Outcome.UNKNOWN or not half.open:
                return
            records = []
            if outcome is Outcome.COMMITTED:
                records = [[envelope_to(half.envelope), partition_of(state, half.envelope, 0)]]
            wall_s = self._ports.clock.wall_s()
            self._journal.append({"op": "outcome", "id": handle, "wall_s": wall_s, "records": records})

    def checks(self, timeout_s: float) -> Sequence[Check]:
        clock = self._ports.clock
        deadline_s = clock.monotonic_s() + timeout_s
        while True:
            due = self._due(clock.monotonic_s())
            if due or clock.monotonic_s() >= deadline_s:
                return due
            clock.sleep_s(LOOK_EVERY_S)

    def _due(self, now_s: float) -> list[Check]:
        found = []
        with self._journal.locked() as state:
            for id_, half in state.halves.items():
                if half.open and half.group == self._group and now_s >= half.asked_s + self._check_after_s:
                    self._journal.append({"op": "asked", "id": id_, "now_s": now_s})
                    found.append(Check(half.envelope, half.checks, id_))
        return found

    def answer(self, check: Check, outcome: Outcome) -> None:
        self.finish(check.handle, outcome)

    def close(self) -> None:
        pass
