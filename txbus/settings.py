"""Every duration and budget of the protocol, with its default, its range and its relations.

A setting is given, in falling order of weight, as an argument of the bus (``lease_s=5``), in the
query of its URL (``?lease_s=5``) or in the environment (``TXBUS_LEASE_S=5``); else its default holds.
Ranges are checked when the bus is made, relations between settings when it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, get_args
from urllib.parse import parse_qsl

import pydantic
from pydantic import Field
from pydantic.fields import FieldInfo

from txbus._retry import Retry
from txbus.errors import SettingsError
from txbus.spi import BackendURL

__all__ = [
    "SettingDescription",
    "Settings",
    "SettingsArguments",
    "check_relations",
    "describe",
    "inbox_horizon_s",
    "mask",
    "nearest",
    "parse_url",
]

_PREFIX = "TXBUS_"
_RESERVED = ("TXBUS_TEST_", "TXBUS_DEMO_", "TXBUS_REQUIRE_")
_DAY_S = 86_400.0
_MIB = 1024 * 1024
_INBOX_SAFETY = 1.1

_Seconds = Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)]
_Wait = Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)]
_Long = Annotated[float, Field(gt=0, le=3_650 * _DAY_S, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=10_000_000)]
_Partitions = Annotated[int, Field(ge=1, le=1_024)]
_Bytes = Annotated[int, Field(ge=1_024, le=64 * 1024 * _MIB)]


class Settings(pydantic.BaseModel, frozen=True, extra="forbid", defer_build=True):
    """The settings of one bus. Immutable, and safe to share between threads.

    Times are seconds (``_s``), sizes are bytes (``_bytes``). Making one checks each value's type
    and range (pydantic's ValidationError); `Settings.load` does the same with `SettingsError`.
    """

    # sending with a local transaction
    half_timeout_s: _Seconds = Field(
        default=5.0,
        description="Deadline of a caller for its half message, queueing included, because the caller holds "
        "row locks; then the local transaction is rolled back.",
    )
    local_timeout_s: _Seconds = Field(
        default=30.0,
        description="Longest local transaction, counted from entering the block; one that comes to its "
        "commit later is rolled back.",
    )
    hint_linger_s: _Wait = Field(
        default=0.005,
        description="How long a sender's word on an outcome waits for others to share its log record.",
    )
    send_timeout_s: _Seconds = Field(
        default=30.0, description="Longest wait for the broker's receipt of a message that is sent."
    )
    half_partitions: _Partitions = Field(
        default=8,
        description="Partitions of the service's half log. Stored with the topic; a change needs a drain.",
    )

    # check-back
    check_after_s: _Seconds = Field(
        default=2.0, description="Age at which a half without its sender's word is asked about."
    )
    check_interval_s: _Seconds = Field(default=1.0, description="Pause between two rounds of check-back.")
    check_lock_wait_s: _Seconds = Field(
        default=0.2, description="Longest wait of a check for the row lock of an open local transaction."
    )
    check_budget_s: _Seconds = Field(default=1.0, description="Longest round of check-back in one database.")
    check_max: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=15, description="Answers UNKNOWN of an application's own checker before the half is parked."
    )

    # the relay
    relay: Literal["inside", "outside"] = Field(
        default="inside",
        description="Whether this bus runs a relay of its own (inside) or leaves it to `txbus relay` (outside).",
    )
    broker_transaction_timeout_s: _Seconds = Field(
        default=60.0,
        description="How long the broker keeps a silent relay's broker transaction open; readers of its "
        "destinations may have to wait that long when every relay is dead.",
    )
    step_messages_max: _Count = Field(default=500, description="Most messages that one relay step publishes.")
    step_bytes_max: _Bytes = Field(default=4 * _MIB, description="Most payload bytes that one relay step publishes.")
    window_halves_max: _Count = Field(
        default=20_000, description="Most unsettled halves of one partition that a relay keeps in its index."
    )
    payload_budget_bytes: _Bytes = Field(
        default=64 * _MIB, description="Payloads that a relay keeps in memory; beyond it they are read again."
    )
    reappend_records: _Count = Field(
        default=2_000,
        description="Distance in the half log, in records, at which unsettled halves are re-appended.",
    )
    held_key_max: _Count = Field(
        default=1_000, description="Halves behind a parked one of the same key before new ones are refused."
    )

    # the ledger
    ledger_retention_s: _Long = Field(
        default=7 * _DAY_S,
        description="Age at which a settled ledger row may be purged; a missing row means ROLLED_BACK only "
        "for halves younger than half of it.",
    )
    confirm_interval_s: _Seconds = Field(
        default=1.0, description="Pause between two rounds that note published messages in the ledger."
    )
    purge_interval_s: _Seconds = Field(default=60.0, description="Pause between two purges of ledger and inbox.")
    purge_batch: _Count = Field(default=1_000, description="Most rows that one purge deletes.")

    # receiving
    lease_s: _Seconds = Field(
        default=10.0, description="How long a member of a group owns its partitions without a sign of life."
    )
    poll_s: _Seconds = Field(default=0.5, description="Longest wait of one receive.")
    workers: Annotated[int, Field(ge=1, le=1_024)] = Field(
        default=4, description="Threads that run handlers; messages of one key never run at the same time."
    )
    max_in_flight: _Count = Field(default=1_000, description="Most deliveries taken from the broker and not yet done.")
    lock_wait_s: _Seconds = Field(
        default=5.0,
        description="Longest wait of a handler for another process that handles the same message.",
    )
    replay_reach_s: _Long = Field(default=7 * _DAY_S, description="How far back consumers may be sought.")
    inbox_horizon_s: _Long | None = Field(
        default=None,
        description="How long an inbox row is kept. None: computed from the retry schedules, lease_s, "
        "replay_reach_s and topic_retention_s.",
    )
    stop_timeout_s: _Seconds = Field(
        default=10.0, description="Longest wait for deliveries in hand when the bus is stopped."
    )

    # topics
    create_topics: bool = Field(default=True, description="Whether missing topics are created when the bus is opened.")
    create_schema: bool = Field(
        default=False,
        description="Whether the stores' missing tables are created when the bus is opened; else "
        "`txbus schema create` does it.",
    )
    topic_partitions: _Partitions = Field(default=8, description="Partitions of a topic that txbus creates.")
    topic_retention_s: _Long = Field(default=7 * _DAY_S, description="Retention of a topic that txbus creates.")

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, object],
        query: Mapping[str, str],
        environ: bool | Mapping[str, str] = True,
    ) -> tuple[Settings, dict[str, str]]:
        """Settings from arguments, a URL's query and the environment, in falling order of weight.

        Returns them with the options of the query that are no settings: they are the backend's.
        ``environ`` is False for none, or a mapping in place of the process's own; empty variables
        count as not set. `SettingsError` names an unknown argument or ``TXBUS_`` variable with the
        nearest known name, and a value out of range with its range. pydantic-settings is imported
        only if a variable is set.
        """
        variables = dict(os.environ if environ is True else environ or {})
        values: dict[str, object] = {}
        spelled: dict[str, str] = {}
        for name, value in _from_environment(cls, variables).items():
            values[name], spelled[name] = value, f"environment variable {_PREFIX}{name.upper()}"
        rest: dict[str, str] = {}
        for name, text in query.items():
            if name in cls.model_fields:
                values[name], spelled[name] = text, f"URL option {name}"
            else:
                rest[name] = text
        for name, value in arguments.items():
            if name not in cls.model_fields:
                raise SettingsError(
                    f"unknown setting {name!r}; the nearest known is {nearest(name, cls.model_fields)!r}"
                )
            values[name], spelled[name] = value, f"argument {name}"
        try:
            return cls.model_validate(values), rest
        except pydantic.ValidationError as exc:
            raise SettingsError("; ".join(_refusals(exc, cls.model_fields, spelled))) from exc


class SettingsArguments(TypedDict, total=False):
    """The settings as keyword arguments, so that mypy sees a wrong name or type."""

    half_timeout_s: float
    local_timeout_s: float
    hint_linger_s: float
    send_timeout_s: float
    half_partitions: int
    check_after_s: float
    check_interval_s: float
    check_lock_wait_s: float
    check_budget_s: float
    check_max: int
    relay: Literal["inside", "outside"]
    broker_transaction_timeout_s: float
    step_messages_max: int
    step_bytes_max: int
    window_halves_max: int
    payload_budget_bytes: int
    reappend_records: int
    held_key_max: int
    ledger_retention_s: float
    confirm_interval_s: float
    purge_interval_s: float
    purge_batch: int
    lease_s: float
    poll_s: float
    workers: int
    max_in_flight: int
    lock_wait_s: float
    replay_reach_s: float
    inbox_horizon_s: float | None
    stop_timeout_s: float
    create_topics: bool
    create_schema: bool
    topic_partitions: int
    topic_retention_s: float


def inbox_horizon_s(settings: Settings, retries: Sequence[Retry]) -> float:
    """Seconds for which an inbox row is kept: the setting, or else the least safe time plus a tenth."""
    if settings.inbox_horizon_s is not None:
        return settings.inbox_horizon_s
    return _INBOX_SAFETY * _inbox_need_s(settings, retries)


def check_relations(settings: Settings, retries: Sequence[Retry]) -> None:
    """Raise `SettingsError` with the names and figures of every relation that does not hold.

    ``retries`` are those of the bus's handlers. Does no I/O.
    """
    broken = [text for holds, text in _relations(settings, retries) if not holds]
    if broken:
        raise SettingsError("; ".join(broken))


def _relations(s: Settings, retries: Sequence[Retry]) -> Iterator[tuple[bool, str]]:
    def figure(name: str, factor: float = 1) -> tuple[str, float]:
        return (name if factor == 1 else f"{factor:g} x {name}", factor * getattr(s, name))

    retry_s = _retry_horizon_s(retries)
    attempts = ("the longest retry schedule + lease_s", retry_s + s.lease_s)
    comes_again = (
        "the longest retry schedule + lease_s + the larger of replay_reach_s and topic_retention_s",
        _inbox_need_s(s, retries),
    )
    inbox = ("inbox_horizon_s", inbox_horizon_s(s, retries))
    longest_question = (
        "the longest question (local_timeout_s + half_timeout_s + check_after_s + check_interval_s + "
        "check_budget_s + lease_s + broker_transaction_timeout_s)",
        _longest_question_s(s),
    )
    for small, large, why in (
        (figure("poll_s", 2), figure("lease_s"), "a member must come back from a receive within its lease"),
        (figure("half_timeout_s"), figure("local_timeout_s"), "the half is stored in the local transaction"),
        (figure("lock_wait_s"), figure("local_timeout_s"), "a handler waits in its local transaction"),
        (figure("hint_linger_s"), figure("check_after_s"), "the sender's word comes before the question"),
        (figure("held_key_max"), figure("window_halves_max"), "one held key must not fill the window"),
        (figure("poll_s"), figure("stop_timeout_s"), "a receive must end before stopping gives up"),
        (
            longest_question,
            figure("ledger_retention_s", 0.5),
            "an answer must be found while its row is kept",
        ),
        (attempts, figure("topic_retention_s"), "a message must be kept until its last attempt"),
    ):
        yield small[1] < large[1], _complaint(small, "less than", large, why)
    for small, large, why in (
        (figure("check_lock_wait_s"), figure("check_budget_s"), "a round must be able to wait for one row"),
        (
            figure("send_timeout_s", 2),
            figure("broker_transaction_timeout_s"),
            "a relay must learn that a send failed while it can still end its step",
        ),
        (figure("step_bytes_max"), figure("payload_budget_bytes"), "one step must fit into the budget"),
        (figure("workers"), figure("max_in_flight"), "each worker needs a delivery"),
        (comes_again, inbox, "a message that comes again must find its row"),
    ):
        yield small[1] <= large[1], _complaint(small, "at most", large, why)


def _complaint(small: tuple[str, float], word: str, large: tuple[str, float], why: str) -> str:
    return f"{small[0]} = {_figure(small[1])} must be {word} {large[0]} = {_figure(large[1])}: {why}"


def _figure(value: float) -> str:
    return f"{value:,.12g}"


def _longest_question_s(s: Settings) -> float:
    """From entering the block to the answer, when the relay that owned the half died on the way."""
    sender_s = s.local_timeout_s + s.half_timeout_s
    check_s = s.check_after_s + s.check_interval_s + s.check_budget_s
    return sender_s + check_s + s.lease_s + s.broker_transaction_timeout_s


def _retry_horizon_s(retries: Sequence[Retry]) -> float:
    return max((retry.horizon_s() for retry in retries), default=0.0)


def _inbox_need_s(s: Settings, retries: Sequence[Retry]) -> float:
    # A message comes again because somebody seeks back (replay_reach_s), or because a process died
    # between effect and ack and nobody ran until the topic was about to forget it.
    return _retry_horizon_s(retries) + s.lease_s + max(s.replay_reach_s, s.topic_retention_s)


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One setting for a reader: the environment variable, the default and the range as text."""

    name: str
    variable: str
    default: object
    range: str
    description: str


def describe() -> tuple[SettingDescription, ...]:
    """All settings in the order of their declaration."""
    return tuple(
        SettingDescription(name, _PREFIX + name.upper(), field.default, _range_of(name, field), field.description or "")
        for name, field in Settings.model_fields.items()
    )


def parse_url(text: str) -> tuple[BackendURL, dict[str, str]]:
    """A bus URL ``scheme://location?option=value`` and its query, percent-decoded.

    The location stays as it is written. ``options`` of the result is empty: `Settings.load` tells
    which of the query are the backend's. `SettingsError` never shows credentials.
    """
    scheme, separator, tail = text.partition("://")
    if not separator or not scheme or not all(c.isalnum() or c in "+-." for c in scheme):
        raise SettingsError(
            f"bus URL {mask(text)!r} has no scheme: write embedded:///path/to/bus.db, memory://name "
            "or the URL of another backend (`txbus backends` lists them)"
        )
    location, _, query = tail.partition("?")
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise SettingsError(f"bus URL {mask(text)!r} gives option {name!r} twice")
        options[name] = value
    return BackendURL(scheme.lower(), location), options


def mask(url: str) -> str:
    """The URL without what may be secret: the user part, and values of options that are no settings."""
    scheme, separator, tail = url.partition("://")
    if not separator:
        # Not a URL: whatever stands before an @ may be credentials.
        return f"***@{url.rpartition('@')[2]}" if "@" in url else url
    location, mark, query = tail.partition("?")
    # A password may hold unescaped slashes, so everything before the last @ goes; a location that
    # begins with a slash is a path and has no user part.
    if "@" in location and not location.startswith("/"):
        location = f"***@{location.rpartition('@')[2]}"
    shown = [
        f"{name}={value}" if name in Settings.model_fields else f"{name}=***"
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    return f"{scheme}://{location}{mark}{'&'.join(shown)}"


def nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """The known name that is most like ``name``; empty if nothing is known."""
    import difflib  # only on the way to an error

    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return found[0] if found else ""


def _from_environment(model: type[Settings], variables: Mapping[str, str]) -> Mapping[str, object]:
    given = {
        name.upper(): value
        for name, value in variables.items()
        if name.upper().startswith(_PREFIX) and not name.upper().startswith(_RESERVED) and value
    }
    known = [_PREFIX + name.upper() for name in model.model_fields]
    for name in given:
        if name not in known:
            raise SettingsError(f"unknown environment variable {name}; the nearest known is {nearest(name, known)}")
    if not given:
        return {}
    try:
        from pydantic_settings import BaseSettings, EnvSettingsSource
    except ImportError as exc:
        raise SettingsError(
            f"{', '.join(sorted(given))} set in the environment, but pydantic-settings is not installed: "
            'pip install "txbus[settings]", or unset it'
        ) from exc

    class Environment(model, BaseSettings):  # type: ignore[misc, valid-type]  # the class is an argument
        pass

    source = EnvSettingsSource(Environment, case_sensitive=False, env_prefix=_PREFIX)
    source.env_vars = {name.lower(): value for name, value in given.items()}
    return source()


def _refusals(
    error: pydantic.ValidationError, known: Mapping[str, FieldInfo], spelled: Mapping[str, str]
) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0])
        yield f"{spelled[name]}={detail['input']!r} is refused: it must be {_range_of(name, known[name])}"


_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def _range_of(name: str, field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_args(kind) and all(isinstance(choice, str) for choice in get_args(kind)):
        return " or ".join(repr(choice) for choice in get_args(kind))
    if kind is bool:
        return "true or false"
    metadata = list(field.metadata)
    optional = type(None) in get_args(kind)
    for part in get_args(kind):
        metadata.extend(getattr(part, "__metadata__", ()))
    constraints = [c for item in metadata for c in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [
        f"{words} {_figure(getattr(constraint, attribute))}"
        for constraint in constraints
        for attribute, words in _BOUNDS.items()
        if hasattr(constraint, attribute)
    ]
    noun = "seconds" if name.endswith("_s") else "a whole number"
    return " and ".join([f"{noun}, {bounds[0]}", *bounds[1:]]) + (", or None" if optional else "")
