"""A process's log, exit functions and signals are its own."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulation.interpose_runs import Run, error, result, run
from txbus_sim import _interpose

LOG = logging.getLogger("shop.orders")


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


def test_log_goes_to_the_history(caplog: pytest.LogCaptureFixture) -> None:
    """With virtual time, process, level and traceback, and to no handler."""

    def main() -> None:
        time.sleep(2)
        LOG.warning("%d orders", 3)
        LOG.info("below the level")
        try:
            raise KeyError("missing")
        except KeyError:
            LOG.exception("failed")
        LOG.warning("%d orders", "no number")

    made = run(main=main)
    (first, second, third) = made.logged
    assert first == ("main", "WARNING", "shop.orders", "3 orders")
    assert second[:3] == ("main", "ERROR", "shop.orders") and second[3].startswith("failed\nTraceback")
    assert second[3].endswith("KeyError: 'missing'")
    assert "'%d orders' % ('no number',)" in third[3]
    assert caplog.records == []
    LOG.warning("outside")
    assert [record.getMessage() for record in caplog.records] == ["outside"]


def test_configuration_of_logging_is_the_process_s_own() -> None:
    """Levels are put back when it is gone, and handlers are not added to the test's loggers."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), LOG.level)

    def main() -> None:
        logging.basicConfig(level=logging.DEBUG)
        root.addHandler(logging.NullHandler())
        LOG.setLevel("DEBUG")
        LOG.debug("seen")

    made = run(main=main)
    assert [text for *_, text in made.logged] == ["seen"]
    assert (root.level, root.handlers, LOG.level) == before


def test_records_have_virtual_time() -> None:
    """A filter of the application's sees it, and the thread's name."""
    seen: list[tuple[float, str | None, int | None]] = []

    class Note(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            seen.append((record.created, record.threadName, record.process))
            return True

    def main() -> None:
        made = logging.Logger("own")
        made.addFilter(Note())
        time.sleep(1)
        made.warning("x")
        seen.append((time.time(), threading.current_thread().name, os.getpid()))

    run(main=main)
    assert seen[0] == seen[1]


def test_exit_functions_run_at_the_process_s_end() -> None:
    """Newest first, after its threads, also if main raised; what one raises is logged; not at a crash."""
    seen: list[str] = []

    def fail() -> None:
        raise KeyError("at exit")

    def main() -> None:
        atexit.register(seen.append, "first")
        atexit.register(fail)
        atexit.register(seen.append, "unregistered")
        atexit.register(lambda: seen.append("last"))
        atexit.unregister(seen.append)
        atexit.register(seen.append, "newest")
        threading.Thread(target=lambda: (time.sleep(1), seen.append("thread"))).start()  # type: ignore[func-returns-value]
        time.sleep(0)
        raise OSError("main")

    made = Run()
    made.run({"main": main})
    assert isinstance(made.world.processes[0].error, OSError)
    # A bound method of a list equals the other ones of the same list.
    assert seen == ["thread", "newest", "last"]
    assert [(level, logger) for _, level, logger, _ in made.logged] == [("ERROR", "atexit")]
    seen.clear()
    run("main/clock.sleep#1 kill-before", main=main)
    assert seen == []


def test_finalizers_of_weakref_run_at_the_real_exit() -> None:
    """The first `weakref.finalize` in a process does not make all others the process's."""

    class Thing: ...

    things: list[Thing] = []

    def main() -> None:
        things.append(Thing())
        weakref.finalize(things[0], print)

    run(main=main)
    assert weakref.finalize._registered_with_atexit  # type: ignore[attr-defined]


def test_signal_handlers_are_noted() -> None:
    """As a command-line program installs them; the test's own stay. Only in the main thread."""
    before = signal.getsignal(signal.SIGTERM)

    def main() -> list[Any]:
        handler = signal.SIG_IGN
        seen: list[Any] = [signal.getsignal(signal.SIGINT), signal.signal(signal.SIGTERM, handler)]
        seen.extend((signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGTERM, signal.SIG_DFL)))
        return seen

    assert result(main) == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN]
    assert signal.getsignal(signal.SIGTERM) == before

    def in_thread() -> None:
        thread = threading.Thread(target=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
        thread.start()
        thread.join()

    assert "only works in main thread" in run(main=in_thread).logged[0][3]


@pytest.mark.parametrize("how", ["exit", "abort"])
def test_hard_exits_are_crashes(how: str) -> None:
    """`os._exit` and `os.abort` end the process and not the test; its supervisor starts it anew."""
    seen: list[float] = []

    def main() -> None:
        try:
            seen.append(time.monotonic())
            if len(seen) == 1:
                os._exit(3) if how == "exit" else os.abort()
        finally:
            if len(seen) == 1:
                threading.Event().wait()

    made = run(main=main)
    assert seen == [0.0, 1.0]
    assert [process.key for process in made.world.processes] == ["main", "main+1"]


def test_system_exit_is_a_process_s_return() -> None:
    """`sys.exit` in main ends it; nobody starts it anew."""

    def main() -> None:
        raise SystemExit(3)

    made = run(main=main)
    assert [process.key for process in made.world.processes] == ["main"]


def test_an_assertion_comes_out_at_once() -> None:
    """It ends the run: nobody waits for threads first."""

    def main() -> None:
        threading.Thread(target=threading.Event().wait).start()
        raise AssertionError("wrong")

    assert str(error(main)) == "wrong"
