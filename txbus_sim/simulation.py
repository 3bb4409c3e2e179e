"""What a test declares: databases, processes, the broker, and what must hold.

A scenario is a function of a `Simulation`. It is called anew for every run, outside of the simulated
processes, and declares; nothing runs before it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from txbus.errors import ConfigurationError
from txbus_sim._brokers import Broker
from txbus_sim._database import Databases, SimDatabase
from txbus_sim.checkers import Expectation
from txbus_sim.history import History

__all__ = ["Broker", "Check", "Simulation"]

T = TypeVar("T")
Check: TypeAlias = Callable[[], object]
"""Raises AssertionError, or returns False, if what it says does not hold. None and True are fine."""


@dataclass(frozen=True, slots=True)
class DeclaredProcess:
    """One process of the scenario; replicas are declared one by one."""

    name: str
    target: Callable[..., object] | str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    restart_after_s: float | None


@dataclass(slots=True)
class Properties:
    """What the user added, in the order of declaration."""

    at_end: list[tuple[str, Check]] = field(default_factory=list)
    always: list[tuple[str, Check]] = field(default_factory=list)
    eventually: list[tuple[str, Check]] = field(default_factory=list)
    sometimes: list[tuple[str, Check]] = field(default_factory=list)


class Simulation:
    """One run's declarations.

    ``broker_url`` is the URL of the run's broker; processes give it to their `Bus`. ``history`` is
    the run's, for checks. Used by the scenario and its checks only, never inside of a process.
    """

    def __init__(
        self,
        broker: Broker,
        databases: Databases,
        broker_url: str,
        draw: Callable[[Any], Any],
    ) -> None:
        self.broker = broker
        self.broker_url = broker_url
        self.history = History()
        self.topics: dict[str, int] = {}
        self.processes: list[DeclaredProcess] = []
        self.properties = Properties()
        self.expectations: list[Expectation] = []
        self.settle_s = 30.0
        """How long nothing durable may happen before the run counts as over, in virtual seconds:
        longer than any timeout, lease or check interval of the code under test."""
        self._databases = databases
        self._draw = draw
        self._names: set[str] = set()

    def database(self, name: str, schema: Callable[..., object] | None = None) -> SimDatabase:
        """A database of the run; ``schema`` is called with a SQLAlchemy Engine to make its tables,
        once for an exploration, and copied for each run. Give processes its ``url``."""
        return self._databases.define(name, schema)

    def topic(self, name: str, partitions: int = 4) -> str:
        """Have a topic at the broker before anybody starts (as an administrator would); its name."""
        if partitions < 1:
            raise ConfigurationError(f"topic {name!r}: partitions={partitions}, at least 1")
        self.topics[name] = partitions
        return name

    def process(
        self,
        name: str,
        target: Callable[..., object] | str,
        *arguments: Any,
        replicas: int = 1,
        restart_after_s: float | None = 1.0,
        **keywords: Any,
    ) -> None:
        """Run ``target(*arguments, **keywords)`` as a process, or several.

        ``target`` is the function that runs in production, or ``"package.module:function"``: then
        each incarnation gets fresh copies of the application's modules. A process that is killed, or
        raises, is started anew after ``restart_after_s`` of virtual time; None: never.
        """
        if replicas < 1:
            raise ConfigurationError(f"process {name!r}: replicas={replicas}, at least 1")
        if not name or not all(character.isalnum() or character in "._-" for character in name):
            raise ConfigurationError(f"process {name!r}: a name is letters, digits, '.', '_' and '-'")
        for number in range(1, replicas + 1):
            one = name if replicas == 1 else f"{name}.{number}"
            if one in self._names:
                raise ConfigurationError(f"process {one!r} is declared twice")
            self._names.add(one)
            self.processes.append(DeclaredProcess(one, target, arguments, keywords, restart_after_s))

    def draw(self, strategy: Any) -> Any:
        """A value of a Hypothesis strategy: the workload. The same in every run of an exploration."""
        return self._draw(strategy)

    # what must hold

    def at_end(self, check: Check, name: str = "") -> None:
        """``check`` holds when the run is over: databases and history are at rest."""
        self.properties.at_end.append((_named(check, name), check))

    def always(self, check: Check, name: str = "") -> None:
        """``check`` holds after every durable change of a database or the broker."""
        self.properties.always.append((_named(check, name), check))

    def eventually(self, check: Check, name: str = "") -> None:
        """``check`` holds at the end, after every fault has healed; said apart from `at_end`
        because it may be false before."""
        self.properties.eventually.append((_named(check, name), check))

    def sometimes(self, check: Check, name: str = "") -> None:
        """``check`` is true after some durable change of some run; an exploration in which it never
        was fails as vacuous."""
        self.properties.sometimes.append((_named(check, name), check))

    def expect(self, *expectations: Expectation) -> None:
        """Which rows and messages belong together, instead of what is learned from the run without
        faults (`txbus_sim.checkers`)."""
        self.expectations.extend(expectations)


def _named(check: Check, name: str) -> str:
    return name or getattr(check, "__name__", type(check).__name__)
