"""``txbus unresolved``: halves without an outcome, and what an operator does about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from txbus._outcome import Outcome
from txbus.cli._halves import show_halves, surveyed
from txbus.cli._loading import load_bus
from txbus.cli._look import looking
from txbus.cli._output import AppArgument, JsonOption, explained, note, print_json, print_table, span
from txbus.cli._resolve import Resolution, Wish, resolve_half
from txbus.errors import ConfigurationError, StoreError
from txbus.stores.contract import Database, LedgerRow

__all__ = ["register"]

_LIMIT = 1_000
_HELP = """Halves whose outcome nobody knows yet, and committed ones that were never seen published.

\b
Examples:
  txbus unresolved list shop.app:bus
  txbus unresolved resolve shop.app:bus 5f0c2e --rollback
  txbus unresolved audit shop.app:bus --older-than 300
"""


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A ledger row COMMITTED with messages that no relay noted as published. Times in seconds."""

    database: str
    tx_id: str
    attempt: int
    messages: int
    created_s: float
    age_s: float


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command("list", help=explained(list_.__doc__))(list_)
    group.command("resolve", help=explained(resolve.__doc__))(resolve)
    group.command("audit", help=explained(audit.__doc__))(audit)
    app.add_typer(group, name="unresolved", help=explained(_HELP))


def list_(app: AppArgument, as_json: JsonOption = False) -> None:
    """List the halves that are not settled: undecided, parked with the reason, or known and waiting.

    A young undecided half is normal: its sender is at work, or its relay asks soon. A parked one
    waits for an operator, and halves of its keys wait behind it; exit code 1 if there is one.

    \b
    Examples:
      txbus unresolved list shop.app:bus
      txbus unresolved list shop.app:bus --json
    """
    bus = load_bus(app)
    if not bus.database_names:
        raise ConfigurationError(f"{app} has no database, so it has no half messages")
    with looking(bus) as look:
        halves = surveyed(look)
    if as_json:
        print_json({"service": bus.service, "halves": halves})
    else:
        show_halves(f"Unresolved halves of {bus.service}", halves)
    if any(half.state == "parked" for half in halves):
        raise typer.Exit(1)


def resolve(
    app: AppArgument,
    tx: Annotated[str, typer.Argument(metavar="TX", help="The transaction id, as `unresolved list` shows it.")],
    commit: Annotated[bool, typer.Option("--commit", help="It happened: publish its messages.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="It did not: forget its messages.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Which attempt, if several are unresolved.")
    ] = None,
    release_key: Annotated[
        bool,
        typer.Option("--release-key", help="Let halves of the same keys pass a parked one: gives up their order."),
    ] = False,
    foreign: Annotated[
        bool,
        typer.Option("--foreign", help="The ledger that the half names is gone; this database decides instead."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Settle a half by an operator's word.

    The word goes into the ledger first, by the same fence that check-back uses. If the ledger knows
    an outcome already, that one stands, is shown and is carried out, and the exit code is 1 when it
    is not what was asked for. A local transaction that is still open is waited for: try again.
    Then the outcome is written into the half log, and the service's relay carries it out.

    With --release-key alone the half stays parked.

    \b
    Examples:
      txbus unresolved resolve shop.app:bus 5f0c2e --commit
      txbus unresolved resolve shop.app:bus 5f0c2e --rollback --attempt 2
      txbus unresolved resolve shop.app:bus 5f0c2e --release-key
    """
    if commit and rollback:
        raise ConfigurationError("--commit and --rollback exclude each other")
    if not (commit or rollback or release_key):
        raise ConfigurationError("say what is to be done: --commit, --rollback or --release-key")
    outcome = Outcome.COMMITTED if commit else Outcome.ROLLED_BACK if rollback else None
    bus = load_bus(app)
    with looking(bus) as look:
        done = resolve_half(look, Wish(tx, attempt, outcome, release_key, foreign))
    if as_json:
        print_json(done)
    else:
        _show_resolution(done)
    if done.asked is not None and done.stands is not done.asked:
        raise typer.Exit(1)


def _show_resolution(done: Resolution) -> None:
    where = f"{done.tx_id}#{done.attempt}"
    if done.stands is not None:
        if done.stands is done.asked:
            print(f"{where} is {done.stands.value} in the ledger of database {done.database}")
        else:
            assert done.asked is not None
            print(
                f"{where} was {done.stands.value} already in the ledger of database {done.database}: "
                f"that stands, not {done.asked.value}"
            )
    if done.released:
        print(f"{where} no longer holds its keys")
    partitions = ", ".join(map(str, done.partitions))
    print(f"written to half partition {partitions}; the relay carries it out")


def audit(
    app: AppArgument,
    older_than: Annotated[
        float, typer.Option(min=0.0, metavar="S", help="Only rows that are older than S seconds.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """List local transactions that are COMMITTED but were never confirmed as published.

    They are read from the ledgers alone, without the broker. A relay notes what it published with a
    little delay; a row that stays here means messages that nobody received: no relay runs, a half
    is held behind a parked one, or the half log lost records. Exit code 1 if there is a row or a
    database cannot be asked.

    \b
    Examples:
      txbus unresolved audit shop.app:bus
      txbus unresolved audit shop.app:bus --older-than 300 --json
    """
    bus = load_bus(app)
    databases = bus.make_databases()
    now_s = bus.ports.clock.wall_s()
    rows: list[AuditRow] = []
    problems: list[str] = []
    try:
        for name, database in databases.items():
            try:
                rows += _unconfirmed(database, now_s, older_than)
            except StoreError as exc:
                problems.append(f"database {name!r}: {type(exc).__name__}: {exc}")
    finally:
        for database in databases.values():
            database.close()
    if as_json:
        print_json({"older_than_s": older_than, "unconfirmed": rows, "problems": problems})
    else:
        _show_audit(rows)
    for problem in problems:
        note(f"txbus: {problem}")
    if rows or problems:
        raise typer.Exit(1)


def _unconfirmed(database: Database, now_s: float, older_than_s: float) -> Iterator[AuditRow]:
    found: Sequence[LedgerRow] = database.unconfirmed(now_s - older_than_s, _LIMIT)
    for row in found:
        yield AuditRow(database.name, row.id.tx_id, row.id.attempt, row.messages, row.created_s, now_s - row.created_s)
    if len(found) == _LIMIT:
        note(f"txbus: database {database.name!r}: only the {_LIMIT} oldest are shown")


def _show_audit(rows: Sequence[AuditRow]) -> None:
    print_table(
        "Committed, never confirmed as published",
        rows,
        {
            "database": lambda r: r.database,
            "tx": lambda r: r.tx_id,
            "attempt": lambda r: r.attempt,
            "messages": lambda r: r.messages,
            "age": lambda r: span(r.age_s),
        },
    )
