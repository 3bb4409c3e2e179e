"""Redelivery with delay, and delayed delivery."""

from __future__ import annotations

import pytest

from tests.unit.embedded.station import Station, drain, message, texts
from txbus.spi import Committed, Received, Receiver, TopicPartition

T0 = TopicPartition("t", 0)


def one(receiver: Receiver, timeout_s: float = 0.0) -> Received:
    (received,) = drain(receiver, 1, timeout_s, rounds=3)
    return received


def test_a_redelivery_comes_after_its_delay_with_the_next_attempt(station: Station) -> None:
    """Not before; then the same message at the same position, counted one higher."""
    station.topic()
    station.send("a")
    receiver = station.receiver(lease_s=1000.0)
    first = one(receiver)
    receiver.redeliver(first, 30.0)
    assert not receiver.receive(1, 29.0).received
    again = one(receiver, 2.0)
    assert again.attempt == 2
    assert (again.envelope, again.position, again.stored_at_s) == (first.envelope, first.position, first.stored_at_s)
    receiver.redeliver(again, 1.0)
    assert one(receiver, 5.0).attempt == 3


def test_waiting_ends_when_a_redelivery_is_due(station: Station) -> None:
    """A receive of a minute returns with it after ten seconds."""
    station.topic()
    station.send("a")
    receiver = station.receiver(lease_s=1000.0)
    receiver.redeliver(one(receiver), 10.0)
    before = station.clock.monotonic_s()
    assert one(receiver, 60.0).attempt == 2
    assert station.clock.monotonic_s() - before == pytest.approx(10.0, abs=0.1)


def test_others_are_not_held_up(station: Station) -> None:
    """The position moves past a redelivered message, and what follows is delivered."""
    station.topic()
    station.send("a", "b")
    receiver = station.receiver()
    first, second = drain(receiver, 2)
    receiver.redeliver(first, 60.0)
    receiver.ack([second])
    assert receiver.committed(T0) == Committed(2)


def test_a_redelivery_survives_its_member(station: Station) -> None:
    """Whoever owns the partition then gets it, with its attempts; until it is acknowledged."""
    station.topic()
    station.send("a")
    receiver = station.receiver()
    receiver.redeliver(one(receiver), 5.0)
    receiver.close()
    station.clock.advance(6)
    second = station.receiver()
    assert one(second).attempt == 2
    second.close()
    third = station.receiver()
    received = one(third)
    assert received.attempt == 2
    third.ack([received])
    third.ack([received])
    third.close()
    assert not station.receiver().receive(1, 1.0).received


def test_a_redelivery_in_flight_is_not_delivered_twice(station: Station) -> None:
    """The same member does not get it again while it works on it, and does not spin meanwhile."""
    station.topic()
    station.send("a")
    receiver = station.receiver(lease_s=1000.0)
    receiver.redeliver(one(receiver), 0.0)
    assert one(receiver).attempt == 2
    station.send("b")
    assert texts(drain(receiver, 2, 0.0, rounds=4)) == ["b"]
    before = station.clock.monotonic_s()
    assert not receiver.receive(1, 20.0).received
    assert station.clock.monotonic_s() - before >= 20.0


def test_redelivering_twice_or_after_the_ack_changes_nothing(station: Station) -> None:
    """One delivery is given back once."""
    station.topic()
    station.send("a", "b")
    receiver = station.receiver(lease_s=1000.0)
    first, second = drain(receiver, 2)
    receiver.redeliver(first, 0.0)
    receiver.redeliver(first, 0.0)
    receiver.ack([second])
    receiver.redeliver(second, 0.0)
    assert [(r.envelope.payload, r.attempt) for r in drain(receiver, 5, 0.0, rounds=4)] == [(b"a", 2)]


def test_many_redeliveries_arrive_all(station: Station) -> None:
    """More than are looked up at once, a few at a time."""
    station.topic()
    station.send(*[str(index) for index in range(250)])
    receiver = station.receiver(lease_s=1000.0)
    for received in drain(receiver, 250):
        receiver.redeliver(received, 1.0)
    again = drain(receiver, 250, 2.0, rounds=400)
    assert sorted(int(text) for text in texts(again)) == list(range(250))
    assert {received.attempt for received in again} == {2}
    receiver.ack(again)
    receiver.close()
    assert not station.receiver().receive(10, 2.0).received


