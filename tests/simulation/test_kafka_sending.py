"""Sends and broker transactions of simulated processes, under each fault."""

from __future__ import annotations

import pytest

from tests.simulation.kafka_bench import shows
from tests.simulation.kafka_runs import S, client, message, play
from txbus.errors import BackendError, BackendUnavailable, CommitUnknown, Fenced, SendUnknown, StepAborted, TxbusError
from txbus.spi import Backend, BrokerTransactions, Capability, Committed, Subscription, TopicPartition
from txbus_sim._world import current_process
from txbus_sim.faults import Fault
from txbus_sim.history import BrokerTransactionEnded, Stored

Outcome = type[TxbusError] | None


def now_s() -> float:
    process = current_process()
    assert process is not None
    return process.world.now_ns / S


SENT: list[tuple[Fault, Outcome, list[str]]] = [
    (Fault.FAIL, BackendUnavailable, ["b"]),
    (Fault.REQUEST_LOST, SendUnknown, ["b"]),
    (Fault.ANSWER_LOST, SendUnknown, ["a", "b"]),
    (Fault.DUPLICATE, None, ["a", "b"]),
    (Fault.FAILOVER, None, ["a", "b"]),
    (Fault.DELAY, None, ["a", "b"]),
]


@pytest.mark.parametrize(("fault", "error", "stored"), SENT)
@pytest.mark.parametrize("how", ["send", "append"])
def test_a_send_and_its_faults(how: str, fault: Fault, error: Outcome, stored: list[str]) -> None:
    """What the sender is told and what is stored, once each and in order, belong together."""
    seen: list[Outcome] = []

    def main(backend: Backend) -> None:
        sender = backend.sender("g")
        try:
            if how == "send":
                (receipt,) = sender.send([message("a")], 10.0)
            else:
                receipt = sender.append(message("a"), 0).result(10.0)
            assert (receipt.message_id, receipt.offset) == ("a", 0)
            seen.append(None)
        except BackendError as exc:
            seen.append(type(exc))
        sender.send([message("b")], 10.0)
        sender.close()

    run = play(main, faults={f"p/broker.{how}:t#1": (fault, S)})
    assert seen == [error]
    assert run.stored() == run.visible() == stored


def test_appends_keep_their_order_across_a_failover() -> None:
    """The record that its leader lost is sent again before those that were appended after it."""

    def main(backend: Backend) -> None:
        sender = backend.sender("g")
        pending = [sender.append(message(text), 0) for text in "abc"]
        began_s = now_s()
        assert [one.result(10.0).offset for one in pending] == [0, 1, 2]
        assert 3.0 <= now_s() - began_s < 3.1

    assert play(main, faults={"p/broker.append:t#2": Fault.FAILOVER}).visible() == ["a", "b", "c"]


def test_a_record_can_arrive_after_its_sender_gave_up() -> None:
    """A failover lasts longer than the caller waits: SendUnknown, and the record is there later."""

    def main(backend: Backend) -> None:
        pending = backend.sender("g").append(message("late"), 0)
        with pytest.raises(SendUnknown):
            pending.result(1.0)
        process = current_process()
        assert process is not None
        process.world.sleep_ns(5 * S)

    assert play(main, faults={"p/broker.append:t#1": Fault.FAILOVER}).visible() == ["late"]


def test_a_crash_loses_what_the_library_had_queued() -> None:
    """The leader lost the record, its sender died: nobody sends it again."""

    def main(backend: Backend) -> None:
        process = current_process()
        assert process is not None
        if not process.incarnation:
            pending = backend.sender("g").append(message("lost"), 0)
            pending.result(10.0)
            raise AssertionError("not reached")

    def other(backend: Backend) -> None:
        process = current_process()
        assert process is not None
        process.world.sleep_ns(S)
        process.world.crash(process.world.processes[0])

    run = play(("p", main), ("q", other), faults={"p/broker.append:t#1": Fault.FAILOVER})
    assert run.stored() == []


def test_a_crash_after_the_request_leaves_the_record() -> None:
    """At the leader it is, and the replicas get it."""

    def main(backend: Backend) -> None:
        process = current_process()
        assert process is not None
        if not process.incarnation:
            backend.sender("g").send([message("a")], 10.0)

    for fault, stored in ((Fault.CRASH_BEFORE, []), (Fault.CRASH_AFTER, ["a"])):
        assert play(main, faults={"p/broker.send:t#1": fault}).stored() == stored


