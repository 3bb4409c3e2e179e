"""How processes and checks come to a database, and what they can't open."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from tests.simulation.database_runs import Account, Base, DatabaseRun, Entry, S, databases, fill
from txbus_sim._database import Databases, SimDatabase, interposed
from txbus_sim._world import Process
from txbus_sim.errors import NotModelled, SimulationError
from txbus_sim.faults import Fault
from txbus_sim.history import LocalCommitted


@pytest.fixture(scope="module")
def shop() -> Iterator[tuple[Databases, SimDatabase]]:
    with databases() as made:
        yield made


@pytest.mark.parametrize("pool", [None, NullPool, QueuePool, SingletonThreadPool, StaticPool])
def test_every_pool_works(shop: tuple[Databases, SimDatabase], pool: type[sa.Pool] | None) -> None:
    """An engine of any pool, used by several threads of control of a process."""
    made, database = shop

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url) if pool is None else sa.create_engine(database.url, poolclass=pool)

        def add(name: str) -> None:
            with engine.begin() as connection:
                connection.execute(sa.insert(Entry).values(account=name, cents=1))

        if pool is StaticPool:
            add("a")
            add("b")
            return
        for name in "ab":
            process.spawn(partial(add, name), name, daemon=False)

    with DatabaseRun(made) as run:
        run(orders=main)
        assert database.rows("SELECT account FROM entries") == [("a",), ("b",)]


def test_no_point_while_sqlalchemy_connects(shop: tuple[Databases, SimDatabase]) -> None:
    """Statements of "connect" events, which run under a lock of SQLAlchemy's, are no points, on the
    first connection and on later ones; those of "checkout" events are."""
    made, database = shop

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url, pool_pre_ping=True, poolclass=NullPool)

        @sa.event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("SELECT * FROM accounts").fetchall()

        @sa.event.listens_for(engine, "checkout")
        def lend(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute("SELECT * FROM entries").fetchall()

        for _ in range(2):
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1

    with DatabaseRun(made) as run:
        run(orders=main)
        assert run.labels == ["sql.connect:shop", "sql.select:shop.entries"] * 2


def test_two_strands_that_connect_first_at_once(shop: tuple[Databases, SimDatabase]) -> None:
    """Neither is kept by a lock that the other holds while it stands at a point."""
    made, database = shop
    done: list[str] = []

    def main(process: Process) -> None:
        engine = sa.create_engine(database.url)

        def use(name: str) -> None:
            with engine.connect() as connection:
                done.append(f"{name} {connection.scalar(sa.select(sa.func.count()).select_from(Account))}")

        for name in "ab":
            process.spawn(partial(use, name), name, daemon=False)

    with DatabaseRun(made, "orders/sql.connect:shop#1 delay 5s") as run:
        run(orders=main)
    assert done == ["b 2", "a 2"]


def test_checks_read_what_is_committed(shop: tuple[Databases, SimDatabase]) -> None:
    """`rows`, `engine` and `connect` are for outside; they see commits at once, and write nothing."""
    made, database = shop
    seen: list[object] = []

    def main(process: Process) -> None:
        with sa.create_engine(database.url).connect() as connection:
            connection.execute(sa.update(Account).values(cents=7))
            process.world.progress()
            connection.commit()
        with pytest.raises(SimulationError, match="for checks"):
            database.rows("SELECT 1")

    def look() -> None:
        with database.engine.connect() as connection:
            total = connection.scalar(sa.select(sa.func.sum(Account.cents)))
        seen.append((total, database.rows("SELECT cents FROM accounts WHERE name = :name", name="bob")))

    with DatabaseRun(made) as run:
        run.world.observers.append(look)
        run(orders=main)
        assert seen == [(100, [(0,)]), (14, [(7,)])]
        for connection in (database.connect(), database.engine.raw_connection()):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                connection.cursor().execute("DELETE FROM accounts")
        assert made.tables("shop")[:2] == ["accounts", "entries"]
        assert made.rows("shop", "SELECT count(*) FROM accounts") == [(2,)]
    with pytest.raises(SimulationError, match="no file before the run begins"):
        database.rows("SELECT 1")


def test_engine_made_outside_serves_every_process(shop: tuple[Databases, SimDatabase]) -> None:
    """A module's own engine, made before the run, gives each process connections of its own."""
    made, database = shop
    engine = sa.create_engine(database.url)

    def add(process: Process) -> None:
        with engine.begin() as connection:
            connection.execute(sa.insert(Entry).values(account=process.key, cents=1))
            process.world.sleep_ns(S)

    for _ in range(2):
        with DatabaseRun(made) as run:
            run(a=add, b=add)
            with engine.connect() as connection:
                assert connection.scalars(sa.select(Entry.account).order_by(Entry.id)).all() == ["a", "b"]
            assert {one.process for one in run.ended} == {"a", "b"}


