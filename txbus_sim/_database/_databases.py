"""The databases of an exploration: schemas made once, files copied for each run, rows for checks."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from sqlalchemy.util import LRUCache

from txbus_sim._database import _dialect, _functions, _template
from txbus_sim._database._connection import SimConnection, open_connection
from txbus_sim._database._failures import refuse
from txbus_sim._database._file import BROKER, SERVER, SimFile
from txbus_sim._database._folder import make_folder, remove_folder
from txbus_sim._database._rows import FUNCTION, Shapes
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, World, current_process
from txbus_sim.errors import SimulationError

if TYPE_CHECKING:
    from sqlalchemy import Engine, MetaData

__all__ = ["Databases", "SimDatabase"]

_COMPILED_MAX = 2_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_HUBS = "hubs of the embedded broker"
_EMBEDDED = "embedded"
"""The service that observes the run's bus file (`txbus_sim._embedded`)."""
_INSTEAD = "use sim.database(...).url with SQLAlchemy, or a file in the simulation's folder"


class _Reader(sqlite3.Connection):
    """A connection of no process. (The driver's own class has no weak references.)"""


class SimDatabase:
    """One database of the runs. Processes get ``url``; checks, outside of processes, ask `rows`,
    or SQLAlchemy by `engine`. Both see what is committed at the moment."""

    def __init__(self, databases: Databases, name: str, schema: object, template: _template.Template) -> None:
        self._databases = databases
        self.name = name
        self.url = f"sqlite+sim:///{name}"
        self.schema = schema
        self.template = template
        self._reader: sqlite3.Connection | None = None
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        return f"<SimDatabase {self.name}>"

    @property
    def path(self) -> Path:
        """The file of the present run."""
        return self._databases.folder / f"{self.name}.db"

    @property
    def engine(self) -> Engine:
        """An engine that reads, for checks. SimulationError in a process, which makes its own from ``url``."""
        self._check_outside("engine")
        if self._engine is None:
            from sqlalchemy import create_engine

            self._engine = create_engine(self.url)
        return self._engine

    def rows(self, sql: str, *parameters: Any, **named: Any) -> list[tuple[Any, ...]]:
        """What a SELECT gives of the committed rows, now. Parameters for ``?``, or by name for ``:name``."""
        self._check_outside("rows")
        if self._reader is None:
            self._reader = self._databases.connect_outside(self.name, isolation_level=None)
        return self._reader.execute(sql, named or parameters).fetchall()

    def connect(self) -> sqlite3.Connection:
        """A connection that reads, for checks; closed with the run at the latest."""
        self._check_outside("connect")
        return self._databases.connect_outside(self.name)

    def _check_outside(self, what: str) -> None:
        if current_process() is not None:
            raise SimulationError(f"{what} of database {self.name!r} is for checks; a process connects to {self.url}")

    def end_run(self) -> None:
        self._reader = None