def test_the_point_between_the_report_and_the_waiting_thread() -> None:
    """The record is acknowledged, and the thread that waits for it never learns it."""
    learned: list[str] = []

    def main(backend: Backend) -> None:
        process = current_process()
        assert process is not None
        if not process.incarnation:
            backend.sender("g").append(message("a"), 0).result(10.0)
            learned.append("a")

    run = play(main, faults={"p/broker.report:t#1": Fault.CRASH_BEFORE})
    assert run.visible() == ["a"] and learned == []


# broker transactions


def step(owner: BrokerTransactions, *texts: str) -> None:
    transaction = owner.begin()
    for text in texts:
        transaction.send(message(text), 0)
    transaction.commit()


ENDED: list[tuple[str, Fault, Outcome, list[str]]] = [
    ("commit", Fault.FAIL, StepAborted, ["b"]),
    ("commit", Fault.REQUEST_LOST, CommitUnknown, ["b"]),
    ("commit", Fault.ANSWER_LOST, CommitUnknown, ["a", "b"]),
    ("commit", Fault.LATE_END, CommitUnknown, ["b"]),
    ("commit", Fault.DUPLICATE, None, ["a", "b"]),
    ("commit", Fault.COORDINATOR_FAILOVER, None, ["a", "b"]),
    ("commit", Fault.MARKER_SKIPPED, Fenced, ["a", "b"]),
    ("txn-send", Fault.FAIL, StepAborted, ["b"]),
    ("txn-send", Fault.REQUEST_LOST, StepAborted, ["b"]),
    ("txn-send", Fault.ANSWER_LOST, StepAborted, ["b"]),
    ("txn-send", Fault.DUPLICATE, None, ["a", "b"]),
    ("txn-send", Fault.FAILOVER, None, ["a", "b"]),
]


@pytest.mark.parametrize(("where", "fault", "error", "visible"), ENDED)
def test_a_broker_transaction_and_its_faults(where: str, fault: Fault, error: Outcome, visible: list[str]) -> None:
    """What its owner is told and what is visible belong together. A new owner then commits ``b``; after
    a skipped marker that makes the aborted ``a`` visible."""
    seen: list[Outcome] = []

    def main(backend: Backend) -> None:
        owner = backend.broker_transactions("x", 60.0)
        try:
            step(owner, "a")
            seen.append(None)
        except BackendError as exc:
            seen.append(type(exc))
            owner.abandon()
        step(backend.broker_transactions("x", 60.0), "b")

    run = play(main, faults={f"p/broker.{where}:x#1": fault})
    assert seen == [error]
    assert run.visible() == visible


def test_an_unknown_commit_must_be_abandoned() -> None:
    """The same owner does not go on: who tries is told the same again."""

    def main(backend: Backend) -> None:
        owner = backend.broker_transactions("x", 60.0)
        with pytest.raises(CommitUnknown):
            step(owner, "a")
        with pytest.raises(CommitUnknown, match="abandon"):
            owner.begin()

    play(main, faults={"p/broker.commit:x#1": Fault.REQUEST_LOST})


@pytest.mark.parametrize("fault", [Fault.REQUEST_LOST, Fault.ANSWER_LOST, Fault.FAIL])
def test_an_abort_without_an_answer_is_asked_for_again(fault: Fault) -> None:
    """The next begin aborts first; nothing of the former one gets into the next."""

    def main(backend: Backend) -> None:
        owner = backend.broker_transactions("x", 60.0)
        transaction = owner.begin()
        transaction.send(message("gone"), 0)
        with pytest.raises(BackendUnavailable):
            transaction.abort()
        transaction.abort()
        step(owner, "kept")

    assert play(main, faults={"p/broker.abort:x#1": fault}).visible() == ["kept"]


def test_an_abort_forgets_what_the_library_had_queued() -> None:
    """A record that waits for a new leader is not sent in the next broker transaction."""

    def main(backend: Backend) -> None:
        owner = backend.broker_transactions("x", 60.0)
        transaction = owner.begin()
        transaction.send(message("queued"), 0)
        transaction.abort()
        step(owner, "kept")

    assert play(main, faults={"p/broker.txn-send:x#1": Fault.FAILOVER}).visible() == ["kept"]


def test_a_late_abort_hits_the_next_broker_transaction() -> None:
    """KAFKA-17754: it has the same epoch. The commit that comes then is not known to have worked."""

    def main(backend: Backend) -> None:
        owner = backend.broker_transactions("x", 60.0)
        transaction = owner.begin()
        transaction.send(message("gone"), 0)
        with pytest.raises(BackendUnavailable):
            transaction.abort()
        following = owner.begin()
        following.send(message("hit"), 0)
        process = current_process()
        assert process is not None
        process.world.sleep_ns(2 * S)
        with pytest.raises(CommitUnknown):
            following.commit()

    run = play(main, faults={"p/broker.abort:x#1": (Fault.LATE_END, 6 * S)})
    assert run.visible() == []


