"""Several processes on one file: at once, killed, stopped, forked, and with a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.embeddedworker import one, opened
from tests.unit.embedded.station import texts
from txbus.errors import BackendUnavailable
from txbus.spi import Backend, Envelope, Log, Received, Subscription, TopicSpec

_ROOT = Path(__file__).parents[2]
_WAIT_S = 90.0


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.embeddedworker", *arguments],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=_WAIT_S)
    assert process.returncode == 0, out
    return out.splitlines()


@contextmanager
def using(path: str) -> Iterator[Backend]:
    backend = opened(path)
    try:
        yield backend
    finally:
        backend.close()


def everything(log: Log, partitions: int) -> list[Received]:
    records: list[Received] = []
    for partition in range(partitions):
        offset = log.start(partition)
        while offset < log.end(partition):
            some, offset = log.read(partition, offset, 500, 1.0)
            records += some
    return records


def test_processes_open_and_send_at_once(tmp_path: Path) -> None:
    """Four processes that open a new file at the same moment all work, and nothing is lost,
    doubled or out of order."""
    path = str(tmp_path / "bus.db")
    workers = [start("send", path, f"w{number}", "40") for number in range(4)]
    for worker in workers:
        assert len(finish(worker)) == 40
    with using(path) as backend:
        records = everything(backend.log("t"), 4)
        names = texts(records)
        assert Counter(names) == Counter(f"w{n}-{i}-{x}" for n in range(4) for i in range(40) for x in "abc")
        for partition in range(4):
            mine = [r.position.offset for r in records if r.position.partition == partition]
            assert mine == list(range(len(mine)))


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Killed in the midst of sending, again and again: every acknowledged message is there once,
    a send is there as a whole or not at all, and the file works on."""
    path = str(tmp_path / "bus.db")
    acknowledged: list[str] = []
    for number in range(6):
        worker = start("send", path, f"w{number}", "100000")
        assert worker.stdout is not None
        for _ in range(5 + 17 * number):
            acknowledged.append(worker.stdout.readline().strip())
        worker.send_signal(signal.SIGKILL)
        rest, _ = worker.communicate(timeout=_WAIT_S)
        # The last line may be cut off; what is whole was acknowledged.
        acknowledged += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    names = [name.strip() for name in acknowledged]
    with using(path) as backend:
        found = Counter(texts(everything(backend.log("t"), 4)))
        assert max(found.values()) == 1
        assert not [f"{name}-{x}" for name in names for x in "abc" if f"{name}-{x}" not in found]
        pairs = Counter(name.rpartition("-")[0] for name in found if name.endswith(("-a", "-b")))
        assert set(pairs.values()) == {2}
        backend.sender("w").send([one("after")], 5.0)


def test_a_stopped_member_is_fenced_when_it_wakes(tmp_path: Path) -> None:
    """SIGSTOP beyond the lease: another process takes over, and the zombie's ack, redelivery and
    broker transaction fail when it goes on; it reports what it lost."""
    path = str(tmp_path / "bus.db")
    with using(path) as backend:
        backend.admin().create([TopicSpec("t", 1, retention_s=None)])
        backend.sender("w").send([one("a"), one("b")], 5.0)
        stopped = start("zombie", path, "1.0")
        assert stopped.stdout is not None and stopped.stdin is not None
        assert stopped.stdout.readline() == "received 2\n"
        stopped.send_signal(signal.SIGSTOP)
        receiver = backend.receiver(Subscription("g", ("t",), lease_s=60.0))
        received: list[Received] = []
        for _ in range(60):
            received += receiver.receive(10, 1.0).received
            if len(received) == 2:
                break
        assert texts(received) == ["a", "b"]
        stopped.send_signal(signal.SIGCONT)
        stopped.stdin.write("go\n")
        stopped.stdin.flush()
        assert finish(stopped) == ["ack fenced", "redeliver fenced", "commit fenced", "lost 1"]
        receiver.ack(received)
        committed = receiver.committed(received[0].position.where)
        assert committed is not None and committed.offset == 2
        assert backend.log("t").end(0) == 2


