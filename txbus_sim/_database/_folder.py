"""The folder of an exploration, which is gone when the exploration is, however it ended."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: what a killed exploration leaves is the system's to clean
    fcntl = None  # type: ignore[assignment]

__all__ = ["make_folder", "remove_folder"]

_FAST = "/dev/shm"
_PREFIX = "txbus-sim-"
_LOCK = "in-use"
_YOUNG_S = 60.0
"""A folder this young may be one whose owner has not taken its lock yet."""


def make_folder(directory: str | os.PathLike[str] | None) -> tuple[Path, int]:
    """A new folder, in memory where the system has such a place, and the descriptor that keeps it.

    What explorations that were killed have left beside it is removed: a folder belongs to somebody as
    long as a process has its lock, which forked workers inherit.
    """
    base = os.fspath(directory) if directory is not None else _FAST if os.access(_FAST, os.W_OK) else None
    _sweep(base or tempfile.gettempdir())
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix=_PREFIX, dir=base)))
    descriptor = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return folder, descriptor


def remove_folder(folder: str, descriptor: int, owner: int) -> None:
    """Remove it, in the process that made it; nothing happens in a forked one."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(base: str) -> None:
    if fcntl is None:
        return
    for entry in sorted(Path(base).glob(f"{_PREFIX}*")):
        try:
            if time.time() - entry.stat().st_mtime < _YOUNG_S:
                continue
            descriptor = os.open(entry / _LOCK, os.O_RDWR)
        except OSError:
            continue  # gone meanwhile, somebody else's, or no folder of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use
        else:
            shutil.rmtree(entry, ignore_errors=True)
        finally:
            os.close(descriptor)
