"""The faults a schedule can place, and where each kind of operation can be hit."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "BROKER",
    "COMMIT",
    "CRASHES",
    "FILE",
    "RECEIVE",
    "REQUEST",
    "STATEMENT",
    "Fault",
    "Faults",
]


class Fault(Enum):
    """One thing that goes wrong at one address. The value is its word in a schedule.

    Faults of the process are carried out by the world; the others are handed to the model of the
    database, file system or broker that was called, and listed by it among the possible ones.
    """

    # of the process
    CRASH_BEFORE = "crash-before"
    """The process dies before the operation; its supervisor starts it anew."""
    CRASH_AFTER = "crash-after"
    """The operation took place; the process dies before it sees the answer."""
    KILL_BEFORE = "kill-before"
    """As crash-before, and nobody starts it anew."""
    KILL_AFTER = "kill-after"
    PAUSE_BEFORE = "pause-before"
    """Every thread of the process stands still for a time (a zombie, beyond every timeout)."""
    PAUSE_AFTER = "pause-after"
    DELAY = "delay"
    """The calling thread alone is late."""
    CLOCK_STEP = "clock-step"
    """The process's wall clock is stepped by an amount (monotonic time is not)."""

    # of a request to a server
    REQUEST_LOST = "request-lost"
    """It never arrives; the caller waits until its patience is over."""
    ANSWER_LOST = "answer-lost"
    """It arrives and is carried out; the caller waits until its patience is over."""
    DUPLICATE = "duplicate"
    """It arrives twice (a retry inside of the client)."""
    FAIL = "fail"
    """It is refused; nothing was done, and the caller knows."""
    DROP = "drop"
    """The connection breaks before it arrives; nothing was done."""

    # of the broker, at the moment of a request
    FAILOVER = "failover"
    """The broker dies after what it made durable and comes back without what it did not."""
    COORDINATOR_FAILOVER = "coordinator-failover"
    """The coordinator of the caller's group or transactional id moves."""
    REBALANCE = "rebalance"
    """The group's partitions are dealt anew, one member further."""
    SESSION_LOST = "session-lost"
    """The broker declares the caller dead; it does not know yet."""
    LATE_END = "late-end"
    """The request to end a broker transaction arrives after the caller gave up and went on."""
    MARKER_SKIPPED = "marker-skipped"
    """An aborted broker transaction is complete without a marker (facts: Kafka, "Danger")."""
    CHECK_LATE = "check-late"
    CHECK_DUPLICATE = "check-duplicate"
    CHECK_MISSING = "check-missing"
    MEMORY_LOST = "memory-lost"
    """The broker's process dies and forgets what it keeps in memory only."""

    # of a file
    TORN = "torn"
    """The machine loses power: what was not synced is lost, torn after an amount of bytes."""
    DISK_FULL = "disk-full"


Faults = tuple[Fault, ...]

CRASHES: Faults = (
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
    Fault.KILL_BEFORE,
    Fault.KILL_AFTER,
    Fault.PAUSE_BEFORE,
    Fault.PAUSE_AFTER,
    Fault.DELAY,
)
"""What can happen to a process at any operation."""
STATEMENT: Faults = (*CRASHES, Fault.FAIL, Fault.DROP)
COMMIT: Faults = (*CRASHES, Fault.FAIL, Fault.DROP, Fault.ANSWER_LOST)
REQUEST: Faults = (*CRASHES, Fault.FAIL, Fault.REQUEST_LOST, Fault.ANSWER_LOST)
RECEIVE: Faults = (*CRASHES, Fault.FAIL, Fault.REBALANCE, Fault.SESSION_LOST)
BROKER: Faults = (Fault.FAILOVER, Fault.COORDINATOR_FAILOVER)
FILE: Faults = (*CRASHES, Fault.TORN, Fault.DISK_FULL)
