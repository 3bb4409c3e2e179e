"""The world of a run: time, strands, crashes, and what a dead process can still do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import cast

import pytest
from greenlet import getcurrent

from txbus_sim._world import (
    Limits,
    Process,
    ProcessSpec,
    StopReason,
    Strand,
    Wait,
    World,
    current_process,
    current_strand,
    nanoseconds,
)
from txbus_sim.faults import CRASHES, Fault, Faults
from txbus_sim.history import FaultHappened, Point, ProcessEnded, ProcessStarted
from txbus_sim.schedule import Address, Deviation, Schedule

S = 1_000_000_000


def tape(text: str = "") -> Callable[[str, str, int, Faults], Deviation | None]:
    """A tape of the deviations in a text, a line each."""
    deviations = {one.address: one for one in map(Deviation.parse, text.strip().splitlines())}
    return lambda process, label, number, faults: deviations.get(Address(process, label, number))


def world(text: str = "", **limits: int) -> World:
    return World(tape(text), limits=Limits(settle_ns=5 * S, **limits))


def run(made: World, **mains: Callable[[Process], object]) -> StopReason:
    for name, main in mains.items():
        made.start(ProcessSpec(name, main))
    return made.run()


def steps(made: World, log: list[object], count: int = 3) -> Callable[[Process], object]:
    """A main function of a few operations, each noted when it took place."""

    def main(process: Process) -> None:
        for number in range(count):
            fault = made.enter("step", CRASHES)
            log.append((process.key, number, made.now_ns))
            made.leave(fault)
            made.sleep_ns(S)

    return main


def entries(log: list[object]) -> list[tuple[str, int, int]]:
    """What `steps` noted."""
    return cast("list[tuple[str, int, int]]", log)


def test_time_passes_only_by_waiting() -> None:
    """An hour of sleep takes an hour of virtual time, to the nanosecond."""
    made, seen = world(), list[object]()

    def main(process: Process) -> None:
        made.sleep_ns(3_600 * S)
        seen.append(made.now_ns)

    assert run(made, one=main) is StopReason.FINISHED
    assert seen == [3_600 * S]


def test_strands_take_turns_by_time() -> None:
    """Who becomes runnable first runs first; at the same time, who asked first."""
    made, log = world(), list[object]()
    run(made, a=steps(made, log), b=steps(made, log))
    assert log == [(name, number, number * S) for number in range(3) for name in ("a", "b")]


@pytest.mark.parametrize(
    ("fault", "done"),
    [("crash-before", [0, 0, 1, 2]), ("crash-after", [0, 1, 0, 1, 2])],
)
def test_crash_lets_the_operation_happen_or_not(fault: str, done: list[int]) -> None:
    """A process crashed before an operation did not do it, one crashed after it did; the next
    incarnation begins from the start."""
    made, log = world(f"a/step#2 {fault}"), list[object]()
    run(made, a=steps(made, log))
    assert [number for _, number, _ in entries(log)] == done
    assert [record.process for record in made.history if isinstance(record, ProcessStarted)] == ["a", "a+1"]


def test_killed_process_does_not_come_back() -> None:
    """Nobody starts a killed process anew."""
    made, log = world("a/step#2 kill-after"), list[object]()
    assert run(made, a=steps(made, log)) is StopReason.FINISHED
    assert [number for _, number, _ in entries(log)] == [0, 1]


def test_addresses_count_in_each_incarnation() -> None:
    """The incarnation is part of an address, so a fault can be placed in a recovery."""
    made, log = world("a/step#1 crash-after\na+1/step#2 crash-before"), list[object]()
    run(made, a=steps(made, log))
    assert [entry[:2] for entry in entries(log)] == [
        ("a", 0),
        ("a+1", 0),
        ("a+2", 0),
        ("a+2", 1),
        ("a+2", 2),
    ]


def test_finally_of_a_crashed_process_does_not_run_during_the_run() -> None:
    """A crash is no exception: nothing of the process runs until its memory is freed."""
    made, log = world("a/step#1 crash-before"), list[object]()

    def main(process: Process) -> None:
        try:
            made.enter("step", CRASHES)
        finally:
            log.append(f"finally of {process.key} with closed={made.closed}")

    run(made, a=main)
    assert log == ["finally of a+1 with closed=False"]
    made.close()
    made.free()
    assert log[1:] == ["finally of a with closed=True"]


def test_dead_process_has_no_effect_while_it_is_freed() -> None:
    """Operations in `finally`, `except` and `__exit__` of a dead process do not take place."""
    made, log = world("a/step#1 crash-before"), list[object]()

    def main(process: Process) -> None:
        try:
            made.enter("step", CRASHES)
        finally:
            for what in (
                lambda: made.enter("late", CRASHES),
                lambda: made.sleep_ns(1),
                lambda: made.park(Wait("lock", "a lock")),
                made.give_way,
            ):
                try:
                    what()
                    log.append(process.key)
                except BaseException:
                    pass

    made.start(ProcessSpec("a", main, restart_after_ns=None))
    made.run()
    made.close()
    made.free()
    assert log == []
    assert [point.label for point in made.history.points()] == ["step"]


def test_freeing_ends_even_if_a_dead_process_resists() -> None:
    """A frame that swallows everything for ever is left alone after a number of calls."""
    made = world("a/step#1 crash-before")

    def main(process: Process) -> None:
        while True:
            try:
                made.enter("step", CRASHES)
            except BaseException:
                pass

    made.start(ProcessSpec("a", main, restart_after_ns=None))
    made.run()
    made.close()
    made.free()
    assert len(made.history.points()) == 1


def test_threads_die_with_their_process() -> None:
    """A crash in one thread ends all threads of its process, and of no other."""
    made, log = world("a/step#2 crash-after"), list[object]()

    def main(process: Process) -> None:
        process.spawn(lambda: steps(made, log, 5)(process), "worker", daemon=False)
        made.sleep_ns(100 * S)

    made.start(ProcessSpec("a", main, restart_after_ns=None))
    made.start(ProcessSpec("b", steps(made, log, 4)))
    made.run()
    assert [key for key, *_ in entries(log)].count("a") == 2
    assert [key for key, *_ in entries(log)].count("b") == 4


def test_process_ends_after_its_threads_and_kills_daemons() -> None:
    """As in an interpreter: the end waits for threads that are no daemons, and for no daemon."""
    made, log = world(), list[object]()

    def main(process: Process) -> None:
        process.spawn(lambda: steps(made, log, 2)(process), "worker", daemon=False)
        process.spawn(lambda: steps(made, log, 50)(process), "daemon", daemon=True)

    assert run(made, a=main) is StopReason.FINISHED
    assert made.now_ns == 2 * S


def test_paused_process_stands_still_and_goes_on() -> None:
    """A pause stops every thread, its timers come late, and the others go on."""
    made, log = world("a/step#2 pause-after 10s"), list[object]()
    run(made, a=steps(made, log), b=steps(made, log))
    assert [at for key, _, at in entries(log) if key == "a"] == [0, S, 12 * S]
    assert [at for key, _, at in entries(log) if key == "b"] == [0, S, 2 * S]


def test_late_thread_is_late_alone() -> None:
    """A delay holds the calling thread only."""
    made, log = world("a/step#1 delay 1500ms"), list[object]()

    def main(process: Process) -> None:
        process.spawn(lambda: log.append(("other", made.now_ns)), "other")
        steps(made, log, 1)(process)

    run(made, a=main)
    assert log == [("other", 0), ("a", 0, S + S // 2)]


def test_wait_that_ended_during_a_pause_is_ended_once() -> None:
    """A deadline and a wake-up that both fall into a pause resume the strand once."""
    made, log = world(), list[object]()
    made.limits.settle_ns = 100 * S
    parked: list[Strand] = []

    def waits(process: Process) -> None:
        parked.append(current_strand())
        log.append((made.park(Wait("event", "an event"), 5 * S), made.now_ns))
        log.append((made.park(Wait("event", "an event"), 50 * S), made.now_ns))

    def wakes(process: Process) -> None:
        made.sleep_ns(S)
        made.pause(parked[0].process, 20 * S)
        made.sleep_ns(6 * S)
        made.unpark(parked[0])

    run(made, waits=waits, wakes=wakes)
    assert log == [(False, 21 * S), (False, 50 * S)]


def test_death_is_told_to_servers_newest_first() -> None:
    """What an operating system and servers do at a process's death happens at its death."""
    made, log = world("a/step#1 crash-before"), list[object]()

    def main(process: Process) -> None:
        process.at_death.append(lambda: log.append(("first", made.now_ns)))
        process.at_death.append(lambda: log.append(("second", made.now_ns)))
        made.sleep_ns(S)
        made.enter("step", CRASHES)

    made.start(ProcessSpec("a", main, restart_after_ns=None))
    made.run()
    assert log == [("second", S), ("first", S)]