@shows("empty-commit-sees-no-fence")
def test_the_backend_looks_for_a_newer_owner_before_an_empty_commit() -> None:
    """A client library would answer OK without a request; a new owner has taken the id."""

    def main(backend: Backend) -> None:
        old = backend.broker_transactions("x", 60.0)
        old.begin().commit()
        backend.broker_transactions("x", 60.0)
        with pytest.raises(Fenced):
            old.begin().commit()

    play(main)


def test_a_skipped_marker_and_its_repair() -> None:
    """A process dies in its broker transaction, the broker loses the abort marker: the next owner's
    commit makes the aborted record visible, unless it aborts something there first."""

    def main(repair: bool, backend: Backend) -> None:
        process = current_process()
        assert process is not None
        owner = backend.broker_transactions("x", 60.0)
        if not process.incarnation:
            step(owner, "aborted")
        if repair:
            touch = owner.begin()
            touch.send(message("touch"), 0)
            touch.abort()
        step(owner, "new")

    faults = {"p/broker.commit:x#1": Fault.CRASH_BEFORE, "p+1/broker.init:x#1": Fault.MARKER_SKIPPED}
    for repair, visible in ((False, ["aborted", "new"]), (True, ["new"])):
        assert play(lambda backend, repair=repair: main(repair, backend), faults=faults).visible() == visible  # type: ignore[misc]


@pytest.mark.parametrize("repair", [True, False])
def test_an_aborted_position_repairs_pending_ones(repair: bool) -> None:
    """Positions of a broker transaction whose markers were skipped stay pending, and with them the group's
    position unknown, until an aborted one of the same id has named the group."""

    def main(backend: Backend) -> None:
        receiver = backend.receiver(Subscription("g", ("t",)))
        membership = receiver.receive(1, 1.0).membership
        where = TopicPartition("t", 0)
        transaction = backend.broker_transactions("x", 60.0).begin()
        transaction.positions("g", membership, {where: Committed(0)})
        with pytest.raises(Fenced):
            transaction.commit()
        touch = backend.broker_transactions("x", 60.0).begin()
        if repair:
            touch.positions("g", membership, {where: Committed(0)})
        touch.abort()
        if repair:
            assert receiver.committed(where) is None
        else:
            with pytest.raises(BackendUnavailable, match="UNSTABLE"):
                receiver.committed(where)

    play(main, faults={"p/broker.commit:x#1": Fault.MARKER_SKIPPED})


def test_the_run_waits_for_an_orphan_that_holds_readers_up() -> None:
    """Its process is killed for ever; the broker's time-out comes after the settling time of the run."""

    def main(backend: Backend) -> None:
        transaction = backend.broker_transactions("x", 60.0).begin()
        transaction.send(message("orphan"), 0)
        backend.sender("g").send([message("behind")], 10.0)

    run = play(main, faults={"p/broker.send:t#1": Fault.KILL_AFTER}, settle_s=20.0)
    assert run.visible() == ["behind"]
    (ended,) = [one for one in run.history if type(one) is BrokerTransactionEnded]
    assert (ended.by, ended.committed, ended.at_ns) == ("broker", False, 70 * S)


def test_positions_are_refused_without_a_request_if_they_are_not_owned() -> None:
    """The broker would take them (it never looks at ownership), so the backend does not ask it."""

    def main(backend: Backend) -> None:
        receiver = backend.receiver(Subscription("g", ("t",)))
        batch = receiver.receive(1, 1.0)
        (where,) = batch.membership.partitions
        transaction = backend.broker_transactions("x", 60.0).begin()
        stranger = client().receiver(Subscription("g", ("t",))).receive(1, 0.0).membership
        with pytest.raises(Fenced):
            transaction.positions("g", stranger, {where: Committed(1)})
        transaction.positions("g", batch.membership, {where: Committed(1)})
        assert Capability.ATOMIC_SEND not in backend.capabilities()

    play(main)


def test_the_history_says_who_stored_what() -> None:
    """Stored names the process, and the transactional id of a broker transaction."""

    def main(backend: Backend) -> None:
        backend.sender("g").send([message("a", "k")], 10.0)
        step(backend.broker_transactions("x", 60.0), "b")

    records = [one for one in play(main).history if type(one) is Stored]
    assert [(r.process, r.message_id, r.key, r.producer) for r in records] == [
        ("p", "a", "k", ""),
        ("p", "b", None, "x"),
    ]
