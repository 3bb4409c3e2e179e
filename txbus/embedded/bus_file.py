"""Opening a bus file: what can be wrong with it is found and named before anything is written."""

from __future__ import annotations

import os
import sqlite3
import stat

from txbus.embedded.schema import APPLICATION_ID, SCHEMA_VERSION, STATEMENTS
from txbus.errors import BackendUnavailable, BrokerFileError, SettingsError

__all__ = ["check_place", "check_sqlite", "create_schema", "needs_schema", "network_filesystem"]

_MAGIC = b"SQLite format 3\x00"
_NETWORK_TYPES = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs"}
    | {"fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
)
_EFFECTIVE = os.access in os.supports_effective_ids
_MOUNTS = "/proc/self/mountinfo"


def check_sqlite() -> None:
    """`BackendUnavailable` if Python's SQLite is too old for the statements used."""
    if sqlite3.sqlite_version_info < (3, 35, 0):
        raise BackendUnavailable(
            f"the embedded broker needs SQLite 3.35 or newer; this Python has {sqlite3.sqlite_version}"
        )


def check_place(path: str, network_fs_allowed: bool) -> None:
    """The directory exists, may be written and is local; the file, if there is one, is SQLite's."""
    directory = os.path.dirname(path)
    try:
        is_directory = stat.S_ISDIR(os.stat(directory).st_mode)
    except PermissionError as exc:
        raise BackendUnavailable(f"{path}: {directory}: {exc.strerror}; this user may not look into it") from exc
    except OSError:
        is_directory = False
    if not is_directory:
        raise SettingsError(f"{path}: directory {directory} does not exist; create it: mkdir -p {directory}")
    if not network_fs_allowed:
        kind = network_filesystem(directory)
        if kind is not None:
            raise SettingsError(
                f"{path} lies on a network file system ({kind}), where the locks and the shared memory of "
                "SQLite do not hold between machines; use a local directory, or network_fs=allow if "
                "one machine alone uses it and its locks work"
            )
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
        raise BackendUnavailable(
            f"{path}: no permission to write in {directory}, which also holds the file's -wal and -shm; "
            f"give this user write permission there"
        )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise BackendUnavailable(f"{path}: {exc.strerror}") from exc
    if not stat.S_ISREG(mode):
        raise BrokerFileError(f"{path} is not a regular file; name another one in the URL")
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE):
        raise BackendUnavailable(f"{path}: no permission to read and write it; change its owner or mode")
    _check_magic(path)


def _check_magic(path: str) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as exc:
        raise BackendUnavailable(f"{path}: cannot be read: {exc.strerror}") from exc
    if head and head != _MAGIC:
        raise BrokerFileError(
            f"{path} is not a txbus bus (nor any SQLite file: it begins with {head!r}); it was left as it is. "
            "Name another file in the URL"
        )


def network_filesystem(directory: str, mounts: str = _MOUNTS) -> str | None:
    """The type of a network file system that holds a directory; None if local or not to be told."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    real = os.path.realpath(directory)
    longest, found = -1, ""
    for line in lines:
        left, mark, right = line.partition(" - ")
        fields = left.split(" ")
        if not mark or len(fields) < 5:
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # A later mount on the same point covers the earlier one.
        if inside and len(point) >= longest:
            longest, found = len(point), right.split(" ")[0]
    return found if found in _NETWORK_TYPES else None


def needs_schema(connection: sqlite3.Connection, path: str) -> bool:
    """True for a new, empty file; `BrokerFileError` for a foreign one and one of a newer schema."""
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if mark == APPLICATION_ID:
        if version > SCHEMA_VERSION:
            raise BrokerFileError(
                f"{path} has schema {version}; this txbus knows up to {SCHEMA_VERSION}. Upgrade txbus here; "
                "the file was left as it is"
            )
        return False
    tables = connection.execute("SELECT name FROM sqlite_master LIMIT 3").fetchall()
    if mark != 0 or tables:
        seen = ", ".join(row[0] for row in tables) or "none"
        raise BrokerFileError(
            f"{path} is a SQLite file of something else (application_id {mark}, tables: {seen}); it was "
            "left as it is. Name another file in the URL: a bus is never put into another database"
        )
    return True


def create_schema(connection: sqlite3.Connection) -> None:
    """All tables and both marks; the caller's write transaction makes it all or nothing."""
    for statement in STATEMENTS:
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
