"""Runs numbered items, in this process or in forked ones; what comes out is in the items' order.

Workers are forked between runs, never inside of one, when what runs share (schemas, the workload, the
run without faults) is known already. An item goes to whoever is idle; results are handed on in the
order of the items, so that nobody can tell how many workers there were.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Generic, TypeVar

from txbus_sim.errors import SimulationError

__all__ = ["Crew", "Interrupt", "crew"]

A = TypeVar("A")
B = TypeVar("B")

_QUEUED = 4
"""Items that a worker has besides the one it runs: it never waits for the next."""
_AHEAD = 64
"""Results, per worker, that may wait for an earlier one."""
_COLLECT_EVERY = 50
"""Runs leave cycles behind, and a run switches the collector off."""
_PATIENCE_S = 5.0


class Interrupt:
    """Ctrl-C between two runs: the first asks for an end with what is known, the second ends at once.

    A context; does nothing outside of the main thread, where Python has no say about signals.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before if self._before is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.ignore()
            raise KeyboardInterrupt
        self.asked = True

    def ignore(self) -> None:
        """From here on, while workers are ended: one more would leave some of them behind."""
        if self._installed:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class Crew(Generic[A, B]):
    """Does the work in the calling process, an item after the other."""

    def __init__(self, work: Callable[[A], B]) -> None:
        self._work = work
        self._done = 0

    def map(self, items: Iterable[A]) -> Generator[B, None, None]:
        """The results in the items' order. Not every item need be taken. SimulationError with the
        item and the traceback for an error of the work itself."""
        for item in items:
            result = _attempt(self._work, item)
            if isinstance(result, _Broken):
                raise _broken(item, result) from result.error
            self._done += 1
            if self._done % _COLLECT_EVERY == 0 and not gc.isenabled():
                gc.collect()
            yield result

    def close(self) -> None:
        """Ends the workers. Idempotent."""

    def __enter__(self) -> Crew[A, B]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Broken:
    """The work raised: a defect of the simulator, or of a scenario outside of its processes."""

    text: str
    error: BaseException | None = None


def _attempt(work: Callable[[A], B], item: A) -> B | _Broken:
    try:
        return work(item)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as exc:
        # Outcomes of test frameworks are no Exceptions; a worker must not die of one.
        return _Broken("".join(traceback.format_exception(exc)), exc)


def _broken(item: object, broken: _Broken) -> SimulationError:
    return SimulationError(f"the simulation itself failed in {_shown(item)}\n{broken.text}")


def _shown(item: object) -> str:
    return str(item).strip()


@dataclass(slots=True)
class _Worker(Generic[A, B]):
    process: BaseProcess
    pipe: Connection
    given: deque[tuple[int, A]] = field(default_factory=deque)
    """What it has not answered yet; it runs the first."""

    def give(self, numbered: tuple[int, A]) -> None:
        self.given.append(numbered)
        try:
            self.pipe.send(numbered)
        except OSError:
            # It has died; that is said in the place of the answer that is missed first.
            pass

    def take(self) -> tuple[int, B | _Broken]:
        """Its next answer; that it has died is one, to what it was running. What was given to it
        behind that is forgotten: nobody gets so far."""
        number, _ = self.given.popleft()
        try:
            answered, result = self.pipe.recv()
        except (EOFError, OSError):
            self.given.clear()
            self.process.join(_PATIENCE_S)
            code = self.process.exitcode
            how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit status {code}"
            return number, _Broken(f"the worker (process {self.process.pid}) ended {how}")
        assert number == answered, f"answer {answered} where {number} was expected"
        return number, result


class Workers(Crew[A, B]):
    """Does the work in forked processes."""

    def __init__(self, work: Callable[[A], B], jobs: int) -> None:
        super().__init__(work)
        context = multiprocessing.get_context("fork")
        self._workers: list[_Worker[A, B]] = []
        sys.stdout.flush()
        sys.stderr.flush()
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            others = [worker.pipe for worker in self._workers] + [ours]
            process = context.Process(target=_serve, args=(work, theirs, others), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))

    def map(self, items: Iterable[A]) -> Generator[B, None, None]:
        numbered = enumerate(items)
        ready: dict[int, B | _Broken] = {}
        asked: dict[int, A] = {}
        given, wanted = 0, 0
        self._drain()
        while True:
            while given - wanted < _AHEAD * len(self._workers):
                worker = min(self._workers, key=lambda one: len(one.given))
                if len(worker.given) > _QUEUED:
                    break
                following = next(numbered, None)
                if following is None:
                    break
                worker.give(following)
                asked[following[0]] = following[1]
                given += 1
            if wanted == given:
                return
            for worker in self._answering():
                number, result = worker.take()
                ready[number] = result
            while wanted in ready:
                result, item = ready.pop(wanted), asked.pop(wanted)
                wanted += 1
                if isinstance(result, _Broken):
                    raise _broken(item, result)
                yield result

    def _answering(self) -> list[_Worker[A, B]]:
        busy = [worker for worker in self._workers if worker.given]
        answered = wait([worker.pipe for worker in busy], timeout=1.0)
        return [worker for worker in busy if worker.pipe in answered]

    def _drain(self) -> None:
        """Wait for what was given last time and nobody wants any more. Not at the end of a `map`: who
        ends everything does not wait for a run that hangs."""
        for worker in self._workers:
            while worker.given:
                worker.take()

    def close(self) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.given.clear()
            worker.pipe.close()
        for worker in workers:
            worker.process.join(0.2)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join(_PATIENCE_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()


def _serve(work: Callable[[A], B], pipe: Connection, others: list[Connection]) -> None:
    """A worker's life: until its pipe is closed, because the exploration has ended or has died."""
    for other in others:
        # Of the elder workers: as long as somebody holds them open, those would outlive their parent.
        other.close()
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()
    done = 0
    while True:
        try:
            number, item = pipe.recv()
        except (EOFError, OSError):
            break
        result = _attempt(work, item)
        if isinstance(result, _Broken):
            result = _Broken(result.text)
        try:
            pipe.send((number, result))
        except OSError:
            break
        done += 1
        if done % _COLLECT_EVERY == 0:
            gc.collect()
    # Nothing of the parent's is to be ended here: no exit handlers, no buffers.
    os._exit(0)


def crew(work: Callable[[A], B], jobs: int) -> Crew[A, B]:
    """``jobs`` 1: the calling process itself. Not inside of a run."""
    if jobs < 1:
        raise SimulationError(f"jobs={jobs}, at least 1")
    if jobs == 1 or "fork" not in multiprocessing.get_all_start_methods():
        return Crew(work)
    return Workers(work, jobs)
