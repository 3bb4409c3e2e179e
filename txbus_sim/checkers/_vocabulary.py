"""What checkers are given and what they give: expectations, books, findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, assert_never

from txbus import Capabilities, Capability, TopicKind
from txbus_sim.result import Verdict, VerdictKind

__all__ = [
    "MESSAGE_ID",
    "Allowed",
    "Attempts",
    "Books",
    "CapabilitiesOf",
    "CheckReport",
    "Effect",
    "Expectation",
    "Finding",
    "Given",
    "Pair",
    "Repeat",
]

MESSAGE_ID = "ce_id"
"""The field that is not in the payload: the message's CloudEvents id."""

CapabilitiesOf: TypeAlias = Callable[[TopicKind], Capabilities]


class Books(Protocol):
    """The databases' files at the end of a run, read only. Called when nothing runs any more."""

    def names(self) -> Sequence[str]:
        """The run's databases, in the order of their declaration."""
        ...

    def tables(self, database: str) -> Sequence[str]:
        """The tables of a database, txbus's own included, in an order that is always the same."""
        ...

    def rows(self, database: str, sql: str) -> Sequence[tuple[Any, ...]]:
        """What a SELECT gives, committed rows only."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Every committed row of a table has a message in a topic, and every message has its row.

    ``table`` is ``database.table``. ``field`` is a path in the JSON payload (``id``, ``order.id``) or
    ``ce_id``. ``emptied``: rows are deleted once their message is out (an outbox), so that a row which
    is gone still wants its message. ``publishes_first``: the application publishes before it commits;
    then only a message whose row never comes, or comes by way of a restart, is held against it.
    ``why``: where the pair comes from, for the report.
    """

    table: str
    column: str
    topic: str
    field: str
    emptied: bool = False
    publishes_first: bool = False
    why: str = "declared"

    def __str__(self) -> str:
        return f"{self.table} ({self.column}) and topic {self.topic} ({self.field}), {self.why}"


@dataclass(frozen=True, slots=True)
class Effect:
    """Every message of a topic has ``rows`` rows in a table, never more, once it was consumed.

    ``group`` is the consumer group whose effect it is; "" for any. ``strict``: messages of equal
    payload are different messages, each with its effect (not assumed of what is learned).
    """

    topic: str
    field: str
    table: str
    column: str
    rows: int = 1
    group: str = ""
    strict: bool = True
    why: str = "declared"

    def __str__(self) -> str:
        return f"topic {self.topic} ({self.field}) and {self.table} ({self.column}), {self.why}"


@dataclass(frozen=True, slots=True)
class Repeat:
    """How often a topic's messages say the same but for their identity, in the run without faults.

    ``identity`` is the field that tells them apart; ``times`` maps the rest of a payload to how often it came. A
    process that was never restarted must not say the same more often.
    """

    topic: str
    identity: str
    times: Mapping[str, int] = field(default_factory=dict)
    why: str = "learned from the run without faults"

    def __str__(self) -> str:
        return f"topic {self.topic}: each of {sum(self.times.values())} messages once, {self.why}"


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a scope runs a message before it keeps a dead letter (`txbus.Retry.max_attempts`).

    ``at_once``: names of exception classes that end it at the first run, besides `GiveUp`.
    """

    scope: str
    max_attempts: int
    at_once: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"scope {self.scope} runs a message {self.max_attempts} times, declared"


Expectation: TypeAlias = Pair | Effect | Repeat | Attempts


_HALF_LOG = frozenset(
    {
        Capability.BROKER_TRANSACTION,
        Capability.POSITIONS_IN_BROKER_TRANSACTION,
        Capability.LOG,
        Capability.SINGLE_OWNER,
    }
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which anomalies a backend's capabilities leave open."""

    duplicates: bool
    """A transactional send may publish twice: its half messages are not the half log's."""
    disorder: bool
    """Plain sends of one key, and deliveries, keep no order."""
    disorder_in_transactions: bool
    """Transactional sends of one key keep no order."""
    several_owners: bool
    """A partition may have several owners within a group, for some kind of topic."""
    filtered: bool
    """The broker may keep a message with a tag from a group."""

    @classmethod
    def by(cls, capabilities: CapabilitiesOf) -> Allowed:
        native = {kind: capabilities(kind).native for kind in TopicKind}
        return cls(
            duplicates=not native[TopicKind.TRANSACTIONAL] >= _HALF_LOG,
            disorder=Capability.ORDER_BY_KEY not in native[TopicKind.ORDERED],
            disorder_in_transactions=Capability.ORDER_BY_KEY not in native[TopicKind.TRANSACTIONAL],
            several_owners=any(Capability.SINGLE_OWNER not in one for one in native.values()),
            filtered=any(Capability.TAG_FILTER in one for one in native.values()),
        )


@dataclass(frozen=True, slots=True)
class Given:
    """What a checker has besides the history."""

    pairs: tuple[Pair, ...]
    effects: tuple[Effect, ...]
    repeats: tuple[Repeat, ...]
    attempts: tuple[Attempts, ...]
    allowed: Allowed
    books: Books

    @classmethod
    def of(cls, expectations: Iterable[Expectation], allowed: Allowed, books: Books) -> Given:
        pairs: list[Pair] = []
        effects: list[Effect] = []
        repeats: list[Repeat] = []
        attempts: list[Attempts] = []
        for one in expectations:
            match one:
                case Pair():
                    pairs.append(one)
                case Effect():
                    effects.append(one)
                case Repeat():
                    repeats.append(one)
                case Attempts():
                    attempts.append(one)
                case _:
                    assert_never(one)
        return cls(tuple(pairs), tuple(effects), tuple(repeats), tuple(attempts), allowed, books)


@dataclass(slots=True)
class Finding:
    """What one checker saw. ``premise`` counts how often the situation it speaks about occurred."""

    name: str
    premise: int = 0
    applies: bool = False
    """The history has anything the property could speak about."""
    broken: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """Each violation: the sentence and the records that show it."""

    def spoke(self, times: int = 1) -> None:
        self.applies = True
        self.premise += times

    def accuse(self, sentence: str, *details: str) -> None:
        self.broken.append((sentence, details))

    def verdict(self) -> Verdict | None:
        """The first violation, with how many more there are."""
        if not self.broken:
            return None
        sentence, details = self.broken[0]
        others = [f"also: {one}" for one, _ in self.broken[1:_OTHERS_MAX]]
        if len(self.broken) > _OTHERS_MAX:
            others.append(f"and {len(self.broken) - _OTHERS_MAX} more")
        return Verdict(VerdictKind.PROPERTY, self.name, sentence, (*details, *others))


_OTHERS_MAX = 4


@dataclass(frozen=True, slots=True)
class CheckReport:
    """``verdicts``: one a broken property, the most telling first. ``premises``: how often the
    situation of each property occurred, for the properties that have a subject in this history;
    0 means that it was never put to the test."""

    verdicts: tuple[Verdict, ...]
    premises: Mapping[str, int]
