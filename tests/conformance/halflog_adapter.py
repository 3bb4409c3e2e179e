"""The core's half log behind the SPI's `HalfMessages`, so that the suite's cases run over it.

A `HalfLogClient` is one client of a broker, like a process: each `HalfLogMessages` that it hands
out has a `HalfLogSender`, a `Relay` and a connection to the group's database, put together as a bus
does it. What is invisible, asked about, asked again, published, and by whom, is the half log's doing;
a question leaves it through the checker of the application, with the envelope and the number that the
half log gives.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from tests.conformance.through import Parts, ThroughBackend, ThroughReceiver, World
from txbus._checks import check_all_databases, refuse
from txbus._halflog.ledgerdesk import LedgerDeskBudget
from txbus._halflog.records import half_topic
from txbus._halflog.relay import Relay, RelayBudget
from txbus._halflog.sender import HalfLogSender, HalfSenderBudget
from txbus._halves import Half, HalfId
from txbus._telemetry import Emit
from txbus.conformance import Harness
from txbus.errors import BackendUnavailable, ConfigurationError, DestinationRefused
from txbus.spi import (
    Backend,
    Batch,
    Check,
    Envelope,
    HalfMessages,
    Outcome,
    Ports,
    Receiver,
    Subscription,
    TopicSpec,
)
from txbus.stores.contract import Database, LedgerRow

__all__ = ["AnswerBy", "HalfLogClient", "HalfLogHarness", "HalfLogMessages"]

HALF_PARTITIONS = 2
RELAY_CHECK_AFTER_S = 20.0
"""Passes only when the clock leaps, so no half grows old on a slow machine."""
RELAY_CHECK_INTERVAL_S = 0.05
"""Passes in real time: an answer is taken up by the next question."""
RELAY_POLL_S = 0.01
POLLS = 5
"""What a relay needs to take note of something: the poll in hand may have begun before it, the next
ones take a partition over, read it, and bring their work."""
PATIENCE_S = 30.0
"""For a relay that polls all the time, on a slow machine."""


class AnswerBy(enum.Enum):
    """How an answer reaches the half log.

    LEDGER: as a row of the group's ledger, which the relay finds. CHECKER: as what the
    application's own checker says; its ROLLED_BACK is then fenced in the ledger.
    """

    LEDGER = "ledger"
    CHECKER = "checker"


def half_id(group: str, envelope: Envelope) -> HalfId:
    """An application names its local transactions here, so that a checker knows which one it is."""
    return HalfId(f"{group}/{envelope.id}", 1)


class HalfLogMessages:
    """`HalfMessages` over the half log of a service: the producer group is the service."""

    def __init__(
        self,
        client: HalfLogClient,
        group: str,
        topics: Sequence[str],
        database: Database,
        answer_by: AnswerBy,
        ports: Ports,
        emit: Emit,
        lease_s: float,
    ) -> None:
        """``client`` is open, and the half log's topic exists."""
        self._client = client
        self._group = group
        self._declared = dict.fromkeys(topics)
        self._database = database
        self._answer_by = answer_by
        self._clock = ports.clock
        self._condition = ports.runtime.condition()
        self._questions: dict[HalfId, Check] = {}
        self._answers: dict[HalfId, Outcome] = {}
        topic = half_topic(group)
        self._sender = HalfLogSender(
            client.sender(group), topic, HALF_PARTITIONS, ports, HalfSenderBudget(), frozenset, emit, group
        )
        databases = {database.name: database}
        check_all_databases(group, databases)
        self._relay = Relay(
            group,
            topic,
            HALF_PARTITIONS,
            client,
            databases,
            dict.fromkeys(topics, self._asked),
            ports,
            emit,
            RelayBudget(
                check_after_s=RELAY_CHECK_AFTER_S,
                check_interval_s=RELAY_CHECK_INTERVAL_S,
                poll_s=RELAY_POLL_S,
                lease_s=lease_s,
                # Nobody answers before the case does, and it may take its time.
                desk=LedgerDeskBudget(check_max=1_000_000, confirm_interval_s=RELAY_CHECK_INTERVAL_S),
            ),
            lambda partition, held: database.replace_held(partition, held),
        )
        self._relay.start()

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        """Check and store a half, in the order of a bus. The handle is the `Half`."""
        try:
            refuse(self._client.capabilities, self._client.name, self._declared, envelope, None)
        except ConfigurationError as exc:
            # A bus knows its topics when it opens; the SPI has another word for the same refusal.
            raise DestinationRefused(str(exc)) from exc
        half = Half(
            half_id(self._group, envelope),
            self._database.identity(),
            self._database.name,
            self._clock.wall_s(),
            (envelope,),
        )
        self._sender.check(half)
        self._sender.store(half, timeout_s)
        return half

    def finish(self, handle: object, outcome: Outcome) -> None:
        assert isinstance(handle, Half)
        self._sender.tell(handle, outcome)

    def _asked(self, envelope: Envelope, attempt: int) -> Outcome:
        """The application's own checker, called by the relay's ledger desk."""
        id = half_id(self._group, envelope)
        with self._condition:
            answer = self._answers.get(id)
            if answer is not None:
                return answer
            self._questions[id] = Check(envelope, attempt, id)
            self._condition.notify_all()
        return Outcome.UNKNOWN

    def checks(self, timeout_s: float) -> Sequence[Check]:
        # The relay had its chance to ask: it has read what is stored, and polled on since.
        self._client.wait_polls(PATIENCE_S)
        with self._condition:
            if not self._questions:
                self._condition.wait(timeout_s)
            asked, self._questions = tuple(self._questions.values()), {}
            return asked

    def answer(self, check: Check, outcome: Outcome) -> None:
        assert isinstance(check.handle, HalfId)
        with self._condition:
            # A question from before this answer is answered with it.
            self._questions.pop(check.handle, None)
            if outcome is Outcome.UNKNOWN:
                return
            if self._answer_by is AnswerBy.CHECKER:
                self._answers.setdefault(check.handle, outcome)
                return
        self._database.decide(LedgerRow(check.handle, outcome, self._database.name, 1, self._clock.wall_s()))

    def close(self) -> None:
        self._relay.stop()
        self._sender.close()
        self._database.close()