class Databases:
    """All databases of an exploration; the `txbus_sim.checkers.Books` of its checkers.

    ``folder`` is the run's directory, in memory where the system has such a place: what processes
    open by path has to lie in it. Not thread-safe; a forked worker gets a folder of its own.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        _dialect.register()
        self._owner = os.getpid()
        self._root, descriptor = make_folder(directory)
        self._folder = self._root / "run"
        self._folder.mkdir()
        self.compiled: LRUCache[Any, Any] = LRUCache(_COMPILED_MAX)
        """What SQLAlchemy has compiled, for the engines of all runs."""
        self._defined: dict[str, SimDatabase] = {}
        self._files: dict[str, SimFile] = {}
        self._outside: list[weakref.ref[_Reader]] = []
        self._world: World | None = None
        self._remove = weakref.finalize(self, remove_folder, str(self._root), descriptor, self._owner)

    # declaring

    def define(self, name: str, schema: Callable[[Any], object] | MetaData | None = None) -> SimDatabase:
        """A database of the runs. ``schema`` is called with an Engine to make the tables, in a simulated
        process of its own, the first time only; a `MetaData` will do. txbus's own tables are made as
        well, as ``txbus schema create`` does. What ``schema`` raises comes out of here."""
        known = self._defined.get(name)
        if known is not None and _template.same(schema, known.schema):
            return known
        if _NAME.fullmatch(name) is None:
            raise SimulationError(f"database name {name!r}: letters, digits, '_' and '-'")
        self._check_owner()
        made = SimDatabase(self, name, schema, _template.make(name, schema, self._root / "making", self._serve))
        self._defined[name] = made
        return made

    def _serve(self, world: World, file: SimFile) -> None:
        world.services[_dialect.SERVICE] = self
        self._world, self._files = world, {file.name: file}

    # runs

    def begin_run(self, world: World) -> None:
        """Fresh files, and nothing of the run before."""
        self._check_owner()
        for left in os.scandir(self.folder):
            if left.is_dir(follow_symlinks=False):
                shutil.rmtree(left.path)
            else:
                os.unlink(left.path)
        self._world = world
        self._files = {}
        for database in self._defined.values():
            template = database.template
            with open(database.path, "wb") as file:
                file.write(template.content)
            self._files[database.name] = SimFile(
                database.name, str(database.path), world, SERVER, template.shapes.copy()
            )
        world.services[_dialect.SERVICE] = self
        _dialect.active.begin(self)

    def end_run(self) -> None:
        """Closes what checks opened. Idempotent."""
        for reference in self._outside:
            connection = reference()
            if connection is not None:
                connection.close()
        self._outside.clear()
        for database in self._defined.values():
            database.end_run()
        self._files = {}
        self._world = None
        _dialect.active.end(self)

    def close(self) -> None:
        """Remove the files. Idempotent; a worker removes its own."""
        self.end_run()
        if os.getpid() == self._owner and self.folder.name != "run":
            shutil.rmtree(self.folder, ignore_errors=True)
        self._remove()

    @property
    def folder(self) -> Path:
        """The run's directory; a forked worker has one of its own."""
        if current_process() is None:
            # A simulated process is told a process id of the simulation's; its run has begun here.
            self._check_owner()
        return self._folder

    def _check_owner(self) -> None:
        """In a forked worker: a folder of its own."""
        if os.getpid() != self._owner:
            self._owner = os.getpid()
            self._folder = self._root / f"run-{self._owner}"
            self._folder.mkdir(exist_ok=True)
            self._outside.clear()
            self.end_run()

    # connections

    def connect(self, name: str, process: Process, **arguments: Any) -> SimConnection:
        """A process's connection to a database by its name."""
        file = self._files.get(name)
        if file is None:
            known = ", ".join(self._defined) or "none"
            raise refuse(f"database {name!r} (declared: {known})", f"declare it: sim.database({name!r}, schema=...)")
        timeout_s = float(arguments.pop("timeout", 5.0))
        if arguments.pop("factory", sqlite3.Connection) is not sqlite3.Connection:
            raise refuse("sqlite3.connect(factory=...)", "leave the connection's class to the simulation")
        arguments.pop("uri", None)
        return open_connection(file, process, timeout_s, **arguments)

    def connect_by_path(
        self, original: Callable[..., sqlite3.Connection], process: Process, **arguments: Any
    ) -> sqlite3.Connection:
        """`sqlite3.connect` of a process: a database's name, a file of the folder, or memory."""
        _forget_hubs_at_death(process)
        text = os.fsdecode(arguments.pop("database"))
        path = text
        if arguments.get("uri") and text.startswith("file:"):
            path, _, query = text.removeprefix("file:").partition("?")
            path = unquote(re.sub("^//(localhost)?(?=/)", "", path))
            if query not in ("", "mode=rwc", "mode=rw"):
                raise refuse(f"sqlite3.connect({text!r})", "leave the URI's parameters out")
        if path in (":memory:", ""):
            connection = original(path, **{**arguments, "uri": False})
            world = process.world
            _functions.override(
                connection, lambda: BEGAN_AT_WALL_NS + world.now_ns + process.wall_skew_ns, process.entropy
            )
            return connection
        if path in self._defined:
            return self.connect(path, process, **arguments)
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.folder):
            raise refuse(f"sqlite3.connect({text!r}), a file that is not the simulation's,", _INSTEAD)
        file = self._file_at(real, process.world)
        notes = process.world.services.get(_EMBEDDED)
        if notes is not None and notes.path == file.path:
            file.observer = notes.committed
            notes.attend(process)
        return self.connect(file.name, process, **arguments)

    def _file_at(self, path: Path, world: World) -> SimFile:
        for file in self._files.values():
            if file.path == str(path):
                return file
        name = path.stem if path.stem not in self._files else path.name
        ours = _opened_by_broker()
        kind, shapes = (BROKER, None) if ours else (SERVER, Shapes())
        file = self._files[name] = SimFile(name, str(path), world, kind, shapes)
        return file

    def connect_outside(self, name: str, **arguments: Any) -> sqlite3.Connection:
        """A connection of no process, which reads what is committed; closed when the run ends."""
        if self._files.get(name) is None:
            raise SimulationError(f"database {name!r} has no file before the run begins and after it has ended")
        arguments["check_same_thread"] = False
        connection = _Reader(self._files[name].path, **arguments)
        connection.execute("PRAGMA query_only = ON").close()
        # Who tries to write learns that it may not, rather than that a trigger lacks its function.
        connection.create_function(FUNCTION, -1, lambda *note: None)
        self._outside.append(weakref.ref(connection))
        return connection

    # what checkers ask (`Books`)

    def names(self) -> Sequence[str]:
        return tuple(self._defined)

    def tables(self, database: str) -> Sequence[str]:
        sql = (
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^' ORDER BY name"
        )
        return [name for (name,) in self._defined[database].rows(sql)]

    def rows(self, database: str, sql: str) -> Sequence[tuple[Any, ...]]:
        return self._defined[database].rows(sql)


def _forget_hubs_at_death(process: Process) -> None:
    """The embedded broker keeps what the backends of one process share in a registry of its module, by
    process id. A process that crashed has not left it, and the ids come again in the next run."""
    module: Any = sys.modules.get("txbus.embedded.hub")
    if module is not None and _HUBS not in process.memory:
        process.memory[_HUBS] = True
        process.at_death.append(lambda: module.forget_process(process.pid))


def _opened_by_broker() -> bool:
    """Whether the embedded broker is connecting: its file is a broker, not a database of a service."""
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("txbus.embedded"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
