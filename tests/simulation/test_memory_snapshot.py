"""What plain functions change in module globals is found, named, and put back."""

from __future__ import annotations

import collections
import functools
import importlib
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from tests.simulation.interpose_runs import Run
from txbus import Bus, Topic
from txbus_sim import _interpose
from txbus_sim._memory import Change, Snapshot

SOURCE = """
import collections, functools, itertools, random
from dataclasses import dataclass

SEEN = set()
CACHE = {}
LOG = []
TAIL = collections.deque([1], maxlen=3)
TALLY = collections.Counter()
NESTED = {"a": {"b": [1]}}
BUFFER = bytearray(b"x")
COUNT = 0
RATE = 1.5
CLIENT = None
NUMBERS = itertools.count()
DICE = random.Random(5)
CONSTANT = ("a", 1)

class Repository:
    shared = []
    made = 0
    __slots__ = ("rows", "last")
    def __init__(self):
        self.rows = {}
        self.last = None

class Loose:
    def __init__(self):
        self.level = 1
        self.names = []
    @functools.cached_property
    def slow(self):
        return [1]

REPOSITORY = Repository()
LOOSE = Loose()

def defaulted(value, into=[]):
    into.append(value)

def counting():
    calls = 0
    def count():
        nonlocal calls
        calls += 1
    return count

COUNTING = counting()

@functools.lru_cache
def memo(value):
    return [value]

def main():
    pass
"""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("application")
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))


@pytest.fixture
def shop(folder: Path) -> Iterator[Any]:
    """A module of an application, fresh for each test."""
    (folder / "snapshot_shop.py").write_text(textwrap.dedent(SOURCE))
    importlib.invalidate_caches()
    yield importlib.import_module("snapshot_shop")
    del sys.modules["snapshot_shop"]
    Snapshot.forget()


def rebind(name: str, value: Any) -> Callable[[Any], None]:
    return lambda shop: setattr(shop, name, value)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "SEEN": (lambda shop: shop.SEEN.add(1), "a set, 0 -> 1 entries"),
    "CACHE": (lambda shop: shop.CACHE.update(a=1), "a dict, 0 -> 1 entries"),
    "LOG": (lambda shop: shop.LOG.append(1), "a list, 0 -> 1 entries"),
    "TAIL": (lambda shop: shop.TAIL.append(2), "a deque, 1 -> 2 entries"),
    "TALLY": (lambda shop: shop.TALLY.update("a"), "a Counter, 0 -> 1 entries"),
    "NESTED['a']['b']": (lambda shop: shop.NESTED["a"]["b"].append(2), "a list, 1 -> 2 entries"),
    "BUFFER": (lambda shop: shop.BUFFER.extend(b"y"), "a bytearray, 1 -> 2 entries"),
    "COUNT": (rebind("COUNT", 1), "0 -> 1"),
    "RATE": (rebind("RATE", 2.5), "1.5 -> 2.5"),
    "CLIENT": (rebind("CLIENT", {}), "None -> a dict"),
    "FRESH": (rebind("FRESH", 3), "nothing -> 3"),
    "NUMBERS": (lambda shop: next(shop.NUMBERS), "the state of a count"),
    "DICE": (lambda shop: shop.DICE.random(), "the state of a Random"),
    "CONSTANT": (rebind("CONSTANT", ("b",)), "a tuple -> a tuple"),
    "Repository.shared": (lambda shop: shop.Repository.shared.append(1), "a list, 0 -> 1 entries"),
    "Repository.made": (lambda shop: setattr(shop.Repository, "made", 1), "0 -> 1"),
    "REPOSITORY.rows": (lambda shop: shop.REPOSITORY.rows.update(a=1), "a dict, 0 -> 1 entries"),
    "REPOSITORY.last": (lambda shop: setattr(shop.REPOSITORY, "last", 1), "None -> 1"),
    "LOOSE.level": (lambda shop: setattr(shop.LOOSE, "level", 2), "1 -> 2"),
    "LOOSE.names": (lambda shop: shop.LOOSE.names.append("x"), "a list, 0 -> 1 entries"),
    "defaulted(into=…)": (lambda shop: shop.defaulted(1), "a list, 0 -> 1 entries"),
    "calls, closed over by counting.<locals>.count": (lambda shop: shop.COUNTING(), "0 -> 1"),
    "main.calls": (lambda shop: setattr(shop.main, "calls", 1), "its default arguments or attributes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_kind_of_change_is_found_and_put_back(name: str, shop: Any) -> None:
    """By module and variable, with the sentence of what to do; afterwards it is as it was."""
    change, what = CHANGES[name]
    snapshot = Snapshot.take([shop.main])
    assert snapshot.changed() == []
    change(shop)
    (found,) = snapshot.changed()
    # A name may be that of the object which the place belongs to.
    assert found.module == "snapshot_shop" and found.what == what
    assert found.name == name or name.startswith(f"{found.name}.") or name.endswith("count")
    assert str(found).startswith(f"snapshot_shop.{found.name} was changed by a simulated process")
    assert '("snapshot_shop:main")' in str(found)
    if name == "NUMBERS":
        return  # how far it has counted cannot be undone
    snapshot.restore()
    assert snapshot.changed() == []


def test_a_snapshot_is_taken_once(shop: Any) -> None:
    """The next one of the same functions, unchanged, is the same; a changed module makes a new one."""
    first = Snapshot.take([shop.main])
    assert Snapshot.take([functools.partial(shop.main)]) is first
    shop.SEEN.add(1)
    second = Snapshot.take([shop.main])
    assert second is not first and second.changed() == []


def test_what_a_process_did_is_found_after_its_run(shop: Any) -> None:
    """A dedupe in a module-level set, shared by two replicas."""
    with _interpose.installed():
        snapshot = Snapshot.take([shop.main])

        def handle() -> None:
            if 1 not in shop.SEEN:
                shop.SEEN.add(1)
                shop.COUNT += 1

        Run()(a=handle, b=handle)
        assert {change.name for change in snapshot.changed()} == {"SEEN", "COUNT"}
        snapshot.restore()
        assert set() == shop.SEEN and shop.COUNT == 0


def test_modules_that_are_reached_are_looked_at(folder: Path, shop: Any) -> None:
    """A function's module uses another one's globals."""
    (folder / "snapshot_front.py").write_text("from snapshot_shop import main as inner\ndef main():\n    inner()\n")
    front = importlib.import_module("snapshot_front")
    snapshot = Snapshot.take([front.main])
    shop.LOG.append(1)
    assert [change.module for change in snapshot.changed()] == ["snapshot_shop"]
    del sys.modules["snapshot_front"]


def test_environment_is_put_back(shop: Any) -> None:
    """A variable that a process set, changed or removed."""
    os.environ["SNAPSHOT_ONE"] = "1"
    snapshot = Snapshot.take([shop.main])
    os.environ["SNAPSHOT_ONE"] = "2"
    os.environ["SNAPSHOT_TWO"] = "2"
    snapshot.restore()
    assert os.environ.pop("SNAPSHOT_ONE") == "1" and "SNAPSHOT_TWO" not in os.environ


# false alarms: everything below is in this module, and changes in ways that are nobody's business


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Line]] = relationship(primaryjoin="Order.id == foreign(Line.order_id)", backref="order")


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]


