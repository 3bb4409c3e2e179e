"""Time within a simulated process is virtual, whoever asks for it and however they got the function."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import pytest
import time_machine

from tests.simulation.interpose_runs import Run, S, all_of, error, result, run
from txbus_sim import _interpose
from txbus_sim._interpose._references import Kept
from txbus_sim._world import BEGAN_AT_WALL_NS

BEGIN_S = BEGAN_AT_WALL_NS // S
BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def by_default(wait: Callable[[float], None] = time.sleep, now: Callable[[], float] = time.monotonic) -> float:
    wait(2)
    return now()


class Clock:
    """Functions as class attributes: as they are, and static."""

    now: Any = time.monotonic
    static = staticmethod(time.perf_counter)

    def __init__(self, wait: Callable[[float], None] = sleep) -> None:
        self.wait = wait


CLOCK = Clock()
TABLE = {"now": time.monotonic}
LIST = [time.monotonic]
NESTED = ((time.monotonic, "s"), "clock")


def closing(now: Callable[[], float] = time.monotonic) -> Callable[[], float]:
    def ask() -> float:
        return now()

    return ask


CLOSURE = closing(time.perf_counter)


@pytest.mark.parametrize("function", [time.time, time.monotonic, time.perf_counter, time.process_time])
def test_clocks_go_on_by_sleeping_only(function: Callable[[], float]) -> None:
    """Computing takes no time; a sleep takes exactly its own."""

    def main() -> tuple[float, float, float]:
        first = function()
        for _ in range(10_000):
            pass
        second = function()
        time.sleep(1.5)
        return first, second, function()

    first, second, third = result(main)
    assert first == second and third - first == 1.5


def test_wall_and_monotonic_begin_where_the_world_says() -> None:
    """The wall clock at 2026-01-01, the monotonic one at 0, in every unit."""
    found = result(
        lambda: (
            time.time(),
            time.time_ns(),
            time.monotonic(),
            time.monotonic_ns(),
            time.perf_counter_ns(),
            time.clock_gettime(time.CLOCK_REALTIME),
            time.clock_gettime_ns(time.CLOCK_REALTIME),
            time.clock_gettime(time.CLOCK_MONOTONIC),
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        )
    )
    assert found == (BEGIN_S, BEGAN_AT_WALL_NS, 0.0, 0, 0, BEGIN_S, BEGAN_AT_WALL_NS, 0.0, 0)


def test_datetime_and_calendar_functions() -> None:
    """`datetime`, `date` and the calendar functions of `time` read the same clock, to the microsecond."""

    def main() -> list[Any]:
        time.sleep(1.000_002)
        return [
            datetime.datetime.now(datetime.UTC),
            datetime.datetime.now().astimezone(datetime.UTC),
            datetime.datetime.utcnow(),  # noqa: DTZ003
            datetime.datetime.today().astimezone(datetime.UTC),
            datetime.datetime.fromtimestamp(time.mktime(datetime.date.today().timetuple())).date(),  # noqa: DTZ006, DTZ011
            time.gmtime()[:6],
            time.mktime(time.localtime()),
            time.strftime("%S"),
            time.ctime() == time.ctime(BEGIN_S + 1),
            time.asctime() == time.asctime(time.localtime(BEGIN_S + 1)),
        ]

    when = BEGIN + datetime.timedelta(seconds=1, microseconds=2)
    found = result(main)
    assert found[:2] == [when, when] and found[2] == when.replace(tzinfo=None) and found[3] == when
    assert found[4] == datetime.date.fromtimestamp(BEGIN_S + 1)  # noqa: DTZ012
    assert found[5:] == [(2026, 1, 1, 0, 0, 1), float(BEGIN_S + 1), "01", True, True]


def test_wall_clock_has_its_process_s_skew() -> None:
    """A clock step moves one process's wall clock, and no monotonic one."""
    seen: dict[str, tuple[float, float]] = {}

    def main(name: str) -> None:
        time.sleep(1)
        seen[name] = (time.time() - BEGIN_S, time.monotonic())

    run("a/clock.sleep#1 clock-step 60s", a=lambda: main("a"), b=lambda: main("b"))
    assert seen == {"a": (61.0, 1.0), "b": (1.0, 1.0)}


