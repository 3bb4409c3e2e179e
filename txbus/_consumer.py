"""Runs one handler scope: one polling thread, some workers, order per key.

The polling thread is the only one that talks to the receiver (except `Receiver.wake`) and never
runs a handler, so a slow handler cannot cost the lease. Workers take records from lanes
(`txbus._consumer_lanes`) under one condition; what they finish is acknowledged by the polling
thread in batches: at once when nothing is left to do, else after ``ack_batch`` records or
``ack_delay_s``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import assert_never

from txbus._consumer_contract import ConsumerHealth, Disposition, Done, GiveBack, Handle, RetryAfter
from txbus._consumer_lanes import Lanes, Work
from txbus._consumer_limit import DeliveryLimit
from txbus._consumer_poll import Poller
from txbus._ports import Ports, Task
from txbus._telemetry import Alarm, Emit
from txbus.errors import NotOpen, SettingsError
from txbus.spi import Receiver

__all__ = ["Consumer", "ConsumerBudget"]


@dataclass(frozen=True, slots=True)
class ConsumerBudget:
    """What one consumer may use.

    ``workers``: handlers that run at once. ``max_in_flight`` and ``max_in_flight_per_partition``:
    records received and not finished; a full one pauses its partitions until an eighth of it is free.
    Records that wait behind a key under retry count too. ``receive_max``: records of one poll.
    ``poll_s``: the longest wait of a poll, and so the heartbeat; it must be well below the lease.
    ``ack_batch`` and ``ack_delay_s``: how long finished records may wait to be acknowledged while
    others are running. ``backoff_s``: first wait and cap after a failure of the broker, with jitter;
    after ``rebuild_after`` failures in a row the receiver is built anew.
    """

    workers: int = 4
    max_in_flight: int = 512
    max_in_flight_per_partition: int = 256
    receive_max: int = 256
    poll_s: float = 0.5
    ack_batch: int = 128
    ack_delay_s: float = 0.05
    backoff_s: tuple[float, float] = (0.1, 10.0)
    rebuild_after: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = 1 if field.type == "int" else 0.0
            if field.name != "backoff_s" and not (low <= value <= 10_000_000 and value > 0):
                least = low or "more than 0"
                raise SettingsError(f"ConsumerBudget: {field.name}={value} must be {least} to 10,000,000")
        if not 0.0 < self.backoff_s[0] <= self.backoff_s[1]:
            raise SettingsError(f"ConsumerBudget: backoff_s={self.backoff_s} must be 0 < first <= cap")


class Consumer:
    """Consumes for one scope, from `start` to `stop`. Thread-safe.

    ``make_receiver`` is called in the polling thread, again whenever the receiver has to be replaced.
    With ``native_redelivery`` a keyless message that failed waits at the broker, else in memory,
    as those with a key always do. Order: messages of one partition and key run one after the other,
    also while one of them is retried. A crash loses nothing: whatever was not acknowledged comes again.
    """

    def __init__(
        self,
        *,
        make_receiver: Callable[[], Receiver],
        handle: Handle,
        ports: Ports,
        emit: Emit,
        service: str,
        scope: str,
        group: str,
        budget: ConsumerBudget,
        native_redelivery: bool,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """``ended`` is called by its thread when it has ended, by itself or because it was asked."""
        self.scope = scope
        self.group = group
        self.budget = budget
        self._handle = handle
        self._ports = ports
        self._emit = emit
        self._service = service
        self._native_redelivery = native_redelivery
        self._lanes = Lanes()
        self._work_to_do = ports.runtime.condition()
        self._waiting = 0
        self._handled = 0
        self._runs = 0
        self._limit: DeliveryLimit | None = None
        self._tasks: list[Task] = []
        self._interrupt: BaseException | None = None
        self._worker_error = ""
        self._poller = Poller(
            make_receiver=make_receiver,
            lanes=self._lanes,
            guard=self._work_to_do,
            offer=self._offer,
            ports=ports,
            emit=emit,
            service=service,
            scope=scope,
            group=group,
            budget=budget,
            on_end=ended,
        )

    def start(self, limit: DeliveryLimit | None = None) -> None:
        """Start the threads. With a ``limit`` it stops by itself when that is over."""
        with self._work_to_do:
            if self._tasks:
                raise NotOpen(f"the consumer of scope {self.scope!r} was started before; make a new one")
            self._limit = limit
            if limit is not None:
                limit.join(self._limit_changed)
            spawn = self._ports.runtime.spawn
            self._tasks = [spawn(self._poller.run, f"txbus-{self.scope}-poll")]
            self._tasks += [spawn(self._work, f"txbus-{self.scope}-{n}") for n in range(self.budget.workers)]
        if limit is not None and limit.over:
            self.stop()

    def stop(self) -> None:
        """Ask it to stop, and return at once. Idempotent; also from a handler.

        Handlers that run finish and are acknowledged; whatever waits is left to the next owner.
        """
        self._poller.stop()
        with self._work_to_do:
            self._work_to_do.notify_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until all its threads ended; False when the time is over first."""
        clock = self._ports.clock
        if timeout_s is None:
            return all(task.join(None) for task in self._tasks)
        end_s = clock.monotonic_s() + timeout_s
        return all(task.join(max(0.0, end_s - clock.monotonic_s())) for task in self._tasks)

    def idle(self) -> bool:
        """Nothing is in flight, acknowledgements included, and the last poll brought nothing."""
        return self._poller.idle()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until it is idle or has ended; False when the time is over first."""
        return self._poller.wait_idle(timeout_s)

    @property
    def handled(self) -> int:
        """Deliveries finished in this process: effects, suppressed duplicates, dead letters."""
        return self._handled

    @property
    def runs(self) -> int:
        """How often the handle was called."""
        return self._runs

    @property
    def interrupt(self) -> BaseException | None:
        """The KeyboardInterrupt or SystemExit of a handler, which stopped this consumer."""
        return self._interrupt

    def health(self) -> ConsumerHealth:
        with self._work_to_do:
            polled_s, error, ended = self._poller.polled_s, self._poller.error, self._poller.ended
            return ConsumerHealth(
                scope=self.scope,
                group=self.group,
                running=bool(self._tasks) and not ended,
                error=error or self._worker_error,
                polled_ago_s=None if polled_s is None else self._ports.clock.monotonic_s() - polled_s,
                in_flight=self._lanes.unfinished,
                held=self._lanes.held,
                partitions=tuple(sorted(str(where) for where in self._lanes.shares)),
                handled=self._handled,
                runs=self._runs,
            )

    # the workers

    def _offer(self, ready: int) -> None:
        """Wake as many waiting workers as there is work for; called under the condition."""
        if self._waiting:
            self._work_to_do.notify(min(ready, self._waiting))

    def _work(self) -> None:
        try:
            self._run_lanes()
        except Exception as exc:
            # A defect of this module: what is queued may be in disorder, so nothing more is run.
            self._worker_error = f"{type(exc).__name__}: {exc}"
            self._alarm("a worker failed; the consumer stops", repr(exc))
            self.stop()

    def _alarm(self, what: str, detail: str) -> None:
        self._emit(Alarm(self._service, "", what, f"scope {self.scope}: {detail}"))

    def _run_lanes(self) -> None:
        work: Work | None = None
        disposition: Disposition = Done()
        while True:
            if work is not None and self._limit is not None:
                finished = isinstance(disposition, Done)
                self._limit.settle(finished=int(finished), unfinished=int(not finished))
            with self._work_to_do:
                wake = work is not None and self._settle(work, disposition)
                work = None if wake else self._next()
            if wake:
                self._poller.wake()
            elif work is None:
                return
            else:
                disposition = self._run(work)

    def _next(self) -> Work | None:
        """The next record, waiting for one; None when it is time to end."""
        lanes, condition, clock = self._lanes, self._work_to_do, self._ports.clock
        while not self._poller.stopping:
            due_s = lanes.next_due_s
            now_s = 0.0 if due_s is None else clock.monotonic_s()
            if due_s is not None and due_s <= now_s:
                lanes.release(now_s)
                due_s = lanes.next_due_s
            work = self._take()
            if work is not None:
                self._runs += 1
                if self._waiting and (lanes.ready or due_s is not None):
                    # Somebody else looks after the rest: what is ready, and what will be due.
                    self._offer(1)
                return work
            self._waiting += 1
            try:
                condition.wait(None if due_s is None else max(0.0, due_s - now_s))
            finally:
                self._waiting -= 1
        return None

    def _take(self) -> Work | None:
        """A record that is ready, and that the limit allows to run."""
        if self._limit is not None and not (self._lanes.available() and self._limit.take()):
            return None
        return self._lanes.take()

    def _limit_changed(self) -> None:
        assert self._limit is not None
        if self._limit.over:
            self.stop()
        else:
            with self._work_to_do:
                self._work_to_do.notify_all()

    def _run(self, work: Work) -> Disposition:
        try:
            return self._handle(work.received, work)
        except Exception as exc:
            self._worker_error = f"{type(exc).__name__}: {exc}"
            self._alarm("handling failed", f"{work.received.position}: {exc!r}")
            return GiveBack(self._poller.backoff_s(work.given_back + 1))
        except BaseException as exc:
            # KeyboardInterrupt or SystemExit in a handler: nothing is acknowledged, all stops.
            self._interrupt = exc
            self._worker_error = f"{type(exc).__name__}: {exc}"
            self._alarm("a handler stopped its consumer", f"{work.received.position}: {exc!r}")
            self.stop()
            return GiveBack(0.0)

    def _settle(self, work: Work, disposition: Disposition) -> bool:
        """Note what became of a run; True if the polling thread should look now."""
        match disposition:
            case Done():
                self._handled += 1
                self._worker_error = ""
                if self._lanes.finish(work):
                    self._poller.acknowledge(work)
            case RetryAfter(delay_s):
                work.failed += 1
                work.given_back = 0
                if work.received.envelope.key is None and self._native_redelivery:
                    if self._lanes.finish(work):
                        self._poller.redeliver(work, delay_s)
                else:
                    self._hold(work, delay_s)
            case GiveBack(after_s):
                work.given_back += 1
                self._hold(work, after_s)
            case _:
                assert_never(disposition)
        return self._poller.wants_look(work)

    def _hold(self, work: Work, after_s: float) -> None:
        self._lanes.hold(work, self._ports.clock.monotonic_s() + after_s)
        # This worker may be busy when it is due; one that waits must know the time.
        self._offer(1)