PLAIN: Table = Table("plain", MetaData(), Column("id", Integer, primary_key=True))
LOGGER = logging.getLogger(__name__)
ORDERS = Topic("orders", BaseModel)


class Settings(BaseModel):
    name: str = "x"


class Later(BaseModel):
    parts: list[Part]


class Part(BaseModel):
    sku: str


@dataclass
class Holder:
    size: int = 3

    @functools.cached_property
    def slow(self) -> list[int]:
        return [self.size]


HOLDER = Holder()
SETTINGS = Settings()


@functools.cache
def memo(value: int) -> list[int]:
    return [value]


@functools.singledispatch
def show(value: object) -> str:
    return "object"


show.register(collections.abc.Sized, lambda value: "sized")
BUS = Bus("memory://snapshot", service="snapshot")
ENGINE = create_engine("sqlite://")


def quiet() -> None:
    memo(3)
    show([])
    assert HOLDER.slow == [3]
    LOGGER.debug("x")
    Later.model_rebuild()
    Later(parts=[Part(sku="a")])
    Settings.model_validate({"name": "y"})
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Order(id=1))
        session.flush()
        session.execute(select(Order).where(Order.id == 1))
        assert [order.lines for order in session.scalars(select(Order))] == [[]]


def test_no_false_alarms() -> None:
    """Caches of functions and properties, mappers, models, loggers and constants are not state."""
    snapshot = Snapshot.take([quiet])
    quiet()
    assert snapshot.changed() == []
    assert Snapshot.take([quiet]) is snapshot


def test_a_bus_at_module_level_is_reported_when_it_is_opened() -> None:
    """It is one connection, and real processes would have one each; put back, it can be opened again."""
    snapshot = Snapshot.take([quiet])
    BUS.open()
    try:
        (found,) = snapshot.changed()
        assert (found.name, found.what) == ("BUS._opened", "a Bus was opened or closed")
    finally:
        BUS.close()
    assert snapshot.changed() == []


def test_an_engine_at_module_level_is_reported_when_it_was_used() -> None:
    """Its pool would hand one process's connections to another."""
    snapshot = Snapshot.take([quiet])
    connection = ENGINE.connect()
    (found,) = snapshot.changed()
    assert found == Change(__name__, "ENGINE", "its pool has connections")
    connection.close()
    snapshot.restore()
    assert snapshot.changed() == []


def test_comparing_is_fast_enough_for_every_run(shop: Any) -> None:
    """Thousands of entries are compared in C: the work grows by holders, not by entries."""
    shop.CACHE.update((number, str(number)) for number in range(50_000))
    snapshot = Snapshot.take([shop.main])
    assert snapshot.changed() == []
    assert len(snapshot._kept) < 100


def test_the_running_script_has_memory_too(tmp_path: Path) -> None:
    """A program that runs a simulation of its own functions."""
    script = tmp_path / "script.py"
    script.write_text(
        "from txbus_sim._memory import Snapshot\n"
        "SEEN = set()\n"
        "def main(): SEEN.add(1)\n"
        "def run():\n"
        "    snapshot = Snapshot.take([main])\n"
        "    main()\n"
        "    print([(one.module, one.name) for one in snapshot.changed()])\n"
        "run()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[('__main__', 'SEEN')]"