def test_a_paused_partition_holds_its_redeliveries_back(station: Station) -> None:
    """And waiting does not spin while one is due."""
    station.topic()
    station.send("a")
    receiver = station.receiver(lease_s=1000.0)
    receiver.redeliver(one(receiver), 1.0)
    receiver.pause(frozenset({T0}))
    before = station.clock.monotonic_s()
    assert not receiver.receive(1, 20.0).received
    assert station.clock.monotonic_s() - before >= 20.0
    receiver.resume(frozenset({T0}))
    assert one(receiver).attempt == 2


def test_a_group_gets_only_its_own_redeliveries(station: Station) -> None:
    """Another group that reads the topic sees the message once."""
    station.topic()
    station.send("a")
    first, second = station.receiver("a"), station.receiver("b")
    first.redeliver(one(first), 0.0)
    second.ack([one(second)])
    assert not second.receive(1, 1.0).received
    assert one(first).attempt == 2


def test_a_redelivery_outlives_the_records_retention(station: Station) -> None:
    """Its copy is kept though the log was truncated."""
    station.topic()
    station.send("a")
    receiver = station.receiver(lease_s=1000.0)
    receiver.redeliver(one(receiver), 5.0)
    station.backend.log("t").truncate(0, 1)
    assert texts([one(receiver, 10.0)]) == ["a"]


def test_a_delayed_message_is_not_received_before_its_time(station: Station) -> None:
    """It enters the log when it is due; its receipt has no offset."""
    station.topic()
    sender = station.backend.sender("s")
    due_s = station.clock.wall_s() + 30
    (receipt,) = sender.send([message("late", deliver_at_s=due_s)], 5.0)
    assert receipt.offset is None and receipt.partition == 0
    station.send("now")
    receiver = station.receiver(lease_s=1000.0)
    assert texts(drain(receiver, 1)) == ["now"]
    assert not receiver.receive(1, 29.0).received
    received = one(receiver, 60.0)
    assert texts([received]) == ["late"] and received.position.offset == 1
    assert station.clock.wall_s() == pytest.approx(due_s, abs=0.1)
    assert received.envelope.deliver_at_s == due_s


def test_delayed_messages_come_in_the_order_of_their_times(station: Station) -> None:
    """The order of sending decides only between equal times; the past is now."""
    station.topic()
    now_s = station.clock.wall_s()
    sender = station.backend.sender("s")
    for name, delay_s in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("past", -1.0)):
        sender.send([message(name, deliver_at_s=now_s + delay_s)], 5.0)
    receiver = station.receiver(lease_s=1000.0)
    assert texts(drain(receiver, 5, 10.0)) == ["past", "a", "b1", "b2", "c"]


def test_a_backlog_of_delayed_messages_comes_in_the_order_of_their_times(station: Station) -> None:
    """Also when all of them are overdue before anybody looks."""
    station.topic()
    now_s = station.clock.wall_s()
    sender = station.backend.sender("s")
    for name, delay_s in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)):
        sender.send([message(name, deliver_at_s=now_s + delay_s)], 5.0)
    station.clock.advance(10)
    assert texts(drain(station.receiver(), 4)) == ["a", "b1", "b2", "c"]


def test_delayed_messages_wait_for_a_reader(station: Station) -> None:
    """Nobody listened when they were due: the next reader, a member or a log, gets them all."""
    station.topic()
    now_s = station.clock.wall_s()
    sender = station.backend.sender("s")
    sender.send([message(str(index), deliver_at_s=now_s + 5) for index in range(1200)], 5.0)
    log = station.backend.log("t")
    assert log.end(0) == 0
    station.clock.advance(6)
    assert log.end(0) == 1200
    assert texts(drain(station.receiver(), 1200)) == [str(index) for index in range(1200)]


def test_a_delayed_backlog_is_moved_by_a_receiver(station: Station) -> None:
    """The same without a log: more than one write moves."""
    station.topic()
    sender = station.backend.sender("s")
    due_s = station.clock.wall_s() + 5
    sender.send([message(str(index), deliver_at_s=due_s) for index in range(1200)], 5.0)
    station.clock.advance(6)
    assert len(drain(station.receiver(), 1200)) == 1200
