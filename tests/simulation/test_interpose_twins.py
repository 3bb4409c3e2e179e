"""What an application made at import time, before the simulation, is one in each process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.simulation.interpose_runs import run
from txbus_sim import _interpose
from txbus_sim._interpose._references import Kept

LOCK = threading.Lock()
AGAIN = threading.RLock()
CONDITION = threading.Condition()
EVENT = threading.Event()
SEMAPHORE = threading.Semaphore(1)
BOUNDED = threading.BoundedSemaphore(1)
BARRIER = threading.Barrier(2)
QUEUE: queue.Queue[str] = queue.Queue()
STOCKED: queue.Queue[str] = queue.Queue()
STOCKED.put("made at import time")
SIMPLE: queue.SimpleQueue[str] = queue.SimpleQueue()
POOL = ThreadPoolExecutor(1, "pool")


class Repository:
    """Locks as attributes of a class and of an object, in a closure and as a default argument."""

    shared = threading.Lock()

    def __init__(self) -> None:
        self.own = threading.Lock()


REPOSITORY = Repository()


def guarded(lock: Any = LOCK) -> Any:
    return lock


def closing() -> Callable[[], Any]:
    inner = threading.Lock()
    return lambda: inner


CLOSURE = closing()
BEFORE = [Kept(one) for one in (LOCK, AGAIN, Repository.shared, REPOSITORY.own, SIMPLE, type(EVENT), type(QUEUE))]


@pytest.fixture
def stand_ins() -> Iterator[None]:
    with _interpose.installed():
        yield


EXCLUDING: dict[str, Callable[[], Any]] = {
    "Lock": lambda: LOCK,
    "RLock": lambda: AGAIN,
    "Condition": lambda: CONDITION,
    "Semaphore": lambda: SEMAPHORE,
    "BoundedSemaphore": lambda: BOUNDED,
    "class attribute": lambda: Repository.shared,
    "attribute": lambda: REPOSITORY.own,
    "default argument": guarded,
    "closure": lambda: CLOSURE(),
}


@pytest.mark.parametrize("which", EXCLUDING)
def test_excludes_threads_of_one_process_and_nobody_else(which: str) -> None:
    """Two threads of a process wait for one another; the other process does not wait for them."""
    seen: list[tuple[str, float]] = []

    def hold(name: str) -> None:
        with EXCLUDING[which]():
            time.sleep(1)
            seen.append((name, time.monotonic()))

    def main(name: str) -> None:
        threads = [threading.Thread(target=hold, args=(name,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(a=lambda: main("a"), b=lambda: main("b"))
    assert seen == [("a", 1.0), ("b", 1.0), ("a", 2.0), ("b", 2.0)]


def test_a_lock_held_at_a_crash_is_free_after_it() -> None:
    """Memory is not durable."""
    done: list[float] = []

    def main() -> None:
        with LOCK, CONDITION:
            time.sleep(1)
            done.append(time.monotonic())

    run("main/clock.sleep#1 crash-after", main=main)
    assert done == [3.0]
    assert not LOCK.locked()


def test_events_are_set_in_one_process_only() -> None:
    """The other process, and the test, do not see it."""
    seen: list[tuple[str, bool]] = []

    def main(name: str, sets: bool) -> None:
        if sets:
            EVENT.set()
        seen.append((name, EVENT.wait(1)))

    run(a=lambda: main("a", True), b=lambda: main("b", False))
    assert seen == [("a", True), ("b", False)]
    assert not EVENT.is_set()


@pytest.mark.parametrize("items", [QUEUE, SIMPLE], ids=["Queue", "SimpleQueue"])
def test_queues_hold_what_their_process_put(items: Any) -> None:
    """A consumer thread gets its process's items only, and waits for them."""
    seen: list[Any] = []
    # As the application reaches them: what pytest passes was taken before.
    name = "QUEUE" if isinstance(items, queue.Queue) else "SIMPLE"

    def main(process: str) -> None:
        mine = globals()[name]

        def consume() -> None:
            seen.append((process, mine.get(), time.monotonic()))

        thread = threading.Thread(target=consume)
        thread.start()
        time.sleep(1)
        mine.put(f"of {process}")
        thread.join()

    run(a=lambda: main("a"), b=lambda: main("b"))
    assert seen == [("a", "of a", 1.0), ("b", "of b", 1.0)]
    assert items.empty()


def test_content_of_import_time_is_in_every_process() -> None:
    """As it would be after an import."""
    seen: list[str] = []
    run(a=lambda: seen.append(STOCKED.get(timeout=1)), b=lambda: seen.append(STOCKED.get(timeout=1)))
    assert seen == ["made at import time"] * 2 and STOCKED.qsize() == 1


def test_barriers_and_pools() -> None:
    """Parties meet within their process; a pool's threads are the process's, and end with it."""
    seen: list[Any] = []

    def main() -> None:
        thread = threading.Thread(target=BARRIER.wait)
        thread.start()
        time.sleep(1)
        BARRIER.wait()
        seen.append((time.monotonic(), POOL.submit(lambda: threading.current_thread().name).result()))

    made = run(a=main, b=main)
    assert seen == [(1.0, "pool_0"), (1.0, "pool_0")]
    assert all(not process.alive for process in made.world.processes)
    assert POOL._threads == set()


def test_they_stay_what_they_are(stand_ins: None) -> None:
    """Outside of processes they work as before, and are instances of their classes."""
    with LOCK, AGAIN, CONDITION, SEMAPHORE, REPOSITORY.own:
        assert LOCK.locked() and not SEMAPHORE.acquire(blocking=False)
    assert isinstance(EVENT, threading.Event) and isinstance(QUEUE, queue.Queue) and not EVENT.wait(0.001)
    QUEUE.put("x")
    assert QUEUE.get() == "x"
    SIMPLE.put("y")
    assert SIMPLE.get() == "y"
    assert POOL.submit(lambda: 3).result() == 3


def test_everything_is_put_back() -> None:
    """The very objects, in every place."""
    with _interpose.installed():
        assert LOCK is not BEFORE[0].value and type(EVENT) is not BEFORE[5].value
    now = (LOCK, AGAIN, Repository.shared, REPOSITORY.own, SIMPLE, type(EVENT), type(QUEUE))
    assert all(one is before.value for one, before in zip(now, BEFORE, strict=True))
    assert guarded() is LOCK and type(CLOSURE()) is type(LOCK)
