"""The relay of a half log: shares its partitions with other relays, publishes what is committed.

One polling thread owns every client; a second task (the `LedgerDesk`) talks to the databases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from txbus._halflog.index import OpenHalf
from txbus._halflog.ledgerdesk import Answer, LedgerDesk, LedgerDeskBudget, OwnChecker, Question
from txbus._halflog.partition import HalfPartition, PartitionBudget, Phase
from txbus._halflog.records import Settled
from txbus._message import TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Ports, Task
from txbus._telemetry import Alarm, Emit, FencedOff, PartitionsChanged, Reconnected
from txbus.errors import BackendError, BackendUnavailable, ConfigurationError, Fenced
from txbus.spi import Backend, Batch, Log, Membership, Receiver, Subscription
from txbus.stores.contract import Database

__all__ = ["Relay", "RelayBudget", "RelayHealth", "relay_group"]


def relay_group(service: str) -> str:
    """The consumer group in which the relays of a service share its half partitions."""
    return f"txbus.relay.{service}"


@dataclass(frozen=True, slots=True)
class RelayBudget:
    """Bounds and times of a relay, in seconds.

    ``check_after_s``: age at which a half without a D is asked about, since this owner read it.
    ``check_interval_s``: the time between two questions about the same half.
    """

    check_after_s: float = 2.0
    check_interval_s: float = 1.0
    alarm_after_s: float = 60.0
    survey_interval_s: float = 0.2
    poll_s: float = 0.5
    lease_s: float = 10.0
    records_max: int = 1_000
    steps_per_poll: int = 8
    reconnect_s: tuple[float, float] = (0.2, 10.0)
    partition: PartitionBudget = field(default_factory=PartitionBudget)
    desk: LedgerDeskBudget = field(default_factory=LedgerDeskBudget)


@dataclass(frozen=True, slots=True)
class RelayHealth:
    """``oldest_s``: age of the oldest undecided half that this relay knows of. ``records_read``: of
    the half log, since the take-over of each partition that it owns. ``last_error``: what went wrong
    last with the broker; empty after a turn that went well."""

    running: bool
    partitions: tuple[int, ...]
    undecided: int
    parked: int
    oldest_s: float
    records_read: int
    last_error: str


class Relay:
    """One relay. `start` and `stop` from any thread."""

    def __init__(
        self,
        service: str,
        topic: str,
        partitions: int,
        backend: Backend,
        databases: Mapping[str, Database],
        checkers: Mapping[str, OwnChecker],
        ports: Ports,
        emit: Emit,
        budget: RelayBudget,
        held_changed: Callable[[int, Mapping[tuple[str, str], int]], None],
    ) -> None:
        """``databases`` must be all of the service's (rule 9): a half of another one is never settled
        here. ``held_changed`` is told, for a half
        partition, which keys parked halves hold and how many halves wait behind each; when it is
        taken over, and when that changes."""
        if not databases:
            raise ConfigurationError(f"relay of service {service!r}: it needs every database of the service, not none")
        self._service = service
        self._topic = topic
        self._count = partitions
        self._backend = backend
        self._databases = databases
        self._checkers = checkers
        self._ports = ports
        self._clock = ports.clock
        self._emit = emit
        self._budget = budget
        self._held_changed = held_changed
        self._held: dict[int, dict[tuple[str, str], int]] = {}
        self._condition = ports.runtime.condition()
        self._answers: list[Answer] = []
        self._marked: list[tuple[TopicPartition, int]] = []
        self._owned: dict[TopicPartition, HalfPartition] = {}
        self._receiver: Receiver | None = None
        self._log: Log | None = None
        self._desk = LedgerDesk(
            service, databases, checkers, ports, emit, budget.desk, self._take, self._take_confirmed
        )
        self._stopping = False
        self._quiet_asked = 0
        self._quiet_seen = 0
        self._failures = 0
        self._busy = False
        self._last_error = ""
        self._trouble = ""
        """What went wrong in this turn without ending it."""
        self._alarmed_at_s = self._surveyed_at_s = float("-inf")
        self._health = RelayHealth(False, (), 0, 0, 0.0, 0, "")
        self._more = False
        self._thread: Task | None = None
        self._running = False

    def start(self) -> None:
        """Join the group and work until `stop`."""
        assert not self._running and not self._stopping, "a relay is started once"
        self._running = True
        self._health = replace(self._health, running=True)
        self._desk.start()
        self._thread = self._ports.runtime.spawn(self._run, f"txbus-relay-{self._service}")

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the step in hand, leave the group. Idempotent; bounded by ``timeout_s``."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        with self._condition:
            if not self._running:
                return
            self._stopping = True
            receiver = self._receiver
            self._condition.notify_all()
        if receiver is not None:
            receiver.wake()
        if self._thread is not None and not self._thread.join(timeout_s):
            self._emit(Alarm(self._service, "", "relay", f"it did not end within {timeout_s:g} s"))
        self._desk.stop(max(0.5, deadline_s - self._clock.monotonic_s()))
        with self._condition:
            self._running = False
            self._condition.notify_all()

    def health(self) -> RelayHealth:
        """As of the last look, ``survey_interval_s`` ago at most while it works."""
        return self._health

    def wait_quiet(self, timeout_s: float) -> bool:
        """Wait until every half stored before this call is settled, its ledger row marked, and nothing
        is left to do but what an operator must decide.

        Only meaningful for the one relay of a service; False when the time is over."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        with self._condition:
            self._quiet_asked += 1
            mine = self._quiet_asked
            receiver = self._receiver
        if receiver is not None:
            receiver.wake()
        with self._condition:
            while self._quiet_seen < mine:
                left_s = deadline_s - self._clock.monotonic_s()
                if left_s <= 0 or not self._running:
                    return False
                self._condition.wait(left_s)
        return True

    # the polling thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._pause(self.turn())
        except BaseException as exc:
            self._emit(Alarm(self._service, "", "relay", f"it ended by {type(exc).__name__}: {exc}"))
            raise
        finally:
            self._leave_all(orderly=True)
            with self._condition:
                self._running = self._running and self._stopping
                self._health = RelayHealth(False, (), 0, 0, 0.0, 0, self._last_error)
                self._condition.notify_all()

    def turn(self) -> float:
        """One poll and the work that it brings; the seconds to rest before the next one.

        No error leaves it: a broker's is answered by building the clients anew, any other by an
        alarm besides."""
        try:
            if self._receiver is None:
                self._connect()
            self._trouble = ""
            self._poll()
            self._failures = 0
            self._show_error(self._trouble)
            return 0.0
        except Exception as exc:
            self._failures += 1
            if not isinstance(exc, BackendError):
                self._emit(Alarm(self._service, "", "relay", f"unexpected {type(exc).__name__}: {exc}"))
            self._disconnect(exc)
            first, cap = self._budget.reconnect_s
            wait_s = min(cap, first * 2.0 ** min(self._failures - 1, 30))
            return wait_s * (0.5 + 0.5 * self._ports.entropy.uniform())

    def _show_error(self, text: str) -> None:
        """Health is surveyed less often than there are turns, and an error that is over is none."""
        if text != self._last_error:
            self._last_error = text
            self._health = replace(self._health, last_error=text)

    def _pause(self, seconds: float) -> None:
        with self._condition:
            if seconds > 0 and not self._stopping:
                self._condition.wait(seconds)

    def _connect(self) -> None:
        self._log = self._backend.log(self._topic)
        receiver = self._backend.receiver(
            Subscription(
                group=relay_group(self._service), topics=(self._topic,), manual=True, lease_s=self._budget.lease_s
            )
        )
        with self._condition:
            self._receiver = receiver
        if self._quiet_seen < self._quiet_asked:
            receiver.wake()

    def _disconnect(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"
        if isinstance(error, Fenced):
            self._emit(FencedOff(self._service, "", f"relay of {self._topic}", str(error)))
        else:
            self._emit(Reconnected(self._service, "", f"relay of {self._topic}", self._last_error))
        self._leave_all(orderly=False)
        self._health = RelayHealth(self._running, (), 0, 0, 0.0, 0, self._last_error)

    def _leave_all(self, orderly: bool) -> None:
        for partition in self._owned.values():
            partition.leave(orderly)
        self._owned.clear()
        self._held.clear()
        with self._condition:
            receiver, self._receiver = self._receiver, None
        for part in (receiver, self._log):
            if part is not None:
                try:
                    part.close()
                except BackendError as exc:
                    self._last_error = f"{type(exc).__name__}: {exc}"
        self._log = None

    def _poll(self) -> None:
        assert self._receiver is not None
        batch = self._receiver.receive(self._budget.records_max, self._wait_s())
        fresh = self._assign(batch)
        now_s = self._clock.monotonic_s()
        for received in batch.received:
            partition = self._owned.get(received.position.where)
            if partition is not None and partition.phase is not Phase.DOWN and received.position.where not in fresh:
                partition.feed(received, now_s)
        self._apply_answers()
        self._more = False
        for partition in list(self._owned.values()):
            self._more = self._work(partition, batch.membership) or self._more
        self._ask_due()
        self._survey()
        self._maybe_quiet(batch)

    def _wait_s(self) -> float:
        """How long the next poll may wait: until the next question or rebuilding is due."""
        with self._condition:
            answered = bool(self._answers or self._marked)
        if self._more or answered or (self._busy and self._quiet_seen < self._quiet_asked):
            return 0.0
        due_s = self._clock.monotonic_s() + self._budget.poll_s
        for partition in self._owned.values():
            if partition.phase is Phase.DOWN:
                due_s = min(due_s, partition.retry_at_s)
            else:
                due_s = min(
                    due_s,
                    partition.index.next_check_s(self._budget.check_after_s, self._budget.check_interval_s),
                )
        return max(0.0, due_s - self._clock.monotonic_s())

    def _assign(self, batch: Batch) -> set[TopicPartition]:
        """Follow the newest snapshot: drop what left it, take over what joined it (rule 12).

        Returns the partitions that were taken over in this very poll: their records in this batch
        were read before the take-over and come again."""
        fresh: set[TopicPartition] = set()
        wanted = batch.membership.partitions
        lost = [where for where in self._owned if where not in wanted or where in batch.lost]
        for where in lost:
            self._owned.pop(where).leave(orderly=False)
            self._held.pop(where.partition, None)
        gained = [where for where in sorted(wanted) if where not in self._owned]
        for where in gained:
            self._owned[where] = self._make(where)
        if gained or lost:
            self._emit(
                PartitionsChanged(
                    self._service,
                    "",
                    relay_group(self._service),
                    tuple(map(str, gained)),
                    tuple(map(str, sorted(lost))),
                )
            )
        for where, partition in self._owned.items():
            if partition.phase is Phase.DOWN:
                fresh.add(where)
                partition.take_over(batch.membership)
        return fresh

    def _make(self, where: TopicPartition) -> HalfPartition:
        assert self._receiver is not None and self._log is not None
        return HalfPartition(
            self._service,
            relay_group(self._service),
            where,
            self._backend,
            self._receiver,
            self._log,
            self._ports,
            self._emit,
            self._budget.partition,
            self._settled,
        )

    def _work(self, partition: HalfPartition, membership: Membership) -> bool:
        return all(partition.work(membership) for _ in range(self._budget.steps_per_poll))

    def _settled(self, where: TopicPartition, step: int, settled: Sequence[Settled]) -> None:
        self._desk.confirm((where, step), settled)

    # check-back (rules 25 to 27)

    def _ask_due(self) -> None:
        now_s = self._clock.monotonic_s()
        questions: list[Question] = []
        for partition in self._owned.values():
            if partition.phase is not Phase.ACTIVE:
                continue
            due = partition.index.due(
                now_s, self._budget.check_after_s, self._budget.check_interval_s, partition.window_full
            )
            for half in due:
                try:
                    questions.append(self._question(partition, half, now_s))
                except BackendUnavailable as exc:
                    self._trouble = f"{type(exc).__name__}: {exc}"
                    partition.index.ask_again(half)
        if questions:
            self._desk.ask(questions)

    def _question(self, partition: HalfPartition, half: OpenHalf, now_s: float) -> Question:
        about = half.entry.half
        envelope = None
        if not half.topics.isdisjoint(self._checkers):
            envelope = next(e for e in partition.payloads(half) if e.topic in self._checkers)
        return Question(
            partition.where,
            half.id,
            about.ledger_id,
            about.database,
            about.created_s,
            now_s - half.seen_s,
            half.checks,
            envelope,
        )

    def _take(self, answers: Sequence[Answer]) -> None:
        """Called by the desk's task: leave the answers for the polling thread and wake it."""
        with self._condition:
            self._answers.extend(answers)
            receiver = self._receiver
        if receiver is not None:
            receiver.wake()

    def _take_confirmed(self, steps: Sequence[tuple[TopicPartition, int]]) -> None:
        with self._condition:
            self._marked.extend(steps)
            receiver = self._receiver if self._quiet_seen < self._quiet_asked else None
        if receiver is not None:
            receiver.wake()

    def _apply_answers(self) -> None:
        with self._condition:
            answers, self._answers = self._answers, []
            marked, self._marked = self._marked, []
        for where, step in marked:
            if where in self._owned:
                self._owned[where].confirmed(step)
        for answer in answers:
            partition = self._owned.get(answer.question.where)
            half = partition.index.halves.get(answer.question.id) if partition is not None else None
            if partition is None or half is None or half.outcome is not None or half.parked is not None:
                continue
            if answer.counted:
                half.checks += 1
            if answer.outcome is not Outcome.UNKNOWN:
                partition.index.decide(half, answer.outcome, False)
            elif answer.park is not None:
                partition.park(half.id, answer.park)
            else:
                partition.index.ask_again(half)

    # watching

    def _survey(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._surveyed_at_s + self._budget.survey_interval_s:
            return
        self._surveyed_at_s = now_s
        undecided = parked = 0
        oldest_s = 0.0
        for where, partition in self._owned.items():
            if partition.phase is not Phase.ACTIVE:
                continue
            undecided += partition.index.undecided_count
            for half in partition.index.undecided():
                oldest_s = max(oldest_s, now_s - half.seen_s)
                break  # the longest known comes first
            parked += sum(1 for _ in partition.index.parked())
            held = partition.index.held_keys()
            if self._held.get(where.partition) != held:
                self._held[where.partition] = held
                self._held_changed(where.partition, held)
        if oldest_s > self._budget.alarm_after_s and now_s - self._alarmed_at_s > self._budget.alarm_after_s:
            self._alarmed_at_s = now_s
            self._emit(
                Alarm(
                    self._service,
                    "",
                    "undecided half",
                    f"{undecided} halves have no outcome, the oldest for {oldest_s:.0f} s; is a database away?",
                )
            )
        self._health = RelayHealth(
            True,
            tuple(sorted(where.partition for where in self._owned)),
            undecided,
            parked,
            oldest_s,
            sum(partition.records_read for partition in self._owned.values()),
            self._last_error,
        )

    def _maybe_quiet(self, batch: Batch) -> None:
        asked = self._quiet_asked
        self._busy = bool(batch.received)
        if self._quiet_seen >= asked or self._busy or len(self._owned) < self._count or self._log is None:
            return
        for where, partition in self._owned.items():
            if partition.phase is not Phase.ACTIVE or not partition.index.idle:
                return
            # Offsets have gaps (markers, aborted records), so the end is not compared with them.
            records, _ = self._log.read(where.partition, partition.read_next, 1, self._budget.poll_s)
            if records:
                return
        if not self._desk.idle:
            self._desk.hurry()
            return
        with self._condition:
            self._quiet_seen = asked
            self._condition.notify_all()
