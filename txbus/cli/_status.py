"""``txbus status``: how far a service is, and what hinders it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import typer

from txbus._deadletter import dead_topic
from txbus._halflog.records import half_topic
from txbus._halflog.relay import relay_group
from txbus.cli._halves import HalfRow, show_halves, surveyed
from txbus.cli._loading import load_bus
from txbus.cli._look import Look, looking
from txbus.cli._output import AppArgument, JsonOption, explained, note, print_json, print_table, span
from txbus.errors import BackendError, ConfigurationError, StoreError
from txbus.settings import Settings, inbox_horizon_s
from txbus.spi import Capability
from txbus.stores.contract import Database

__all__ = ["register"]

_ALWAYS_SHOWN = (
    "relay", "check_after_s", "local_timeout_s", "half_timeout_s", "lease_s", "workers",
    "ledger_retention_s", "replay_reach_s", "topic_retention_s", "half_partitions",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One partition of a group. ``lag`` counts the log's records from the position to the end; None
    while the group has no position there."""

    group: str
    scope: str | None
    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int | None
    owner: str | None


@dataclass(frozen=True, slots=True)
class DeadRow:
    """Dead letters of one scope, in a database or in a topic."""

    kept_in: str
    scope: str
    count: int


@dataclass(frozen=True, slots=True)
class DatabaseRow:
    """A database; ``state`` is ``"right"`` or what is wrong with it."""

    database: str
    state: str


@dataclass(frozen=True, slots=True)
class Status:
    """What ``status --json`` prints. ``waiting``: halves with an outcome that is not carried out yet."""

    service: str
    bus: str
    groups: Sequence[GroupRow]
    undecided: Sequence[HalfRow]
    parked: Sequence[HalfRow]
    waiting: int
    dead_letters: Sequence[DeadRow]
    databases: Sequence[DatabaseRow]
    inbox_horizon_s: float
    settings: Mapping[str, object]
    problems: Sequence[str]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=explained(status.__doc__))(status)


def status(app: AppArgument, as_json: JsonOption = False) -> None:
    """Show a service's groups with their lag, undecided halves, parked ones and dead letters.

    It looks and takes no part: it joins no group, runs no relay and creates no topic and no table.
    What is shown of different partitions is not of one moment. Exit code 1 if the broker or a
    database cannot be reached or is not as it should be; undecided halves, lag and dead letters are
    no failure of the command.

    \b
    Examples:
      txbus status shop.app:bus
      txbus status shop.app:bus --json
    """
    bus = load_bus(app)
    with looking(bus) as look:
        found = gather(look)
    if as_json:
        print_json(found)
    else:
        _show(found)
    for problem in found.problems:
        note(f"txbus: {problem}")
    if found.problems:
        raise typer.Exit(1)


def gather(look: Look) -> Status:
    """Ask the broker and every database; what cannot be asked becomes a problem."""
    bus, problems = look.bus, list[str]()
    groups: list[GroupRow] = []
    halves: list[HalfRow] = []
    dead: list[DeadRow] = []
    databases = [_database(database, dead) for database in look.databases.values()]
    problems += [f"database {d.database!r}: {d.state}" for d in databases if d.state != "right"]
    try:
        groups += _groups(look, problems)
        if bus.database_names:
            halves += surveyed(look)
        dead += _dead_topics(look)
    except BackendError as exc:
        problems.append(f"broker: {type(exc).__name__}: {exc}")
    return Status(
        service=bus.service,
        bus=bus.url,
        groups=groups,
        undecided=[half for half in halves if half.state == "undecided"],
        parked=[half for half in halves if half.state == "parked"],
        waiting=sum(half.state not in ("undecided", "parked") for half in halves),
        dead_letters=dead,
        databases=databases,
        inbox_horizon_s=inbox_horizon_s(bus.settings, [handler.retry for handler in bus.handlers]),
        settings=_settings(bus.settings),
        problems=problems,
    )


