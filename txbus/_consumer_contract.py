"""What the consumer and whatever handles a delivery agree on: a run, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from txbus._message import TopicPartition
from txbus.spi import Received

__all__ = [
    "ConsumerHealth",
    "DeadLetterSink",
    "Disposition",
    "Done",
    "GiveBack",
    "Handle",
    "Ownership",
    "RetryAfter",
    "Run",
]


@dataclass(frozen=True, slots=True)
class Done:
    """The delivery is finished, with its effect or rightly without one: acknowledge it."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The handler ran and failed: run it again after ``delay_s``; later ones of its key wait."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveBack:
    """It did not run, or that it ran is no fault of the message: try again after ``after_s``.

    No attempt is counted. The order of its key is kept.
    """

    after_s: float


Disposition: TypeAlias = Done | RetryAfter | GiveBack


class Ownership:
    """One partition from the moment this process gained it to the moment it lost it.

    ``gain`` differs for each gain in one consumer, so that what was learnt about the partition
    before is known to be outdated. ``end`` is one more than the highest offset received.
    ``lost`` and ``closing`` are written by the consumer and may be read without a lock.
    """

    __slots__ = ("closing", "end", "gain", "lost", "where")

    def __init__(self, where: TopicPartition, gain: int) -> None:
        self.where = where
        self.gain = gain
        self.end = 0
        self.lost = False
        self.closing = False


class Run:
    """A received record while this process works on it; it lives through all its runs here.

    The consumer keeps ``failed`` (runs that ended in `RetryAfter`) and ``given_back`` (`GiveBack`
    in a row). The rest are the handler's notes: ``started``, its function was called;
    ``attempts``, the runs it knows of; ``reserved``, the number of an attempt that is recorded and
    whose run has not counted yet; ``condemned``, attempts and error of a dead letter that could not
    be kept yet. Used by one thread at a time.
    """

    __slots__ = (
        "attempts",
        "condemned",
        "failed",
        "given_back",
        "ownership",
        "received",
        "reserved",
        "started",
    )

    def __init__(self, received: Received, ownership: Ownership) -> None:
        self.received = received
        self.ownership = ownership
        self.failed = 0
        self.given_back = 0
        self.started = False
        self.attempts = 0
        self.reserved = 0
        self.condemned: tuple[int, BaseException | str] | None = None

    @property
    def wanted(self) -> bool:
        """False once the partition is lost or the consumer was asked to stop."""
        return not (self.ownership.lost or self.ownership.closing)


class Handle(Protocol):
    """Handles one record. Called from several threads, each with another record.

    What it raises is taken for a defect: the consumer raises an alarm and tries again later.
    KeyboardInterrupt and SystemExit stop the consumer.
    """

    def __call__(self, received: Received, run: Run, /) -> Disposition: ...


class DeadLetterSink(Protocol):
    """Keeps a delivery that is given up on. Thread-safe."""

    def keep(self, received: Received, source: str, message_id: str, attempts: int, error: BaseException | str) -> None:
        """Durable on return. Raises whatever hindered it; then the delivery is not finished."""
        ...


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """How a consumer is at one moment.

    ``running``: started and not ended. ``error``: the last failure of the broker or of a thread,
    empty once a poll succeeded again. ``polled_ago_s``: since the last poll that succeeded, None
    before the first. ``in_flight``: received and not finished; of these ``held`` keys wait for a time.
    """

    scope: str
    group: str
    running: bool
    error: str
    polled_ago_s: float | None
    in_flight: int
    held: int
    partitions: tuple[str, ...]
    handled: int
    runs: int
