"""What goes wrong between a process and the simulated RocketMQ, fault by fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest

from txbus.errors import BackendUnavailable, DestinationRefused, Fenced, NotOpen, SendUnknown
from txbus.spi import Batch, Check, Envelope, HalfMessages, Outcome, Receiver, Subscription, TopicKind, TopicSpec
from txbus_sim._rocketmq.backend import SimRocketmqBackend
from txbus_sim._rocketmq.server import SIMULATED, RocketmqServer
from txbus_sim._world import Process, ProcessSpec, World, current_process
from txbus_sim.faults import Faults
from txbus_sim.history import Checked, Delivered, HalfStored, Record, Settled, Visible
from txbus_sim.schedule import Address, Deviation

S = 1_000_000_000
COMMITTED, ROLLED_BACK, UNKNOWN = Outcome.COMMITTED, Outcome.ROLLED_BACK, Outcome.UNKNOWN


@dataclass
class Run:
    """A world with RocketMQ: `process` declares, `go` runs under deviations and gives the history."""

    mains: list[tuple[str, Callable[[], object], float | None]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def process(self, name: str, main: Callable[[], object], restart_s: float | None = 1.0) -> None:
        self.mains.append((name, main, restart_s))

    def go(self, *deviations: str) -> list[Record]:
        wanted = {one.address: one for one in map(Deviation.parse, deviations)}
        missing = set(wanted)

        def tape(process: str, label: str, number: int, faults: Faults) -> Deviation | None:
            address = Address(process, label, number)
            missing.discard(address)
            return wanted.get(address)

        world = World(tape)
        server = RocketmqServer(world)
        server.create_topic("half", 1)
        self.server = server
        for name, main, restart_s in self.mains:
            restart_ns = None if restart_s is None else round(restart_s * S)
            world.start(ProcessSpec(name, partial(_call, main), restart_ns, self._raised))
        world.run()
        world.close()
        self.world = world
        world.free()
        assert not missing, f"never reached: {missing}"
        return list(world.history)

    def _raised(self, process: Process, error: BaseException) -> None:
        self.errors.append(error)


def _call(main: Callable[[], object], process: Process) -> object:
    return main()


@pytest.fixture
def run() -> Run:
    return Run()


def backend() -> SimRocketmqBackend:
    made = SimRocketmqBackend()
    made.open()
    return made


def here() -> Process:
    process = current_process()
    assert process is not None
    return process


def sleep(seconds: float) -> None:
    here().world.sleep_ns(round(seconds * S))


def message(text: str, topic: str = "half") -> Envelope:
    return Envelope(topic, text.encode(), None, {"ce_id": text})


def halves_of(service: str = "shop") -> HalfMessages:
    return backend().half_messages(service, ["half"])


def answering(halves: HalfMessages, outcome: Outcome, times: int = 1, *, asked: list[Check] | None = None) -> None:
    """Answer this many questions; `asked` gets them."""
    while times > 0:
        for check in halves.checks(5.0):
            if asked is not None:
                asked.append(check)
            halves.answer(check, outcome)
            times -= 1


def of(history: list[Record], *kinds: type) -> list[Record]:
    return [one for one in history if type(one) in kinds]


def visible(history: list[Record]) -> list[str]:
    return [one.message_id for one in history if isinstance(one, Visible)]


# half messages


def test_without_faults_nobody_is_asked(run: Run) -> None:
    """Prepared and finished: visible once, no question, and the run ends."""

    def main() -> None:
        halves = halves_of()
        halves.finish(halves.prepare(message("a"), 1.0), COMMITTED)
        assert halves.checks(10.0) == ()

    run.process("p", main)
    history = run.go()
    assert not run.errors and visible(history) == ["a"] and not of(history, Checked)


def test_a_prepare_that_was_answered_late_leaves_an_orphan(run: Run) -> None:
    """SendUnknown; the half is there, and only its question settles it."""

    def main() -> None:
        halves = halves_of()
        with pytest.raises(SendUnknown):
            halves.prepare(message("a"), 1.0)
        answering(halves, ROLLED_BACK)

    run.process("p", main)
    history = run.go("p/broker.prepare:half#1 answer-lost")
    assert not run.errors and not visible(history)
    assert len(of(history, HalfStored)) == 1 and len(of(history, Settled)) == 1


def test_a_prepare_that_the_client_repeats_is_two_halves(run: Run) -> None:
    """The second is finished; the first is asked about, and COMMITTED delivers a second time."""

    def main() -> None:
        halves = halves_of()
        halves.finish(halves.prepare(message("a"), 1.0), COMMITTED)
        answering(halves, COMMITTED)

    run.process("p", main)
    history = run.go("p/broker.prepare:half#1 duplicate")
    assert not run.errors and len(of(history, HalfStored)) == 2 and visible(history) == ["a", "a"]


@pytest.mark.parametrize("fault", ["request-lost", "fail", "late-end", "crash-before", "failover"])
def test_an_outcome_that_never_arrives_is_asked_about(run: Run, fault: str) -> None:
    """Whatever became of finish(), the question comes, to the restarted process if need be."""

    def main() -> None:
        halves = halves_of()
        if here().incarnation == 0:
            try:
                halves.finish(halves.prepare(message("a"), 1.0), COMMITTED)
            except BackendUnavailable:
                pass
        answering(halves, COMMITTED)

    run.process("p", main)
    history = run.go(f"p/broker.finish:half#1 {fault}")
    assert not run.errors and visible(history) == ["a"]
    assert len([one for one in history if isinstance(one, Checked) and one.answer is COMMITTED]) == 1


def test_an_outcome_that_arrives_late_doubles(run: Run) -> None:
    """It arrives after a question was answered COMMITTED: two deliveries, as on the real broker."""

    def main() -> None:
        halves = halves_of()
        halves.finish(halves.prepare(message("a"), 1.0), COMMITTED)
        answering(halves, COMMITTED)
        sleep(10)

    run.process("p", main)
    assert visible(run.go("p/broker.finish:half#1 late-end 8s")) == ["a", "a"]


def test_a_killed_broker_asks_about_what_was_acknowledged(run: Run) -> None:
    """The outcome is a moment old when the broker dies: it is asked about again."""

    def main() -> None:
        halves = halves_of()
        halves.finish(halves.prepare(message("a"), 1.0), COMMITTED)
        with pytest.raises(BackendUnavailable):
            halves.prepare(message("b"), 1.0)
        answering(halves, COMMITTED)

    run.process("p", main)
    history = run.go("p/broker.prepare:half#2 memory-lost")
    assert not run.errors and visible(history) == ["a", "a"]


def test_a_restarted_proxy_asks_again_after_a_look(run: Run) -> None:
    """Old producers are asked nothing; the backend registers anew when it looks for questions."""

    def main() -> None:
        halves = halves_of()
        halves.prepare(message("a"), 1.0)
        with pytest.raises(BackendUnavailable):
            halves.prepare(message("b"), 1.0)
        answering(halves, COMMITTED)

    run.process("p", main)
    history = run.go("p/broker.prepare:half#2 failover")
    assert not run.errors and visible(history) == ["a"]
    checked = [one for one in history if isinstance(one, Checked) and one.answer is None]
    assert checked[0].at_ns >= 5 * S


@pytest.mark.parametrize(
    ("fault", "rounds"), [("check-missing", [2]), ("check-duplicate", [1, 1]), ("check-late 3s", [1])]
)
def test_questions_that_go_astray(run: Run, fault: str, rounds: list[int]) -> None:
    """A lost question comes with the next round; a doubled one is answered twice and delivers once; a late
    one is answered late."""
    asked: list[Check] = []

    def main() -> None:
        halves = halves_of()
        halves.prepare(message("a"), 1.0)
        answering(halves, COMMITTED, len(rounds), asked=asked)

    run.process("p", main)
    history = run.go(f"p/broker.checks:shop#1 {fault}")
    assert not run.errors and [one.attempt for one in asked] == rounds
    assert visible(history) == ["a"]


def test_a_stranger_burns_rounds_and_is_not_asked_by_name(run: Run) -> None:
    """Another service announced the topic: it is asked in turn, its backend leaves the question out."""
    strange: list[Check] = []

    def stranger() -> None:
        halves = halves_of("stranger")
        for _ in range(6):
            strange.extend(halves.checks(2.0))

    def main() -> None:
        halves = halves_of()
        halves.prepare(message("a"), 1.0)
        sleep(6)
        answering(halves, COMMITTED)

    run.process("stranger", stranger)
    run.process("p", main)
    history = run.go()
    assert not run.errors and not strange
    assert {one.process for one in history if isinstance(one, Checked)} == {"p", "stranger"}
    assert visible(history) == ["a"]


def test_a_half_that_nobody_answers_is_discarded(run: Run) -> None:
    """Its process is gone for good: after its rounds the broker gives it up."""

    def main() -> None:
        halves_of().prepare(message("a"), 1.0)

    run.process("p", main, None)
    run.process("other", lambda: sleep(250))
    history = run.go("p/broker.prepare:half#1 kill-after")
    (settled,) = of(history, Settled)
    assert isinstance(settled, Settled) and settled.discarded
    assert settled.at_ns <= (SIMULATED.check_max + 2) * SIMULATED.check_interval_ns


def test_a_plain_send_to_a_transaction_topic_is_refused(run: Run) -> None:
    """The error says what such a topic takes."""

    def main() -> None:
        with pytest.raises(DestinationRefused, match="TRANSACTION"):
            backend().sender("p").send([message("a")], 1.0)

    run.process("p", main)
    run.go()
    assert not run.errors


# receiving


def plain(*texts: str) -> SimRocketmqBackend:
    """A backend whose topic ``plain`` holds these."""
    made = backend()
    made.admin().create([TopicSpec("plain", 1, TopicKind.PLAIN)])
    if texts:
        made.sender("p").send([message(text, "plain") for text in texts], 1.0)
    return made


def receiver(made: SimRocketmqBackend, lease_s: float = 4.0) -> Receiver:
    return made.receiver(Subscription("g", ("plain",), lease_s=lease_s))


def received(batch: Batch) -> list[tuple[str | None, int]]:
    return [(one.envelope.id, one.attempt) for one in batch.received]


def until_received(member: Receiver) -> Batch:
    while True:
        batch = member.receive(10, 2.0)
        if batch.received:
            return batch


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [("crash-before", [1]), ("crash-after", [2]), ("answer-lost", [2]), ("session-lost", [1]), ("failover", [1])],
)
def test_receiving_goes_on(run: Run, fault: str, attempts: list[int]) -> None:
    """What was handed over to nobody comes again when its invisible time is over, one attempt higher; a
    consumer that the proxy does not know is built anew."""

    def main() -> None:
        made = plain(*("a" if here().incarnation == 0 else ""))
        member = receiver(made)
        while True:
            try:
                batch = until_received(member)
                break
            except BackendUnavailable:
                sleep(1)
        member.ack(batch.received)

    run.process("p", main)
    history = run.go(f"p/broker.receive:g#1 {fault}")
    assert not run.errors
    assert [one.attempt for one in history if isinstance(one, Delivered)] == attempts


def test_a_paused_process_is_fenced(run: Run) -> None:
    """Its invisible time ran out: the ack is Fenced, the partition is lost and gained, the message comes
    again."""

    def main() -> None:
        member = receiver(plain("a"))
        batch = until_received(member)
        with pytest.raises(Fenced):
            member.ack(batch.received)
        again = member.receive(10, 0.0)
        assert again.lost == again.gained == batch.membership.partitions
        assert received(again) == [("a", 2)]
        member.ack(again.received)

    run.process("p", main)
    run.go("p/broker.ack:g#1 pause-before 60s")
    assert not run.errors


def test_polling_keeps_what_is_in_hand(run: Run) -> None:
    """A handler may take longer than the lease while its consumer polls."""

    def main() -> None:
        member = receiver(plain("a"))
        batch = until_received(member)
        for _ in range(20):
            assert not member.receive(10, 1.0).received
        member.ack(batch.received)
        sleep(20)
        assert not member.receive(10, 0.0).received

    run.process("p", main)
    run.go()
    assert not run.errors


def test_an_ack_without_an_answer_may_be_repeated(run: Run) -> None:
    """It was done; the second one is no error, and nothing comes again."""

    def main() -> None:
        member = receiver(plain("a"))
        batch = until_received(member)
        with pytest.raises(BackendUnavailable):
            member.ack(batch.received)
        member.ack(batch.received)
        sleep(20)
        assert not member.receive(10, 0.0).received

    run.process("p", main)
    run.go("p/broker.ack:g#1 answer-lost")
    assert not run.errors


def test_a_closed_backend_is_not_open(run: Run) -> None:
    """Its parts are closed, and it says so."""

    def main() -> None:
        made = plain("a")
        made.close()
        made.close()
        with pytest.raises(NotOpen):
            made.sender("p")
        with pytest.raises(NotOpen):
            made.open()

    run.process("p", main)
    run.go()
    assert not run.errors


def test_what_a_dead_process_does_has_no_effect(run: Run) -> None:
    """Its finally blocks run when its memory is freed, and reach nobody."""

    def main() -> None:
        if here().incarnation:
            return
        made = plain("a")
        member, halves = receiver(made), made.half_messages("shop", ["half"])
        batch = until_received(member)
        handle = halves.prepare(message("h"), 1.0)
        try:
            sleep(1)
            made.sender("p").send([message("b", "plain")], 1.0)
        finally:
            for effect in (
                lambda: member.ack(batch.received),
                lambda: halves.finish(handle, COMMITTED),
                lambda: halves.checks(0.0),
                lambda: member.receive(1, 0.0),
                made.close,
            ):
                try:
                    effect()
                except BaseException:
                    pass

    run.process("p", main)
    run.go("p/broker.send:plain#2 crash-before")
    before = [type(one) for one in run.world.history]
    assert visible(list(run.world.history)) == ["a"] and Settled not in before[:-1]
    topic = run.server.broker.topic("plain")
    group = run.server.broker.find_group("g")
    assert group is not None and group.oldest_open(topic, 0) == 0


def test_the_same_schedule_gives_the_same_history(run: Run) -> None:
    """Twice the same run, faults included."""

    def main() -> None:
        halves = halves_of()
        if here().incarnation == 0:
            halves.finish(halves.prepare(message("a"), 1.0), COMMITTED)
        answering(halves, COMMITTED)

    run.process("p", main)
    first, second = run.go("p/broker.finish:half#1 crash-before"), run.go("p/broker.finish:half#1 crash-before")
    assert first == second and len(first) > 5
