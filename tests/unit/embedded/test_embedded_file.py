"""Opening a bus file, and everything that can be wrong with it."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.embedded.station import Station, drain, texts
from txbus._system import system_ports
from txbus.embedded.bus_file import network_filesystem
from txbus.embedded.plugin import plugin
from txbus.embedded.schema import APPLICATION_ID, SCHEMA_VERSION
from txbus.errors import BackendUnavailable, BrokerFileError, NotOpen, SettingsError, TxbusError
from txbus.spi import Backend, BackendURL, Subscription


@contextmanager
def unprivileged(directory: str) -> Iterator[None]:
    """As root, become somebody who owns the directory and has no other rights; else stay."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.chown(directory, 65534, 65534)
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def backend_at(path: Path | str, **options: str) -> Backend:
    return plugin.create(BackendURL("embedded", str(path), options), system_ports())


def refused(path: Path | str, **options: str) -> str:
    """Opening fails and leaves nothing behind in the directory; the error's text."""
    before = {p: p.read_bytes() for p in Path(path).parent.glob("*") if p.is_file()}
    backend = backend_at(path, **options)
    with pytest.raises(TxbusError) as caught:
        backend.open()
    backend.close()
    assert {p: p.read_bytes() for p in Path(path).parent.glob("*") if p.is_file()} == before
    assert str(path) in str(caught.value)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_a_new_file_is_marked_as_a_bus(tmp_path: Path) -> None:
    """Application id and schema version are in the file, and it is in WAL mode."""
    backend = backend_at(tmp_path / "bus.db")
    backend.open()
    backend.open()
    backend.close()
    connection = sqlite3.connect(tmp_path / "bus.db")
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_bus_survives_being_closed(tmp_path: Path) -> None:
    """What was sent is there when the file is opened again."""
    first = Station("embedded", str(tmp_path / "bus.db"))
    first.topic()
    first.send("a", "b")
    first.close()
    second = Station("embedded", str(tmp_path / "bus.db"))
    assert texts(drain(second.receiver(), 2)) == ["a", "b"]
    second.close()


def test_relative_paths_are_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """embedded://bus.db and embedded://./bus.db are the same file."""
    monkeypatch.chdir(tmp_path)
    station = Station("embedded", "bus.db")
    station.topic()
    station.send("a")
    other = Station("embedded", "./bus.db")
    assert texts(drain(other.receiver(), 1)) == ["a"]
    other.close()
    station.close()
    assert (tmp_path / "bus.db").exists()


def test_an_empty_file_becomes_a_bus(tmp_path: Path) -> None:
    """A file of no bytes (mktemp, touch) is taken."""
    (tmp_path / "bus.db").touch()
    backend = backend_at(tmp_path / "bus.db")
    backend.open()
    backend.close()


@pytest.mark.parametrize("content", [b"order,customer\n1,ada\n", b"x", b"SQLite format 2\x00" + bytes(200)])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """It is told from a bus by its first bytes."""
    (tmp_path / "bus.db").write_bytes(content)
    assert refused(tmp_path / "bus.db").startswith("BrokerFileError")


def test_an_applications_database_is_left_alone(tmp_path: Path) -> None:
    """A SQLite file with other tables is not a bus, even without an application id."""
    connection = sqlite3.connect(tmp_path / "bus.db")
    connection.execute("CREATE TABLE orders (id INTEGER)")
    connection.commit()
    connection.close()
    message = refused(tmp_path / "bus.db")
    assert message.startswith("BrokerFileError") and "orders" in message


