"""Broker transactions: together or never, and one owner."""

from __future__ import annotations

import pytest

from tests.unit.embedded.station import Station, drain, message, texts
from txbus.embedded.capabilities import PAYLOAD_BYTES_MAX
from txbus.errors import DestinationRefused, Fenced, MessageRefused, NotOpen
from txbus.spi import BrokerTransaction, Committed, Envelope, TopicPartition

T0 = TopicPartition("t", 0)


def begin(station: Station, name: str = "id") -> BrokerTransaction:
    return station.backend.broker_transactions(name, 60.0).begin()


def test_messages_and_positions_are_visible_together(station: Station) -> None:
    """Nothing before the commit, everything after: several topics, partitions and positions."""
    station.topic(partitions=2)
    station.topic("u")
    station.send("in")
    receiver = station.receiver()
    batch = receiver.receive(1, 1.0)
    where = batch.received[0].position.where
    step = begin(station)
    step.send(message("x", key="k"))
    step.send(message("y"), 1)
    step.send(message("z", topic="u"))
    step.positions("g", batch.membership, {where: Committed(1, "note")})
    assert station.backend.log("u").end(0) == 0
    assert receiver.committed(where) is None
    step.commit()
    assert station.backend.log("u").end(0) == 1
    assert receiver.committed(where) == Committed(1, "note")
    assert sorted(texts(drain(station.receiver("h", ("t", "u")), 4))) == ["in", "x", "y", "z"]


def test_an_aborted_one_leaves_nothing(station: Station) -> None:
    """Abort may be called again, and after it nothing else."""
    station.topic()
    step = begin(station)
    step.send(message("x"))
    step.abort()
    step.abort()
    with pytest.raises(NotOpen):
        step.send(message("y"))
    with pytest.raises(NotOpen):
        step.commit()
    assert station.backend.log("t").end(0) == 0


def test_a_newer_owner_fences_the_older(station: Station) -> None:
    """From its opening on: begin, and every commit of the older one, even an empty one, fail."""
    station.topic()
    old = station.backend.broker_transactions("id", 60.0)
    full = old.begin()
    full.send(message("zombie"))
    new = station.another().broker_transactions("id", 60.0)
    with pytest.raises(Fenced, match="'id'"):
        full.commit()
    with pytest.raises(Fenced):
        old.begin()
    step = new.begin()
    step.send(message("new"))
    step.commit()
    assert texts(drain(station.receiver(), 1)) == ["new"]
    empty = station.backend.broker_transactions("other", 60.0)
    step = empty.begin()
    station.backend.broker_transactions("other", 60.0)
    with pytest.raises(Fenced):
        step.commit()


def test_ids_are_apart(station: Station) -> None:
    """Another id is another owner."""
    station.topic()
    first = begin(station, "a")
    second = begin(station, "b")
    first.send(message("1"))
    second.send(message("2"))
    second.commit()
    first.commit()
    assert texts(drain(station.receiver(), 2)) == ["2", "1"]


@pytest.mark.parametrize(
    ("bad", "partition", "error"),
    [
        (Envelope("missing", b"", headers={"ce_id": "bad"}), None, DestinationRefused),
        (Envelope("t", b"", headers={"ce_id": "bad"}), 7, DestinationRefused),
        (Envelope("t", b"x" * (PAYLOAD_BYTES_MAX + 1), headers={"ce_id": "bad"}), None, MessageRefused),
    ],
)
def test_one_bad_message_aborts_it_all(
    station: Station, bad: Envelope, partition: int | None, error: type[Exception]
) -> None:
    """The error is the message's, nothing is visible, and the id goes on."""
    station.topic()
    owner = station.backend.broker_transactions("id", 60.0)
    step = owner.begin()
    step.send(message("a"))
    step.send(bad, partition)
    with pytest.raises(error):
        step.commit()
    assert station.backend.log("t").end(0) == 0
    step = owner.begin()
    step.send(message("b"))
    step.commit()
    assert texts(drain(station.receiver(), 1)) == ["b"]


def test_positions_need_a_membership_of_their_group(station: Station) -> None:
    """Another group's snapshot, or none, is Fenced; so is a partition outside of it."""
    station.topic(partitions=2)
    receiver = station.receiver("g")
    membership = receiver.receive(1, 0.0).membership
    owner = station.backend.broker_transactions("id", 60.0)
    station.topic("u")
    for group, where in (("h", T0), ("g", TopicPartition("u", 0))):
        step = owner.begin()
        step.send(message("x"))
        step.positions(group, membership, {where: Committed(0)})
        with pytest.raises(Fenced):
            step.commit()
    assert station.backend.log("t").end(0) + station.backend.log("t").end(1) == 0


def test_a_note_has_a_limit(station: Station) -> None:
    """1,000 characters are kept, one more is refused."""
    station.topic()
    receiver = station.receiver()
    membership = receiver.receive(1, 0.0).membership
    step = begin(station)
    step.positions("g", membership, {T0: Committed(0, "é" * 1000)})
    step.commit()
    assert receiver.committed(T0) == Committed(0, "é" * 1000)
    with pytest.raises(MessageRefused, match="1001"):
        begin(station).positions("g", membership, {T0: Committed(0, "é" * 1001)})


def test_an_ack_does_not_take_a_committed_position_back(station: Station) -> None:
    """The position of a broker transaction stays though older deliveries are acknowledged later."""
    station.topic()
    station.send("a", "b", "c")
    receiver = station.receiver()
    batch = receiver.receive(10, 1.0)
    step = begin(station)
    step.positions("g", batch.membership, {T0: Committed(3, "n")})
    step.commit()
    receiver.ack(batch.received[:1])
    assert receiver.committed(T0) == Committed(3, "n")


def test_delayed_messages_join(station: Station) -> None:
    """A delayed message of a broker transaction is delivered later, and only if it was committed."""
    station.topic()
    step = begin(station)
    step.send(message("late", deliver_at_s=station.clock.wall_s() + 5))
    step.send(message("now"))
    step.commit()
    receiver = station.receiver(lease_s=1000.0)
    assert texts(drain(receiver, 2, 10.0)) == ["now", "late"]


def test_closing_aborts_what_is_open(station: Station) -> None:
    """Close and abandon let go without a trace, any number of times."""
    station.topic()
    owner = station.backend.broker_transactions("id", 60.0)
    step = owner.begin()
    step.send(message("x"))
    owner.close()
    owner.abandon()
    with pytest.raises(NotOpen):
        step.commit()
    with pytest.raises(NotOpen):
        owner.begin()
    assert station.backend.log("t").end(0) == 0
