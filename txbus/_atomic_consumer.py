"""Consume → produce: a handler whose sends and whose consumer positions commit together.

A crash repeats nothing that was visible and loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from txbus._consumer_contract import ConsumerHealth
from txbus._consumer_limit import DeliveryLimit
from txbus._message import Envelope, TopicPartition
from txbus._ports import Ports, Task
from txbus._retry import Retry
from txbus._telemetry import Alarm, DeadLettered, Emit, FencedOff, HandlerFailed, PartitionsChanged, Reconnected
from txbus._wire import trace_id
from txbus.errors import BackendError, DestinationRefused, Fenced, MessageRefused
from txbus.spi import BrokerTransaction, BrokerTransactions, Committed, Membership, Received, Receiver

__all__ = ["AtomicBudget", "AtomicConsumer"]

Send = Callable[[Envelope], None]


@dataclass(frozen=True, slots=True)
class AtomicBudget:
    """``step_messages_max``: deliveries that share a broker transaction. Times in seconds."""

    step_messages_max: int = 100
    pending_max: int = 1_000
    poll_s: float = 0.5
    backoff_s: tuple[float, float] = (0.2, 10.0)


@dataclass(slots=True)
class _Failing:
    """A delivery whose handler raised: it runs again at ``due_s``, or ``error`` makes it a dead letter."""

    attempts: int
    due_s: float
    error: Exception | None


class AtomicConsumer:
    """A group member whose handler's sends and positions commit in one broker transaction.

    Deliveries of a partition are handled one after the other. A failing one holds its partition
    until its retries are over; its dead letter commits together with its position. Attempts are
    counted in memory: a crash gives a delivery all of them again. Those that shared a broker
    transaction with a failing one run again, under the same attempt number.
    """

    def __init__(
        self,
        service: str,
        scope: str,
        group: str,
        receiver: Callable[[], Receiver],
        transactions: Callable[[], BrokerTransactions],
        handle: Callable[[Received, int, Send], None],
        dead_letters: Callable[[Received, int, Exception], Iterable[Envelope]],
        retry: Retry,
        ports: Ports,
        emit: Emit,
        budget: AtomicBudget,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """``dead_letters`` gives what to keep of a delivery, lighter ones after it in case the broker
        refuses it for its size. ``ended`` is called by its thread when it has ended, by itself or because
        it was asked."""
        self._service = service
        self._scope = scope
        self.group = group
        self._make_receiver = receiver
        self._make_transactions = transactions
        self._handle = handle
        self._dead_letters = dead_letters
        self._retry = retry
        self._clock = ports.clock
        self._entropy = ports.entropy
        self._runtime = ports.runtime
        self._condition = ports.runtime.condition()
        self._emit = emit
        self._budget = budget
        self._pending: dict[TopicPartition, deque[Received]] = {}
        self._failing: dict[TopicPartition, dict[int, _Failing]] = {}
        self._paused: set[TopicPartition] = set()
        self._alone = 0
        self._starved = False
        self._on_end = ended
        self._interrupt: BaseException | None = None
        self._receiver: Receiver | None = None
        self._transactions: BrokerTransactions | None = None
        self._task: Task | None = None
        self._stopping = False
        self._ended = False
        self._idle = False
        self._limit: DeliveryLimit | None = None
        self._partitions: frozenset[TopicPartition] = frozenset()
        self._polled_s: float | None = None
        self._runs = 0
        self._handled = 0
        self._last_error = ""

    def start(self, limit: DeliveryLimit | None = None) -> None:
        """Start the thread. With a ``limit`` it stops by itself when that is over."""
        self._limit = limit
        if limit is not None:
            limit.join(self._limit_changed)
            self._stopping = limit.over
        self._task = self._runtime.spawn(self._run, f"txbus-atomic-{self._scope}")

    def stop(self) -> None:
        """Ask it to finish the broker transaction in hand and leave the group. Idempotent."""
        with self._condition:
            self._stopping = True
            receiver = self._receiver
            self._condition.notify_all()
        if receiver is not None:
            receiver.wake()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until it ended; False when the time is over first."""
        return self._task is None or self._task.join(timeout_s)

    def _limit_changed(self) -> None:
        assert self._limit is not None
        if self._limit.over:
            self.stop()
            return
        with self._condition:
            receiver = self._receiver
        if receiver is not None:
            receiver.wake()

    @property
    def interrupt(self) -> BaseException | None:
        """The KeyboardInterrupt or SystemExit of a handler, which stopped this consumer."""
        return self._interrupt

    @property
    def handled(self) -> int:
        """Deliveries whose positions are committed by this process."""
        return self._handled

    def idle(self) -> bool:
        """Was the last poll empty, with nothing pending?"""
        return self._idle

    def health(self) -> ConsumerHealth:
        polled_s = self._polled_s
        return ConsumerHealth(
            scope=self._scope,
            group=self.group,
            running=self._task is not None and not self._ended,
            error=self._last_error,
            polled_ago_s=None if polled_s is None else self._clock.monotonic_s() - polled_s,
            in_flight=sum(map(len, list(self._pending.values()))),
            held=sum(map(len, list(self._failing.values()))),
            partitions=tuple(sorted(map(str, self._partitions))),
            handled=self.handled,
            runs=self._runs,
        )

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as exc:
            # KeyboardInterrupt or SystemExit in a handler: its step is aborted, all stops.
            self._interrupt = exc
            self._last_error = f"{type(exc).__name__}: {exc}"
            self._alarm("a handler stopped its consumer", repr(exc))
        finally:
            self._leave(orderly=True)
            self._ended = True
            self._on_end()

    def _loop(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                if self._receiver is None:
                    self._connect()
                membership = self._poll()
                while not self._stopping and self._step(membership):
                    failures = 0
            except Exception as exc:
                failures += 1
                if not isinstance(exc, BackendError):
                    self._alarm("an atomic handler's step failed", repr(exc))
                self._disconnect(exc)
                first, cap = self._budget.backoff_s
                wait_s = min(cap, first * 2.0 ** min(failures - 1, 30)) * (0.5 + 0.5 * self._entropy.uniform())
                with self._condition:
                    if not self._stopping:
                        self._condition.wait(wait_s)

    def _alarm(self, what: str, detail: str) -> None:
        self._emit(Alarm(self._service, "", what, f"scope {self._scope}: {detail}"))

    def _connect(self) -> None:
        self._transactions = self._make_transactions()
        receiver = self._make_receiver()
        with self._condition:
            self._receiver = receiver

    def _disconnect(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"
        what = f"atomic handler {self._scope}"
        if isinstance(error, Fenced):
            self._emit(FencedOff(self._service, "", what, str(error)))
        else:
            self._emit(Reconnected(self._service, "", what, self._last_error))
        self._leave(orderly=False)

    def _leave(self, orderly: bool) -> None:
        with self._condition:
            receiver, self._receiver = self._receiver, None
        transactions, self._transactions = self._transactions, None
        self._pending.clear()
        self._paused.clear()
        try:
            if transactions is not None:
                if orderly:
                    transactions.close()
                else:
                    transactions.abandon()
            if receiver is not None:
                receiver.close()
        except BackendError as exc:
            self._last_error = f"{type(exc).__name__}: {exc}"

    def _poll(self) -> Membership:
        assert self._receiver is not None
        wait_s = self._budget.poll_s
        if not self._starved and any(self._pending.values()):
            now_s = self._clock.monotonic_s()
            heads = [self._failing_of(row[0]) for row in self._pending.values() if row]
            due_s = min(now_s if failing is None else failing.due_s for failing in heads)
            wait_s = min(wait_s, max(0.0, due_s - now_s))
        batch = self._receiver.receive(self._budget.pending_max, wait_s)
        self._polled_s = self._clock.monotonic_s()
        self._last_error = ""
        owned = self._partitions = batch.membership.partitions
        for where in [w for w in self._pending if w not in owned or w in batch.lost]:
            del self._pending[where]
            self._paused.discard(where)
        for where in batch.lost:
            self._failing.pop(where, None)
        if batch.gained or batch.lost:
            self._emit(
                PartitionsChanged(
                    self._service,
                    "",
                    self.group,
                    tuple(map(str, sorted(batch.gained))),
                    tuple(map(str, sorted(batch.lost))),
                )
            )
        for received in batch.received:
            self._pending.setdefault(received.position.where, deque()).append(received)
        self._idle = not batch.received and not any(self._pending.values())
        self._balance()
        return batch.membership

    def _balance(self) -> None:
        """Pause partitions with much pending work, resume those with little."""
        assert self._receiver is not None
        full = {w for w, row in self._pending.items() if len(row) >= self._budget.pending_max}
        low = {w for w in self._paused if len(self._pending.get(w, ())) < self._budget.pending_max // 2}
        if full - self._paused:
            self._receiver.pause(frozenset(full - self._paused))
        if low:
            self._receiver.resume(frozenset(low))
        self._paused = (self._paused | full) - low

    def _choose(self) -> list[Received]:
        """What goes into the next step. One that failed before goes alone, when it is due and what was
        before it is committed; so it aborts nobody else's work a second time."""
        now_s = self._clock.monotonic_s()
        for row in self._pending.values():
            failing = self._failing_of(row[0]) if row else None
            if failing is not None and failing.due_s <= now_s:
                return [row[0]]
        room = 1 if self._alone else self._budget.step_messages_max
        chosen: list[Received] = []
        for row in self._pending.values():
            for received in row:
                if len(chosen) >= room:
                    return chosen
                if self._failing_of(received) is not None:
                    break
                chosen.append(received)
        return chosen

    def _failing_of(self, received: Received) -> _Failing | None:
        return self._failing.get(received.position.where, {}).get(received.position.offset)

    def _step(self, membership: Membership) -> bool:
        """One broker transaction over pending deliveries; False if there is nothing to do."""
        chosen = self._choose()
        if chosen and self._limit is not None:
            chosen = chosen[: self._limit.take(len(chosen))]
            self._starved = not chosen
        if not chosen:
            return False
        handled = self._handled
        try:
            failing = self._failing_of(chosen[0])
            if failing is not None and failing.error is not None:
                self._bury(membership, chosen[0], failing.attempts, failing.error)
            else:
                self._run_step(membership, chosen)
        finally:
            if self._limit is not None:
                finished = self._handled - handled
                self._limit.settle(finished=finished, unfinished=len(chosen) - finished)
        return True

    def _run_step(self, membership: Membership, chosen: Sequence[Received]) -> None:
        assert self._transactions is not None
        opened = self._transactions.begin()
        running: Received | None = None
        try:
            for received in chosen:
                self._runs += 1
                failing = self._failing_of(received)
                running = received
                self._handle(received, failing.attempts + 1 if failing is not None else 1, opened.send)
                running = None
            self._commit(opened, membership, chosen)
        except Exception as exc:
            # What the handler sent may be at fault; any other error of the broker is not its doing.
            if isinstance(exc, BackendError) and not isinstance(exc, MessageRefused | DestinationRefused):
                raise
            if running is not None or len(chosen) == 1:
                self._failed(running or chosen[0], exc)
            else:
                # The broker refuses what one of them sent; handle each alone to find out which.
                self._alone = len(chosen)
            opened.abort()

    def _commit(self, opened: BrokerTransaction, membership: Membership, done: Sequence[Received]) -> None:
        positions = {r.position.where: Committed(r.position.offset + 1) for r in done}
        opened.positions(self.group, membership, positions)
        opened.commit()
        for received in done:
            where = received.position.where
            row = self._pending[where]
            assert row[0] is received
            row.popleft()
            self._failing.get(where, {}).pop(received.position.offset, None)
        self._handled += len(done)
        self._alone = max(0, self._alone - len(done))

    def _failed(self, received: Received, error: Exception) -> None:
        failing = self._failing_of(received)
        attempts = failing.attempts + 1 if failing is not None else 1
        delay_s = self._retry.delay_s(attempts, error, self._entropy.uniform())
        due_s = self._clock.monotonic_s() + (delay_s or 0.0)
        at = self._failing.setdefault(received.position.where, {})
        at[received.position.offset] = _Failing(attempts, due_s, error if delay_s is None else None)
        if delay_s is not None:
            self._emit(
                HandlerFailed(
                    self._service,
                    trace_id(received.envelope.headers),
                    self._scope,
                    _name(received),
                    attempts,
                    f"{type(error).__name__}: {error}",
                    delay_s,
                )
            )

    def _bury(self, membership: Membership, received: Received, attempts: int, error: Exception) -> None:
        """Keep it as a dead letter, in the step that moves the position past it."""
        refused: MessageRefused | None = None
        for letter in self._dead_letters(received, attempts, error):
            try:
                self._keep(membership, received, letter)
                break
            except MessageRefused as exc:
                refused = refused or exc
        else:
            # Not for its size, then: what the broker said of the whole letter tells more.
            assert refused is not None, "a dead letter has one form at least"
            raise refused
        self._emit(
            DeadLettered(
                self._service,
                trace_id(received.envelope.headers),
                self._scope,
                _name(received),
                attempts,
                f"{type(error).__name__}: {error}",
            )
        )

    def _keep(self, membership: Membership, received: Received, letter: Envelope) -> None:
        assert self._transactions is not None
        opened = self._transactions.begin()
        try:
            opened.send(letter)
            self._commit(opened, membership, [received])
        except MessageRefused:
            opened.abort()
            raise


def _name(received: Received) -> str:
    return received.envelope.id or str(received.position)
