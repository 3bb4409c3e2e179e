"""A harness whose clients are broken in one way."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from tests.conformance.test_custom_backend import DirHarness
from tests.conformance.through import Parts, ThroughBackend, World
from txbus.conformance import Harness, PluginHarness
from txbus.embedded.plugin import plugin
from txbus.spi import Backend, BackendURL

Sound = Callable[[str], Harness]


def memory(directory: str) -> Harness:
    """The embedded broker in memory, one of its own for each directory."""
    return PluginHarness(plugin, BackendURL("memory", directory))


def dirbus(directory: str) -> Harness:
    """The example backend, which declares what the embedded broker does not."""
    return DirHarness(directory)


@dataclass(frozen=True)
class Defect:
    """How to break a sound backend, and the names of exactly those cases that must notice."""

    noticed_by: AbstractSet[str]
    client: type[ThroughBackend] = ThroughBackend
    parts: Parts = field(default_factory=Parts)
    sound: Sound = memory


class BreakingHarness(Harness):
    """The clients of a sound harness, each seen through the same defect."""

    def __init__(self, sound: Harness, client: type[ThroughBackend], parts: Parts) -> None:
        super().__init__(sound.ports)
        self._sound = sound
        self._world = World()
        self._client = client
        self._parts = parts
        # What a broken backend withholds is waited for in vain, so patience is short here; twenty
        # polls it always has.
        self.patience_s = 0.1
        # Both brokers answer at once, so a few milliseconds are silence.
        self.poll_s = 0.002
        self.quiet_s = 0.004
        self.lease_s = sound.lease_s
        self.transaction_timeout_s = sound.transaction_timeout_s
        self.check_after_s = sound.check_after_s
        self.attempts_max = sound.attempts_max
        self.deletes_by_age = sound.deletes_by_age

    def backend(self) -> Backend:
        return self._client(self._sound.backend(), self._world, self._parts)

    def advance(self, seconds: float) -> None:
        self._sound.advance(seconds)

    def kill(self, backend: Backend) -> None:
        assert isinstance(backend, ThroughBackend)
        backend.killed()

    def dead_letter_topic(self, topic: str, group: str) -> str:
        return self._sound.dead_letter_topic(topic, group)