class _WatchedReceiver(ThroughReceiver):
    """Counts the polls of a relay, and falls silent when its process is dead."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        assert isinstance(self.client, HalfLogClient)
        self.client.check_alive()
        batch = super().receive(max_messages, timeout_s)
        self.client.check_alive()
        self.client.polled()
        return batch

    def close(self) -> None:
        """A dead process does not leave its group: its lease has to run out."""
        assert isinstance(self.client, HalfLogClient)
        if not self.client.dead:
            super().close()


class HalfLogClient(ThroughBackend):
    """A client of a broker without half messages of its own, and the half logs that it takes part in."""

    def __init__(self, inner: Backend, ports: Ports) -> None:
        super().__init__(inner, World(), Parts(receiver=_WatchedReceiver))
        self.dead = False
        self.halves: list[HalfLogMessages] = []
        self._polls = 0
        self._condition = ports.runtime.condition()

    def receiver(self, subscription: Subscription) -> Receiver:
        self.check_alive()
        return super().receiver(subscription)

    def check_alive(self) -> None:
        if self.dead:
            raise BackendUnavailable("the process of this client was killed")

    def polled(self) -> None:
        with self._condition:
            self._polls += 1
            self._condition.notify_all()

    def wait_polls(self, patience_s: float) -> None:
        """Return when the relay has polled a few times more: time goes by for it, too."""
        if self.dead or not self.halves:
            return  # nobody polls
        with self._condition:
            wanted = self._polls + POLLS
            while self._polls < wanted:
                assert self._condition.wait(patience_s), "the relay does not poll any more"

    def killed(self) -> None:
        self.dead = True

    def close(self) -> None:
        for halves in self.halves:
            halves.close()
        self.halves.clear()
        super().close()


class HalfLogHarness(Harness):
    """A sound broker whose half messages are derived by the core."""

    def __init__(self, sound: Harness, database: Callable[[], Database], answer_by: AnswerBy, emit: Emit) -> None:
        """``database`` gives a new client of one database with its tables."""
        super().__init__(sound.ports)
        self._sound = sound
        self._database = database
        self._answer_by = answer_by
        self._emit = emit
        self._clients: list[HalfLogClient] = []
        self.patience_s, self.answer_s = sound.patience_s, sound.answer_s
        self.quiet_s, self.poll_s = sound.quiet_s, sound.poll_s
        self.lease_s, self.transaction_timeout_s = sound.lease_s, sound.transaction_timeout_s
        # A survivor owns the partitions when the lease is over, and counts a half's age from then on.
        self.check_after_s = self.lease_s + RELAY_CHECK_AFTER_S

    def backend(self) -> Backend:
        client = HalfLogClient(self._sound.backend(), self.ports)
        self._clients.append(client)
        return client

    def advance(self, seconds: float) -> None:
        """Leap in slices in which every living relay polls, so that only the dead lose their lease."""
        left_s = seconds
        while left_s > 0:
            step_s = min(left_s, self.lease_s / 4)
            self._sound.advance(step_s)
            left_s -= step_s
            for client in self._clients:
                client.wait_polls(PATIENCE_S)

    def kill(self, backend: Backend) -> None:
        assert isinstance(backend, HalfLogClient)
        backend.killed()

    def half_messages(self, backend: Backend, group: str, topics: Sequence[str]) -> HalfMessages:
        assert isinstance(backend, HalfLogClient)
        spec = TopicSpec(half_topic(group), HALF_PARTITIONS, retention_s=None, internal=True)
        admin = backend.admin()
        admin.create([spec])
        wrong = admin.verify(spec)
        admin.close()
        assert not wrong, wrong
        halves = HalfLogMessages(
            backend, group, topics, self._database(), self._answer_by, self.ports, self._emit, self.lease_s
        )
        backend.halves.append(halves)
        return halves
