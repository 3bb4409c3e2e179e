"""A small service for the kill tests, run as a process of its own.

``python -m tests.integration.ledgerapp ROLE FOLDER [options]``. Everything a test asserts is read
from the databases and the broker's file afterwards; what the process prints is only for a reader.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pydantic
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
)
from sqlalchemy.schema import CreateTable

from txbus import Bus, Delivery, Retry, Topic
from txbus.events import Event, HalfStored, LocalCommitted, StepOpen

metadata = MetaData()
facts = Table("facts", metadata, Column("number", Integer, primary_key=True))
effects = Table(
    "effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", Integer),
    Column("key", String),
    Column("process", Integer),
)
WINDOWS: dict[str, type[Event]] = {"half": HalfStored, "commit": LocalCommitted, "step": StepOpen}


class Fact(pydantic.BaseModel):
    number: int
    key: str


facts_topic = Topic("facts", Fact, key=lambda fact: fact.key, partitions=16)


def engine_at(path: Path) -> Engine:
    """A SQLite engine whose connections wait for one another."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 20})

    @event.listens_for(engine, "connect")
    def configure(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined] # a DB-API connection has no type
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()

    return engine


def create_tables(engine: Engine) -> None:
    """Make the application's tables; several processes may do so at once."""
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))


def make_bus(folder: Path, service: str, relay: str, **settings: float) -> tuple[Bus, Engine]:
    """The bus of one of the two services; short leases, so that tests do not wait for long."""
    engine = engine_at(folder / f"{service}.db")
    bus = Bus(
        f"embedded://{folder}/bus.db",
        service=service,
        databases={service: engine},
        topics=[facts_topic],
        create_schema=True,
        relay="inside" if relay == "inside" else "outside",
        lease_s=1.0,
        poll_s=0.1,
        check_after_s=0.3,
        check_interval_s=0.2,
        lock_wait_s=1.0,
        **settings,  # type: ignore[arg-type] # numbers only
    )
    return bus, engine


def die_at(bus: Bus, window: str | None, count: int, how: signal.Signals) -> None:
    """Send this process a signal in the ``count``-th of these windows."""
    if window is None:
        return
    seen = [0]

    def watch(event: Event) -> None:
        if isinstance(event, WINDOWS[window]):
            seen[0] += 1
            if seen[0] == count:
                os.kill(os.getpid(), how)

    bus.subscribe(watch)


def send(bus: Bus, first: int, last: int, keys: int, stop_inside: int | None, **_: object) -> None:
    """One local transaction with one message for each number that the database does not have yet."""
    with bus:
        for number in range(first, last):
            with bus.transaction("sender") as tx:
                if number == stop_inside:
                    # Before the first write: SQLite has one writer, and it must not be this one.
                    print("stopping", flush=True)
                    os.kill(os.getpid(), signal.SIGSTOP)
                if tx.connection.execute(facts.select().where(facts.c.number == number)).first():
                    continue
                tx.connection.execute(insert(facts), {"number": number})
                tx.send(facts_topic, Fact(number=number, key=f"k{number % keys}"), message_id=f"fact-{number}")


def receive(bus: Bus, folder: Path, poison: int | None, max_attempts: int, **_: object) -> None:
    """Write an effect for each fact; at the poison, note the run durably and die."""

    @bus.on(facts_topic, scope="effect", database="receiver", retry=Retry(max_attempts, (0.01, 0.05)))
    def effect(fact: Fact, delivery: Delivery, connection: Connection) -> None:
        if fact.number == poison:
            with (folder / "runs").open("a") as runs:
                runs.write(f"{os.getpid()} {delivery.attempt}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        connection.execute(insert(effects), {"number": fact.number, "key": fact.key, "process": os.getpid()})

    with bus:
        print("receiving", flush=True)
        bus.run(workers=4)


def relay(bus: Bus, **_: object) -> None:
    print("relaying", flush=True)
    bus.run_relay()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("send", "receive", "relay"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=100)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--window", choices=tuple(WINDOWS))
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--stop", action="store_true", help="SIGSTOP in the window instead of SIGKILL")
    parser.add_argument("--stop-inside", type=int)
    parser.add_argument("--poison", type=int)
    parser.add_argument("--max-attempts", type=int, default=3)
    parser.add_argument("--local-timeout", type=float, default=30.0)
    arguments = parser.parse_args()
    roles: dict[str, Callable[..., None]] = {"send": send, "receive": receive, "relay": relay}
    service = "receiver" if arguments.role == "receive" else "sender"
    bus, engine = make_bus(
        arguments.folder,
        service,
        "outside",
        local_timeout_s=arguments.local_timeout,
        half_timeout_s=min(5.0, arguments.local_timeout / 2),
    )
    create_tables(engine)
    die_at(bus, arguments.window, arguments.count, signal.SIGSTOP if arguments.stop else signal.SIGKILL)
    roles[arguments.role](bus=bus, **vars(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
