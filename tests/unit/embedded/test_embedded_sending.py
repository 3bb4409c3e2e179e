"""Sends and appends: durable, atomic, ordered, joined."""

from __future__ import annotations

import sqlite3
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.embedded.station import Station, drain, message, texts
from txbus.embedded.capabilities import DELAY_S_MAX, HEADERS_BYTES_MAX, PAYLOAD_BYTES_MAX
from txbus.embedded.topics import partition_of_key
from txbus.errors import BackendUnavailable, DestinationRefused, MessageRefused, NotOpen, SendUnknown
from txbus.spi import Envelope


def test_a_receipt_is_the_place_of_the_message(station: Station) -> None:
    """Receipts come in the order of the envelopes, with id, partition and offset."""
    station.topic()
    receipts = station.send("a", "b", "c")
    assert [(one.message_id, one.partition, one.offset) for one in receipts] == [("a", 0, 0), ("b", 0, 1), ("c", 0, 2)]


def test_what_is_sent_comes_back_as_it_was(station: Station) -> None:
    """Every field survives, also text outside ASCII and headers that were no UTF-8."""
    station.topic()
    strange = "caf\udce9"
    sent = Envelope(
        "t",
        bytes(range(256)),
        key="ключ",
        headers={"ce_id": "1", "ce_source": "s", "naïve": "☃", "foreign": strange, "": ""},
        tag="été",
        deliver_at_s=station.clock.wall_s() - 5,
    )
    empty = Envelope("t", b"")
    station.backend.sender("g").send([sent, empty], 5.0)
    received = drain(station.receiver(), 2)
    assert [one.envelope for one in received] == [sent, empty]
    assert received[0].stored_at_s == station.clock.wall_s()
    assert [one.attempt for one in received] == [1, 1]


def test_the_partition_of_a_key_is_fixed_for_ever() -> None:
    """It is the same in each process, whatever PYTHONHASHSEED, and spreads keys evenly."""
    assert [partition_of_key(key, 16) for key in ("ada", "bob", "", "ключ")] == [7, 2, 4, 0]
    code = "from txbus.embedded.topics import partition_of_key as p; print([p(k, 16) for k in ('ada','bob','','ключ')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[7, 2, 4, 0]"
    spread = Counter(partition_of_key(f"customer-{index}", 8) for index in range(8000))
    assert min(spread.values()) > 850 and len(spread) == 8


def test_messages_without_a_key_are_spread(station: Station) -> None:
    """They go to each partition about equally."""
    station.topic(partitions=4)
    receipts = station.send(*[str(index) for index in range(40)], key=None)
    assert Counter(one.partition for one in receipts) == {0: 10, 1: 10, 2: 10, 3: 10}


def test_a_key_keeps_its_order(station: Station) -> None:
    """Messages of a key are in one partition, in the order of the sends."""
    station.topic(partitions=4)
    for index in range(20):
        station.send(f"{index}", key=f"k{index % 3}")
    received = drain(station.receiver(), 20)
    for key in ("k0", "k1", "k2"):
        mine = [int(one.envelope.payload) for one in received if one.envelope.key == key]
        assert mine == sorted(mine) and mine


