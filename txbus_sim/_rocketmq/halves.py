"""Native half messages of the simulated RocketMQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from txbus.errors import SendUnknown
from txbus.spi import Check, Envelope, Outcome
from txbus_sim._rocketmq import wire
from txbus_sim._rocketmq.sender import SEND, patience_ns
from txbus_sim._rocketmq.server import SERVER, RocketmqServer, label, translated
from txbus_sim._world import Process
from txbus_sim.dialects.rocketmq import Producer, Question, ServerStatus
from txbus_sim.dialects.rocketmq_messages import INTERNAL
from txbus_sim.faults import CRASHES, REQUEST, Fault, Faults
from txbus_sim.history import Checked

__all__ = ["SimHalfMessages"]

_S = 1_000_000_000
_PATIENCE_NS = 3 * _S
FINISH: Faults = (*REQUEST, Fault.LATE_END, *SERVER)
CHECKS: Faults = (*CRASHES, Fault.CHECK_LATE, Fault.CHECK_DUPLICATE, Fault.CHECK_MISSING, *SERVER)


@dataclass(frozen=True, slots=True)
class _Handle:
    """What finishes a half."""

    transaction_id: str
    topic: str


class SimHalfMessages:
    """One producer with a checker, its topics announced (`HalfMessages`).

    RocketMQ asks whoever announced a topic; a question of another group is left unanswered, which
    costs that half a round.
    """

    def __init__(
        self,
        server: RocketmqServer,
        process: Process,
        group: str,
        topics: Sequence[str],
        forget: Callable[[object], None],
    ) -> None:
        self._server = server
        self._world = server.world
        self._process = process
        self._group = group
        self._forget = forget
        self._producer = Producer(process.key, frozenset(topics), checker=True)
        self._closed = False
        self._checks_label = label("broker.checks", group)
        process.at_death.append(self.sever)
        self._register()

    def _register(self) -> None:
        """At the start, and anew when the proxy is another one: an old producer is asked nothing."""
        self._server.check_alive(self._process)
        try:
            if not self._closed and not self._server.broker.is_registered(self._producer):
                self._server.broker.register(self._producer, self._world.now_ns)
        except ServerStatus:
            pass  # the proxy is away: the next look finds it

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        """One request. `SendUnknown`: there may be a half that nobody finishes; a check settles it."""
        now_ns = self._world.now_ns
        message = wire.with_group(wire.message_of(envelope, self._server.next_id(), now_ns), self._group)

        def perform() -> str:
            return self._server.broker.prepare(message, self._process.key, self._world.now_ns)

        try:
            transaction_id = self._server.request(
                label("broker.prepare", envelope.topic),
                perform,
                patience_ns=patience_ns(timeout_s),
                faults=SEND,
                unanswered=SendUnknown,
            )
        except ServerStatus as exc:
            raise translated(exc, f"half message to {envelope.topic!r}") from exc
        return _Handle(transaction_id, envelope.topic)

    def finish(self, handle: object, outcome: Outcome) -> None:
        """One request; the broker may never hear of it although the proxy said OK."""
        assert isinstance(handle, _Handle)
        self._end(label("broker.finish", handle.topic), handle.transaction_id, outcome, 0)

    def answer(self, check: Check, outcome: Outcome) -> None:
        """One request; none for UNKNOWN. A second answer to a question changes nothing."""
        question = check.handle
        assert isinstance(question, Question)
        if outcome is Outcome.UNKNOWN:
            self._note_answer(question, outcome)
            return
        self._end(label("broker.answer", check.envelope.topic), question.transaction_id, outcome, question.round)
        self._note_answer(question, outcome)

    def _note_answer(self, question: Question, outcome: Outcome) -> None:
        id = wire.message_id(question.message)
        self._world.history.add(
            Checked(self._world.now_ns, self._process.key, question.transaction_id, id, question.round, outcome)
        )

    def _end(self, name: str, transaction_id: str, outcome: Outcome, round: int) -> None:
        if outcome is Outcome.UNKNOWN:
            return
        broker, world = self._server.broker, self._world
        late_ns: list[int] = []

        def end() -> None:
            broker.end(transaction_id, outcome, self._process.key, world.now_ns, round=round)

        def suffer(fault: Fault) -> None:
            if fault is Fault.LATE_END:
                late_ns.append(world.amount)
            else:
                self._server.suffer(fault)

        def perform() -> None:
            if not late_ns:
                end()
            elif late_ns[0] == 0:
                # The proxy says OK, and its one-way message to the broker is lost.
                broker.end(transaction_id, outcome, self._process.key, world.now_ns, round=round, lost=True)
            else:
                world.pending_at(world.now_ns + late_ns[0], self._late(end))

        try:
            self._server.request(name, perform, patience_ns=_PATIENCE_NS, faults=FINISH, suffer=suffer)
        except ServerStatus as exc:
            if exc.code != INTERNAL:
                raise translated(exc, name) from exc
            # The proxy has forgotten it, or knows the outcome already: a check will ask.

    def _late(self, end: Callable[[], None]) -> Callable[[], None]:
        def come() -> None:
            try:
                end()
            except ServerStatus:
                pass  # too late: the proxy has forgotten it
            self._server.changed()

        return come

    def checks(self, timeout_s: float) -> Sequence[Check]:
        """Questions of the broker; those of other groups are left out."""
        world, producer = self._world, self._producer
        self._register()
        deadline_ns = world.now_ns + patience_ns(timeout_s)
        self._server.wait("a question of the broker", lambda: bool(producer.questions) or self._closed, deadline_ns)
        if not producer.questions:
            world.sleep_ns(1_000_000)
            return ()
        fault = world.enter(self._checks_label, CHECKS)
        # A later question about the same half makes the earlier ones idle: an answer to each of them
        # would deliver the message once more.
        asked = list({one.transaction_id: one for one in producer.questions}.values())
        producer.questions = []
        match fault:
            case Fault.CHECK_MISSING:
                del asked[0]
            case Fault.CHECK_DUPLICATE:
                asked.insert(0, asked[0])
            case Fault.CHECK_LATE:
                world.pending_at(world.now_ns + world.amount, lambda: None)
                world.sleep_ns(world.amount)
            case Fault.FAILOVER | Fault.MEMORY_LOST:
                self._server.suffer(fault)
            case _:
                world.leave(fault)
        return tuple(
            Check(wire.envelope_of(one.message), one.round, one)
            for one in asked
            if one.message.properties.get(wire.GROUP) == self._group
        )

    def close(self) -> None:
        """The broker asks others from now on."""
        if not self._closed:
            self._closed = True
            self.sever()
            self._server.changed()
            self._forget(self)

    def sever(self) -> None:
        """The connection is gone; the broker asks others."""
        self._server.broker.unregister(self._producer)
