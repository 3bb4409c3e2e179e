"""What happened in a run, in one order: the only thing besides the databases that checkers see.

Records are written by the world, the models of brokers, databases and files, and by the observer of
the application's calls: never by the code under test. Times are virtual nanoseconds since the run's
begin. ``process`` is the incarnation's key (``orders``, ``orders+1``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from txbus.spi import Outcome
from txbus_sim.faults import Fault, Faults
from txbus_sim.schedule import Address

__all__ = [
    "Acknowledged",
    "BrokerTransactionEnded",
    "Checked",
    "Delivered",
    "FaultHappened",
    "HalfStored",
    "History",
    "Intended",
    "LocalCommitted",
    "LocalRolledBack",
    "Logged",
    "Point",
    "PositionCommitted",
    "ProcessEnded",
    "ProcessStarted",
    "Read",
    "Record",
    "RowChange",
    "Settled",
    "SqlValue",
    "Stored",
    "Visible",
]

SqlValue: TypeAlias = int | float | str | bytes | None


class Point(NamedTuple):
    """An operation was reached: a place where the process could crash. (A tuple: made most often.)

    ``site`` is ``file:line`` of the application's code where the run was asked to note it, else "".
    """

    at_ns: int
    process: str
    label: str
    number: int
    faults: Faults
    site: str = ""

    @property
    def address(self) -> Address:
        return Address(self.process, self.label, self.number)


@dataclass(frozen=True, slots=True)
class FaultHappened:
    """A deviation of the schedule took place; ``detail`` says what it meant there."""

    at_ns: int
    address: Address
    fault: Fault
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    at_ns: int
    process: str


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """``how``: ``"returned"``, ``"crashed"``, ``"raised"`` or ``"over"`` (the run's end);
    ``detail``: what was raised, with its place, or what a crash lost."""

    at_ns: int
    process: str
    how: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Logged:
    """A line of the process's log."""

    at_ns: int
    process: str
    level: str
    logger: str
    text: str


# databases


class RowChange(NamedTuple):
    """One row before and after a local transaction, column by column; None: there was, or is, none.

    ``table`` as it is named in the database, txbus's own tables included. Values as SQLite has them.
    """

    table: str
    before: Mapping[str, SqlValue] | None
    after: Mapping[str, SqlValue] | None


@dataclass(frozen=True, slots=True)
class LocalCommitted:
    """A local transaction became durable. ``changed``: rows changed by its statements, by table;
    ``answered``: the process saw the answer. ``rows``: what became of each row, in the order in which
    they were first touched; None where that was not noted."""

    at_ns: int
    process: str
    database: str
    connection: int
    changed: Mapping[str, int]
    answered: bool = True
    rows: tuple[RowChange, ...] | None = None


@dataclass(frozen=True, slots=True)
class LocalRolledBack:
    """``why``: ``"asked"``, ``"crash"``, ``"dropped"``, ``"refused"``."""

    at_ns: int
    process: str
    database: str
    connection: int
    why: str


# brokers. ``message_id`` is the CloudEvents id header (``ce_id``), "" for a record without one.


@dataclass(frozen=True, slots=True)
class Stored:
    """A record got its offset. ``producer`` is the transactional id of its broker transaction, ""
    outside of one; it is readable at once then."""

    at_ns: int
    process: str
    topic: str
    partition: int
    offset: int
    message_id: str
    key: str | None
    producer: str = ""


@dataclass(frozen=True, slots=True)
class Visible:
    """A message became readable by consumers. ``envelope`` fields as they were sent."""

    at_ns: int
    topic: str
    partition: int
    offset: int
    message_id: str
    key: str | None
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BrokerTransactionEnded:
    """``by``: the process that asked, or ``"broker"`` (time-out, fencing)."""

    at_ns: int
    producer: str
    epoch: int
    committed: bool
    by: str


@dataclass(frozen=True, slots=True)
class HalfStored:
    """A native half message is durable at the broker, invisible."""

    at_ns: int
    process: str
    topic: str
    half: str
    message_id: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The broker asked for the outcome of a half; ``answer`` None while unanswered."""

    at_ns: int
    process: str
    half: str
    message_id: str
    round: int
    answer: Outcome | None


@dataclass(frozen=True, slots=True)
class Settled:
    """The broker took an outcome for a half. ``discarded``: it gave up asking."""

    at_ns: int
    half: str
    message_id: str
    outcome: Outcome
    discarded: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """A read of a log by position returned records; ``to`` is the offset to go on from."""

    at_ns: int
    process: str
    topic: str
    partition: int
    start: int
    offsets: tuple[int, ...]
    to: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """A group member was handed a record."""

    at_ns: int
    process: str
    group: str
    topic: str
    partition: int
    offset: int
    message_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A group member said that a delivery is done."""

    at_ns: int
    process: str
    group: str
    topic: str
    partition: int
    offset: int
    message_id: str


@dataclass(frozen=True, slots=True)
class PositionCommitted:
    """A group's durable position moved: everything below ``offset`` is done."""

    at_ns: int
    process: str
    group: str
    topic: str
    partition: int
    offset: int


# the application's own calls, seen from outside at the bus


@dataclass(frozen=True, slots=True)
class Intended:
    """The application handed a message to a transactional send (``tx.send``, ``delivery.send``) or
    to a plain one. ``tx_id`` is the local transaction's id in the ledger, "" for a plain send;
    ``attempt`` the one under this id, 0 where nobody noted it."""

    at_ns: int
    process: str
    database: str
    tx_id: str
    topic: str
    message_id: str
    key: str | None
    attempt: int = 0


Record: TypeAlias = (
    Point
    | FaultHappened
    | ProcessStarted
    | ProcessEnded
    | Logged
    | LocalCommitted
    | LocalRolledBack
    | Stored
    | Visible
    | BrokerTransactionEnded
    | HalfStored
    | Checked
    | Settled
    | Read
    | Delivered
    | Acknowledged
    | PositionCommitted
    | Intended
)


class History:
    """The records of one run in the order in which they happened. Append only."""

    __slots__ = ("add", "records")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.add = self.records.append

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def points(self) -> list[Point]:
        """The operations reached, in order."""
        return [record for record in self.records if type(record) is Point]
