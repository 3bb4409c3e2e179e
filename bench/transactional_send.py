"""Figure: how many times slower a transactional send on the embedded broker is than the same
SQLAlchemy commit without txbus, and where the time goes. Claim: appends of concurrent threads join,
8 threads store half messages at twice the rate of one or more.

One SQLite database per thread (SQLite has one writer per file). Both sides do the same insert and
commit, with the same durability (WAL, synchronous=FULL); ours adds a message of 200 bytes. The two
sides take turns. The claim is about the half messages alone: around them, Python runs one thread at
a time, which the rates of 8 threads without txbus show as well. ``--json`` prints one object. Exits
with 1 if the claim does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic
from sqlalchemy import Column, Engine, Integer, MetaData, Table, Text, create_engine, event, insert

from txbus import Bus, Topic
from txbus._halves import Half, HalfId
from txbus._wire import SendOptions
from txbus.events import Event, HalfStored, LocalBegan, LocalCommitted, LocalEnded

JOIN_MIN = 2.0
metadata = MetaData()
rows = Table("orders", metadata, Column("id", Integer, primary_key=True), Column("body", Text))


class Note(pydantic.BaseModel):
    customer: str
    body: str


notes = Topic("notes", Note, key=lambda note: note.customer)


@dataclass(frozen=True, slots=True)
class Result:
    """Rates per second, medians over the rounds; ``slower`` is the median of the rounds' ratios."""

    threads: int
    with_txbus: float
    without: float
    slower: float


def engine_at(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def configure(connection: object, _: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined] # a DB-API connection has no type
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    metadata.create_all(engine)
    return engine


def rate(threads: int, seconds: float, work: Callable[[int], None]) -> float:
    """Calls of ``work`` per second, by that many threads for that long."""
    counts = [0] * threads
    start = threading.Barrier(threads + 1)
    end = [0.0]

    def loop(number: int) -> None:
        start.wait()
        while time.perf_counter() < end[0]:
            work(number)
            counts[number] += 1

    workers = [threading.Thread(target=loop, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    end[0] = time.perf_counter() + seconds
    start.wait()
    for worker in workers:
        worker.join()
    return sum(counts) / seconds


def measure(threads: int, seconds: float, rounds: int, relay: bool) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        engines = [engine_at(Path(folder) / f"shop{number}.db") for number in range(threads)]
        bus = Bus(
            f"embedded://{folder}/bus.db",
            service="bench",
            databases={f"shop{number}": engine for number, engine in enumerate(engines)},
            topics=[notes],
            create_schema=True,
            relay="inside" if relay else "outside",
        )
        body = "x" * 150

        def ours(number: int) -> None:
            with bus.transaction(f"shop{number}") as tx:
                tx.connection.execute(insert(rows), {"body": body})
                tx.send(notes, Note(customer=f"c{number}", body=body))

        def bare(number: int) -> None:
            with engines[number].begin() as connection:
                connection.execute(insert(rows), {"body": body})

        pairs: list[tuple[float, float]] = []
        with bus:
            ours(0)
            bare(0)
            for _ in range(rounds):
                pairs.append((rate(threads, seconds, ours), rate(threads, seconds, bare)))
        for engine in engines:
            engine.dispose()
    return Result(
        threads,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def where_time_goes(seconds: float) -> dict[str, float]:
    """Milliseconds of one thread's transactional send by phase, medians."""
    spans: dict[str, list[float]] = {"until the half is stored": [], "COMMIT": [], "outcome and end": []}
    last = [0.0]

    def watch(event: Event) -> None:
        now = time.perf_counter()
        match event:
            case LocalBegan():
                pass
            case HalfStored():
                spans["until the half is stored"].append(now - last[0])
            case LocalCommitted():
                spans["COMMIT"].append(now - last[0])
            case LocalEnded():
                spans["outcome and end"].append(now - last[0])
            case _:
                return
        last[0] = now

    with tempfile.TemporaryDirectory() as folder:
        engine = engine_at(Path(folder) / "shop.db")
        bus = Bus(
            f"embedded://{folder}/bus.db",
            service="bench",
            databases={"shop": engine},
            topics=[notes],
            create_schema=True,
            relay="outside",
        )
        bus.subscribe(watch)

        def ours(_: int) -> None:
            with bus.transaction("shop") as tx:
                tx.connection.execute(insert(rows), {"body": "x" * 150})
                tx.send(notes, Note(customer="c", body="x" * 150))

        with bus:
            rate(1, seconds, ours)
        engine.dispose()
    return {name: 1_000 * statistics.median(values) for name, values in spans.items()}


def appends(threads: int, seconds: float) -> float:
    """Half messages stored per second by that many threads, on the broker alone."""
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_at(Path(folder) / "shop.db")
        bus = Bus(
            f"embedded://{folder}/bus.db",
            service="bench",
            databases={"shop": engine},
            topics=[notes],
            create_schema=True,
            relay="outside",
        )
        numbers = itertools.count()
        with bus:
            channel, identity = bus.opened.channel, bus.opened.databases["shop"].identity()
            assert channel is not None
            envelope = bus.opened.make_envelope(notes, Note(customer="c", body="x" * 150), SendOptions())

            def store(_: int) -> None:
                half = Half(HalfId(f"tx-{next(numbers)}", 1), identity, "shop", time.time(), (envelope,))
                channel.store(half, 5.0)

            stored = rate(threads, seconds, store)
        engine.dispose()
    return stored


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one object")
    arguments = parser.parse_args()
    outside = [measure(threads, arguments.seconds, arguments.rounds, relay=False) for threads in (1, 8)]
    inside = [measure(threads, arguments.seconds, arguments.rounds, relay=True) for threads in (1, 8)]
    spans = where_time_goes(arguments.seconds)
    pairs = [(appends(1, arguments.seconds), appends(8, arguments.seconds)) for _ in range(arguments.rounds)]
    one, eight = (statistics.median(side) for side in zip(*pairs, strict=True))
    joined = statistics.median(b / a for a, b in pairs)
    if arguments.json:
        print(
            json.dumps(
                {
                    "relay_outside": [asdict(r) for r in outside],
                    "relay_inside": [asdict(r) for r in inside],
                    "appends_per_s": [one, eight],
                    "joined": joined,
                    "milliseconds": spans,
                }
            )
        )
    else:
        print("relay    threads  with txbus/s  without/s  times slower")
        for name, results in (("outside", outside), ("inside", inside)):
            for r in results:
                print(f"{name:<8} {r.threads:>7}  {r.with_txbus:>12,.0f}  {r.without:>9,.0f}  {r.slower:>12.2f}")
        print(
            f"half messages stored: 1 thread {one:,.0f}/s, 8 threads {eight:,.0f}/s: {joined:.2f} (at least {JOIN_MIN})"
        )
        print("one thread, milliseconds: " + ", ".join(f"{name} {ms:.2f}" for name, ms in spans.items()))
    return 0 if joined >= JOIN_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
