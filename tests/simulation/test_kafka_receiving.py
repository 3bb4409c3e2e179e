"""Receivers of simulated processes: waiting, groups, sessions, acknowledgements, under each fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.simulation.kafka_bench import shows
from tests.simulation.kafka_runs import S, client, message, play
from txbus.errors import BackendUnavailable, Fenced, SettingsError
from txbus.spi import Backend, Batch, Committed, Received, Receiver, Subscription, TopicPartition
from txbus_sim._world import World, current_process
from txbus_sim.dialects import kafka
from txbus_sim.errors import NotModelled
from txbus_sim.faults import Fault
from txbus_sim.history import Acknowledged, Delivered, PositionCommitted

P = TopicPartition("t", 0)
MEMBER = Subscription("g", ("t",), lease_s=9.0)


def world() -> World:
    process = current_process()
    assert process is not None
    return process.world


def sleep_s(seconds: float) -> None:
    world().sleep_ns(round(seconds * S))


def texts(batch: Batch) -> list[str]:
    return [one.envelope.payload.decode() for one in batch.received]


def until(receiver: Receiver, reached: Callable[[Batch], bool], polls: int = 100) -> Batch:
    for _ in range(polls):
        batch = receiver.receive(10, 0.5)
        if reached(batch):
            return batch
    raise AssertionError("never reached")


# waiting


def test_a_wait_is_one_point_and_ends_at_the_record() -> None:
    """Half a second, or an hour, without anything to read is one point; a record ends it at once."""
    waited: list[float] = []

    def reader(backend: Backend) -> None:
        receiver = backend.receiver(MEMBER)
        until(receiver, lambda batch: bool(batch.gained))
        began_ns = world().now_ns
        assert receiver.receive(10, 0.5).received == ()
        assert (world().now_ns - began_ns) / S == pytest.approx(0.5, abs=0.001)
        receiver._member.polled_ns = world().now_ns  # type: ignore[attr-defined]
        assert texts(receiver.receive(10, 3_000.0)) == ["a"]
        waited.append(world().now_ns / S)

    def writer(backend: Backend) -> None:
        sleep_s(1_000.0)
        backend.sender("s").send([message("a")], 10.0)

    run = play(("p", reader), ("q", writer), settle_s=2_000.0)
    assert run.labels().count("broker.receive:g") == 3
    assert waited[0] == pytest.approx(1_000.0, abs=0.01)


def test_a_wait_ends_with_a_change_of_the_assignment_or_a_wake() -> None:
    """Another member joins: the wait of the first one ends with its loss."""

    def first(backend: Backend) -> None:
        receiver = backend.receiver(MEMBER)
        until(receiver, lambda batch: len(batch.gained) == 2)
        began_ns = world().now_ns
        batch = receiver.receive(10, 300.0)
        assert len(batch.lost) == 1 and world().now_ns - began_ns < 20 * S
        receiver.wake()
        assert receiver.receive(10, 300.0).received == ()
        assert world().now_ns - began_ns < 25 * S

    def second(backend: Backend) -> None:
        sleep_s(10.0)
        until(backend.receiver(MEMBER), lambda batch: bool(batch.gained))

    play(("p", first), ("q", second), topics={"t": 2})


# members that are silent, paused, or dead


@shows("max-poll-interval")
def test_who_does_not_poll_leaves_by_itself() -> None:
    """Its process lives and beats; after lease_s without a poll the other member owns all, and what it
    still wants to acknowledge is Fenced. It learns of its loss before it gets anything."""

    def slow(backend: Backend) -> None:
        backend.sender("s").send([message("a")], 10.0)
        receiver = backend.receiver(MEMBER)
        batch = until(receiver, lambda batch: bool(batch.received))
        sleep_s(30.0)
        with pytest.raises(Fenced):
            receiver.ack(batch.received)
        batch = receiver.receive(10, 0.5)
        assert batch.lost == {P} and batch.received == () and batch.membership.partitions == frozenset()

    def other(backend: Backend) -> None:
        receiver = backend.receiver(MEMBER)
        sleep_s(1.0)
        began_ns = world().now_ns
        assert texts(until(receiver, lambda batch: bool(batch.received))) == ["a"]
        assert 8 * S < world().now_ns - began_ns < 14 * S

    play(("p", slow), ("q", other))


def test_a_dead_member_keeps_its_partitions_until_its_session_is_over() -> None:
    """The restarted process waits for them; what was not acknowledged comes again."""
    got: list[tuple[int, float, list[str]]] = []

    def main(backend: Backend) -> None:
        process = current_process()
        assert process is not None
        if not process.incarnation:
            backend.sender("s").send([message("a"), message("b")], 10.0)
        receiver = backend.receiver(MEMBER)
        batch = until(receiver, lambda batch: bool(batch.received))
        got.append((process.incarnation, world().now_ns / S, texts(batch)))
        receiver.ack(batch.received[:1])

    run = play(main, faults={"p/broker.ack:g#1": Fault.CRASH_AFTER})
    assert [(incarnation, found) for incarnation, _, found in got] == [(0, ["a", "b"]), (1, ["b"])]
    assert 9.0 <= got[1][1] - got[0][1] <= 10.0
    assert [one.offset for one in run.history if type(one) is PositionCommitted] == [1, 2]


def test_a_process_that_is_paused_is_a_zombie() -> None:
    """It goes on as if nothing had happened, delivers to itself what another one has meanwhile, and is
    fenced when it acknowledges."""
    fenced: list[str] = []

    def zombie(backend: Backend) -> None:
        backend.sender("s").send([message("a")], 10.0)
        receiver = backend.receiver(MEMBER)
        batch = until(receiver, lambda batch: bool(batch.received))
        try:
            receiver.ack(batch.received)
        except Fenced:
            fenced.append("ack")
        assert until(receiver, lambda batch: bool(batch.lost)).received == ()

    def other(backend: Backend) -> None:
        receiver = backend.receiver(MEMBER)
        sleep_s(1.0)
        receiver.ack(until(receiver, lambda batch: bool(batch.received)).received)

    run = play(("p", zombie), ("q", other), faults={"p/broker.ack:g#1": (Fault.PAUSE_BEFORE, 60 * S)})
    assert fenced == ["ack"]
    assert [one.process for one in run.history if type(one) is Delivered] == ["p", "q"]
    assert [one.process for one in run.history if type(one) is Acknowledged] == ["q"]


@shows("rejoin-after-poll")
def test_an_assignment_is_polled_for_before_the_next_rebalance() -> None:
    """The busy member joined the second one's rebalance in the background; that of the third one waits
    until the busy one has polled for what the former rebalance gave."""
    generations: list[int] = []

    def busy(backend: Backend) -> None:
        receiver = backend.receiver(Subscription("g", ("t",), lease_s=60.0))
        until(receiver, lambda batch: len(batch.gained) == 3)
        sleep_s(50.0)
        until(receiver, lambda batch: len(batch.membership.partitions) == 1, polls=1_000)

    def joining(backend: Backend, after_s: float) -> None:
        sleep_s(after_s)
        receiver = backend.receiver(Subscription("g", ("t",), lease_s=60.0))
        while world().now_ns < 48 * S:
            token = receiver.receive(10, 0.5).membership.token
        assert isinstance(token, kafka.Membership)
        generations.append(token.generation)
        until(receiver, lambda batch: len(batch.membership.partitions) == 1, polls=1_000)

    play(
        ("busy", busy),
        ("second", lambda backend: joining(backend, 1.0)),
        ("third", lambda backend: joining(backend, 25.0)),
        topics={"t": 3},
        settle_s=300.0,
    )
    assert sorted(generations) == [-1, 2]


def test_a_restarted_process_is_not_taken_for_the_dead_one() -> None:
    """Both are members until the session of the dead one is over, under different ids."""
    owners: list[set[str | None]] = []

    def main(backend: Backend) -> None:
        process = current_process()
        assert process is not None
        receiver = backend.receiver(MEMBER)
        until(receiver, lambda batch: bool(batch.gained))
        owners.append({row.owner for row in backend.admin().group_status("g", ["t"])})
        if not process.incarnation:
            process.world.crash(process)

    play(main)
    assert owners == [{"p-1"}, {"p+1-2"}]


# faults of a poll and of an acknowledgement


def _acking(backend: Backend) -> None:
    """Handles a, b and c; asks again what was not answered, until the group's position is behind them."""
    backend.sender("s").send([message(text, "k") for text in "abc"], 10.0)
    receiver = backend.receiver(MEMBER)
    done: list[Received] = []
    for _ in range(200):
        try:
            done.extend(receiver.receive(1, 0.5).received)
            if done:
                receiver.ack(done)
                done = []
            if receiver.committed(P) == Committed(3):
                return
        except BackendUnavailable:
            pass
        except Fenced:
            done = []
    raise AssertionError("never behind all of them")


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("broker.receive:g", Fault.FAIL),
        ("broker.receive:g", Fault.REBALANCE),
        ("broker.receive:g", Fault.SESSION_LOST),
        ("broker.receive:g", Fault.FAILOVER),
        ("broker.receive:g", Fault.COORDINATOR_FAILOVER),
        ("broker.ack:g", Fault.FAIL),
        ("broker.ack:g", Fault.REQUEST_LOST),
        ("broker.ack:g", Fault.ANSWER_LOST),
        ("broker.ack:g", Fault.REBALANCE),
        ("broker.ack:g", Fault.SESSION_LOST),
        ("broker.ack:g", Fault.COORDINATOR_FAILOVER),
    ],
)
def test_nothing_is_passed_over(label: str, fault: Fault, number: int) -> None:
    """Whatever a poll or an acknowledgement suffers: the group's position never passes a record that
    was not acknowledged, and all of them are in the end."""
    run = play(_acking, faults={f"p/{label}#{number}": fault})
    position = 0
    seen: set[int] = set()
    for record in run.history:
        if type(record) is Delivered:
            seen.add(record.offset)
        elif type(record) is PositionCommitted:
            assert set(range(record.offset)) <= seen
            position = record.offset
    assert position == 3