def _database(database: Database, dead: list[DeadRow]) -> DatabaseRow:
    try:
        wrong = database.verify()
        if not wrong:
            for scope, count in sorted(database.count_dead_letters().items()):
                dead.append(DeadRow(f"database {database.name}", scope, count))
        return DatabaseRow(database.name, "; ".join(wrong) or "right")
    except (StoreError, ConfigurationError) as exc:
        return DatabaseRow(database.name, f"{type(exc).__name__}: {exc}")


def _groups(look: Look, problems: list[str]) -> Iterator[GroupRow]:
    bus = look.bus
    wanted: list[tuple[str, str | None, str]] = [
        (handler.group(bus.service), handler.scope, handler.topic.name) for handler in bus.handlers
    ]
    if bus.database_names:
        wanted.append((relay_group(bus.service), None, half_topic(bus.service)))
    admin = look.backend.admin()
    try:
        there = admin.describe(sorted({topic for _, _, topic in wanted}))
        for topic, described in there.items():
            if described is None:
                problems.append(f"topic {topic!r} does not exist yet: a bus creates it when it is opened")
        for group, scope, topic in wanted:
            if there[topic] is None:
                continue
            for row in sorted(admin.group_status(group, [topic]), key=lambda r: r.where):
                lag = None if row.committed is None else max(0, row.end - row.committed)
                yield GroupRow(group, scope, topic, row.where.partition, row.committed, row.end, lag, row.owner)
    finally:
        admin.close()


def _dead_topics(look: Look) -> Iterator[DeadRow]:
    """Dead letters of handlers without a database: records in a topic of the service."""
    bus = look.bus
    if Capability.LOG not in look.backend.capabilities():
        return
    topics = {dead_topic(h.topic.name, bus.service): h.scope for h in bus.handlers if h.database is None}
    admin = look.backend.admin()
    try:
        for topic, described in admin.describe(sorted(topics)).items():
            if described is None:
                continue
            log = look.backend.log(topic)
            try:
                count = sum(log.end(p) - log.start(p) for p in range(described.partitions))
            finally:
                log.close()
            if count:
                yield DeadRow(f"topic {topic}", topics[topic], count)
    finally:
        admin.close()


def _settings(settings: Settings) -> dict[str, object]:
    """Those that explain the figures above, and those that differ from their default."""
    fields = type(settings).model_fields
    return {
        name: getattr(settings, name)
        for name, field in fields.items()
        if name in _ALWAYS_SHOWN or getattr(settings, name) != field.default
    }


def _show(found: Status) -> None:
    print(f"service {found.service} on {found.bus}\n")
    print_table(
        "Groups",
        found.groups,
        {
            "group": lambda r: r.group,
            "topic": lambda r: r.topic,
            "partition": lambda r: r.partition,
            "committed": lambda r: r.committed,
            "end": lambda r: r.end,
            "lag": lambda r: r.lag,
            "owner": lambda r: r.owner,
        },
    )
    show_halves("Undecided halves", found.undecided)
    show_halves("Parked halves", found.parked)
    if found.waiting:
        print(f"{found.waiting} halves have an outcome that the relay has not carried out yet\n")
    print_table(
        "Dead letters",
        found.dead_letters,
        {"kept in": lambda r: r.kept_in, "scope": lambda r: r.scope, "count": lambda r: r.count},
    )
    print_table("Databases", found.databases, {"database": lambda r: r.database, "tables": lambda r: r.state})
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    shown: list[tuple[str, object, str]] = [("inbox horizon (computed)", span(found.inbox_horizon_s), "")]
    shown += [
        (name, value, "" if value == defaults[name] else f"default {defaults[name]}")
        for name, value in found.settings.items()
    ]
    print_table("Settings", shown, {"setting": lambda r: r[0], "value": lambda r: r[1], "": lambda r: r[2]})
