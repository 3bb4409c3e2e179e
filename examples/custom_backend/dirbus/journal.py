"""The journal: one file of JSON lines, appended under a file lock, replayed by every client."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dirbus.state import State
from txbus.errors import BackendUnavailable, NotOpen
from txbus.spi import Ports

__all__ = ["Journal"]


class Journal:
    """One client's view of the directory. Thread-safe.

    What was appended survives the death of every process; it is not forced to the disk, so it does
    not survive the loss of power. A line torn by a kill is cut off by whoever locks next.
    """

    def __init__(self, directory: str, attempts_max: int, ports: Ports) -> None:
        self._directory = Path(directory)
        self._threads = ports.runtime.lock()
        self._clock = ports.clock
        self._file: int | None = None
        self._read_to = 0
        self._state = State(attempts_max)

    def open(self) -> None:
        if self._file is not None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._directory / "journal.jsonl", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise BackendUnavailable(f"dirbus: {self._directory}: {exc}; is the directory writable?") from exc

    def close(self) -> None:
        with self._threads:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    @contextmanager
    def locked(self) -> Iterator[State]:
        """The newest state, with nobody else in between; overdue members are expired first."""
        with self._threads:
            if self._file is None:
                raise NotOpen("dirbus: the backend is not open")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._catch_up(self._file)
                for event in self._state.overdue(self._clock.monotonic_s()):
                    self.append(event)
                yield self._state
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def append(self, event: Mapping[str, Any]) -> Any:
        """Write one event and apply it; within `locked`. Returns what applying it gives."""
        assert self._file is not None
        line = json.dumps(event).encode() + b"\n"
        try:
            written = os.pwrite(self._file, line, self._read_to)
        except OSError as exc:
            raise BackendUnavailable(f"dirbus: {self._directory}: {exc}; nothing was sent") from exc
        if written != len(line):
            os.ftruncate(self._file, self._read_to)
            raise BackendUnavailable(f"dirbus: {self._directory} is full; nothing was sent")
        self._read_to += len(line)
        return self._state.apply(event)

    def _catch_up(self, file: int) -> None:
        size = os.fstat(file).st_size
        while self._read_to < size:
            chunk = os.pread(file, size - self._read_to, self._read_to)
            whole, newline, torn = chunk.rpartition(b"\n")
            for line in whole.splitlines():
                self._state.apply(json.loads(line))
            self._read_to += len(whole) + len(newline)
            if torn:
                os.ftruncate(file, self._read_to)
                return
