"""Claim: the simulator does at least 150 whole runs a second of a scenario with SQLAlchemy's ORM on
SQLite with about 50 points and no protocol, on one core.

A run makes everything anew: the database's file, two processes with an engine each, their connections
and sessions; at its end a check reads the books. ``--json`` prints one object. Exits with 1 if the
claim does not hold.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import pstats
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from txbus_sim._database import Databases
from txbus_sim._world import Limits, Process, ProcessSpec, World
from txbus_sim.faults import Faults
from txbus_sim.schedule import Deviation

RUNS_PER_S_MIN = 150
POINTS_ABOUT = 50
RUNS_PER_COLLECTION = 10


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    cents: Mapped[int]


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(sa.ForeignKey("accounts.name"))
    cents: Mapped[int]


def schema(engine: sa.Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Account(name="ann", cents=100), Account(name="bob", cents=100)])
        session.commit()


def transfer(url: str, source: str, target: str, process: Process | None = None) -> None:
    """Four transfers, each in a Session of its own."""
    engine = sa.create_engine(url)
    for _ in range(4):
        with Session(engine) as session:
            payer, payee = session.get_one(Account, source), session.get_one(Account, target)
            payer.cents -= 1
            payee.cents += 2
            session.add(Entry(account=target, cents=1))
            session.flush()
            payee.cents -= 1
            session.commit()
    engine.dispose()


def no_fault(process: str, label: str, number: int, faults: Faults, /) -> Deviation | None:
    return None


def one_run(databases: Databases) -> int:
    """A whole run; how many points it had."""
    world = World(no_fault, limits=Limits())
    shop = databases.define("shop", schema)
    databases.begin_run(world)
    for source, target in (("ann", "bob"), ("bob", "ann")):
        world.start(ProcessSpec(source, partial(transfer, shop.url, source, target)))
    world.run()
    world.close()
    assert not any(process.error for process in world.processes)
    assert shop.rows("SELECT sum(cents) FROM accounts") == [(200,)]
    assert shop.rows("SELECT count(*) FROM entries") == [(8,)]
    points = len(world.history.points())
    world.free()
    databases.end_run()
    return points


def plain_run(path: str, content: bytes) -> None:
    """The same without a simulator: a fresh file and two engines, one after the other."""
    for suffix in ("-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.unlink(path + suffix)
    with open(path, "wb") as file:
        file.write(content)
    for source, target in (("ann", "bob"), ("bob", "ann")):
        transfer(f"sqlite:///{path}", source, target)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT sum(cents) FROM accounts").fetchall() == [(200,)]
    connection.close()


def plain_content(path: str) -> bytes:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    schema(engine)
    engine.dispose()
    with open(path, "rb") as file:
        return file.read()


def runs_per_s(run: Callable[[], object], runs: int) -> float:
    """In processor time; rubbish is collected between runs, as an exploration does it."""
    gc.collect()
    gc.freeze()
    gc.disable()
    began = time.process_time()
    for number in range(runs):
        run()
        if number % RUNS_PER_COLLECTION == 0:
            gc.collect()
    took = time.process_time() - began
    gc.enable()
    gc.unfreeze()
    return runs / took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40, help="in each of 25 rounds, of which the best counts")
    parser.add_argument("--profile", action="store_true", help="where the time goes, instead of the claim")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    databases = Databases()
    simulated = partial(one_run, databases)
    try:
        points = one_run(databases)
        path = str(databases.folder.parent / "plain.db")
        plain = partial(plain_run, path, plain_content(path))
        runs_per_s(simulated, 20)
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(runs_per_s, simulated, arguments.runs)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
            return 0
        rates, plain_rates = [], []
        for _ in range(25):
            rates.append(runs_per_s(simulated, arguments.runs))
            plain_rates.append(runs_per_s(plain, arguments.runs))
    finally:
        databases.close()
    # Whoever shares the machine's caches only ever makes a round slower.
    rate, plain_rate = max(rates), max(plain_rates)
    holds = rate >= RUNS_PER_S_MIN and abs(points - POINTS_ABOUT) <= 15
    if arguments.json:
        print(json.dumps({"runs_per_s": round(rate), "points": points, "plain": round(plain_rate)}))
    else:
        print(f"{rate:.0f} runs a second of {points} points (median of the rounds {statistics.median(rates):.0f})")
        print(f"{plain_rate:.0f} a second of the same on plain SQLite without a simulator, side by side")
        print(f"claim: at least {RUNS_PER_S_MIN}: {'holds' if holds else 'DOES NOT HOLD'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
