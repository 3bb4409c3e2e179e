"""The databases of an exploration: schemas made once, files copied for each run, rows for checks."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from txbus import Bus
from txbus.stores.plugin import plugin
from txbus_sim._database import _dialect
from txbus_sim._database._connection import SimFile
from txbus_sim._database._functions import override
from txbus_sim._database._statements import read
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, World, current_process
from txbus_sim.errors import NotModelled, SimulationError
from txbus_sim.history import RowChange

__all__ = ["Databases", "SimDatabase"]

_Rows = dict[tuple[Any, ...], Mapping[str, Any]]
_FAST = "/dev/shm"
_connect_really = sqlite3.connect


class SimDatabase:
    """One database. Processes get ``url``; checks, which run outside of processes, ask `rows`."""

    def __init__(self, name: str, template: Path, path: Path) -> None:
        self.name = name
        self.url = f"sqlite+sim:///{name}"
        self.template = template
        self.path = path
        self._reader: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<SimDatabase {self.name}>"

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What a SELECT gives of the committed rows, now."""
        if current_process() is not None:
            raise SimulationError(f"rows of database {self.name!r} are for checks; a process connects to {self.url}")
        return self.committed(sql, *parameters)

    def committed(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """As `rows`, for the simulation itself."""
        if self._reader is None:
            self._reader = _connect_really(self.path, isolation_level=None, check_same_thread=False)
        return self._reader.execute(sql, parameters).fetchall()

    def begin(self) -> None:
        """A fresh file for a run."""
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self.template, self.path)

    def end(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Tables:
    """What is committed, table by table, to tell what a commit changed."""

    def __init__(self, database: SimDatabase) -> None:
        self._database = database
        self._columns: dict[str, tuple[list[str], list[int]]] = {}
        self._rows: dict[str, _Rows] = {}

    def before_commit(self, connection: sqlite3.Connection, tables: Sequence[str]) -> tuple[RowChange, ...]:
        changes: list[RowChange] = []
        for table in tables:
            if not table:
                continue
            old = self._known(table)
            new = self._read(table, lambda sql: sqlite3.Cursor(connection).execute(sql).fetchall())
            for key in [*old, *(key for key in new if key not in old)]:
                if old.get(key) != new.get(key):
                    changes.append(RowChange(table, old.get(key), new.get(key)))
        return tuple(changes)

    def after_commit(self, process: Process, changes: tuple[RowChange, ...] | None) -> None:
        for change in changes or ():
            key_places = self._columns[change.table][1]
            rows = self._rows[change.table]
            for row, gone in ((change.before, True), (change.after, False)):
                if row is not None:
                    values = list(row.values())
                    key = tuple(values[place] for place in key_places) or tuple(values)
                    if gone:
                        rows.pop(key, None)
                    else:
                        rows[key] = row

    def _known(self, table: str) -> _Rows:
        """The committed rows, read once from the file and kept up to date."""
        rows = self._rows.get(table)
        if rows is None:
            rows = self._rows[table] = self._read(table, self._database.committed)
        return rows

    def _read(self, table: str, run: Callable[[str], list[tuple[Any, ...]]]) -> _Rows:
        if table not in self._columns:
            described = run(f'PRAGMA table_info("{table}")')
            key_places = [place for place, column in enumerate(described) if column[5]]
            self._columns[table] = ([column[1] for column in described], key_places)
        names, key_places = self._columns[table]
        rows: _Rows = {}
        for values in run(f'SELECT * FROM "{table}"'):
            key = tuple(values[place] for place in key_places) or values
            rows[key] = dict(zip(names, values, strict=True))
        return rows


class _NoRows:
    """For files that are no database of a service."""

    def before_commit(self, connection: sqlite3.Connection, tables: Sequence[str]) -> None:
        return None

    def after_commit(self, process: Process, changes: object) -> None:
        """Nothing is noted."""


class Databases:
    """All databases of an exploration; the `txbus_sim.checkers.Books` of its checkers.

    ``folder`` is the run's directory: what processes open by path has to lie in it.
    """

    def __init__(self) -> None:
        _dialect.register()
        base = _FAST if os.access(_FAST, os.W_OK) else None
        self._root = Path(tempfile.mkdtemp(prefix="txbus-sim-", dir=base))
        self.folder = self._root / "run"
        self.folder.mkdir()
        self._defined: dict[str, SimDatabase] = {}
        self._files: dict[str, SimFile] = {}
        self._world: World | None = None
        self._owner = os.getpid()

    # declaring

    def define(self, name: str, schema: Callable[[Any], object] | None = None) -> SimDatabase:
        """A database of the runs; ``schema(engine)`` makes its tables, the first time only. txbus's own are
        made as well, as ``txbus schema create`` does."""
        database = self._defined.get(name)
        if database is None:
            if not name.isidentifier():
                raise SimulationError(f"database name {name!r}: letters, digits and '_', not beginning with a digit")
            template = self._root / f"{name}.template"
            self._make(template, schema)
            database = self._defined[name] = SimDatabase(name, template, self.folder / f"{name}.db")
        return database

    def _make(self, template: Path, schema: Callable[[Any], object] | None) -> None:
        from sqlalchemy import create_engine, event

        engine = create_engine(f"sqlite:///{template}")
        chance = random.Random(template.stem)

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA journal_mode = WAL").close()
            connection.execute("PRAGMA synchronous = OFF").close()
            override(connection, lambda: BEGAN_AT_WALL_NS, chance)

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def rewrite(conn: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> tuple[str, Any]:
            return read(sql).sql, parameters

        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
        if schema is not None:
            schema(engine)
        # What a deployment does before a service starts; `Bus.open` verifies it.
        ports = Bus("memory://schema", service="schema").ports
        ours = plugin.adapt(template.stem, engine, ports, lambda event: None)
        assert ours is not None
        ours.create_schema()
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()

    # runs

    def begin_run(self, world: World) -> None:
        """Fresh files, empty of the run before."""
        if os.getpid() != self._owner:
            self._fork()
        for left in self.folder.iterdir():
            left.unlink()
        self._files.clear()
        self._world = world
        world.services[_dialect.SERVICE] = self
        for database in self._defined.values():
            database.begin()
            tables = _Tables(database)
            self._files[database.name] = SimFile(database.name, str(database.path), world, tables)

    def _fork(self) -> None:
        """In a worker of an exploration: a folder of its own, the templates are shared."""
        self._owner = os.getpid()
        self.folder = self._root / f"run-{self._owner}"
        self.folder.mkdir(exist_ok=True)
        for database in self._defined.values():
            database.end()
            database.path = self.folder / f"{database.name}.db"

    def end_run(self) -> None:
        """Closes what checks opened."""
        for database in self._defined.values():
            database.end()

    def close(self) -> None:
        """Remove the files. Idempotent; a worker removes its own."""
        self.end_run()
        forked = os.getpid() != self._owner or self.folder.name != "run"
        shutil.rmtree(self.folder if forked else self._root, ignore_errors=True)

    def file(self, name: str) -> SimFile:
        """The present run's file of a database."""
        found = self._files.get(name)
        if found is None:
            known = ", ".join(self._defined) or "none"
            raise NotModelled(f"no database {name!r} in this simulation (declared: {known}): sim.database({name!r}, …)")
        return found

    def connect(self, path: Any, process: Process, **arguments: Any) -> sqlite3.Connection:
        """`sqlite3.connect` of a simulated process: a file of the run's folder, or memory of its own."""
        text = os.fspath(path)
        if text == ":memory:":
            return sqlite3.Connection(text, **arguments)
        real = os.path.realpath(text)
        if Path(real).parent != Path(os.path.realpath(self.folder)):
            raise NotModelled(
                f"sqlite3.connect({text!r}): this file is not the simulation's; "
                "use sim.database(…).url with SQLAlchemy, or a file in the simulation's folder"
            )
        name = Path(real).stem
        file = self._files.get(name)
        if file is None:
            assert self._world is not None
            file = self._files[name] = SimFile(name, real, self._world, _NoRows())
        arguments.pop("factory", None)
        arguments.pop("database", None)
        return file.connect(process, **arguments)

    # what checkers ask (`Books`)

    def names(self) -> Sequence[str]:
        return tuple(self._defined)

    def tables(self, database: str) -> Sequence[str]:
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        return [name for (name,) in self._defined[database].rows(sql)]

    def rows(self, database: str, sql: str) -> Sequence[tuple[Any, ...]]:
        return self._defined[database].rows(sql)
