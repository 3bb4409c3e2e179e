"""How often a message has run, kept so that a killed process cannot forget it.

A message costs nothing extra while all goes well: before the first record of a batch is run, a
marker per (scope, partition) is raised past the batch, in one commit. Records between the marker as
it was and the marker as this process raised it may run once without being counted. Everything else
may have been run before, by this process or by one that died, and is counted in a row of its own,
committed before each run. So a message runs at most ``max_attempts`` + 1 times, however often its
process is killed.

A message whose last run nobody saw the end of may be what kills the process. Such ones run one at a
time, so that a poisonous one cannot use up the attempts of its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from txbus._consumer_contract import Run
from txbus._message import TopicPartition
from txbus._ports import Ports
from txbus.stores.contract import AttemptRow, Database

__all__ = ["Attempts", "Standing"]

_BEGUN = "a run began whose end is not known"
_BEFORE = "; before it: "
_TEXT_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Claim:
    """Offsets from ``start`` up to ``below`` are this process's to run uncounted, in this gain."""

    gain: int
    start: int
    below: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known before another run: ``attempts`` so far, and when the next one may begin.

    ``suspect``: the end of its last run is not known, so it runs alone.
    """

    attempts: int
    due_s: float
    error: str
    suspect: bool


class Attempts:
    """The attempts of one scope in one database. Thread-safe. Its methods raise StoreError.

    ``ahead``: at least so many offsets are claimed at once, so that messages that come one by one
    do not cost a commit each. ``counted``: the broker counts hand-overs, which replaces the marker.
    """

    def __init__(self, scope: str, database: Database, ports: Ports, ahead: int, counted: bool) -> None:
        self._scope = scope
        self._database = database
        self._ahead = ahead
        self._counted = counted
        self._lock = ports.runtime.lock()
        self._claims: dict[TopicPartition, _Claim] = {}

    def free(self, run: Run) -> bool:
        """May it run without being counted? True for the very first run only."""
        if run.started or run.failed or run.reserved or run.received.attempt > 1:
            return False
        if self._counted:
            return True
        where, offset = run.ownership.where, run.received.position.offset
        claim = self._claims.get(where)
        if claim is None or claim.gain != run.ownership.gain or offset >= claim.below:
            with self._lock:
                claim = self._claim(run, where, offset)
        return claim.start <= offset < claim.below

    def _claim(self, run: Run, where: TopicPartition, offset: int) -> _Claim:
        claim = self._claims.get(where)
        gain = run.ownership.gain
        if claim is not None and claim.gain > gain:
            # A straggler of a partition that was lost and gained again: it is counted.
            return _Claim(gain, 0, 0)
        if claim is not None and claim.gain == gain and offset < claim.below:
            return claim
        # Read anew each time: another process may have owned the partition meanwhile and this one
        # not know it yet. What that one raised the marker past is not free here.
        marker = self._database.runs_started(self._scope, where.topic, where.partition) or 0
        below = marker
        if offset >= marker:
            below = max(run.ownership.end, offset + 1 + self._ahead)
            # It may have been raised since it was read; what it was when this process raised it counts.
            marker = self._database.start_runs(self._scope, where.topic, where.partition, below) or 0
        same = claim is not None and claim.gain == gain and claim.below == marker
        start = claim.start if claim is not None and same else marker
        self._claims[where] = claimed = _Claim(gain, start, below)
        return claimed

    def standing(self, run: Run, source: str, message_id: str) -> Standing:
        """What is known of a message that may have run before."""
        row = self._database.attempt(self._scope, source, message_id)
        recorded = row.attempts if row is not None else 0
        if run.reserved and recorded <= run.reserved:
            # Recorded for a run that did not count: the broker or the database was away.
            recorded = run.reserved - 1
        error = row.error if row is not None else ""
        return Standing(
            attempts=max(recorded, run.attempts),
            # What waited in this process waited by a clock that nobody steps.
            due_s=0.0 if row is None or run.failed or run.given_back else row.due_s,
            error=error,
            # A run that this process survived is no suspect, whatever its end was.
            suspect=not (run.started or run.failed) and (row is None or error.startswith(_BEGUN)),
        )

    def reserve(self, run: Run, source: str, message_id: str, number: int, standing: Standing) -> None:
        """Record that run ``number`` begins; committed on return."""
        if run.reserved == number:
            return
        error = standing.error.removeprefix(_BEGUN).removeprefix(_BEFORE)
        text = f"{_BEGUN}{_BEFORE}{error}" if error else _BEGUN
        self._database.record_attempt(AttemptRow(self._scope, source, message_id, number, 0.0, text))
        run.reserved = number

    def recorded(self, source: str, message_id: str) -> int:
        """The attempts that are recorded."""
        row = self._database.attempt(self._scope, source, message_id)
        return row.attempts if row is not None else 0

    def failed(self, source: str, message_id: str, attempts: int, due_s: float, error: BaseException) -> None:
        """Record that a run ended by an exception, and when the next may begin (wall-clock seconds)."""
        self._database.record_attempt(AttemptRow(self._scope, source, message_id, attempts, due_s, brief(error)))


def brief(error: BaseException) -> str:
    """Class and text of an error as any database and log takes them, at most 1,000 characters."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception as exc:
        text = f"{type(error).__name__} (its text failed: {type(exc).__name__})"
    text = text[:_TEXT_MAX].replace("\0", "\\0")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
