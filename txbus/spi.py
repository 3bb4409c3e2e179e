"""What a backend author writes: narrow Protocols over one broker.

A backend translates. It never retries, measures, logs business events or emulates a capability it
does not have: that sits once, in the core. Errors are translated once, into `txbus.errors`, with
``raise … from exc``. Prove a backend with `txbus.conformance`.

A backend package registers an entry point of the group ``txbus.backends`` whose name is the URL
scheme and whose object is a `BackendPlugin`; importing the plugin must not import the broker's
client library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from txbus._capability import Capabilities, Capability, Limits, Support, TopicKind
from txbus._message import Envelope, Position, Receipt, TopicPartition
from txbus._outcome import Outcome
from txbus._ports import Clock, Condition, Entropy, Local, Lock, Ports, Runtime, Task

__all__ = [
    "Admin",
    "Backend",
    "BackendPlugin",
    "BackendURL",
    "Batch",
    "BrokerTransaction",
    "BrokerTransactions",
    "Capabilities",
    "Capability",
    "Check",
    "Clock",
    "Committed",
    "Condition",
    "Entropy",
    "Envelope",
    "GroupStatus",
    "HalfMessages",
    "Limits",
    "Local",
    "Lock",
    "Log",
    "Membership",
    "Outcome",
    "PendingAppend",
    "Ports",
    "Position",
    "Receipt",
    "Received",
    "Receiver",
    "Runtime",
    "Sender",
    "Subscription",
    "Support",
    "Task",
    "TopicDescription",
    "TopicKind",
    "TopicPartition",
    "TopicSpec",
]


@dataclass(frozen=True, slots=True)
class BackendURL:
    """A parsed bus URL. ``location`` is what stands between ``scheme://`` and ``?``.

    ``options`` holds the query's options that are not settings of the bus; a backend refuses one
    it does not know with `SettingsError`, naming the nearest known. ``repr`` masks credentials.
    """

    scheme: str
    location: str = field(repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Committed:
    """A group's position in a partition: the next offset to read, with a note stored beside it.

    ``note`` is at most 1,000 characters (Kafka's client keeps 4,095 of them; the rest is reserve).
    """

    offset: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """One record as the backend hands it over.

    ``attempt`` counts from 1 what the broker knows of; see `Capability.ATTEMPTS_COUNTED`.
    ``stored_at_s`` is the broker's wall-clock time. ``handle`` is the backend's own.
    """

    envelope: Envelope
    position: Position
    attempt: int
    stored_at_s: float
    handle: object = None


@dataclass(frozen=True, slots=True)
class Membership:
    """One snapshot of a group member's assignment, taken in the polling thread with a poll.

    ``token`` is the backend's proof of membership (Kafka: group metadata; embedded: lease epochs).
    A broker transaction given an outdated snapshot fails with `Fenced`; the broker may fence the
    membership only and not the ownership of a partition, so the core uses the newest snapshot and
    only for partitions in it (rule 12 in docs/explanation/protocol.md).
    """

    partitions: frozenset[TopicPartition]
    token: object = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll brought: records, and how the assignment changed *before* them.

    ``received`` holds records of partitions in ``membership`` only, each partition's in order.
    """

    received: tuple[Received, ...]
    membership: Membership
    gained: frozenset[TopicPartition] = frozenset()
    lost: frozenset[TopicPartition] = frozenset()


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a receiver reads.

    ``start`` holds for a partition in which the group has no position yet: ``"earliest"``,
    ``"latest"``, or wall-clock seconds (first message at or after). ``manual``: a gained partition
    delivers nothing until it is sought. ``lease_s``: after this long without a poll the member
    loses its partitions.
    """

    group: str
    topics: tuple[str, ...]
    start: str | float = "earliest"
    tags: frozenset[str] | None = None
    manual: bool = False
    lease_s: float = 10.0


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as txbus wants it.

    ``retention_s`` None means unlimited in time and bytes. ``internal`` topics (half logs) must
    not be able to lose an acknowledged record: replication, in-sync replicas, no unclean election,
    no compaction.
    """

    name: str
    partitions: int
    kind: TopicKind = TopicKind.PLAIN
    retention_s: float | None = 7 * 86400.0
    internal: bool = False


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic as the broker has it; ``settings`` are the broker's own names and values."""

    name: str
    partitions: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """One partition of a group: its position, the readable end, and the member that owns it."""

    where: TopicPartition
    committed: int | None
    end: int
    owner: str | None


class PendingAppend(Protocol):
    """A record on its way."""

    def result(self, timeout_s: float) -> Receipt:
        """Wait until it is durable. May be called again, and by any thread.

        `SendUnknown` when the time is over or the connection broke: the record may still arrive.
        `MessageRefused`, `DestinationRefused`, `BackendUnavailable`: it will not.
        """
        ...


class Sender(Protocol):
    """Sends outside of broker transactions. Thread-safe: many threads share one sender."""

    def send(self, envelopes: Sequence[Envelope], timeout_s: float) -> tuple[Receipt, ...]:
        """Send; every envelope is durable on return. Receipts in the order of the envelopes.

        Blocks up to ``timeout_s``. Not idempotent: `SendUnknown` means some may be durable; a
        second call may double them. With ATOMIC_SEND all or none. The partition of a message
        follows from its key.
        """
        ...

    def append(self, envelope: Envelope, partition: int) -> PendingAppend:
        """Start sending to a named partition and return at once; order of calls is kept.

        Blocks only for back pressure. A record whose result nobody asks for is still sent.
        """
        ...

    def close(self) -> None:
        """Send what was appended, within a bounded time, and let go. Idempotent."""
        ...


class Receiver(Protocol):
    """A member of a consumer group. Used by one thread at a time, except `wake`."""

    def receive(self, max_messages: int, timeout_s: float) -> Batch:
        """Wait up to ``timeout_s`` for records or a change of the assignment.

        Returns as soon as either is there. Polling is also the heartbeat: a member that does not
        poll for ``lease_s`` loses its partitions. The assignment's changes are reported here and
        nowhere else, before a record of a gained partition.
        """
        ...

    def wake(self) -> None:
        """Make a waiting `receive` return soon. From any thread. A backend that cannot wake
        returns within its client's shortest wait."""
        ...

    def ack(self, received: Sequence[Received]) -> None:
        """These are done. Durable on return against process death; idempotent.

        The group's position never passes an unfinished delivery. `Fenced` when a partition of
        theirs is no longer owned: none of that partition's is acknowledged.
        """
        ...

    def redeliver(self, received: Received, after_s: float) -> None:
        """NATIVE_REDELIVERY: hand this one over again after ``after_s``, to whoever owns its
        partition then, with ``attempt`` one higher. Durable on return. `Fenced` as in `ack`."""
        ...

    def pause(self, partitions: frozenset[TopicPartition]) -> None:
        """Deliver nothing of these until `resume`. Idempotent; does not block."""
        ...

    def resume(self, partitions: frozenset[TopicPartition]) -> None: ...

    def committed(self, where: TopicPartition) -> Committed | None:
        """The group's durable position, read from the broker; None if it has none.

        To be called after the transactional id that may be committing positions was initialised
        anew; before, the answer may be outdated. `BackendUnavailable` while one is pending.
        """
        ...

    def seek(self, where: TopicPartition, offset: int) -> None:
        """REPLAY_BY_POSITION: the next record of this owned partition is the first at or after
        ``offset``. Forgets what was received and not acknowledged. Ends `Subscription.manual`
        for this partition. The group's durable position moves with the next ack."""
        ...

    def seek_time(self, where: TopicPartition, wall_s: float) -> None:
        """REPLAY_BY_TIME: as `seek`, to the first record stored at or after a time."""
        ...

    def close(self) -> None:
        """Leave the group; its partitions are free at once. Idempotent, bounded."""
        ...


class BrokerTransaction(Protocol):
    """One broker transaction. Used by one thread."""

    def send(self, envelope: Envelope, partition: int | None = None) -> None:
        """Add a message; visible with the commit or never. `Fenced` may come here or later."""
        ...

    def positions(self, group: str, membership: Membership, positions: Mapping[TopicPartition, Committed]) -> None:
        """POSITIONS_IN_BROKER_TRANSACTION: commit these positions with the messages."""
        ...

    def commit(self) -> None:
        """Make all of it visible, in one step per partition.

        `StepAborted`: none of it is. `Fenced`: none of it is, and the owner is another.
        `CommitUnknown`: abandon the `BrokerTransactions` and look for evidence after a new one.
        `MessageRefused`, `DestinationRefused`: aborted because of one message's fault.
        """
        ...

    def abort(self) -> None:
        """Make none of it visible. Idempotent; never raises for a transaction already aborted."""
        ...


class BrokerTransactions(Protocol):
    """The broker transactions of one transactional id. Used by one thread."""

    def begin(self) -> BrokerTransaction:
        """Begin the next one; the one before has ended. `Fenced` when the id has a newer owner."""
        ...

    def close(self) -> None:
        """Let go in order: aborts what is open, bounded. Idempotent."""
        ...

    def abandon(self) -> None:
        """Let go at once without talking to the broker (after `CommitUnknown`). Idempotent."""
        ...


class Log(Protocol):
    """A topic read by position, without a group. Used by one thread at a time."""

    def start(self, partition: int) -> int:
        """The first retained offset."""
        ...

    def end(self, partition: int) -> int:
        """The readable end: every record below it is settled (committed or gone), and a record
        that becomes readable later has an offset at or above it."""
        ...

    def read(self, partition: int, offset: int, max_records: int, timeout_s: float) -> tuple[tuple[Received, ...], int]:
        """Readable records from ``offset`` on, and the offset to go on from (offsets may have gaps:
        markers, aborted records). Does not wait at the readable end."""
        ...

    def truncate(self, partition: int, before: int) -> None:
        """Delete what lies below ``before``. Idempotent."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Check:
    """The broker asks for the outcome of an old half message."""

    envelope: Envelope
    attempt: int
    handle: object = None


class HalfMessages(Protocol):
    """HALF_MESSAGE: for brokers that have them natively. Thread-safe."""

    def prepare(self, envelope: Envelope, timeout_s: float) -> object:
        """Store a half message; durable and invisible on return. Returns the handle to finish it."""
        ...

    def finish(self, handle: object, outcome: Outcome) -> None:
        """Tell the broker the outcome. A hint: check-back and the ledger are the truth."""
        ...

    def checks(self, timeout_s: float) -> Sequence[Check]:
        """Wait for questions of the broker about old half messages of this group."""
        ...

    def answer(self, check: Check, outcome: Outcome) -> None:
        """Answer one; UNKNOWN means: ask again later."""
        ...

    def close(self) -> None: ...


class Admin(Protocol):
    """Creates and verifies topics and reports on groups. Thread-safe."""

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        """Each topic as it is, None if it is missing."""
        ...

    def create(self, specs: Sequence[TopicSpec]) -> None:
        """Create the missing ones; an existing topic is left as it is. Idempotent."""
        ...

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        """What of an existing topic breaks a promise, a sentence each with the command or call
        that repairs it; empty if nothing does. `DestinationRefused` if it does not exist."""
        ...

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        """Positions, ends and owners, one row a partition."""
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """One connection to one broker. Thread-safe. Making it does no I/O; `open` does."""

    @property
    def name(self) -> str:
        """The URL scheme, for messages and telemetry."""
        ...

    def open(self) -> None:
        """Reach the broker within seconds or say which of address, credentials, permission or
        version is at fault. Idempotent."""
        ...

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        """What it keeps under its present settings. Does no I/O; may be called before `open`."""
        ...

    def admin(self) -> Admin: ...

    def sender(self, group: str) -> Sender: ...

    def receiver(self, subscription: Subscription) -> Receiver: ...

    def broker_transactions(self, transactional_id: str, timeout_s: float) -> BrokerTransactions:
        """BROKER_TRANSACTION: become the owner of the id.

        On return every former owner is fenced and its open transaction is ended. ``timeout_s`` is
        how long the broker keeps one of ours open when we fall silent.
        """
        ...

    def log(self, topic: str) -> Log:
        """LOG: the topic by position."""
        ...

    def half_messages(self, group: str, topics: Sequence[str]) -> HalfMessages:
        """HALF_MESSAGE: native half messages of a producer group."""
        ...

    def close(self) -> None:
        """Close whatever it handed out. Idempotent, bounded."""
        ...


@runtime_checkable
class BackendPlugin(Protocol):
    """What a backend package registers; listing it imports no client library."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """URL schemes, the first one being its name."""
        ...

    @property
    def extra(self) -> str | None:
        """The extra of txbus, or the distribution, to install when its client is missing."""
        ...

    def missing(self) -> str | None:
        """The import name of a client library that is not installed, else None. Imports nothing."""
        ...

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        """What a backend of this kind keeps under default settings."""
        ...

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        """A backend for a URL, not opened. `SettingsError` for an option that is unknown."""
        ...