@pytest.mark.parametrize(
    "bad",
    [
        Envelope("missing", b""),
        Envelope("t", b"x" * (PAYLOAD_BYTES_MAX + 1)),
        Envelope("t", b"", headers={"ce_id": "7", "h": "é" * (HEADERS_BYTES_MAX // 2)}),
        Envelope("t", b"", key="\ud800"),
        Envelope("t", b"", deliver_at_s=float("inf")),
        Envelope("t", b"", deliver_at_s=float("nan")),
        Envelope("t", b"", deliver_at_s=1_700_000_000.0 + DELAY_S_MAX + 60),
    ],
    ids=["topic", "payload", "headers", "key", "infinite", "nan", "delay"],
)
def test_send_is_all_or_none(station: Station, bad: Envelope) -> None:
    """One that is refused keeps back the others of the same send, and nothing is stored."""
    station.topic()
    with pytest.raises((MessageRefused, DestinationRefused)):
        station.backend.sender("g").send([message("a"), bad, message("b")], 5.0)
    assert station.backend.log("t").end(0) == 0
    station.send("c")
    assert texts(drain(station.receiver(), 1)) == ["c"]


def test_limits_are_inclusive(station: Station) -> None:
    """The largest allowed payload and headers pass, and the message says the limit beyond."""
    station.topic()
    payload = b"x" * PAYLOAD_BYTES_MAX
    headers = {"h": "é" * (HEADERS_BYTES_MAX // 2 - 1), "": "x"}
    station.backend.sender("g").send([Envelope("t", payload, headers=headers)], 30.0)
    assert drain(station.receiver(), 1)[0].envelope.payload == payload
    with pytest.raises(MessageRefused, match=f"message 9 .*{PAYLOAD_BYTES_MAX + 1} bytes; the limit is"):
        station.backend.sender("g").send([Envelope("t", payload + b"x", headers={"ce_id": "9"})], 30.0)


def test_a_missing_topic_says_how_to_make_it(station: Station) -> None:
    """The error names the topic and Bus(topics=...)."""
    with pytest.raises(DestinationRefused, match=r"no topic 'nope'.*Bus\(topics="):
        station.send("a", topic="nope")
    station.topic("nope")
    assert len(station.send("a", topic="nope")) == 1


def test_one_bad_append_does_not_fail_its_neighbours(station: Station) -> None:
    """Appends of one commit fail alone: wrong partition, wrong topic, too large, not even a message."""
    station.topic(partitions=2)
    sender = station.backend.sender("g")
    wrong_type = Envelope("t", b"x", headers={"ce_id": object()})  # type: ignore[dict-item]
    pending = [
        sender.append(message("a"), 0),
        sender.append(message("b"), 2),
        sender.append(message("c"), -1),
        sender.append(message("d", topic="missing"), 0),
        sender.append(Envelope("t", b"x" * (PAYLOAD_BYTES_MAX + 1)), 0),
        sender.append(wrong_type, 0),
        sender.append(message("e"), 0),
    ]
    assert pending[-1].result(5.0).offset == 1
    for index in (1, 2, 3):
        with pytest.raises(DestinationRefused):
            pending[index].result(5.0)
    with pytest.raises(MessageRefused):
        pending[4].result(5.0)
    with pytest.raises(TypeError):
        pending[5].result(5.0)
    assert pending[0].result(5.0) == pending[0].result(0.0)
    assert station.backend.log("t").end(0) == 2


def test_appends_keep_the_order_of_the_calls(station: Station) -> None:
    """Order of calls is order of offsets, awaited or not, and sends take their turn among them."""
    station.topic()
    sender = station.backend.sender("g")
    pending = [sender.append(message(str(index)), 0) for index in range(50)]
    sender.send([message("50")], 5.0)
    pending.append(sender.append(message("51"), 0))
    assert pending[-1].result(5.0).offset == 51
    assert texts(drain(station.receiver(), 52)) == [str(index) for index in range(52)]


def commits(station: Station) -> int:
    """How many write transactions the file has seen: SQLite counts them in the head of its -shm file
    (``iChange`` of the WAL index, https://www.sqlite.org/walformat.html)."""
    return struct.unpack_from("=I", Path(station.url.location + "-shm").read_bytes(), 8)[0]  # type: ignore[no-any-return]


def test_a_send_is_one_commit(file_station: Station) -> None:
    """However many messages it has."""
    file_station.topic(partitions=3)
    before = commits(file_station)
    file_station.send(*[str(index) for index in range(100)], key=None)
    assert commits(file_station) - before == 1


def test_queued_appends_are_one_commit(file_station: Station) -> None:
    """However many wait, they cost one write, but for what the background flush took before."""
    file_station.topic()
    sender = file_station.backend.sender("g")
    sender.append(message("first"), 0).result(5.0)
    before = commits(file_station)
    pending = [sender.append(message(str(index)), 0) for index in range(200)]
    pending[-1].result(5.0)
    assert all(one.result(0.0).offset == index + 1 for index, one in enumerate(pending))
    assert 1 <= commits(file_station) - before <= 10


def test_appends_of_concurrent_threads_join(file_station: Station) -> None:
    """Eight threads that each wait for their own append need at most half as many commits."""
    file_station.topic()
    sender = file_station.backend.sender("g")
    before = commits(file_station)

    def work() -> None:
        for index in range(40):
            sender.append(message(str(index)), 0).result(30.0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert file_station.backend.log("t").end(0) == 320
    assert commits(file_station) - before <= 160


def test_an_append_that_nobody_asks_for_is_sent(station: Station) -> None:
    """The background flush writes it; a waiting receiver gets it."""
    station.topic()
    receiver = station.receiver()
    receiver.receive(1, 0.0)
    station.backend.sender("g").append(message("a"), 0)
    assert texts(drain(receiver, 1, timeout_s=0.01, rounds=2000)) == ["a"]


def test_the_background_flush_wakes_again_after_idling(station: Station) -> None:
    """An append after a pause, when the flushing thread rests, is sent as well."""
    station.topic()
    sender = station.backend.sender("g")
    log = station.backend.log("t")
    pause = threading.Event()
    for index in range(3):
        sender.append(message(str(index)), 0)
        for _ in range(500):
            if log.end(0) == index + 1:
                break
            pause.wait(0.01)
        assert log.end(0) == index + 1
        pause.wait(0.4)


def test_closing_a_sender_sends_what_was_appended(station: Station) -> None:
    """Nothing queued is dropped; afterwards the sender refuses and its results stay."""
    station.topic()
    sender = station.backend.sender("g")
    pending = [sender.append(message(str(index)), 0) for index in range(10)]
    sender.close()
    sender.close()
    assert station.backend.log("t").end(0) == 10
    assert pending[9].result(0.0).offset == 9
    with pytest.raises(NotOpen):
        sender.append(message("x"), 0)
    with pytest.raises(NotOpen):
        sender.send([message("x")], 1.0)


def test_threads_share_commits_and_lose_nothing(station: Station) -> None:
    """Eight threads that append and send at once get one offset each, without a gap."""
    station.topic(partitions=2)
    sender = station.backend.sender("g")
    offsets: list[tuple[int, int]] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(30):
                one = message(f"{number}-{index}", key=f"k{number}")
                receipt = sender.append(one, number % 2).result(30.0) if index % 2 else sender.send([one], 30.0)[0]
                assert receipt.offset is not None
                offsets.append((receipt.partition, receipt.offset))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    log = station.backend.log("t")
    assert sorted(offsets) == [(part, offset) for part in (0, 1) for offset in range(log.end(part))]
    assert len(offsets) == 240


def test_a_busy_file_is_unavailable_and_then_works(file_station: Station) -> None:
    """While another process holds the write lock a send gives up in time, with nothing sent; an
    append stays queued, its outcome unknown, and arrives later."""
    station = file_station
    station.topic()
    sender = station.backend.sender("g")
    blocker = sqlite3.connect(station.url.location, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable, match="nothing was"):
        sender.send([message("a")], 0.2)
    pending = sender.append(message("b"), 0)
    with pytest.raises(SendUnknown):
        pending.result(0.2)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert pending.result(5.0).offset == 0
    assert texts(drain(station.receiver(), 1)) == ["b"]
    assert station.backend.log("t").end(0) == 1


def test_a_queue_that_never_gets_its_turn_fails_with_a_known_outcome(file_station: Station) -> None:
    """After busy_timeout_s an append is given up for good and says so."""
    station = file_station
    station.topic()
    sender = station.backend.sender("g")
    blocker = sqlite3.connect(station.url.location, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    pending = sender.append(message("a"), 0)
    with pytest.raises((BackendUnavailable, SendUnknown)):
        pending.result(30.0)
    station.clock.advance(10.0)
    with pytest.raises(BackendUnavailable, match="busy_timeout_s|have been writing"):
        pending.result(30.0)
    blocker.execute("ROLLBACK")
    blocker.close()
    station.send("b")
    assert texts(drain(station.receiver(), 1)) == ["b"]