def test_connection_of_another_process_is_refused(shop: tuple[Databases, SimDatabase]) -> None:
    """One that was handed over in memory says what to do; a dead process's is closed."""
    made, database = shop
    kept: list[sqlite3.Connection] = []
    said: list[str] = []

    def owner(process: Process) -> None:
        kept.append(made.connect("shop", process))
        process.world.sleep_ns(2 * S)

    def thief(process: Process) -> None:
        for _ in range(2):
            process.world.sleep_ns(S + S // 2)
            try:
                kept[0].execute("DELETE FROM accounts")
            except (SimulationError, sqlite3.ProgrammingError) as exc:
                said.append(str(exc))

    with DatabaseRun(made) as run:
        run(owner=owner, thief=thief)
        assert len(database.rows("SELECT * FROM accounts")) == 2
    assert "make the engine, or connect, within the process function" in said[0]
    assert said[1] == "Cannot operate on a closed database."


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite+sim:///other", "database 'other' (declared: shop)"),
        ("sqlite+sim:///tmp/shop.db", "is no simulated database"),
        ("sqlite+sim://", "is no simulated database"),
    ],
)
def test_unknown_names_are_told(shop: tuple[Databases, SimDatabase], url: str, said: str) -> None:
    """A URL that names no database of the run raises, and says what there is."""

    def main(process: Process) -> None:
        sa.create_engine(url).connect()

    with DatabaseRun(shop[0]) as run:
        with pytest.raises((NotModelled, sa.exc.ArgumentError)) as caught:
            run(orders=main)
        assert said in str(caught.value)


def test_what_would_escape_is_refused(shop: tuple[Databases, SimDatabase]) -> None:
    """ATTACH, another journal, extensions and copies of a file are not simulated, and say so."""
    made, _ = shop
    tried: list[str] = []

    def main(process: Process) -> None:
        connection = made.connect("shop", process)
        attempts: list[Callable[[], object]] = [
            lambda: connection.execute("ATTACH 'other.db' AS other"),
            lambda: connection.execute("PRAGMA journal_mode = DELETE"),
            lambda: connection.execute("PRAGMA locking_mode = EXCLUSIVE"),
            lambda: connection.backup(sqlite3.Connection(":memory:")),
            lambda: connection.enable_load_extension(True),
            lambda: made.connect("shop", process, factory=type("Own", (sqlite3.Connection,), {})),
        ]
        for attempt in attempts:
            try:
                attempt()
            except NotModelled as exc:
                tried.append(str(exc))

    with DatabaseRun(made) as run:
        run(orders=main)
    assert len(tried) == 6
    assert all("test_database_connect.py:" in text for text in tried)