def test_another_applications_file_is_left_alone(tmp_path: Path) -> None:
    """A foreign application id is refused, also without tables."""
    connection = sqlite3.connect(tmp_path / "bus.db")
    connection.execute("PRAGMA application_id = 77")
    connection.close()
    assert "application_id 77" in refused(tmp_path / "bus.db")


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    """The message says which schema is known and what to do."""
    backend = backend_at(tmp_path / "bus.db")
    backend.open()
    backend.close()
    connection = sqlite3.connect(tmp_path / "bus.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (tmp_path / "bus.db").read_bytes()
    with pytest.raises(BrokerFileError, match="has schema 99.*Upgrade txbus"):
        backend_at(tmp_path / "bus.db").open()
    assert (tmp_path / "bus.db").read_bytes() == before


def test_a_missing_directory_is_named_with_the_command(tmp_path: Path) -> None:
    """Directories are not made behind the user's back."""
    with pytest.raises(SettingsError, match="mkdir -p .*nowhere"):
        backend_at(tmp_path / "nowhere" / "bus.db").open()
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_is_not_a_bus(tmp_path: Path) -> None:
    """A directory, or a pipe, in the place of the file is refused."""
    (tmp_path / "bus.db").mkdir()
    os.mkfifo(tmp_path / "pipe.db")
    for name in ("bus.db", "pipe.db"):
        with pytest.raises(BrokerFileError, match="not a regular file"):
            backend_at(tmp_path / name).open()


def test_a_directory_without_write_permission() -> None:
    """It is refused before anything is made; it works when permission is given."""
    with tempfile.TemporaryDirectory() as name, unprivileged(name):
        closed = Path(name) / "closed"
        closed.mkdir()
        closed.chmod(0o500)
        with pytest.raises(BackendUnavailable, match="no permission to write in"):
            backend_at(closed / "bus.db").open()
        assert not list(closed.iterdir())
        closed.chmod(0o700)
        backend = backend_at(closed / "bus.db")
        backend.open()
        backend.close()


def test_a_file_without_permission() -> None:
    """A bus that may be read but not written is refused; so is one behind a closed directory."""
    with tempfile.TemporaryDirectory() as name, unprivileged(name):
        path = Path(name) / "bus.db"
        backend = backend_at(path)
        backend.open()
        backend.close()
        path.chmod(0o400)
        with pytest.raises(BackendUnavailable, match="no permission to read and write"):
            backend_at(path).open()
        path.chmod(0o600)
        (Path(name) / "closed").mkdir(mode=0o000)
        with pytest.raises(BackendUnavailable, match="Permission denied"):
            backend_at(Path(name) / "closed" / "deeper" / "bus.db").open()
        (Path(name) / "closed").chmod(0o700)


def test_a_damaged_file_is_reported_and_does_not_loop(tmp_path: Path) -> None:
    """Garbage in the middle of a bus comes out as BrokerFileError, with a way to rescue it."""
    station = Station("embedded", str(tmp_path / "bus.db"))
    station.topic()
    station.send(*[f"message-{index}" for index in range(2000)])
    station.close()
    path = tmp_path / "bus.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    # Opening reads the header only, which is whole; the first use finds out.
    again = Station("embedded", str(path))
    with pytest.raises(BrokerFileError, match="damaged"):
        again.send("more")
    again.close()


def test_network_file_systems_are_told_by_their_mount(tmp_path: Path) -> None:
    """The longest mount point above the directory decides; a covered mount does not count."""
    (tmp_path / "share" / "local").mkdir(parents=True)
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:1 / / rw - ext4 /dev/vda rw\n"
        f"24 23 0:3 / {tmp_path}/share/local rw - ext4 /dev/vdb rw\n"
        f"23 22 0:2 / {tmp_path}/share rw,relatime shared:1 - nfs4 server:/x rw\n"
    )
    assert network_filesystem(str(tmp_path / "share"), str(mounts)) == "nfs4"
    assert network_filesystem(str(tmp_path / "share" / "local"), str(mounts)) is None
    assert network_filesystem(str(tmp_path), str(mounts)) is None
    assert network_filesystem(str(tmp_path), str(tmp_path / "no-such-file")) is None


def test_a_bus_on_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused with the way out, and network_fs=allow takes it."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:1 / / rw - ext4 x rw\n23 22 0:2 / {tmp_path} rw - cifs //s/x rw\n")
    found = network_filesystem
    monkeypatch.setattr("txbus.embedded.bus_file.network_filesystem", lambda d: found(d, str(mounts)))
    with pytest.raises(SettingsError, match=r"network file system \(cifs\).*network_fs=allow"):
        backend_at(tmp_path / "bus.db").open()
    backend = backend_at(tmp_path / "bus.db", network_fs="allow")
    backend.open()
    backend.close()


def test_a_closed_backend_says_so(station: Station) -> None:
    """Everything of a closed backend raises NotOpen, and closing again does nothing."""
    station.topic()
    backend = station.another()
    sender, log, admin = backend.sender("g"), backend.log("t"), backend.admin()
    receiver = backend.receiver(Subscription("g", ("t",)))
    receiver.receive(1, 0.0)
    backend.close()
    backend.close()
    sender.close()
    log.close()
    admin.close()
    with pytest.raises(NotOpen):
        receiver.receive(1, 0.0)
    with pytest.raises(NotOpen):
        backend.sender("g")
    with pytest.raises(NotOpen):
        backend.open()


def test_a_bus_in_memory_lives_as_long_as_a_backend_has_it(tmp_path: Path) -> None:
    """Backends of one name share it; after the last one a new one is empty; names are apart."""
    name = str(tmp_path)
    station = Station("memory", name)
    station.topic()
    station.send("a")
    other = Station("memory", name)
    station.close()
    assert texts(drain(other.receiver(), 1)) == ["a"]
    elsewhere = Station("memory", name + "-2")
    assert elsewhere.backend.admin().describe(["t"]) == {"t": None}
    elsewhere.close()
    other.close()
    anew = Station("memory", name)
    assert anew.backend.admin().describe(["t"]) == {"t": None}
    anew.close()
