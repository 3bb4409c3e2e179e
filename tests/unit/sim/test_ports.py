"""The core's ports over a simulated process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from txbus.spi import Ports
from txbus_sim._ports import world_ports
from txbus_sim._world import BEGAN_AT_WALL_NS, Process, ProcessSpec, StopReason, World
from txbus_sim.errors import ProcessIsDead
from txbus_sim.history import Logged

S = 1_000_000_000


def quiet_world() -> World:
    return World(lambda process, label, number, faults: None)


def run(*mains: Callable[[Ports], object]) -> World:
    """Each function is a process; the run ends when all have ended."""
    world = quiet_world()
    for number, main in enumerate(mains):
        world.start(ProcessSpec(f"p{number}", _main(main), restart_after_ns=None))
    assert world.run() is StopReason.FINISHED
    errors = [process.error for process in world.processes if process.error is not None]
    if errors:
        raise errors[0]
    return world


def _main(main: Callable[[Ports], object]) -> Callable[[Process], object]:
    return lambda process: main(world_ports())


def test_time_is_virtual_and_shared_by_processes() -> None:
    """An hour of sleep takes an hour of virtual time, and the wall clock begins in 2026."""
    seen: list[tuple[float, float]] = []

    def main(ports: Ports) -> None:
        ports.clock.sleep_s(3600.0)
        seen.append((ports.clock.monotonic_s(), ports.clock.wall_s()))

    run(main, main)
    assert seen == [(3600.0, BEGAN_AT_WALL_NS / S + 3600.0)] * 2


def test_chance_is_the_process_s_own_and_repeats() -> None:
    """Two processes draw different ids; a second run draws the same ones again."""

    def ids() -> list[str]:
        drawn: list[str] = []

        def main(ports: Ports) -> None:
            drawn.extend(ports.entropy.unique_id() for _ in range(3))
            assert 0.0 <= ports.entropy.uniform() < 1.0

        run(main, main)
        return drawn

    first = ids()
    assert len(set(first)) == 6 and all(len(one) == 32 for one in first)
    assert ids() == first


def test_a_lock_serves_who_waited_first() -> None:
    """Nobody overtakes: the lock is handed over in the order of asking."""
    order: list[str] = []

    def main(ports: Ports) -> None:
        lock = ports.runtime.lock()

        def work(name: str) -> None:
            with lock:
                order.append(name)
                ports.clock.sleep_s(1.0)

        def start(name: str) -> object:
            return ports.runtime.spawn(lambda: work(name), name)

        for name in "abc":
            start(name)
        ports.clock.sleep_s(0.5)
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(timeout=0.25)
        assert lock.acquire(timeout=60.0)
        order.append("main")
        lock.release()
        with pytest.raises(RuntimeError, match="not held"):
            lock.release()

    run(main)
    assert order == ["a", "b", "c", "main"]


def test_a_condition_wakes_one_or_all_and_gives_up_in_time() -> None:
    """notify wakes who waited longest; a wait ends at its timeout, holding the lock as deep as before."""
    woken: list[str] = []

    def main(ports: Ports) -> None:
        condition = ports.runtime.condition()

        def wait(name: str) -> None:
            with condition, condition:
                assert condition.wait()
                woken.append(name)

        for name in "abc":
            ports.runtime.spawn(lambda name=name: wait(name), name)  # type: ignore[misc]
        ports.clock.sleep_s(1.0)
        with condition:
            condition.notify()
        ports.clock.sleep_s(1.0)
        assert woken == ["a"]
        with condition:
            condition.notify_all()
            began_s = ports.clock.monotonic_s()
            assert not condition.wait(2.5)
            assert ports.clock.monotonic_s() == began_s + 2.5

    run(main)
    assert woken == ["a", "b", "c"]


def test_join_waits_for_the_end_or_the_timeout() -> None:
    """join answers False in time and True at the end; a thread that raises ends alone and is logged."""

    def main(ports: Ports) -> None:
        local = ports.runtime.local()
        local.set("main")

        def work() -> None:
            assert local.get() is None
            ports.clock.sleep_s(5.0)
            raise ValueError("of the thread")

        task = ports.runtime.spawn(work, "worker")
        assert not task.join(1.0)
        assert ports.clock.monotonic_s() == 1.0
        assert task.join() and task.join(0.0)
        assert ports.clock.monotonic_s() == 5.0
        assert local.get() == "main"

    world = run(main)
    (logged,) = [record for record in world.history if isinstance(record, Logged)]
    assert logged.process == "p0" and "ValueError: of the thread" in logged.text


def test_a_dead_process_s_locks_hold_nobody_up() -> None:
    """The frames of a process that died while it waited are freed without an error."""
    left: list[str] = []

    def dies(ports: Ports) -> None:
        condition = ports.runtime.condition()
        try:
            with condition:
                condition.wait()
        except ProcessIsDead:
            left.append("unwound")
            raise

    world = quiet_world()
    process = world.start(ProcessSpec("p", _main(dies), restart_after_ns=None))
    world.at(S, lambda: world.crash(process, restart=False))
    assert world.run() is StopReason.FINISHED
    world.close()
    world.free()
    assert left == ["unwound"]
