"""The polling thread of a consumer: the only one that talks to the receiver.

It polls, queues what came, pauses what is full, acknowledges what is finished and builds the
receiver anew when it must. It ends only when asked to: whatever else goes wrong is an alarm and
another try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from txbus._consumer_lanes import Lanes, Work
from txbus._message import TopicPartition
from txbus._ports import Condition, Ports
from txbus._telemetry import Alarm, Emit, FencedOff, PartitionsChanged, Reconnected
from txbus.errors import BackendUnavailable, Fenced
from txbus.spi import Batch, Receiver

__all__ = ["PollBudget", "Poller"]


def _low(most: int) -> int:
    """How many may be left in a full window of ``most`` when it is opened again."""
    return most - max(1, most // 8)


class PollBudget(Protocol):
    """The part of a consumer's budget that polling needs; see `ConsumerBudget`."""

    @property
    def max_in_flight(self) -> int: ...
    @property
    def max_in_flight_per_partition(self) -> int: ...
    @property
    def receive_max(self) -> int: ...
    @property
    def poll_s(self) -> float: ...
    @property
    def ack_batch(self) -> int: ...
    @property
    def ack_delay_s(self) -> float: ...
    @property
    def backoff_s(self) -> tuple[float, float]: ...
    @property
    def rebuild_after(self) -> int: ...


