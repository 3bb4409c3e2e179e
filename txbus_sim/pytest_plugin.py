"""pytest's side of the simulator: options, the marker, and the cache of failing schedules.

Everybody who installs txbus loads this module, so it imports pytest and the standard library only;
the simulator itself is loaded by the first test that uses it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Session", "current"]

_CACHE = "txbus-sim"


@dataclass(slots=True)
class Session:
    """What the command line asks of the tests of one pytest session.

    ``budget``: schedules of an `explore` that does not name its own; ``budget_given``: of every one,
    whatever it names. ``replay``: a schedule's file
    that is run in place of an exploration. ``cache``: the folder of failing schedules. ``jobs``: of
    one exploration; 1 where pytest-xdist already shares the tests out.
    """

    budget: int
    seed: int
    jobs: int
    budget_given: int | None = None
    replay: Path | None = None
    html: Path | None = None
    cache: Path | None = None
    node: str = ""

    def cached(self) -> list[Path]:
        """The schedules with which this test failed before, by name."""
        folder = self._folder()
        return sorted(folder.glob("*.sched")) if folder is not None and folder.is_dir() else []

    def keep(self, name: str, text: str) -> Path | None:
        """Keep a failing schedule for the next session; its file, None without a cache."""
        folder = self._folder()
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.sched"
        path.write_text(text, encoding="utf-8")
        return path

    def forget(self, path: Path) -> None:
        """A kept schedule that passes, or cannot be run any more."""
        path.unlink(missing_ok=True)

    def _folder(self) -> Path | None:
        if self.cache is None or not self.node:
            return None
        digest = hashlib.sha256(self.node.encode()).hexdigest()[:12]
        readable = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.node.rsplit("::", 1)[-1])[:60]
        return self.cache / f"{readable}-{digest}"


_PROFILES = {"dev": 500, "ci": 5_000}
_sessions: list[Session] = []


def current() -> Session:
    """The session of the running test; defaults outside of pytest."""
    return _sessions[-1] if _sessions else Session(budget=_PROFILES["dev"], seed=0, jobs=1)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("txbus-sim", "simulation of services under faults (txbus_sim)")
    group.addoption(
        "--sim-profile",
        choices=sorted(_PROFILES),
        default=None,
        help="how much is explored where a test does not say: dev 500 schedules, ci 5,000 "
        "(default: ci where the environment variable CI is set, else dev)",
    )
    group.addoption(
        "--sim-budget", type=int, default=None, metavar="N", help="schedules of each @explore, whatever it says"
    )
    group.addoption("--sim-seed", type=int, default=0, metavar="N", help="seed of random exploration (default 0)")
    group.addoption(
        "--sim-jobs", type=int, default=None, metavar="N", help="processes of each exploration (default: all cores)"
    )
    group.addoption(
        "--sim-replay",
        type=Path,
        default=None,
        metavar="FILE",
        help="run the selected tests with this schedule alone; breakpoint() works",
    )
    group.addoption(
        "--sim-html", type=Path, default=None, metavar="FILE", help="write the first failure's report as one HTML file"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sim: a simulation of txbus_sim; deselect with -m 'not sim'")
    profile = config.getoption("--sim-profile") or ("ci" if os.environ.get("CI") else "dev")
    budget = config.getoption("--sim-budget")
    jobs = config.getoption("--sim-jobs")
    shared_out = hasattr(config, "workerinput")
    cache = getattr(config, "cache", None)
    _sessions.append(
        Session(
            budget=_PROFILES[profile],
            budget_given=budget,
            seed=config.getoption("--sim-seed"),
            jobs=jobs if jobs is not None else 1 if shared_out else os.cpu_count() or 1,
            replay=config.getoption("--sim-replay"),
            html=config.getoption("--sim-html"),
            cache=Path(cache.mkdir(_CACHE)) if cache is not None else None,
        )
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    if _sessions:
        _sessions.pop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Tells the session which test runs."""
    if not _sessions:
        return (yield)
    session = _sessions[-1]
    session.node = item.nodeid
    try:
        return (yield)
    finally:
        session.node = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(getattr(item, "function", None), "txbus_sim", False):
            item.add_marker(pytest.mark.sim)
