"""What a backend author writes for the suite, and what the suite answers."""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from dataclasses import dataclass

from txbus.spi import Backend, Capability, HalfMessages, Ports

__all__ = ["Harness", "NotPromised", "PromiseBroken", "Report", "Result", "Status"]


class PromiseBroken(AssertionError):
    """A backend or a store does not keep what it declares; the message says what was seen."""


class NotPromised(Exception):
    """The case asks for more than this backend says of itself, a size limit for instance."""


class Harness(abc.ABC):
    """One broker, reached by as many clients as a case needs, with its own time and patience.

    Subclass it, give ``ports`` and `backend`, and adapt the figures to the broker. All durations
    are seconds. The suite uses one harness from one thread, except inside cases that start tasks
    through ``ports.runtime``; it never sleeps or looks at a clock but through this object.
    """

    patience_s: float = 10.0
    """How long something that must happen may take; at least twenty polls, however long they take."""
    answer_s: float = 10.0
    """The timeout of a single call that sends, prepares or waits for another task."""
    quiet_s: float = 0.3
    """How long nothing may happen before it counts as "it does not happen"."""
    poll_s: float = 0.05
    """The timeout of one `receive`."""
    lease_s: float = 0.5
    """The lease of every group member; as short as the broker can do reliably."""
    transaction_timeout_s: float = 30.0
    """How long the broker keeps an open broker transaction of a silent client."""
    check_after_s: float = 1.0
    """After this long the broker has asked about an unfinished half message."""
    derived: frozenset[Capability] = frozenset()
    """Capabilities to prove although the backend itself does not have them (see `half_messages`)."""
    deletes_by_age: bool = True
    """Whether the broker deletes old records, so that a retention can be too short."""
    attempts_max: int | None = None
    """NATIVE_DEAD_LETTER: the broker sets a message aside after this many attempts."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports

    @abc.abstractmethod
    def backend(self) -> Backend:
        """A new client of the same broker, opened. Several are in use at once, like processes."""

    def unique(self, name: str) -> str:
        """A name of a topic, a group or a transactional id that nobody has used yet."""
        return f"{name}-{self.ports.entropy.unique_id()[:12]}"

    def advance(self, seconds: float) -> None:
        """Let time pass: sleep on a real broker, move the clock of a simulated one."""
        self.ports.clock.sleep_s(seconds)

    def kill(self, backend: Backend) -> None:  # noqa: B027 - doing nothing is the default
        """Abandon a client as a crash does: without an orderly close. It is not used again.

        The default does nothing: the client stays silent from now on. A harness that can cut its
        connections should.
        """

    def half_messages(self, backend: Backend, group: str, topics: Sequence[str]) -> HalfMessages:
        """The half messages under test. Override, and name HALF_MESSAGE in ``derived``, to prove
        those that the core derives."""
        return backend.half_messages(group, topics)

    def dead_letter_topic(self, topic: str, group: str) -> str:
        """NATIVE_DEAD_LETTER: where the broker sets aside what ``group`` gave up of ``topic``."""
        raise NotImplementedError("a harness of a broker with NATIVE_DEAD_LETTER names its topic")

    def close(self) -> None:  # noqa: B027 - there may be nothing to let go of
        """Let go of the broker. The suite does not call it: the owner of the harness does."""


class Status(enum.Enum):
    """What became of a case."""

    PASSED = "passed"
    FAILED = "failed"
    REFUSED = "refused"
    """Not declared, and the call that needs it was refused with CapabilityMissing: as it must be."""
    NOT_PROMISED = "not promised"
    """Not declared, and no call asks for it, so there is nothing to refuse."""


@dataclass(frozen=True, slots=True)
class Result:
    """One case's outcome. ``reason`` is empty when it passed."""

    name: str
    capability: Capability | None
    property: str
    status: Status
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.status.value:>12}  {self.name}: {self.property}"
        return f"{text}\n{'':>14}{self.reason}" if self.status is Status.FAILED else text


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in the order of the cases. Printable."""

    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status is Status.FAILED)

    @property
    def failed(self) -> frozenset[str]:
        """The names of the cases that failed."""
        return frozenset(result.name for result in self.failures)

    def count(self, status: Status) -> int:
        return sum(1 for result in self.results if result.status is status)

    def raise_for_failures(self) -> None:
        """PromiseBroken with every failed case and its reason; nothing if there is none."""
        if self.failures:
            listing = "\n".join(str(result) for result in self.failures)
            raise PromiseBroken(f"{len(self.failures)} of {len(self.results)} cases failed:\n{listing}")

    def __str__(self) -> str:
        lines = [str(result) for result in self.results]
        totals = ", ".join(f"{self.count(status)} {status.value}" for status in Status)
        return "\n".join([*lines, f"{len(self.results)} cases: {totals}"])