def test_a_session_lost_is_learnt_with_the_next_heartbeat() -> None:
    """Until then the member delivers as before; its acknowledgement is refused at once."""

    def main(backend: Backend) -> None:
        backend.sender("s").send([message("a"), message("b")], 10.0)
        receiver = backend.receiver(MEMBER)
        first = until(receiver, lambda batch: bool(batch.received))
        assert texts(first) == ["a", "b"]
        backend.sender("s").send([message("c")], 10.0)
        second = receiver.receive(10, 0.5)
        assert texts(second) == ["c"] and second.membership.partitions == {P}
        with pytest.raises(Fenced):
            receiver.ack(first.received)
        assert until(receiver, lambda batch: bool(batch.lost)).lost == {P}
        assert texts(until(receiver, lambda batch: bool(batch.received))) == ["a", "b", "c"]

    play(main, faults={"p/broker.receive:g#2": Fault.SESSION_LOST}, topics={"t": 1})


# positions and settings


def test_committed_waits_for_an_open_broker_transaction() -> None:
    """Five seconds at most; once it has ended, the position is there at once."""

    def main(backend: Backend) -> None:
        receiver = backend.receiver(MEMBER)
        membership = until(receiver, lambda batch: bool(batch.gained)).membership
        other = client()
        owner = other.broker_transactions("x", 60.0)
        transaction = owner.begin()
        transaction.positions("g", membership, {P: Committed(0, "note")})
        with pytest.raises(Exception, match="no answer"):
            transaction.commit()
        with pytest.raises(BackendUnavailable, match="UNSTABLE_OFFSET_COMMIT"):
            receiver.committed(P)
        client().broker_transactions("x", 60.0)
        assert receiver.committed(P) is None

    play(main, faults={"p/broker.commit:x#1": Fault.REQUEST_LOST})


@pytest.mark.parametrize("lease_s", [5.9, 1_801.0])
def test_a_lease_that_the_broker_does_not_allow_is_refused(lease_s: float) -> None:
    """It is the session time-out."""

    def main(backend: Backend) -> None:
        with pytest.raises(SettingsError, match="6 to 1800"):
            backend.receiver(Subscription("g", ("t",), lease_s=lease_s))

    play(main)


def test_a_pattern_is_not_modelled() -> None:
    """A subscription by pattern says so instead of reading nothing."""

    def main(backend: Backend) -> None:
        with pytest.raises(NotModelled, match="pattern"):
            backend.receiver(Subscription("g", ("^t.*",)))

    play(main)