def test_park_is_ended_by_unpark_or_deadline() -> None:
    """`park` tells which of the two came first; a late `unpark` does nothing."""
    made, log = world(), list[object]()
    parked: list[Strand] = []

    def waits(process: Process) -> None:
        parked.append(current_strand())
        log.append(made.park(Wait("event", "an event"), made.now_ns + 3 * S))
        log.append(made.park(Wait("event", "an event"), made.now_ns + 3 * S))
        made.sleep_ns(S)

    def wakes(process: Process) -> None:
        made.sleep_ns(S)
        made.unpark(parked[0])
        made.unpark(parked[0])
        made.sleep_ns(3 * S + S // 2)
        made.unpark(parked[0])
        made.progress()

    assert run(made, waits=waits, wakes=wakes) is StopReason.FINISHED
    assert log == [True, False]
    assert made.now_ns == 5 * S


def test_raising_process_is_started_anew_until_it_is_enough() -> None:
    """A process that raises without end is a verdict, not an endless run."""
    made = world()

    def main(process: Process) -> None:
        raise ValueError(process.key)

    assert run(made, a=main) is StopReason.RAISING
    assert [r.how for r in made.history if isinstance(r, ProcessEnded)][:2] == ["raised", "raised"]


@pytest.mark.parametrize("fault", ["pause-before 400s", "pause-after 400s", "delay 400s"])
def test_raising_counts_once_the_fault_is_over(fault: str) -> None:
    """Whoever fails while another stands still, with a lock in hand, say, is not blamed for it."""
    made, done = world(f"a/step#1 {fault}"), list[str]()

    def needing(process: Process) -> None:
        if not done:
            raise ValueError("it is locked")
        done.append(process.key)

    def holding(process: Process) -> None:
        made.leave(made.enter("step", CRASHES))
        made.sleep_ns(S)
        done.append(process.key)

    assert run(made, a=holding, b=needing) is not StopReason.RAISING
    assert done[0] == "a" and done[1].startswith("b+") and len(done) == 2


def test_everybody_waiting_for_ever_is_stuck() -> None:
    """A run in which nobody can wake anybody ends at once as stuck."""
    made = world()
    assert run(made, a=lambda process: made.park(Wait("lock", "a lock"))) is StopReason.STUCK


def test_busy_loop_ends_by_the_step_budget() -> None:
    """A loop of operations without a wait is ended after the budget of steps."""
    made = world(steps_max=1_000)

    def main(process: Process) -> None:
        while True:
            made.enter("step", CRASHES)

    assert run(made, a=main) is StopReason.STEPS
    assert made.steps == 1_001


def test_polling_service_comes_to_rest() -> None:
    """A service that polls for ever ends the run when nothing durable happened for a while."""
    made = world()

    def main(process: Process) -> None:
        for _ in range(3):
            made.sleep_ns(2 * S)
            made.progress()
        while True:
            made.enter("poll", CRASHES)
            made.sleep_ns(S)

    assert run(made, a=main) is StopReason.QUIET
    assert 11 * S <= made.now_ns <= 13 * S


def test_run_does_not_end_before_a_restart() -> None:
    """However long a restart or the end of a pause takes, the run waits for it."""
    made, log = world("a/step#1 pause-before 100s"), list[object]()
    assert run(made, a=steps(made, log, 1)) is StopReason.FINISHED
    assert log == [("a", 0, 100 * S)]


def test_observers_run_outside_of_every_process() -> None:
    """What looks on after a durable change belongs to no process."""
    made, seen = world(), list[object]()
    made.observers.append(lambda: seen.append((current_process(), type(getcurrent()) is Strand)))
    run(made, a=lambda process: made.progress())
    assert seen == [(None, False)]


def test_faults_are_in_the_history_with_their_address() -> None:
    """The history tells which deviation took place, and when."""
    made, log = world("a/step#3 crash-before"), list[object]()
    run(made, a=steps(made, log))
    happened = [record for record in made.history if isinstance(record, FaultHappened)]
    assert happened == [FaultHappened(2 * S, Address("a", "step", 3), Fault.CRASH_BEFORE)]


def test_randomness_of_a_process_depends_on_seed_and_incarnation_alone() -> None:
    """Each incarnation draws its own numbers, the same in every run of a seed."""

    def draws(seed: int) -> list[float]:
        made, seen = World(tape("a/step#1 crash-before"), seed=seed), list[float]()

        def main(process: Process) -> None:
            seen.append(process.entropy.random())
            made.enter("step", CRASHES)

        run(made, a=main)
        return seen

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert len(set(draws(1))) == 2


def test_sites_are_noted_when_asked_for() -> None:
    """A point knows the application's line that reached it."""
    made = World(tape(), note_sites=True)
    run(made, a=lambda process: made.enter("step", CRASHES))
    site = made.history.points()[0].site
    assert site.rsplit(":", 1)[0].endswith("test_world.py")


_PRINT_HISTORY = """
from tests.simulation.test_world import run, steps, world
log = []
made = world(SCHEDULE)
run(made, a=steps(made, log), b=steps(made, log), c=steps(made, log))
print([str(record) for record in made.history])
"""


def _history(hash_seed: str, schedule: str) -> str:
    code = _PRINT_HISTORY.replace("SCHEDULE", repr(schedule))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_history_does_not_depend_on_the_hash_seed() -> None:
    """Same schedule, same history, whatever PYTHONHASHSEED; another schedule, another history."""
    schedule = "a/step#2 crash-after\nb/step#1 pause-before 2s"
    assert _history("0", schedule) == _history("1", schedule)
    assert _history("0", schedule) != _history("0", "a/step#1 crash-after")


def test_schedule_text_is_read_as_it_was_written() -> None:
    """A schedule survives its text, notes and amounts included."""
    schedule = Schedule(
        (
            Deviation(Address("orders", "sql.commit:shop", 1), Fault.ANSWER_LOST),
            Deviation(Address("stock+1", "broker.receive:stock.reserve", 12), Fault.PAUSE_BEFORE, 1_500_000_000),
            Deviation(Address("stock", "file.write:bus.db", 2), Fault.TORN, 17),
        ),
        "lost: no-loss\nmore",
    )
    assert Schedule.parse(str(schedule)) == schedule
    assert "pause-before 1500ms" in str(schedule)
    assert "torn 17B" in str(schedule)


def test_points_are_crash_points_of_living_processes() -> None:
    """Every point of a run is an address that a schedule can name."""
    made, log = world(), list[object]()
    run(made, a=steps(made, log))
    assert [str(point.address) for point in made.history.points()] == ["a/step#1", "a/step#2", "a/step#3"]
    assert all(type(point) is Point for point in made.history.points())


def test_no_wait_is_rounded_to_nothing() -> None:
    """A wait of less than a nanosecond lasts one: time goes on for who loops until it has come."""
    assert nanoseconds(1e-12) == 1
    assert nanoseconds(0.0) == 0
    assert nanoseconds(1.5) == 1_500_000_000