@pytest.mark.parametrize(
    "ask",
    [
        monotonic,
        lambda: monotonic(),
        CLOCK.now,
        lambda: CLOCK.now(),
        lambda: Clock.static(),
        lambda: TABLE["now"](),
        lambda: LIST[0](),
        lambda: NESTED[0][0](),
        CLOSURE,
    ],
    ids=["itself", "by-name", "held", "class-attribute", "static", "dict", "list", "nested-tuple", "closure"],
)
def test_functions_taken_before_follow(ask: Callable[[], float]) -> None:
    """A function that somebody took before the simulation was installed is the simulation's, too."""

    def main() -> float:
        sleep(3)
        return ask()

    # The first is held by this frame alone, which nobody can reach into: pytest's parameters are a list.
    if ask is monotonic:
        holder = [ask]
        assert result(lambda: all_of(lambda: sleep(3), holder[0])) == [None, 3.0]
    elif ask is CLOCK.now:
        assert result(lambda: all_of(lambda: sleep(3), CLOCK.now)) == [None, 3.0]
    else:
        assert result(main) == 3.0


def test_default_arguments_and_attributes_follow() -> None:
    """Default arguments, of methods too, and attributes of objects made before."""

    def main() -> tuple[float, float]:
        first = by_default()
        CLOCK.wait(5)
        return first, CLOCK.now()

    assert result(main) == (2.0, 7.0)


def test_modules_imported_while_installed_are_given_back() -> None:
    """What took a stand-in by name has the original after the simulation."""
    holder: dict[str, Any] = {}
    with _interpose.installed():
        holder["sleep"] = time.sleep
        assert holder["sleep"] is not ORIGINALS["sleep"].value
    assert holder["sleep"] is ORIGINALS["sleep"].value


NAMES = ("sleep", "monotonic", "perf_counter", "ctime", "clock_gettime")
ORIGINALS = {name: Kept(getattr(time, name)) for name in NAMES}
"""A tuple of them would be given the stand-ins, too."""


def test_everything_is_put_back_exactly() -> None:
    """Functions, defaults, closures and attributes are the very objects that they were."""
    before = (by_default.__defaults__, Clock.__dict__["now"], Clock.__dict__["static"].__func__, NESTED[0][0])
    real_before = time.time()
    run(main=lambda: time.sleep(5))
    after = (by_default.__defaults__, Clock.__dict__["now"], Clock.__dict__["static"].__func__, NESTED[0][0])
    assert before == after and after[1] is ORIGINALS["monotonic"].value
    assert all(getattr(time, name) is ORIGINALS[name].value for name in NAMES)
    assert sleep is ORIGINALS["sleep"].value and type(time.sleep).__name__ == "builtin_function_or_method"
    assert real_before <= time.time() < real_before + 3_600


def test_outside_of_processes_time_is_real() -> None:
    """While the simulation is installed, the test's own clock goes on, time travel of the test's included."""
    with _interpose.installed():
        assert abs(time.time() - datetime.datetime.now(datetime.UTC).timestamp()) < 60
        assert time.time() != BEGIN_S and time.monotonic() > 0
        assert "Z" not in time.ctime()
    with time_machine.travel(1_000, tick=False), _interpose.installed():
        assert time.time() == 1_000.0
        assert result(time.time) == BEGIN_S
    with _interpose.installed(), time_machine.travel(2_000, tick=False):
        assert time.time() == 2_000.0


def test_installing_is_reentrant() -> None:
    """Only the last `uninstall` puts things back; one more does nothing."""
    _interpose.install()
    _interpose.install()
    _interpose.uninstall()
    assert time.sleep is not ORIGINALS["sleep"].value
    _interpose.uninstall()
    assert time.sleep is ORIGINALS["sleep"].value
    _interpose.uninstall()
    assert time.sleep is ORIGINALS["sleep"].value


def test_sleep_checks_its_argument() -> None:
    """As the real one."""
    assert isinstance(error(lambda: time.sleep(-1)), ValueError)


def test_sleep_is_a_point() -> None:
    """A process can be crashed in its sleep."""
    made = Run("main/clock.sleep#2 crash-before")
    made(main=lambda: all_of(*[lambda: time.sleep(1)] * 3))
    assert [process.key for process in made.world.processes] == ["main", "main+1"]


def test_identifiers_by_time_are_the_simulations() -> None:
    """`uuid1` holds the virtual time and grows though time stands still; the same in every run."""

    def main() -> list[uuid.UUID]:
        return [uuid.uuid1() for _ in range(3)]

    found = result(main)
    assert found == result(main) and found[0] < found[1] < found[2]
    assert (found[0].time - 0x01B21DD213814000) * 100 == BEGAN_AT_WALL_NS
