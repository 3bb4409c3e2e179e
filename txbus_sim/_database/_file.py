"""One SQLite file of a run: its lock, who waits for it in virtual time, and what its points are called."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from greenlet import getcurrent

from txbus_sim._database._rows import Shapes
from txbus_sim._database._statements import Statement, Verb, read
from txbus_sim._world import Strand, Wait, World

__all__ = ["BROKER", "SERVER", "Kind", "SimFile"]

_LOCK = "database lock"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is to the processes that open it.

    ``every_statement``: statements are points, as requests to a server are; else only what makes
    something durable is. ``quiet_tables``: a commit that changed nothing else is no progress of a run.
    """

    prefix: str
    every_statement: bool
    telling_tables: tuple[str, ...] = ()
    quiet_tables: tuple[str, ...] = ()


SERVER = Kind("sql", every_statement=True)
BROKER = Kind(
    "embedded",
    every_statement=False,
    telling_tables=("records", "delayed", "redeliveries", "positions", "producers", "topics", "leases", "members"),
    quiet_tables=("members",),
)
"""The embedded broker's: a transaction of its is one point, its commit, and a heartbeat is no progress."""


class SimFile:
    """A file in one run. ``shapes`` None: its rows are not told in the history, nor its commits."""

    def __init__(self, name: str, path: str, world: World, kind: Kind, shapes: Shapes | None) -> None:
        self.name = name
        self.path = path
        self.world = world
        self.kind = kind
        self.shapes = shapes
        self.connections = 0
        self.observer: Callable[[sqlite3.Connection, str, dict[str, int]], None] | None = None
        """Called after each commit, before anybody else runs: by which process, rows changed by table."""
        self._holder: Strand | None = None
        self._holding = 0
        self._waiting: list[Strand] = []
        self._read: dict[str, tuple[Statement, str]] = {}
        self.commit_label = Statement(Verb.COMMIT).label(kind.prefix, name)
        self.rollback_label = Statement(Verb.ROLLBACK).label(kind.prefix, name)
        self.connect_label = f"{kind.prefix}.connect:{name}"

    def read(self, sql: str) -> tuple[Statement, str]:
        """A statement, and what its point is called."""
        found = self._read.get(sql)
        if found is None:
            statement = read(sql)
            found = self._read[sql] = (statement, statement.label(self.kind.prefix, self.name))
        return found

    def label_of_commit(self, tables: dict[str, int]) -> str:
        """The commit's; of a broker's it says what was stored."""
        for table in self.kind.telling_tables:
            if table in tables:
                return f"{self.commit_label}.{table}"
        return self.commit_label

    # the lock

    def hold(self, connection: int) -> None:
        """A connection has the write lock from here on; the calling strand works on it."""
        self._holding = connection
        strand = getcurrent()
        self._holder = strand if type(strand) is Strand else None

    def release(self, connection: int) -> None:
        """A connection's local transaction is over: whoever waits tries again, the first one first."""
        if self._holding == connection:
            self._holding, self._holder = 0, None
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for strand in waiting:
                self.world.unpark(strand)

    @property
    def is_held_by_stopped(self) -> bool:
        """Whether the lock's holder belongs to a process that is paused at the moment."""
        return self._holder is not None and self._holder.process.thaws_at_ns > self.world.now_ns

    def wait(self, deadline_ns: int) -> bool:
        """Wait until a local transaction of the file ends. False: in vain, because the deadline has
        come, or nobody can end it: those who hold locks wait for one another, or for the caller."""
        strand = getcurrent()
        if type(strand) is not Strand or self.world.now_ns >= deadline_ns or self._in_circle(strand):
            return False
        self._waiting.append(strand)
        what = f"the write lock of database {self.name}"
        woken = self.world.park(Wait(_LOCK, what, self._holder), deadline_ns)
        if strand in self._waiting:
            self._waiting.remove(strand)
        return woken

    def _in_circle(self, strand: Strand) -> bool:
        holder, seen = self._holder, 0
        while holder is not None and holder is not strand:
            wait = holder.wait
            seen += 1
            if wait is None or wait.kind != _LOCK or seen > len(holder.process.world.processes) * 100:
                return False
            holder = wait.owner
        return holder is strand
