"""A run is the same under any hash seed, and different under another seed of its own."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import concurrent.futures, datetime, hashlib, logging, queue, random, sys, threading, time, uuid
from tests.simulation.interpose_runs import run

LOG = logging.getLogger("program")
LOCKS = {name: threading.Lock() for name in "abcdef"}

def main():
    items = queue.Queue()
    local = threading.local()

    def work(number):
        local.value = number
        for name in sorted(LOCKS):
            with LOCKS[name]:
                time.sleep(random.random())
        items.put((local.value, uuid.uuid4().hex, threading.current_thread().name))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        LOG.warning("%s %s", items.get(), datetime.datetime.now(datetime.UTC))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for future in concurrent.futures.as_completed([pool.submit(work, n) for n in range(3)]):
            LOG.warning("done %s", time.monotonic_ns())

made = run("b/clock.sleep#3 crash-before", seed=int(sys.argv[1]), a=main, b=main)
print(len(made.world.history), hashlib.sha256(repr(list(made.world.history)).encode()).hexdigest())
"""


def trace(seed: int, hash_seed: int) -> str:
    """How many records, and a digest of them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_under_any_hash_seed_and_another_under_another_seed() -> None:
    """Times, random numbers, names, order of threads and log; the other seed is the negative control."""
    first = trace(1, 0)
    assert int(first.split()[0]) > 100
    assert first == trace(1, 4242)
    assert first != trace(2, 0)
