"""The registry of cases, and running them: declared must hold, undeclared must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from txbus.conformance._harness import Harness, NotPromised, PromiseBroken, Report, Result, Status
from txbus.conformance._refusal import PROBES
from txbus.conformance._stage import Stage
from txbus.errors import CapabilityMissing
from txbus.spi import Capability, TopicKind

__all__ = ["BoundCase", "Case", "case", "cases", "run"]


@dataclass(frozen=True, slots=True)
class Case:
    """One observable fact. ``capability`` None: every backend owes it."""

    name: str
    capability: Capability | None
    property: str
    kind: TopicKind
    also: tuple[Capability, ...]
    prove: Callable[[Stage], None]

    def run(self, harness: Harness) -> Result:
        """Run in clients of its own. Any exception of the backend is a failure with its reason."""
        stage = Stage(harness)
        try:
            return self._run(stage)
        except NotPromised as exc:
            return self._result(Status.NOT_PROMISED, str(exc))
        except PromiseBroken as exc:
            return self._result(Status.FAILED, str(exc))
        except Exception as exc:
            return self._result(Status.FAILED, f"{type(exc).__name__}: {exc}")

    def _run(self, stage: Stage) -> Result:
        try:
            result = self._judge(stage)
        except BaseException:
            # The first error counts; a client that then cannot even be closed adds nothing to it.
            with suppress(Exception):
                stage.close()
            raise
        stage.close()
        return result

    def _judge(self, stage: Stage) -> Result:
        if self.capability is not None and not stage.declares(self.capability, self.kind):
            return self._undeclared(stage, self.capability)
        missing = [other.value for other in self.also if not stage.declares(other, self.kind)]
        if missing:
            return self._result(Status.NOT_PROMISED, f"shown with {', '.join(missing)}, not declared")
        self.prove(stage)
        return self._result(Status.PASSED)

    def _undeclared(self, stage: Stage, capability: Capability) -> Result:
        probe = PROBES.get(capability)
        if probe is None:
            return self._result(Status.NOT_PROMISED, f"{capability.value} is not declared")
        try:
            probe(stage, self.kind)
        except CapabilityMissing as exc:
            return self._result(Status.REFUSED, str(exc))
        raise PromiseBroken(f"{capability.value} is not declared, yet the call for it is accepted")

    def _result(self, status: Status, reason: str = "") -> Result:
        return Result(self.name, self.capability, self.property, status, reason)


@dataclass(frozen=True, slots=True)
class BoundCase:
    """A case with the harness to run it on; calling it raises PromiseBroken if it fails."""

    case: Case
    harness: Harness = field(repr=False)

    @property
    def name(self) -> str:
        return self.case.name

    def __call__(self) -> Result:
        result = self.case.run(self.harness)
        Report((result,)).raise_for_failures()
        return result


_REGISTRY: dict[str, Case] = {}


def case(
    capability: Capability | None,
    *,
    property: str,
    kind: TopicKind = TopicKind.PLAIN,
    also: Iterable[Capability] = (),
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """Register a function over a stage as the case ``module.function``.

    ``kind`` is the kind of topic it uses, for brokers that promise other things for each; ``also``
    are capabilities the case needs in order to show its own.
    """

    def register(prove: Callable[[Stage], None]) -> Callable[[Stage], None]:
        name = f"{prove.__module__.rpartition('._')[2]}.{prove.__name__}"
        assert name not in _REGISTRY, f"two cases are called {name}"
        _REGISTRY[name] = Case(name, capability, property, kind, tuple(also), prove)
        return prove

    return register


def registered() -> tuple[Case, ...]:
    """All cases, in the order of their definition."""
    return tuple(_REGISTRY.values())


def cases(harness: Harness) -> tuple[BoundCase, ...]:
    """All cases bound to a harness: parametrize a test with them, ``ids=lambda case: case.name``."""
    return tuple(BoundCase(one, harness) for one in registered())


def run(harness: Harness, *, only: Callable[[Case], bool] | None = None) -> Report:
    """Run all cases, or those that ``only`` picks. Never raises for a failing case."""
    return Report(tuple(one.run(harness) for one in registered() if only is None or only(one)))
