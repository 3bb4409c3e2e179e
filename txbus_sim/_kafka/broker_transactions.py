"""Broker transactions of one transactional id, as a client that speaks protocol V1 runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from txbus.errors import (
    BackendError,
    BackendUnavailable,
    CommitUnknown,
    Fenced,
    MessageRefused,
    NotOpen,
    SettingsError,
    StepAborted,
)
from txbus.spi import BrokerTransaction, Committed, Envelope, Membership, TopicPartition
from txbus_sim._kafka.labels import stable
from txbus_sim._kafka.producer import FENCING, Pending, ProducerClient, check_envelope
from txbus_sim._kafka.server import KafkaServer
from txbus_sim._network import LATENCY_NS, request
from txbus_sim._world import Process
from txbus_sim.dialects import kafka
from txbus_sim.dialects.kafka import Cluster, Code, Owner, Refusal
from txbus_sim.faults import REQUEST, Fault, Faults

__all__ = ["SimBrokerTransactions"]

_S = 1_000_000_000
_PATIENCE_NS = 5 * _S
_INIT_RETRY_NS = _S // 2
_END_RETRY_NS = _S // 50
_COORDINATOR_NS = 2 * _S
_NOTE_CHARS_MAX = 1_000
_INIT: Faults = (*REQUEST, Fault.COORDINATOR_FAILOVER, Fault.MARKER_SKIPPED)
_SEND: Faults = (*REQUEST, Fault.DUPLICATE, Fault.FAILOVER, Fault.MARKER_SKIPPED)
_POSITIONS: Faults = (*REQUEST, Fault.DUPLICATE, Fault.COORDINATOR_FAILOVER)
_END: Faults = (*REQUEST, Fault.DUPLICATE, Fault.COORDINATOR_FAILOVER, Fault.LATE_END, Fault.MARKER_SKIPPED)
_FENCE_GROUP = "txbus.fence"


@dataclass(slots=True)
class _Positions:
    group: str
    membership: kafka.Membership
    positions: dict[TopicPartition, Committed] = field(default_factory=dict)


class SimBrokerTransactions:
    """See `txbus.spi.BrokerTransactions`. Point: ``broker.init:ID``."""

    def __init__(
        self,
        server: KafkaServer,
        process: Process,
        transactional_id: str,
        timeout_s: float,
        forget: Callable[[object], None],
    ) -> None:
        self.server = server
        self.world = server.world
        self.process = process
        self.id = transactional_id
        self.label = stable(transactional_id)
        self.broken: CommitUnknown | None = None
        self.unfinished_abort = False
        self._forget = forget
        self._timeout_ns = round(timeout_s * _S)
        self._open: SimBrokerTransaction | None = None
        self._closed = False
        owner = request(
            self.world,
            f"broker.init:{self.label}",
            self._init,
            patience_ns=_PATIENCE_NS,
            unanswered=BackendUnavailable,
            refused=BackendUnavailable,
            faults=_INIT,
            suffer=self.suffer,
        )
        self.producer = ProducerClient(server, process, owner)

    def _init(self) -> Owner:
        """Asked again until the predecessor's broker transaction has ended."""
        give_up_ns = self.world.now_ns + 4 * _PATIENCE_NS
        while True:
            try:
                return self.server.ask(
                    lambda cluster: cluster.transactions.init(self.id, self._timeout_ns, self.world.now_ns)
                )
            except Refusal as exc:
                if exc.code is Code.INVALID_TRANSACTION_TIMEOUT:
                    raise SettingsError(
                        f"broker transaction timeout {self._timeout_ns / _S:g} s: {exc}; the broker allows 900 s"
                    ) from exc
                if exc.code is not Code.CONCURRENT_TRANSACTIONS:
                    raise AssertionError(f"unexpected {exc}") from exc
                if self.world.now_ns >= give_up_ns:
                    raise BackendUnavailable(f"{self.id}: its predecessor is still being ended") from exc
            self.world.sleep_ns(_INIT_RETRY_NS)

    @property
    def owner(self) -> Owner:
        assert self.producer.owner is not None
        return self.producer.owner

    def suffer(self, fault: Fault) -> None:
        """Faults of the broker, at the moment of a request."""
        if fault is Fault.COORDINATOR_FAILOVER:
            self.server.ask(lambda cluster: cluster.transactions.move(self.id, self.world.now_ns))
            self.world.sleep_ns(_COORDINATOR_NS)
        else:
            assert fault is Fault.MARKER_SKIPPED, fault
            self.server.ask(lambda cluster: cluster.transactions.abort_without_markers(self.id))

    def begin(self) -> BrokerTransaction:
        """No request. `Fenced` comes here if an earlier request was told so; else with what follows.
        An abort that was not answered is asked for again first."""
        if self._closed:
            raise NotOpen(f"broker transactions of {self.id!r} are closed")
        assert self._open is None or self._open.ended, "the broker transaction before has not ended"
        if self.producer.fatal is not None:
            raise Fenced(*self.producer.fatal.args) from self.producer.fatal
        if self.broken is not None:
            raise CommitUnknown(f"{self.id}: abandon it and look for evidence: {self.broken}") from self.broken
        if self.unfinished_abort:
            self._open = None
            self.end_request(False, BackendUnavailable)
        self.producer.added.clear()
        self._open = SimBrokerTransaction(self)
        return self._open

    def end_request(self, commit: bool, unanswered: Callable[[str], BackendError]) -> None:
        """EndTxn; asked again while the broker is busy with it. Raises what is to be made of it."""
        label = f"broker.{'commit' if commit else 'abort'}:{self.label}"
        fault = self.world.enter(label, _END)
        self.unfinished_abort = not commit
        match fault:
            case Fault.FAIL:
                raise BackendUnavailable(f"{label}: the broker refused this request")
            case Fault.REQUEST_LOST:
                self.world.sleep_ns(_PATIENCE_NS)
                raise unanswered(f"{label}: no answer")
            case Fault.LATE_END:
                self._end_later(commit, self.world.amount or 2 * _PATIENCE_NS)
                self.world.sleep_ns(_PATIENCE_NS)
                raise unanswered(f"{label}: no answer")
            case Fault.COORDINATOR_FAILOVER | Fault.MARKER_SKIPPED:
                self.suffer(fault)
            case _:
                pass
        self.world.sleep_ns(LATENCY_NS)
        for _ in range(2 if fault is Fault.DUPLICATE else 1):
            self._end(commit)
        if fault is Fault.ANSWER_LOST:
            self.world.sleep_ns(_PATIENCE_NS)
            raise unanswered(f"{label}: no answer")
        self.unfinished_abort = False
        self.world.leave(fault)
        self.world.sleep_ns(LATENCY_NS)

    def _end_later(self, commit: bool, after_ns: int) -> None:
        """The request is on its way, and arrives although nobody waits for it any more."""
        owner, by = self.owner, self.process.key

        def arrive() -> None:
            try:
                self.server.ask(lambda cluster: cluster.transactions.end(owner, commit, by, self.world.now_ns))
            except Refusal:
                pass  # nobody is there to be told

        self.world.pending_at(self.world.now_ns + after_ns, arrive)

    def _end(self, commit: bool) -> None:
        owner, by = self.owner, self.process.key
        while True:
            try:
                self.server.ask(lambda cluster: cluster.transactions.end(owner, commit, by, self.world.now_ns))
                return
            except Refusal as exc:
                if exc.code is Code.CONCURRENT_TRANSACTIONS:
                    self.world.sleep_ns(_END_RETRY_NS)
                    continue
                if exc.code in FENCING:
                    raise self.producer.fence(exc) from exc
                # Somebody else has ended it, one way or the other: fatal for this producer.
                self.broken = CommitUnknown(f"{self.id}: {exc}")
                raise CommitUnknown(f"{self.id}: its broker transaction was ended by another request: {exc}") from exc

    def close(self) -> None:
        """Abort what is open and let go. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._open is not None:
                self._open.abort()
        except BackendError:
            pass  # the broker ends it when its time is over
        self._let_go()

    def abandon(self) -> None:
        """Let go without a word to the broker; no point."""
        self._closed = True
        if self._open is not None:
            self._open.ended = True
        self._let_go()

    def _let_go(self) -> None:
        self.producer.close()
        self._forget(self)


class SimBrokerTransaction:
    """See `txbus.spi.BrokerTransaction`. Points: ``broker.txn-send:ID``, ``broker.positions:ID``,
    ``broker.commit:ID``, ``broker.abort:ID``. Messages travel at once, positions with the commit, so
    that the group is asked about the membership as late as can be."""

    def __init__(self, owner: SimBrokerTransactions) -> None:
        self._owner = owner
        self._world = owner.world
        self._sent: list[Pending] = []
        self._positions: list[_Positions] = []
        self._registered = False
        self.ended = False

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        """Starts at once and is not waited for: what becomes of it is told by `commit`."""
        self._check_running()
        owner = self._owner
        if owner.producer.fatal is not None:
            raise Fenced(*owner.producer.fatal.args) from owner.producer.fatal
        check_envelope(envelope)
        where = owner.producer.place(envelope, partition)
        fault = self._world.enter(f"broker.txn-send:{owner.label}", _SEND)
        if fault is Fault.MARKER_SKIPPED:
            owner.suffer(fault)
        pending = owner.producer.submit(where, (envelope,), fault)
        self._sent.append(pending)
        self._world.leave(fault)
        if fault is Fault.FAIL:
            raise StepAborted(f"{owner.id}: the broker refused a record for {where}; abort and begin again")

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        """Kept until the commit."""
        self._check_running()
        for where, committed in positions.items():
            if len(committed.note) > _NOTE_CHARS_MAX:
                raise MessageRefused(
                    f"note of {len(committed.note)} characters at {where}; the limit is {_NOTE_CHARS_MAX}"
                )
        token = membership.token
        if not isinstance(token, kafka.Membership) or not token.member:
            raise Fenced(f"group {group!r}: the membership was lost, or is of another broker; nothing was committed")
        not_owned = sorted(set(positions) - membership.partitions)
        if not_owned:
            # The broker would take them: it fences the membership and never the ownership.
            raise Fenced(f"group {group!r}: {not_owned[0]} is not in this membership; nothing was committed")
        self._positions.append(_Positions(group, token, dict(positions)))

    def commit(self) -> None:
        """Flush, positions, EndTxn. After an error nothing of it is visible, but for `CommitUnknown`."""
        self._check_running()
        owner = self._owner
        try:
            self._flush()
            if not self._sent and not self._positions:
                self._look_for_fence()
            self._send_all_positions()
            if self._registered or owner.producer.added:
                owner.end_request(True, CommitUnknown)
        except CommitUnknown as exc:
            self.ended = True
            owner.broken = exc
            raise
        except Fenced:
            self._give_up()
            raise
        except (MessageRefused, StepAborted):
            self._give_up()
            raise
        except BackendError as exc:
            self._give_up()
            raise StepAborted(f"{owner.id}: {exc}") from exc
        self.ended = True

    def _give_up(self) -> None:
        """Abort on the way to another error, which is the one to be told."""
        try:
            self.abort()
        except BackendError:
            pass  # `begin` asks again

    def _flush(self) -> None:
        deadline_ns = self._world.now_ns + _PATIENCE_NS
        for pending in self._sent:
            if not self._owner.producer.wait(pending, deadline_ns):
                raise StepAborted(f"{self._owner.id}: a record for {pending.where} was not acknowledged in time")
            pending.raise_error()

    def _send_all_positions(self) -> None:
        while self._positions:
            self._send_positions(self._positions.pop(0))

    def _send_positions(self, one: _Positions) -> None:
        owner = self._owner

        def perform() -> None:
            self._registered = True
            self._asked(
                lambda cluster: cluster.send_offsets(
                    owner.owner, one.group, one.membership, one.positions, self._world.now_ns
                )
            )

        request(
            self._world,
            f"broker.positions:{owner.label}",
            perform,
            patience_ns=_PATIENCE_NS,
            unanswered=StepAborted,
            refused=StepAborted,
            faults=_POSITIONS,
            suffer=owner.suffer,
        )

    def _look_for_fence(self) -> None:
        """The client library would end an empty one without a request and not notice a newer owner; so
        a group of its own is registered with the broker transaction, which the coordinator checks."""
        self._asked(
            lambda cluster: cluster.transactions.add_offsets(self._owner.owner, _FENCE_GROUP, self._world.now_ns)
        )
        self._registered = True

    def _asked(self, ask: Callable[[Cluster], None]) -> None:
        owner = self._owner
        while True:
            try:
                owner.server.ask(ask)
                return
            except Refusal as exc:
                if exc.code is Code.CONCURRENT_TRANSACTIONS:
                    self._world.sleep_ns(_END_RETRY_NS)
                    continue
                if exc.code in FENCING:
                    raise owner.producer.fence(exc) from exc
                if exc.code in (Code.ILLEGAL_GENERATION, Code.UNKNOWN_MEMBER_ID):
                    raise Fenced(f"{owner.id}: the group has moved on; nothing was committed: {exc}") from exc
                raise StepAborted(f"{owner.id}: {exc}") from exc

    def _check_running(self) -> None:
        if self.ended:
            raise NotOpen(f"this broker transaction of {self._owner.id!r} has ended")

    def abort(self) -> None:
        """`BackendUnavailable` if no answer came: `begin` asks again. Positions that were given are sent
        first: only a marker in the group's log ends what a lost marker left pending there."""
        if self.ended:
            return
        self.ended = True
        owner = self._owner
        owner.producer.purge()
        try:
            self._send_all_positions()
        except BackendError:
            pass  # the group is registered, or the owner fenced; nobody wants the positions themselves
        if owner.producer.fatal is not None or not (self._registered or owner.producer.added):
            return
        try:
            owner.end_request(False, BackendUnavailable)
        except Fenced:
            pass  # the newer owner has aborted it