class Poller:
    """Feeds the lanes from a receiver and acknowledges what is finished.

    ``guard`` protects the lanes and whatever is marked "under the guard"; ``offer`` wakes workers,
    under it too. `run` is the thread's function.
    """

    def __init__(
        self,
        *,
        make_receiver: Callable[[], Receiver],
        lanes: Lanes,
        guard: Condition,
        offer: Callable[[int], None],
        ports: Ports,
        emit: Emit,
        service: str,
        scope: str,
        group: str,
        budget: PollBudget,
        on_end: Callable[[], None],
    ) -> None:
        self.stopping = False
        self.ended = False
        self.error = ""
        self.polled_s: float | None = None
        self._make_receiver = make_receiver
        self._lanes = lanes
        self._guard = guard
        self._offer = offer
        self._ports = ports
        self._emit = emit
        self._service = service
        self._scope = scope
        self._group = group
        self._budget = budget
        self._on_end = on_end
        self._receiver: Receiver | None = None
        self._replaced = ""
        # Finished by workers, under the guard; then the polling thread's own until the broker has it.
        self._finished: list[Work] = []
        self._returned: list[tuple[Work, float]] = []
        self._unacked: list[Work] = []
        self._unreturned: list[tuple[Work, float]] = []
        self._ack_due_s: float | None = None
        self._receiving = False
        self._full = False
        self._choked = False
        # A message given back to the broker is nowhere in flight, yet it will come again.
        self._quiet_from_s = 0.0
        self._idle = False
        # Stop, idleness and the end are waited for here, so that no worker's wake-up is taken away.
        self._changed = ports.runtime.condition()

    # for the workers, under the guard

    def acknowledge(self, work: Work) -> None:
        self._finished.append(work)

    def redeliver(self, work: Work, after_s: float) -> None:
        self._returned.append((work, after_s))
        self._quiet_from_s = max(self._quiet_from_s, self._ports.clock.monotonic_s() + after_s)

    def wants_look(self, stopped: Work) -> bool:
        """Should a poll that waits be ended now that this run has stopped? Answers True once for each
        poll."""
        if self.stopping and self._lanes.running == 0:
            self._guard.notify_all()
        if not self._receiving:
            return False
        pending = len(self._finished) + len(self._returned)
        if not (
            pending == 1
            or pending >= self._budget.ack_batch
            or self._lanes.unfinished == 0
            or (self._full and self._made_room(stopped))
            or (self.stopping and self._lanes.running == 0)
        ):
            return False
        self._receiving = False
        return True

    # from any thread

    def wake(self) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        try:
            receiver.wake()
        except Exception as exc:
            # It costs at most one poll's wait; a worker must not end for it.
            self._alarm("waking a receiver failed", repr(exc))

    def stop(self) -> None:
        self.stopping = True
        self.wake()
        with self._changed:
            self._changed.notify_all()

    def idle(self) -> bool:
        return self._idle

    def wait_idle(self, timeout_s: float) -> bool:
        clock = self._ports.clock
        end_s = clock.monotonic_s() + timeout_s
        with self._changed:
            while not (self._idle or self.ended):
                left_s = end_s - clock.monotonic_s()
                if left_s <= 0.0:
                    return False
                self._changed.wait(left_s)
        return True

    def backoff_s(self, failures: int) -> float:
        first_s, cap_s = self._budget.backoff_s
        wait_s = min(cap_s, first_s * 2.0 ** min(failures - 1, 60))
        return wait_s * (1.0 - 0.5 * self._ports.entropy.uniform())

    # the polling thread

    def run(self) -> None:
        failures = 0
        while True:
            try:
                if self._turn():
                    break
                failures = 0
                continue
            except BackendUnavailable as exc:
                failures += 1
                self.error = f"{type(exc).__name__}: {exc}"
                if self._receiver is None or failures % self._budget.rebuild_after == 0:
                    self._drop_receiver(self.error)
            except Fenced as exc:
                failures += 1
                self.error = f"{type(exc).__name__}: {exc}"
                self._emit(FencedOff(self._service, "", f"consumer group {self._group}", str(exc)))
                self._drop_receiver(self.error)
            except Exception as exc:
                failures += 1
                self.error = f"{type(exc).__name__}: {exc}"
                self._alarm("polling failed", f"{exc!r}; the receiver is built anew")
                self._drop_receiver(self.error)
            if self.stopping and self._lanes.running == 0:
                break
            self._rest(self.backoff_s(failures))
        self._end()

    def _turn(self) -> bool:
        """One round: acknowledge, pause or resume, poll, queue. True when it is time to end."""
        receiver = self._receiver
        if receiver is None:
            receiver = self._receiver = self._make_receiver()
            if self._replaced:
                self._emit(Reconnected(self._service, "", f"consumer group {self._group}", self._replaced))
                self._replaced = ""
        with self._guard:
            if self.stopping:
                self._lanes.close()
            self._collect()
        self._tell(receiver)
        with self._guard:
            if self.stopping and self._lanes.running == 0 and not self._finished:
                return True
            pause, resume = self._adjust()
        if pause:
            receiver.pause(pause)
        if resume:
            receiver.resume(resume)
        with self._guard:
            room = max(1, min(self._budget.receive_max, self._budget.max_in_flight - self._lanes.unfinished))
            timeout_s = self._patience_s()
            self._receiving = timeout_s > 0.0
        began_s = self._ports.clock.monotonic_s()
        try:
            batch = receiver.receive(room, timeout_s)
        finally:
            self._receiving = False
        self._accept(batch, began_s)
        if batch.gained:
            # One that was paused when it was lost may come back paused.
            receiver.resume(batch.gained)
        return False

    def _collect(self) -> None:
        """Take over what is due to be acknowledged; under the guard."""
        if self._finished and self._ack_wait_s() <= 0.0:
            self._unacked += self._finished
            self._finished = []
            self._ack_due_s = None
        self._unreturned += self._returned
        self._returned = []

    def _ack_wait_s(self) -> float:
        """How long what is finished may still wait for company; under the guard."""
        now_s = self._ports.clock.monotonic_s()
        if self._ack_due_s is None:
            self._ack_due_s = now_s + self._budget.ack_delay_s
        if len(self._finished) >= self._budget.ack_batch or self._lanes.unfinished == 0 or self.stopping:
            return 0.0
        return max(0.0, self._ack_due_s - now_s)

    def _tell(self, receiver: Receiver) -> None:
        """Acknowledge and give back. What the broker did not take stays for the next round."""
        mine = [work for work in self._unacked if not work.share.lost]
        self._unacked = mine
        if mine:
            try:
                receiver.ack([work.received for work in mine])
            except Fenced:
                # One lost partition must not cost the others their acknowledgement.
                for where in sorted({work.share.where for work in mine}):
                    self._ack_partition(receiver, where, [w for w in mine if w.share.where == where])
            self._unacked = []
        while self._unreturned:
            work, after_s = self._unreturned[0]
            if not work.share.lost:
                try:
                    receiver.redeliver(work.received, after_s)
                except Fenced as exc:
                    self._fenced_off(work.share.where, exc)
            self._unreturned.pop(0)

    def _ack_partition(self, receiver: Receiver, where: TopicPartition, works: list[Work]) -> None:
        try:
            receiver.ack([work.received for work in works])
        except Fenced as exc:
            self._fenced_off(where, exc)

    def _fenced_off(self, where: TopicPartition, exc: Fenced) -> None:
        self._emit(FencedOff(self._service, "", f"{where} of consumer group {self._group}", str(exc)))
        with self._guard:
            self._lanes.lose((where,))

    def _adjust(self) -> tuple[frozenset[TopicPartition], frozenset[TopicPartition]]:
        """What to pause because it is full and what to resume; under the guard.

        An eighth must be free before a full one is resumed, so that it does not flutter; not more,
        because records held behind a key may keep the rest for long.
        """
        shares = self._lanes.shares
        all_most, most = self._budget.max_in_flight, self._budget.max_in_flight_per_partition
        self._choked = self._lanes.unfinished >= (_low(all_most) + 1 if self._choked else all_most)
        shut = self._choked or self.stopping
        full = {
            where
            for where, share in shares.items()
            if shut or share.unfinished >= (_low(most) + 1 if share.paused else most)
        }
        pause = frozenset(where for where in full if not shares[where].paused)
        resume = frozenset(where for where, share in shares.items() if share.paused and where not in full)
        for where in pause | resume:
            shares[where].paused = where in pause
        self._full = bool(full)
        return pause, resume

    def _made_room(self, stopped: Work) -> bool:
        """Can a paused partition be resumed because this run has stopped? Under the guard."""
        if self._choked:
            return self._has_room()
        share = stopped.share
        return share.paused and share.unfinished <= _low(self._budget.max_in_flight_per_partition)

    def _has_room(self) -> bool:
        """Has a paused partition enough room to be resumed? Under the guard."""
        if self._choked and self._lanes.unfinished > _low(self._budget.max_in_flight):
            return False
        low = _low(self._budget.max_in_flight_per_partition)
        return any(share.paused and share.unfinished <= low for share in self._lanes.shares.values())

    def _patience_s(self) -> float:
        """How long the next poll may wait; under the guard."""
        if self.stopping and self._lanes.running == 0:
            return 0.0
        if self._returned or (self._full and self._has_room()):
            # Since they were looked at in this round; no worker could wake a poll that had not begun.
            return 0.0
        if self._finished:
            return min(self._budget.poll_s, self._ack_wait_s())
        return self._budget.poll_s

    def _accept(self, batch: Batch, began_s: float) -> None:
        """Take note of a poll: first what was lost, then what was gained, then the records."""
        lanes = self._lanes
        with self._guard:
            self.polled_s = self._ports.clock.monotonic_s()
            self.error = ""
            owned = batch.membership.partitions
            lost = lanes.lose([*batch.lost, *(where for where in lanes.shares if where not in owned)])
            for where in batch.gained:
                lanes.gain(where)
            if not self.stopping:
                for received in batch.received:
                    lanes.add(received)
                if batch.received:
                    self._offer(len(batch.received))
            quiet = not (
                batch.received
                or batch.gained
                or lanes.unfinished
                or self._finished
                or self._unacked
                or self._unreturned
                or self._returned
            )
        if lost or batch.gained:
            self._note_partitions(batch.gained, lost)
        self._note_idle(quiet and began_s >= self._quiet_from_s)

    def _note_partitions(self, gained: Iterable[TopicPartition], lost: Iterable[TopicPartition]) -> None:
        self._emit(
            PartitionsChanged(
                self._service,
                "",
                self._group,
                tuple(str(where) for where in sorted(gained)),
                tuple(str(where) for where in sorted(lost)),
            )
        )

    def _note_idle(self, idle: bool) -> None:
        if idle != self._idle:
            with self._changed:
                self._idle = idle
                self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        """Wait before the next try; a stop ends it, running handlers are then waited for in turns."""
        self._note_idle(False)
        with self._changed:
            if not self.stopping:
                self._changed.wait(seconds)
                return
        # Asked to stop while the broker is away: there is nothing to do until the last handler is done.
        with self._guard:
            if self._lanes.running:
                self._guard.wait(seconds)

    def _drop_receiver(self, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        self._replaced = reason
        with self._guard:
            lost = self._lanes.lose(list(self._lanes.shares))
            self._finished = []
            self._returned = []
            self._ack_due_s = None
            self._full = self._choked = False
        self._unacked = []
        self._unreturned = []
        self._close(receiver)
        if lost:
            self._note_partitions((), lost)

    def _close(self, receiver: Receiver | None) -> None:
        if receiver is None:
            return
        try:
            receiver.close()
        except Exception as exc:
            self._alarm("closing a receiver failed", repr(exc))

    def _end(self) -> None:
        receiver, self._receiver = self._receiver, None
        self._close(receiver)
        with self._guard:
            self._lanes.lose(list(self._lanes.shares))
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        self._on_end()

    def _alarm(self, what: str, detail: str) -> None:
        self._emit(Alarm(self._service, "", what, f"scope {self._scope}: {detail}"))
