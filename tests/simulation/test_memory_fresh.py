"""Each incarnation of a process given by import string has the application's modules to itself."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.interpose_runs import Run, run
from txbus_sim import _interpose
from txbus_sim.errors import SimulationError
from txbus_sim.history import Logged

SOURCES = {
    "__init__.py": "IMPORTED = []\n",
    "orders.py": """
        import logging, threading, time, os
        from memory_shop import state
        from memory_shop.state import SEEN, count

        LOCK = threading.Lock()

        def main():
            from memory_shop import late
            SEEN.add(len(SEEN))
            number = count()
            time.sleep(1)
            SEEN.add(len(SEEN))
            from memory_shop import later
            late.NAMES.append(os.getpid())
            with LOCK:
                time.sleep(1)
            say(f"{sorted(SEEN)} {number} {state.COUNT} {len(late.NAMES)} {later.late is late} {state.SEEN is SEEN}")

        def say(text):
            logging.getLogger(__name__).error(text)

        class Service:
            @classmethod
            def run(cls):
                say("service")

        def lazily():
            import memory_shop.far.away
            say(memory_shop.far.away.__name__ + " " + memory_shop.far.away.WHERE)
    """,
    "state.py": """
        SEEN = set()
        COUNT = 0
        def count():
            global COUNT
            COUNT += 1
            return COUNT
    """,
    "late.py": "NAMES = []\n",
    "later.py": "from memory_shop import late\n",
    "slow.py": """
        import time
        time.sleep(2)
        from memory_shop import state
        state.SEEN.add("slow")
        def main():
            from memory_shop.orders import say
            say(f"{sorted(state.SEEN)} {time.monotonic()}")
    """,
    "library.py": """
        def main():
            import calendar, wave
            from memory_shop.orders import say
            say(wave.__name__)
    """,
    "broken.py": "raise OSError('at import')\n",
    "typed.py": """
        from __future__ import annotations
        import dataclasses, pickle, typing
        from pydantic import BaseModel
        class Line(BaseModel):
            sku: str
        class Order(BaseModel):
            lines: list[Line]
        @dataclasses.dataclass
        class Plain:
            order: Order | None = None
        def main():
            from memory_shop.orders import say
            order = Order.model_validate({"lines": [{"sku": "a"}]})
            hints = typing.get_type_hints(Plain)
            again = pickle.loads(pickle.dumps(order))
            say(f"{hints['order'] == (Order | None)} {again == order} {type(again) is Order}")
    """,
}


@pytest.fixture(scope="module", autouse=True)
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An application of its own, with packages and a namespace package."""
    import textwrap

    root = tmp_path_factory.mktemp("application")
    folder = root / "memory_shop"
    (folder / "far").mkdir(parents=True)
    for name, source in SOURCES.items():
        (folder / name).write_text(textwrap.dedent(source))
    (folder / "far" / "away.py").write_text("WHERE = 'in a namespace package'\n")
    sys.path.insert(0, str(root))
    try:
        with _interpose.installed():
            yield folder
    finally:
        sys.path.remove(str(root))
        for name in [name for name in sys.modules if name.startswith("memory_shop")]:
            del sys.modules[name]


def texts(made: Run) -> list[tuple[str, str]]:
    return [(one.process, one.text) for one in made.world.history if type(one) is Logged]


def test_replicas_and_incarnations_share_nothing() -> None:
    """Two replicas at once and a restart each see their own globals, lazily imported modules included."""
    target = "memory_shop.orders:main"
    expected = "[0, 1] 1 1 1 True True"
    assert texts(run(a=target, b=target)) == [("a", expected), ("b", expected)]
    made = run("a/clock.sleep#2 crash-before", a=target, b=target)
    assert sorted(texts(made)) == [("a+1", expected), ("b", expected)]