def test_sqlite3_of_a_process(shop: tuple[Databases, SimDatabase], tmp_path: Path) -> None:
    """`sqlite3.connect` opens a database by its name, a file of the folder, or memory; nothing else.
    Outside of processes it is the real one."""
    made, database = shop
    labels: list[str] = []

    def main(process: Process) -> None:
        with sqlite3.connect("shop") as connection:
            connection.execute("UPDATE accounts SET cents = 9 WHERE name = ?", ("ann",))
        own = sqlite3.connect(str(made.folder / "own.db"), timeout=1.0)
        own.executescript("CREATE TABLE notes (text); INSERT INTO notes VALUES ('a;b'); SELECT * FROM notes;")
        own.executemany("INSERT INTO notes VALUES (?)", ([str(n)] for n in range(2)))
        own.commit()
        own.close()
        uri = sqlite3.connect(f"file:{made.folder / 'own.db'}?mode=rw", uri=True)
        assert [text for (text,) in uri.execute("SELECT text FROM notes")] == ["a;b", "0", "1"]
        memory = sqlite3.connect(":memory:")
        memory.execute("CREATE TABLE t (x)")
        for path in (tmp_path / "real.db", "other.db", "file:x?mode=memory&cache=shared"):
            with pytest.raises(NotModelled):
                sqlite3.connect(path, uri=True)

    with interposed(), DatabaseRun(made) as run:
        run(orders=main)
        labels = run.labels
        assert database.rows("SELECT cents FROM accounts") == [(9,), (0,)]
        real = sqlite3.connect(tmp_path / "real.db")
        real.execute("CREATE TABLE t (x)")
        real.close()
    assert os.listdir(tmp_path) == ["real.db"]
    assert sqlite3.connect is sqlite3.dbapi2.connect
    assert labels[:3] == ["sql.connect:shop", "sql.update:shop.accounts", "sql.commit:shop"]
    assert "sql.insert:own.notes" in labels
    commits = [one for one in run.ended if isinstance(one, LocalCommitted) and one.database == "own"]
    assert [one.changed for one in commits] == [{}, {"notes": 1}, {"notes": 2}]


def test_own_cursor_class_and_row_factory(shop: tuple[Databases, SimDatabase]) -> None:
    """A cursor class of the application's keeps what it does, and its statements are points."""
    made, _ = shop

    class Shouting(sqlite3.Cursor):
        def execute(self, sql: str, parameters: object = (), /) -> Shouting:
            super().execute(sql.upper(), parameters)  # type: ignore[arg-type]
            return self

    def main(process: Process) -> None:
        connection = made.connect("shop", process)
        connection.row_factory = sqlite3.Row
        cursor = connection.cursor(Shouting)
        assert isinstance(cursor, Shouting)
        assert cursor.execute("select name from accounts").fetchone()["NAME"] == "ann"
        connection.execute("INSERT INTO entries (account, cents) VALUES ('ann', 1)")
        connection.commit()

    with DatabaseRun(made) as run:
        run(orders=main)
        assert "sql.select:shop.ACCOUNTS" in run.labels
        assert len(run.ended) == 1


def test_savepoint_alone_is_a_local_transaction(shop: tuple[Databases, SimDatabase]) -> None:
    """The release of an outermost savepoint commits: it is the point of a commit."""
    made, database = shop

    def main(process: Process) -> None:
        connection = made.connect("shop", process, isolation_level=None)
        connection.execute("SAVEPOINT one")
        connection.execute("UPDATE accounts SET cents = 1")
        connection.execute("SAVEPOINT two")
        connection.execute("UPDATE accounts SET cents = 2")
        connection.execute("ROLLBACK TO two")
        connection.execute("RELEASE two")
        connection.execute("RELEASE one")

    with DatabaseRun(made) as run:
        run(orders=main)
        point = run.world.history.points()[-1]
        assert (point.label, Fault.ANSWER_LOST in point.faults) == ("sql.commit:shop", True)
        assert database.rows("SELECT cents FROM accounts") == [(1,), (1,)]
    with DatabaseRun(made, "orders/sql.commit:shop#1 kill-before") as run:
        run(orders=main)
        assert database.rows("SELECT cents FROM accounts") == [(100,), (0,)]


