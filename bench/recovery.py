"""Claim: taking over a half partition costs in proportion to what is open, not to what is settled.

100,000 settled and 1,000 open halves: the records read at take-over are at most the open ones plus
a constant, and peak memory is at most 1.1 times that with 1,000 settled. The half log is filled
through the same sender and relay that run in production, on the embedded broker; the take-over runs
in a fresh process each. ``--json`` prints one object. Exits with 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydantic
from sqlalchemy import Engine

from bench.transactional_send import engine_at
from txbus import Bus, Outcome, Topic
from txbus._halves import Half, HalfId
from txbus._wire import SendOptions
from txbus.events import Event, TakeOver

RECORDS_CONSTANT = 2_000 + 500  # reappend_records, and what the last steps wrote
MEMORY_MAX = 1.1


class Note(pydantic.BaseModel):
    number: int


notes = Topic("notes", Note, key=lambda note: f"k{note.number}", partitions=1)


def make_bus(folder: Path, relay: bool) -> tuple[Bus, Engine]:
    engine = engine_at(folder / "shop.db")
    bus = Bus(
        f"embedded://{folder}/bus.db?sync=normal",
        service="bench",
        databases={"shop": engine},
        topics=[notes],
        create_schema=True,
        half_partitions=1,
        relay="inside" if relay else "outside",
        check_after_s=3_000,
    )
    return bus, engine


def fill(folder: Path, settled: int, opened: int) -> None:
    """Store halves as a sender does, and let a relay publish the settled ones; the open ones, spread
    among them, have no word from their sender."""
    bus, engine = make_bus(folder, relay=True)
    total = settled + opened
    every = total // opened
    with bus:
        channel, database = bus.opened.channel, bus.opened.databases["shop"]
        assert channel is not None
        identity = database.identity()

        def store(number: int) -> None:
            envelope = bus.opened.make_envelope(notes, Note(number=number), SendOptions())
            half = Half(HalfId(f"tx-{number}", 1), identity, "shop", time.time(), (envelope,))
            channel.store(half, 60.0)
            if number % every or number // every >= opened:
                channel.tell(half, Outcome.COMMITTED)

        with ThreadPoolExecutor(32) as pool:
            for _ in pool.map(store, range(total)):
                pass
        while (health := bus.health().relay) is None or health.undecided != opened:
            time.sleep(0.05)
    engine.dispose()


def take_over(folder: Path, opened: int) -> dict[str, float]:
    """In this process: own the partition, and say what it took."""
    seen: list[TakeOver] = []
    bus, engine = make_bus(folder, relay=True)

    def watch(event: Event) -> None:
        if isinstance(event, TakeOver):
            seen.append(event)

    bus.subscribe(watch)
    began = time.perf_counter()
    with bus:
        records, since = -1, began
        while time.perf_counter() - since < 1.0:
            health = bus.health().relay
            assert health is not None
            if health.records_read != records or health.undecided < opened:
                records, since = health.records_read, time.perf_counter()
            time.sleep(0.005)
    engine.dispose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"records": records, "seconds": since - began, "peak_mib": peak, "unsettled": seen[0].unsettled}


def measure(settled: int, opened: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        for step in ("fill", "take-over"):
            command = [sys.executable, "-m", "bench.recovery", f"--{step}", folder, str(settled), str(opened)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        result: dict[str, float] = json.loads(output)
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settled", type=int, default=100_000)
    parser.add_argument("--open", type=int, default=1_000)
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--fill", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--take-over", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fill:
        folder, settled, opened = arguments.fill
        fill(Path(folder), int(settled), int(opened))
        return 0
    if arguments.take_over:
        print(json.dumps(take_over(Path(arguments.take_over[0]), int(arguments.take_over[2]))))
        return 0
    small, large = measure(1_000, arguments.open), measure(arguments.settled, arguments.open)
    memory = large["peak_mib"] / small["peak_mib"]
    holds = large["records"] <= arguments.open + RECORDS_CONSTANT and memory <= MEMORY_MAX
    if arguments.json:
        print(json.dumps({"small": small, "large": large, "memory": memory, "holds": holds}))
    else:
        for name, settled, r in (("small", 1_000, small), ("large", arguments.settled, large)):
            print(
                f"{name}: {settled:,} settled, {arguments.open:,} open: {r['records']:,.0f} records read, "
                f"{r['seconds']:.2f} s, peak {r['peak_mib']:.0f} MiB"
            )
        print(f"memory {memory:.2f} (at most {MEMORY_MAX}); records at most open + {RECORDS_CONSTANT:,}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
