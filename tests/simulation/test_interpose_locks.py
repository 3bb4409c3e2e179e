"""Locks, conditions and queues of a simulated process wait in virtual time and in the order of arrival."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Lock
from typing import Any

import pytest

from tests.simulation.interpose_runs import Run, S, error, result, run
from txbus_sim import _interpose
from txbus_sim._stuck import deadlock, who_waits
from txbus_sim._world import StopReason, current_process


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


MAKERS: list[Callable[[], Any]] = [threading.Lock, threading.RLock, lambda: threading.Semaphore(1), threading.Condition]


def spawn(*calls: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("make", MAKERS, ids=["Lock", "RLock", "Semaphore", "Condition"])
def test_who_waits_first_is_served_first(make: Callable[[], Any]) -> None:
    """Nobody overtakes, and each waits as long as those before hold it."""

    def main() -> list[tuple[int, float]]:
        lock = make()
        order: list[tuple[int, float]] = []

        def hold(number: int) -> None:
            with lock:
                order.append((number, time.monotonic()))
                time.sleep(1)

        join(spawn(*(lambda n=n: hold(n) for n in range(4))))
        return order

    assert result(main) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock], ids=["Lock", "RLock"])
def test_timeouts_are_virtual(make: Callable[[], Any]) -> None:
    """A wait for a lock ends at its time, not served, and the lock goes to the next."""

    def main() -> list[Any]:
        lock = make()
        seen: list[Any] = []

        def late() -> None:
            seen.append((lock.acquire(timeout=2), time.monotonic()))

        lock.acquire()
        threads = spawn(late, lambda: seen.append((lock.acquire(timeout=9), time.monotonic())))
        time.sleep(5)
        lock.release()
        join(threads)
        return seen

    assert result(main) == [(False, 2.0), (True, 5.0)]


def test_lock_handed_over_at_the_deadline_is_taken_once() -> None:
    """A deadline and a release at the same moment: taken or not, never lost, never held twice."""

    def main() -> tuple[bool, bool]:
        lock = threading.Lock()
        seen: list[bool] = []
        lock.acquire()
        threads = spawn(lambda: seen.append(lock.acquire(timeout=1)))
        time.sleep(1)
        lock.release()
        join(threads)
        return seen[0], lock.locked()

    taken, locked = result(main)
    assert taken == locked


def test_arguments_are_checked_as_the_real_ones_are() -> None:
    """ValueError for a timeout of a non-blocking call or a negative one; RuntimeError for a wrong release."""

    def again(blocking: bool, timeout: float) -> None:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire(blocking, timeout)

    assert isinstance(error(lambda: again(False, 1)), ValueError)
    assert isinstance(error(lambda: again(True, -2)), ValueError)
    assert isinstance(error(lambda: threading.Lock().release()), RuntimeError)
    assert isinstance(error(lambda: threading.RLock().release()), RuntimeError)


def test_lock_states() -> None:
    """`locked`, non-blocking acquire, re-entrance of an RLock, and release by another thread of a Lock."""

    def main() -> list[Any]:
        lock, again = threading.Lock(), threading.RLock()
        seen: list[Any] = [lock.locked(), lock.acquire(), lock.locked(), lock.acquire(blocking=False)]
        join(spawn(lock.release))
        seen.append(lock.locked())
        with again, again:
            join(spawn(lambda: seen.append(again.acquire(blocking=False))))
        join(spawn(lambda: seen.append(again.acquire(blocking=False))))
        return seen

    assert result(main) == [False, True, True, False, False, False, True]


def test_deadlock_of_two_locks_is_diagnosed() -> None:
    """Two threads that take two locks in opposite order: the circle names both."""

    def main() -> None:
        one, two = threading.Lock(), Lock()

        def take(first: Any, second: Any) -> None:
            with first:
                time.sleep(1)
                with second:
                    pass

        join(spawn(lambda: take(one, two), lambda: take(two, one)))

    made = Run()
    found: list[Any] = []
    made.world.at(20 * S, lambda: found.append(deadlock(made.world)))
    made.run({"main": main})
    assert "2 threads wait for one another for ever" in found[0].sentence
    assert all("a lock made at" in line and __file__ in line for line in found[0].details)


def test_waiting_for_ever_is_stuck_and_says_for_what() -> None:
    """An event that nobody sets: no deadlock, and the report says what it is."""
    made = Run()
    found: list[Any] = []
    made.world.at(20 * S, lambda: found.extend((deadlock(made.world), who_waits(made.world))))
    made.run({"main": lambda: threading.Event().wait(), "other": lambda: queue.Queue[int]().get()})
    assert made.reason is StopReason.STUCK
    assert found[0] is None
    assert "waits for an event to be set" in found[1].details[0]
    assert "waits for an item of a queue" in found[1].details[1]


def test_conditions_wake_in_order_and_end_in_time() -> None:
    """`notify` wakes who waited first; `wait` and `wait_for` end at their virtual time."""

    def main() -> list[Any]:
        condition = threading.Condition()
        seen: list[Any] = []

        def wait(number: int, timeout: float | None) -> None:
            with condition:
                seen.append((number, condition.wait(timeout), time.monotonic()))

        threads = spawn(lambda: wait(1, None), lambda: wait(2, 1.5), lambda: wait(3, None))
        time.sleep(2)
        with condition:
            condition.notify()
        time.sleep(1)
        with condition:
            condition.notify_all()
            seen.append(condition.wait_for(lambda: False, timeout=4))
        join(threads)
        return [*seen, time.monotonic()]

    assert result(main) == [(2, False, 1.5), (1, True, 2.0), (3, True, 3.0), False, 7.0]
    assert isinstance(error(lambda: threading.Condition().wait()), RuntimeError)


def test_condition_of_a_lock_taken_twice_lets_go_entirely() -> None:
    """Waiting in a nested `with` of a condition releases it for others, and takes it back as often."""

    def main() -> list[str]:
        condition = threading.Condition()
        seen: list[str] = []

        def waiter() -> None:
            with condition, condition:
                condition.wait()
                seen.append("woken")
            seen.append("out")

        threads = spawn(waiter)
        time.sleep(1)
        with condition:
            seen.append("in")
            condition.notify()
        join(threads)
        return seen

    assert result(main) == ["in", "woken", "out"]


def test_events_semaphores_and_barriers() -> None:
    """Each of the standard library's own classes, over the simulation's locks."""

    def main() -> dict[str, Any]:
        event, semaphore, barrier = threading.Event(), threading.BoundedSemaphore(2), threading.Barrier(3)
        seen: dict[str, Any] = {"early": event.wait(1), "held": [], "met": []}

        def limited() -> None:
            with semaphore:
                seen["held"].append(time.monotonic())
                time.sleep(1)

        def meeting(after_s: float) -> None:
            time.sleep(after_s)
            barrier.wait()
            seen["met"].append(time.monotonic())

        join(spawn(*[limited] * 4))
        join(spawn(*(lambda s=s: meeting(s) for s in (1, 2, 3))))
        threads = spawn(lambda: seen.update(set=event.wait(100)))
        event.set()
        join(threads)
        try:
            semaphore.release()
        except ValueError:
            seen["bounded"] = True
        try:
            barrier.wait(timeout=1)
        except threading.BrokenBarrierError:
            seen["broken"] = time.monotonic()
        return seen

    assert result(main) == {
        "early": False,
        "held": [1.0, 1.0, 2.0, 2.0],
        "met": [6.0, 6.0, 6.0],
        "set": True,
        "bounded": True,
        "broken": 7.0,
    }


@pytest.mark.parametrize("make", [queue.Queue, queue.LifoQueue, queue.PriorityQueue, queue.SimpleQueue, SimpleQueue])
def test_queues_wait_in_virtual_time(make: Callable[[], Any]) -> None:
    """A consumer waits until the producer puts; an empty queue's patience ends at its time."""

    def main() -> list[Any]:
        items = make()
        seen: list[Any] = []

        def produce() -> None:
            for number in range(3):
                time.sleep(1)
                items.put(number)

        threads = spawn(produce)
        seen.extend((items.get(), time.monotonic()) for _ in range(3))
        join(threads)
        try:
            items.get(timeout=4)
        except queue.Empty:
            seen.append(time.monotonic())
        return [*seen, isinstance(items, make) if isinstance(make, type) else True]

    assert result(main) == [(0, 1.0), (1, 2.0), (2, 3.0), 7.0, True]


