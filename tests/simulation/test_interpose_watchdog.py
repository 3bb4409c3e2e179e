"""A step that takes long is reported with its stack; one that never ends ends the run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.simulation.interpose_runs import Run
from txbus_sim import _interpose
from txbus_sim._interpose import Watchdog
from txbus_sim._interpose._references import Kept
from txbus_sim.errors import NotModelled

REAL = Kept(threading.Lock)
CLOCK = Kept(time.monotonic)


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


def compute(for_s: float) -> None:
    """A loop without a point, in real time."""
    began_s = CLOCK.value()
    while CLOCK.value() - began_s < for_s:
        pass


def test_a_long_step_is_reported_once_with_its_stack() -> None:
    """And the run goes on. Steps that are short are not reported, however many."""
    told: list[tuple[str, str]] = []

    def main() -> None:
        for _ in range(200):
            time.sleep(0.1)
        compute(0.5)
        time.sleep(1)

    made = Run()
    with Watchdog(lambda process, stack: told.append((process, stack)), slow_s=0.1):
        made(main=main)
    ((process, stack),) = told
    assert process == "main" and "in compute" in stack and __file__ in stack
    assert made.world.now_ns == 21_000_000_000


def test_a_real_lock_that_blocks_for_ever_does_not_hang_the_run() -> None:
    """Somebody holds it in real life: the run ends with where it stood."""
    told: list[str] = []
    lock = REAL.value()
    lock.acquire()
    before = signal.getsignal(signal.SIGUSR2)

    def main() -> None:
        while True:
            try:
                lock.acquire()
            except Exception:
                continue

    made = Run()
    with Watchdog(lambda process, stack: told.append(stack), slow_s=0.1, give_up_s=0.2):
        with pytest.raises(NotModelled, match="lock.acquire") as caught:
            made(main=main)
    assert f'{__file__}", line' in str(caught.value) and len(told) == 1
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_loop_for_ever_is_ended_too() -> None:
    """A loop that waits for time to pass by itself."""
    made = Run()

    def main() -> None:
        until_s = time.monotonic() + 1
        while time.monotonic() < until_s:
            pass

    with Watchdog(lambda process, stack: None, slow_s=0.1, give_up_s=0.2):
        with pytest.raises(NotModelled, match="has not gone on"):
            made(main=main)


def test_in_another_thread_a_loop_is_ended() -> None:
    """Simulations that do not run in the main thread are interrupted between instructions."""
    caught: list[BaseException] = []

    def simulate() -> None:
        _interpose.install()
        try:
            with Watchdog(lambda process, stack: None, slow_s=0.1, give_up_s=0.2):
                made = Run()
                made(main=lambda: compute(60))
        except NotModelled as exc:
            caught.append(exc)
        finally:
            _interpose.uninstall()

    # This module's own stand-ins are another thread's: give way to that thread.
    _interpose.uninstall()
    try:
        thread = threading.Thread(target=simulate)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
    finally:
        _interpose.install()
    assert "too much real time" in str(caught[0])


def test_outside_of_processes_nothing_is_slow() -> None:
    """Checks of the test's own may take their time."""
    told: list[str] = []
    with Watchdog(lambda process, stack: told.append(stack), slow_s=0.05):
        compute(0.2)
    assert told == []