def test_schema_is_made_once_and_every_run_is_fresh() -> None:
    """Declared again in each run, the schema's function is called once; its rows are there each time."""
    called: list[str] = []

    def schema(engine: sa.Engine) -> None:
        called.append("schema")
        fill(engine)

    made = Databases()
    try:
        for number in range(3):
            database = made.define("shop", schema)
            assert made.define("empty") is made.define("empty", None)
            with DatabaseRun(made) as run:
                run(orders=lambda process: _add("sqlite+sim:///shop"))
                assert database.rows("SELECT count(*) FROM entries") == [(1,)], number
        assert called == ["schema"]
        assert made.define("shop", Base.metadata) is not database
    finally:
        made.close()


def _add(url: str) -> None:
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.insert(Entry).values(account="ann", cents=1))


def test_schema_that_fails_says_so() -> None:
    """What the schema function raises comes out where it is declared."""

    def schema(engine: sa.Engine) -> None:
        raise ValueError("no tables today")

    made = Databases()
    try:
        with pytest.raises(ValueError, match="no tables today"):
            made.define("shop", schema)
        with pytest.raises(SimulationError, match="letters"):
            made.define("a/b")
    finally:
        made.close()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Runs leave no file of theirs, close() leaves no folder, and neither does a program that forgets it."""
    made = Databases(tmp_path)
    database = made.define("shop", fill)
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        with DatabaseRun(made) as run:
            run(orders=lambda process: _add(database.url))
            database.rows("SELECT 1")
            sa.create_engine(database.url).connect()
    if open_files:
        assert len(os.listdir("/proc/self/fd")) <= open_files
    assert len(list(made.folder.iterdir())) <= 1
    made.close()
    made.close()
    assert list(tmp_path.iterdir()) == []
    program = f"from txbus_sim._database import Databases; Databases({str(tmp_path)!r}).define('shop')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked where the system can")
def test_what_a_killed_program_left_is_swept_later(tmp_path: Path) -> None:
    """A program that was killed cannot clean up; the next one does, and leaves those in use alone."""
    program = (
        "import os, signal; from txbus_sim._database import Databases; "
        f"Databases({str(tmp_path)!r}).define('shop'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    used = Databases(tmp_path)
    assert left.exists(), "it is young: its owner may be about to lock it"
    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0))
    Databases(tmp_path).close()
    assert list(tmp_path.iterdir()) == [used.folder.parent]
    used.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked where the system can")
def test_forked_worker_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """A worker's runs do not touch its parent's, and its end removes its own files only."""
    made = Databases(tmp_path)
    database = made.define("shop", fill)
    with DatabaseRun(made) as run:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with DatabaseRun(made) as own:
                    own(orders=lambda process: _add(database.url))
                    status = 0 if database.rows("SELECT count(*) FROM entries") == [(1,)] else 2
                made.close()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        run(orders=lambda process: _add(database.url))
        assert database.rows("SELECT count(*) FROM entries") == [(1,)]
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["in-use", "run"]
    made.close()


_TRACE = """
import sys
from tests.simulation.database_runs import *
import sqlalchemy as sa
def main(process):
    engine = sa.create_engine("sqlite+sim:///shop")
    for number in range(3):
        with engine.begin() as connection:
            connection.execute(sa.insert(Entry).values(account=process.key, cents=number))
            connection.exec_driver_sql("UPDATE accounts SET cents = random() WHERE name = 'bob'")
            process.world.sleep_ns(1_000_000)
with databases() as (made, shop), DatabaseRun(made, sys.argv[1]) as run:
    run(a=main, b=main, c=main)
    print("\\n".join(map(str, run.world.history)))
"""


def test_same_schedule_same_history() -> None:
    """Under any hash seed the history is the same to the letter; under another schedule it is not."""

    def trace(seed: str, schedule: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _TRACE, schedule],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    crash = "b/sql.commit:shop#2 crash-after"
    first = trace("1", crash)
    assert first == trace("2", crash)
    assert "LocalCommitted" in first and first != trace("1", "b/sql.commit:shop#2 crash-before")