def test_a_killed_member_is_replaced(tmp_path: Path) -> None:
    """kill -9 of a member: its partition goes to another one with what was unfinished."""
    path = str(tmp_path / "bus.db")
    with using(path) as backend:
        backend.admin().create([TopicSpec("t", 1, retention_s=None)])
        backend.sender("w").send([one("a")], 5.0)
        killed = start("zombie", path, "1.0")
        assert killed.stdout is not None
        assert killed.stdout.readline() == "received 1\n"
        killed.kill()
        killed.communicate(timeout=_WAIT_S)
        receiver = backend.receiver(Subscription("g", ("t",), lease_s=60.0))
        for _ in range(60):
            received = receiver.receive(10, 1.0).received
            if received:
                break
        assert texts(received) == ["a"]


def test_a_waiting_receiver_sees_what_another_process_sends(tmp_path: Path) -> None:
    """Without a word between the processes but the file: no heartbeat is due for half an hour."""
    path = str(tmp_path / "bus.db")
    with using(path) as backend:
        backend.admin().create([TopicSpec("t", 4, retention_s=None)])
        receiver = backend.receiver(Subscription("g", ("t",), lease_s=10_000.0))
        receiver.receive(1, 0.0)
        worker = start("send", path, "w", "1")
        received = list(receiver.receive(10, _WAIT_S).received)
        while len(received) < 3:
            received += receiver.receive(10, _WAIT_S).received
        finish(worker)
        assert sorted(texts(received)) == ["w-0-a", "w-0-b", "w-0-c"]


def test_a_forked_child_is_told_to_open_its_own(tmp_path: Path) -> None:
    """The inherited backend refuses in the child, closing it there harms nobody, and the parent's
    goes on."""
    path = str(tmp_path / "bus.db")
    lines = finish(start("fork", path))
    assert [line.partition(":")[0] for line in lines] == ["child"] * 3 + ["parent"]
    assert all("open a bus of its own in the child" in line for line in lines[:3])
    with using(path) as backend:
        assert sorted(texts(everything(backend.log("t"), 1))) == ["child", "parent-1", "parent-2"]


def check_full(path: str, limit: int) -> None:
    lines = finish(start("full", path, str(limit)))
    assert lines[0].startswith("full: ") and path in lines[0]
    assert lines[1].startswith("BackendUnavailable") and lines[2].startswith("StepAborted")
    sent = int(lines[3].removeprefix("sent "))
    assert sent > 10
    with using(path) as backend:
        records = everything(backend.log("t"), 1)
        assert [int(text.rstrip("x")) for text in texts(records)] == list(range(sent))


def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    """Sends, appends and broker transactions fail with a known outcome, what was acknowledged is
    there, nothing of what was refused is, and with space everything works again."""
    check_full(str(tmp_path / "bus.db"), 600_000)


def test_a_full_file_system_loses_nothing() -> None:
    """The same on a file system of two megabytes that is really full."""
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", name], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            pytest.skip("needs the right to mount a tmpfs: run as root")
        try:
            path = os.path.join(name, "bus.db")
            with using(path) as backend:
                backend.admin().create([TopicSpec("t", 1, retention_s=None)])
                sender = backend.sender("w")
                sent = fill(sender.send)
                with pytest.raises(BackendUnavailable, match="full"):
                    sender.send([Envelope("t", b"x" * 20_000)], 5.0)
                assert backend.log("t").end(0) == sent
                subprocess.run(["mount", "-o", "remount,size=8m", name], check=True)
                sender.send([one("again")], 5.0)
                names = texts(everything(backend.log("t"), 1))
                assert names[-1] == "again" and len(names) == sent + 1
        finally:
            subprocess.run(["umount", name], check=True)


def fill(send: Callable[[list[Envelope], float], object]) -> int:
    """Send until it is refused; how many were taken."""
    for sent in range(5000):
        try:
            send([Envelope("t", b"x" * 5000)], 5.0)
        except BackendUnavailable:
            return sent
    raise AssertionError("the file system never got full")