def test_the_test_s_own_copy_is_untouched() -> None:
    """What the test has imported stays what it was, before, during and after."""
    import memory_shop.state as mine  # type: ignore[import-not-found]

    seen: list[bool] = []
    made = Run()
    made.world.at(1_500_000_000, lambda: seen.append(sys.modules["memory_shop.state"] is mine))
    made(a="memory_shop.orders:main")
    assert seen == [True]
    assert sys.modules["memory_shop.state"] is mine and mine.COUNT == 0 and set() == mine.SEEN
    assert sys.modules["memory_shop"].state is mine
    assert "memory_shop.later" not in sys.modules


def test_plain_functions_use_the_test_s_modules() -> None:
    """A process that is given as a function, beside one with memory of its own."""
    import memory_shop.state as mine

    def plain() -> None:
        import memory_shop.state as theirs

        for _ in range(3):
            time.sleep(0.7)
            assert theirs is mine is sys.modules["memory_shop.state"]

    run(a="memory_shop.orders:main", b=plain)


def test_code_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each incarnation runs the same code objects."""
    found: list[Any] = []

    def main_of(made: Run) -> None:
        made.world.at(500_000_000, lambda: found.extend(p.memory["modules"].loaded for p in made.world.processes))
        made(a="memory_shop.orders:main", b="memory_shop.orders:main")

    main_of(Run())
    one, other = (loaded["memory_shop.orders"] for loaded in found)
    assert one is not other and one.main is not other.main and one.main.__code__ is other.main.__code__
    assert one.__file__ == other.__file__ and one.__spec__.name == "memory_shop.orders"


def test_a_module_may_wait_while_it_is_loaded() -> None:
    """A process that sleeps in the midst of an import holds up no other, and is not seen by it."""
    made = run(a="memory_shop.slow:main", b="memory_shop.slow:main")
    assert texts(made) == [("a", "['slow'] 2.0"), ("b", "['slow'] 2.0")]


def test_namespaces_attributes_and_libraries() -> None:
    """Namespace packages, dotted attributes, and libraries imported for the first time in a process."""
    sys.modules.pop("wave", None)
    made = run(a="memory_shop.orders:lazily", b="memory_shop.orders:Service.run", c="memory_shop.library:main")
    assert sorted(texts(made)) == [
        ("a", "memory_shop.far.away in a namespace package"),
        ("b", "service"),
        ("c", "wave"),
    ]
    assert "wave" in sys.modules and "memory_shop.far" not in sys.modules


def test_what_looks_modules_up_by_name_finds_the_process_s() -> None:
    """Annotations as text, pydantic, dataclasses and pickle."""
    made = run(a="memory_shop.typed:main", b="memory_shop.typed:main")
    assert texts(made) == [("a", "True True True"), ("b", "True True True")]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("memory_shop.orders", "module:function"),
        ("memory_shop.missing:main", "no module memory_shop.missing"),
        ("memory_shop.orders:nothing", "'nothing' is not defined"),
        ("memory_shop.orders:LOCK", "not callable"),
        ("os:getcwd", "not the application's"),
    ],
)
def test_wrong_targets_say_what_is_wrong(target: str, message: str) -> None:
    """With the import string."""
    with pytest.raises(SimulationError, match=message) as caught:
        run(a=target)
    assert target in str(caught.value)


def test_an_error_at_import_is_the_process_s() -> None:
    """It comes out as what it is."""
    with pytest.raises(OSError, match="at import"):
        run(a="memory_shop.broken:main")


def test_locks_of_a_library_that_is_loaded_late_are_real() -> None:
    """A library imported first in a process is everybody's: what it makes at import time is, too."""
    sys.modules.pop("sched", None)
    kinds: list[str] = []

    def main() -> None:
        import sched

        kinds.append(type(sched.scheduler()._lock).__name__)  # type: ignore[attr-defined]

    run(a=main)
    assert kinds == ["SimRLock"]
    import sched

    scheduler = sched.scheduler()
    assert type(scheduler._lock) is type(threading.RLock())  # type: ignore[attr-defined]
