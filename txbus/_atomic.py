"""Broker transactions for the application: several sends visible together, and consume → produce.

`AtomicScope` is one broker transaction. `AtomicConsumer` runs a handler whose sends and whose
consumer positions commit together, so that a crash repeats nothing and loses nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from txbus._consumer_contract import ConsumerHealth
from txbus._message import Envelope, Topic, TopicPartition
from txbus._ports import Ports, Task
from txbus._retry import Retry
from txbus._telemetry import Alarm, DeadLettered, Emit, FencedOff, HandlerFailed, PartitionsChanged, Reconnected
from txbus._wire import SendOptions
from txbus.errors import BackendError, DestinationRefused, Fenced, MessageRefused, NotOpen
from txbus.spi import BrokerTransaction, BrokerTransactions, Committed, Membership, Received, Receiver

__all__ = ["AtomicBudget", "AtomicConsumer", "AtomicPool", "AtomicScope"]

T = TypeVar("T")
Send = Callable[[Envelope], None]


class AtomicPool:
    """Keeps the broker transactions of finished scopes for the next ones. Thread-safe."""

    def __init__(self, make: Callable[[], BrokerTransactions], ports: Ports) -> None:
        self._make = make
        self._lock = ports.runtime.lock()
        self._idle: list[BrokerTransactions] = []
        self._closed = False

    def take(self) -> BrokerTransactions:
        with self._lock:
            if self._closed:
                raise NotOpen("the bus is closed: no broker transaction can begin")
            if self._idle:
                return self._idle.pop()
        return self._make()

    def give_back(self, transactions: BrokerTransactions) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(transactions)
                return
        transactions.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for transactions in idle:
            transactions.close()


class AtomicScope:
    """One broker transaction: what ``with bus.atomic()`` yields. One thread, one use.

    Leaving the block normally makes all its messages visible, in one step per partition; leaving
    it by an exception makes none visible. `CommitUnknown`: the broker did not answer the commit;
    the messages are visible all or none, and their ids tell which.
    """

    def __init__(
        self, pool: AtomicPool, make: Callable[[Topic[Any], Any, SendOptions], Envelope]
    ) -> None:
        self._pool = pool
        self._make = make
        self._transactions: BrokerTransactions | None = None
        self._open: BrokerTransaction | None = None

    def send(
        self,
        topic: Topic[T],
        payload: T,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        tag: str | None = None,
        correlation_id: str | None = None,
        causation_id: str | None = None,
        deliver_after_s: float | None = None,
    ) -> str:
        """Add a message to the broker transaction; returns its id."""
        if self._open is None:
            raise NotOpen("this broker transaction is not open: send inside of its block")
        options = SendOptions(
            key=key,
            headers=headers or {},
            message_id=message_id,
            tag=tag,
            correlation_id=correlation_id,
            causation_id=causation_id,
            deliver_after_s=deliver_after_s,
        )
        envelope = self._make(topic, payload, options)
        self._open.send(envelope)
        assert envelope.id is not None
        return envelope.id

    def __enter__(self) -> AtomicScope:
        if self._transactions is not None:
            raise NotOpen("this broker transaction was entered before: make a new one for each block")
        self._transactions = self._pool.take()
        try:
            self._open = self._transactions.begin()
        except BaseException:
            self._transactions.abandon()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._open is not None and self._transactions is not None
        opened, self._open = self._open, None
        try:
            if value is None:
                opened.commit()
            else:
                opened.abort()
        except BaseException:
            # Whatever state the client is in now, nobody shall inherit it.
            self._transactions.abandon()
            raise
        self._pool.give_back(self._transactions)


@dataclass(frozen=True, slots=True)
class AtomicBudget:
    """``step_messages_max``: deliveries that share a broker transaction. Times in seconds."""

    step_messages_max: int = 100
    pending_max: int = 1_000
    poll_s: float = 0.5
    backoff_s: tuple[float, float] = (0.2, 10.0)


class AtomicConsumer:
    """A group member whose handler's sends and positions commit in one broker transaction.

    Deliveries of a partition are handled one after the other. A failing one holds its partition
    until its retries are over; its dead letter commits together with its position. Attempts are
    counted in memory: a crash gives a delivery all of them again.
    """

    def __init__(
        self,
        service: str,
        scope: str,
        group: str,
        receiver: Callable[[], Receiver],
        transactions: Callable[[], BrokerTransactions],
        handle: Callable[[Received, int, Send], None],
        dead_letter: Callable[[Received, int, Exception], Envelope],
        retry: Retry,
        ports: Ports,
        emit: Emit,
        budget: AtomicBudget,
    ) -> None:
        self._service = service
        self._scope = scope
        self.group = group
        self._make_receiver = receiver
        self._make_transactions = transactions
        self._handle = handle
        self._dead_letter = dead_letter
        self._retry = retry
        self._clock = ports.clock
        self._entropy = ports.entropy
        self._runtime = ports.runtime
        self._condition = ports.runtime.condition()
        self._emit = emit
        self._budget = budget
        self._pending: dict[TopicPartition, deque[Received]] = {}
        self._held_until_s: dict[TopicPartition, float] = {}
        self._attempts: dict[tuple[TopicPartition, int], int] = {}
        self._paused: set[TopicPartition] = set()
        self._single_left = 0
        self._receiver: Receiver | None = None
        self._transactions: BrokerTransactions | None = None
        self._task: Task | None = None
        self._stopping = False
        self._ended = False
        self._idle = False
        self._limit: int | None = None
        self._partitions: frozenset[TopicPartition] = frozenset()
        self._polled_s: float | None = None
        self._runs = 0
        self._handled = 0
        self._last_error = ""

    def start(self, max_messages: int | None = None) -> None:
        """Start the thread. With ``max_messages`` it stops by itself when so many are handled."""
        self._limit = max_messages
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
            in_flight=sum(map(len, self._pending.values())),
            held=len(self._held_until_s),
            partitions=tuple(sorted(map(str, self._partitions))),
            handled=self.handled,
            runs=self._runs,
        )

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                if self._receiver is None:
                    self._connect()
                membership = self._poll()
                while not self._stopping and self._step(membership):
                    failures = 0
            except BackendError as exc:
                failures += 1
                self._disconnect(exc)
                first, cap = self._budget.backoff_s
                wait_s = min(cap, first * 2.0 ** min(failures - 1, 30)) * (0.5 + 0.5 * self._entropy.uniform())
                with self._condition:
                    if not self._stopping:
                        self._condition.wait(wait_s)
            except Exception as exc:
                self._emit(Alarm(self._service, "", f"atomic handler {self._scope}", f"{type(exc).__name__}: {exc}"))
                self._disconnect(exc)
                with self._condition:
                    if not self._stopping:
                        self._condition.wait(1.0)
        self._leave(orderly=True)
        self._ended = True

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
        self._held_until_s.clear()
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
        if any(self._pending.values()):
            now_s = self._clock.monotonic_s()
            due_s = [self._held_until_s.get(where, now_s) for where, row in self._pending.items() if row]
            wait_s = min(wait_s, max(0.0, min(due_s) - now_s))
        batch = self._receiver.receive(self._budget.pending_max, wait_s)
        self._polled_s = self._clock.monotonic_s()
        self._last_error = ""
        owned = self._partitions = batch.membership.partitions
        for where in [w for w in self._pending if w not in owned or w in batch.lost]:
            del self._pending[where]
            self._held_until_s.pop(where, None)
            self._paused.discard(where)
        if batch.gained or batch.lost:
            self._emit(
                PartitionsChanged(
                    self._service, "", self.group,
                    tuple(map(str, sorted(batch.gained))), tuple(map(str, sorted(batch.lost))),
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
        now_s = self._clock.monotonic_s()
        room = 1 if self._single_left else self._budget.step_messages_max
        chosen: list[Received] = []
        for where, row in self._pending.items():
            if self._held_until_s.get(where, 0.0) <= now_s:
                for received in list(row)[: room - len(chosen)]:
                    chosen.append(received)
            if len(chosen) >= room:
                break
        return chosen

    def _step(self, membership: Membership) -> bool:
        """One broker transaction over pending deliveries; False if there is nothing to do."""
        chosen = self._choose()
        if not chosen:
            return False
        assert self._transactions is not None
        opened = self._transactions.begin()
        try:
            for received in chosen:
                self._runs += 1
                self._handle(received, self._attempt_of(received) + 1, opened.send)
            self._commit(opened, membership, chosen)
        except Exception as exc:
            # What the handler sent may be at fault; any other error of the broker is not its doing.
            if isinstance(exc, BackendError) and not isinstance(exc, MessageRefused | DestinationRefused):
                raise
            opened.abort()
            if len(chosen) > 1:
                # One of them failed; handle each alone so that only that one is held up.
                self._single_left = len(chosen)
            else:
                self._failed(membership, chosen[0], exc)
            return True
        return True

    def _commit(self, opened: BrokerTransaction, membership: Membership, done: Sequence[Received]) -> None:
        positions = {r.position.where: Committed(r.position.offset + 1) for r in done}
        opened.positions(self.group, membership, positions)
        opened.commit()
        for received in done:
            row = self._pending[received.position.where]
            assert row[0] is received
            row.popleft()
            self._attempts.pop((received.position.where, received.position.offset), None)
        self._handled += len(done)
        self._single_left = max(0, self._single_left - len(done))
        if self._limit is not None and self._handled >= self._limit:
            self._stopping = True

    def _attempt_of(self, received: Received) -> int:
        return self._attempts.get((received.position.where, received.position.offset), 0)

    def _failed(self, membership: Membership, received: Received, error: Exception) -> None:
        where = received.position.where
        attempts = self._attempt_of(received) + 1
        self._attempts[(where, received.position.offset)] = attempts
        message_id = received.envelope.id or str(received.position)
        delay_s = self._retry.delay_s(attempts, error, self._entropy.uniform())
        text = f"{type(error).__name__}: {error}"
        if delay_s is not None:
            self._held_until_s[where] = self._clock.monotonic_s() + delay_s
            self._emit(HandlerFailed(self._service, "", self._scope, message_id, attempts, text, delay_s))
            return
        assert self._transactions is not None
        opened = self._transactions.begin()
        opened.send(self._dead_letter(received, attempts, error))
        self._commit(opened, membership, [received])
        self._emit(DeadLettered(self._service, "", self._scope, message_id, attempts, text))
