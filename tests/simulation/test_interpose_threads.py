"""Threads of a simulated process are strands: they belong to it and die with it."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import pytest

from tests.simulation.interpose_runs import Run, error, result, run
from txbus_sim import _interpose
from txbus_sim.errors import NotModelled


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


class Worker(Thread):
    """A subclass that was defined before the simulation."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__(name="worker", daemon=True)
        self.seen = seen

    def run(self) -> None:
        time.sleep(2)
        self.seen.append((self.name, threading.current_thread() is self, time.monotonic()))


class Local(threading.local):
    """A subclass, with a value of each thread's own."""

    def __init__(self) -> None:
        self.count = 0


LOCAL = Local()
PLAIN = threading.local()


def test_a_subclass_runs_in_its_own_strand() -> None:
    """`run`, `name`, `join`, `is_alive`, `ident` and `daemon` are as of a real thread."""

    def main() -> list[Any]:
        seen: list[Any] = []
        worker = Worker(seen)
        before = (worker.is_alive(), worker.ident)
        worker.start()
        during = worker.is_alive()
        worker.join(1)
        seen.append(("waited", worker.is_alive(), time.monotonic()))
        worker.join()
        return [before, during, *seen, worker.is_alive(), worker.ident != threading.get_ident(), worker.daemon]

    assert result(main) == [
        (False, None),
        True,
        ("waited", True, 1.0),
        ("worker", True, 2.0),
        False,
        True,
        True,
    ]


def test_misuse_is_refused_as_the_real_thread_refuses_it() -> None:
    """Started twice; joined before it started; joined by itself."""

    def twice() -> None:
        thread = Thread(target=lambda: None)
        thread.start()
        thread.start()

    for main in (twice, lambda: Thread().join(), lambda: threading.current_thread().join()):
        assert isinstance(error(main), RuntimeError)


def test_who_runs() -> None:
    """`current_thread`, `main_thread`, `enumerate`, `active_count`, `get_ident` are the process's own."""

    def main() -> list[Any]:
        stop = threading.Event()
        names: list[str] = []

        def note() -> None:
            names.append(threading.current_thread().name)
            stop.wait()

        threads = [Thread(target=note) for _ in "ab"]
        for thread in threads:
            thread.start()
        time.sleep(1)
        found = [
            threading.current_thread() is threading.main_thread(),
            threading.current_thread().name,
            names,
            [thread.name for thread in threading.enumerate()],
            threading.active_count(),
            threading.main_thread().ident == threading.get_ident() == threading.get_native_id(),
            isinstance(threading.main_thread(), type(REAL_MAIN)),
        ]
        stop.set()
        return found

    names = ["Thread-1 (note)", "Thread-2 (note)"]
    assert result(main) == [True, "MainThread", names, ["MainThread", *names], 3, True, True]
    assert threading.current_thread() is REAL_MAIN or threading.main_thread() is REAL_MAIN


REAL_MAIN = threading.main_thread()


def test_process_ends_when_its_threads_do() -> None:
    """After main, threads that are no daemons go on; daemons end with the process."""
    seen: list[float] = []

    def tick(times: int) -> None:
        for _ in range(times):
            time.sleep(1)
            seen.append(time.monotonic())

    def main() -> None:
        Thread(target=tick, args=(3,)).start()
        Thread(target=tick, args=(9,), daemon=True).start()

    made = run(main=main)
    assert sorted(seen) == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert made.world.processes[0].error is None


def test_a_thread_that_raises_ends_alone() -> None:
    """Its traceback is in the log; the process goes on. The application's own excepthook is called instead."""
    told: list[Any] = []

    def fail() -> None:
        raise KeyError("missing")

    def main() -> None:
        thread = Thread(target=fail, name="failing")
        thread.start()
        thread.join()
        threading.excepthook = lambda args: told.append((args.exc_type, args.thread.name if args.thread else None))
        thread = Thread(target=fail, name="hooked")
        thread.start()
        thread.join()

    hook = threading.excepthook
    made = run(main=main)
    ((process, level, logger, text),) = made.logged
    assert (process, level, logger) == ("main", "ERROR", "threading")
    assert text.startswith("Exception in thread failing: Traceback") and text.endswith("KeyError: 'missing'")
    assert told == [(KeyError, "hooked")]
    assert threading.excepthook is hook


def test_a_crash_ends_every_thread() -> None:
    """No thread of a dead process goes on, and its `finally` has no effect."""
    seen: list[Any] = []

    def work() -> None:
        try:
            while True:
                time.sleep(1)
                seen.append(("tick", time.monotonic()))
        finally:
            seen.append(("finally", threading.Lock().acquire()))

    def main() -> None:
        Thread(target=work, daemon=True).start()
        time.sleep(2.5)

    made = Run("main/clock.sleep#4 kill-before")
    made(main=main)
    assert [one for one in seen if one[0] == "tick"] == [("tick", 1.0), ("tick", 2.0)]


def test_timer_fires_in_virtual_time() -> None:
    """And can be cancelled."""

    def main() -> list[float]:
        seen: list[float] = []
        threading.Timer(3, lambda: seen.append(time.monotonic())).start()
        cancelled = threading.Timer(5, lambda: seen.append(-1.0))
        cancelled.start()
        time.sleep(4)
        cancelled.cancel()
        time.sleep(4)
        return seen

    assert result(main) == [3.0]