def test_bounded_queue_holds_the_producer_back() -> None:
    """`put` waits for room, `join` for the last task."""

    def main() -> list[float]:
        items: queue.Queue[int] = queue.Queue(1)

        def consume() -> None:
            for _ in range(3):
                time.sleep(1)
                items.get()
                items.task_done()

        threads = spawn(consume)
        put = []
        for number in range(3):
            items.put(number)
            put.append(time.monotonic())
        items.join()
        join(threads)
        return [*put, time.monotonic()]

    assert result(main) == [0.0, 1.0, 2.0, 3.0]


def test_locks_outside_of_processes_are_real() -> None:
    """Also while the simulation is installed."""
    assert type(threading.Lock()).__name__ == "lock" and type(threading.RLock()).__module__ == "_thread"
    assert type(queue.SimpleQueue()).__module__ == "_queue"
    ran: list[int] = []
    thread = threading.Thread(target=lambda: ran.append(threading.get_ident()))
    thread.start()
    thread.join()
    assert ran == [thread.ident] != [threading.get_ident()]


def test_a_lock_shared_by_processes_is_one_in_each() -> None:
    """A lock that two processes reach (kept by a library's shared object) keeps nobody of another one out."""
    shared: list[Any] = []
    seen: list[tuple[str, float]] = []

    def main() -> None:
        if not shared:
            shared.append(threading.Lock())
        process = current_process()
        assert process is not None
        with shared[0]:
            time.sleep(5)
            seen.append((process.key, time.monotonic()))

    run(a=main, b=main)
    assert seen == [("a", 5.0), ("b", 5.0)]
    with shared[0]:
        assert shared[0].locked()
    assert not shared[0].locked()


def test_a_dead_process_s_locks_are_free_for_its_next_incarnation() -> None:
    """A crash while a lock of shared memory is held does not hold up the restart."""
    shared: list[Any] = []
    done: list[float] = []

    def main() -> None:
        if not shared:
            shared.append(threading.Lock())
        with shared[0]:
            time.sleep(1)
        done.append(time.monotonic())

    run("main/clock.sleep#1 crash-after", main=main)
    assert done == [3.0]