def test_thread_locals_follow_the_strand() -> None:
    """Of every class, made before or within, also of library objects; the test's own is untouched."""
    PLAIN.value = "test"
    LOCAL.count = 7
    seen: list[Any] = []

    def count(times: int) -> None:
        for _ in range(times):
            LOCAL.count += 1
            time.sleep(1)
        seen.append((LOCAL.count, hasattr(PLAIN, "value")))

    def main() -> None:
        inner = threading.local()
        inner.value = 1
        threads = [Thread(target=count, args=(n,)) for n in (2, 3)]
        for thread in threads:
            thread.start()
        PLAIN.value = "main"
        count(1)
        for thread in threads:
            thread.join()
        seen.append((PLAIN.value, inner.value, LOCAL.count))

    run(a=main)
    assert seen == [(1, True), (2, False), (3, False), ("main", 1, 1)]
    assert (PLAIN.value, LOCAL.count) == ("test", 7)


def test_a_strand_s_locals_go_with_it() -> None:
    """What a thread kept in a `threading.local` is freed when the thread is over, as a real one's."""
    freed: list[str] = []

    class Kept:
        def __del__(self) -> None:
            freed.append("gone")

    def main() -> None:
        def keep() -> None:
            PLAIN.kept = Kept()

        thread = Thread(target=keep)
        thread.start()
        thread.join()
        assert not hasattr(PLAIN, "kept")

    run(main=main)
    assert freed == ["gone"]


def test_pool_of_threads() -> None:
    """`map`, `submit`, `wait`, `as_completed`, results in virtual time, errors of tasks, `with`."""

    def task(number: float) -> float:
        time.sleep(number)
        return number

    def fail() -> None:
        raise KeyError("missing")

    def main() -> list[Any]:
        with ThreadPoolExecutor(2) as pool:
            seen: list[Any] = [list(pool.map(task, [1, 1, 1])), time.monotonic()]
            futures = [pool.submit(task, number) for number in (3, 1)]
            seen.append([future.result() for future in concurrent.futures.as_completed(futures)])
            seen.append(time.monotonic())
            slow = pool.submit(task, 5)
            done, pending = concurrent.futures.wait([slow], timeout=2)
            seen.append((len(done), len(pending), time.monotonic()))
            try:
                slow.result(timeout=1)
            except TimeoutError:
                seen.append(time.monotonic())
            failing = pool.submit(fail)
            seen.append(type(failing.exception()))
        return [*seen, time.monotonic()]

    assert result(main) == [[1, 1, 1], 2.0, [1, 3], 5.0, (0, 1, 7.0), 8.0, KeyError, 10.0]


def test_pool_left_open_finishes_at_the_process_s_end() -> None:
    """As the interpreter does: submitted work is done, then the process is over; names count per process."""
    seen: list[Any] = []

    def note(number: int) -> None:
        time.sleep(1)
        seen.append((number, threading.current_thread().name))

    def main() -> None:
        pool = ThreadPoolExecutor(1)
        for number in range(3):
            pool.submit(note, number)

    made = run(a=main, b=main)
    name = "ThreadPoolExecutor-0_0"
    assert seen == [(number, name) for number in (0, 0, 1, 1, 2, 2)]
    assert all(not process.alive for process in made.world.processes)


def test_a_crash_while_a_pool_starts_a_thread_blocks_nobody() -> None:
    """The pool's lock of all pools is one in each process: a dead holder keeps no other out."""
    done: list[str] = []

    def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            done.append(pool.submit(lambda: "x").result())

    run("a/thread.start#1 pause-before 20s", a=main, b=main)
    assert done == ["x", "x"]
    done.clear()
    run("a/thread.start#1 crash-before", a=main, b=main)
    assert done == ["x", "x"]


def test_raw_threads() -> None:
    """`_thread.start_new_thread` makes a strand, too."""
    import _thread

    def main() -> list[Any]:
        seen: list[Any] = []

        def note(seconds: float) -> None:
            time.sleep(seconds)
            seen.append(_thread.get_ident())

        ident = _thread.start_new_thread(note, (2,))
        time.sleep(3)
        return [seen == [ident], time.monotonic()]

    assert result(main) == [True, 3.0]


EARLY = Thread(target=lambda: None)


def test_a_thread_made_before_cannot_be_started() -> None:
    """It would be every process's: said, with what to do."""
    found = error(lambda: EARLY.start())
    assert isinstance(found, NotModelled)
    assert "make the Thread in the process" in str(found) and f"{__file__}:" in str(found)


@pytest.mark.parametrize("seed", [0, 1])
def test_starting_a_thread_is_a_point(seed: int) -> None:
    """A process can crash when it starts one."""
    made = Run("main/thread.start#1 crash-after", seed)
    made(main=lambda: Thread(target=time.sleep, args=(1,)).start())
    assert [process.key for process in made.world.processes] == ["main", "main+1"]


def test_sqlalchemy_s_pool_waits_in_virtual_time() -> None:
    """A library that knows nothing of the simulation: threads queue for the only connection of a pool."""
    import sqlalchemy

    def main() -> list[Any]:
        engine = sqlalchemy.create_engine(
            "sqlite://", poolclass=sqlalchemy.QueuePool, pool_size=1, max_overflow=0, pool_timeout=2.5
        )
        seen: list[Any] = []

        def use() -> None:
            try:
                with engine.connect() as connection:
                    value = connection.scalar(sqlalchemy.text("SELECT 1"))
                    time.sleep(1)
                    seen.append((value, time.monotonic()))
            except sqlalchemy.exc.TimeoutError:
                seen.append(("timeout", time.monotonic()))

        threads = [Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen

    assert result(main) == [(1, 1.0), (1, 2.0), ("timeout", 2.5), (1, 3.0)]
