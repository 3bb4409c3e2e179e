"""``txbus schema``: the tables that txbus needs in an application's databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from txbus.cli._loading import load_bus
from txbus.cli._output import AppArgument, JsonOption, explained, print_json, print_table
from txbus.errors import ConfigurationError, StoreError
from txbus.settings import nearest
from txbus.stores.contract import Database

__all__ = ["register"]

_DatabaseOption = Annotated[
    str | None, typer.Option("--database", metavar="NAME", help="Only this database of the bus; default: all.")
]
_HELP = """Make, show and check the tables of txbus in a bus's databases. Needs no broker.

\b
Examples:
  txbus schema create shop.app:bus
  txbus schema print shop.app:bus --database shop > migration.sql
  txbus schema verify shop.app:bus
"""


@dataclass(frozen=True, slots=True)
class SchemaRow:
    """What is wrong in one database; nothing if it is right. ``error``: it could not be asked."""

    database: str
    problems: tuple[str, ...]
    error: str | None


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command("create", help=explained(create.__doc__))(create)
    group.command("print", help=explained(print_.__doc__))(print_)
    group.command("verify", help=explained(verify.__doc__))(verify)
    app.add_typer(group, name="schema", help=explained(_HELP))


def create(app: AppArgument, database: _DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Create the tables that are missing, then verify all of them.

    Tables that are there are left as they are. Safe to run again, and by several processes at once.
    Exit code 1 if a table is wrong afterwards or a database cannot be reached.

    \b
    Examples:
      txbus schema create shop.app:bus
      txbus schema create shop.app:bus --database shop
    """
    with _databases(app, database) as found:
        _show([_checked(one, create=True) for one in found.values()], as_json)


def print_(app: AppArgument, database: _DatabaseOption = None) -> None:
    """Print the SQL that creates the tables, for migrations that are written by hand.

    The database need not exist, and nothing is changed in it.

    \b
    Examples:
      txbus schema print shop.app:bus
      txbus schema print shop.app:bus --database shop > migration.sql
    """
    with _databases(app, database) as found:
        for name, one in found.items():
            print(f"-- database {name}")
            print(one.schema_sql().rstrip())


def verify(app: AppArgument, database: _DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Compare the tables with what this version of txbus needs; exit code 1 if something is wrong.

    \b
    Examples:
      txbus schema verify shop.app:bus
      txbus schema verify shop.app:bus --json
    """
    with _databases(app, database) as found:
        _show([_checked(one, create=False) for one in found.values()], as_json)


@contextmanager
def _databases(app: str, wanted: str | None) -> Iterator[Mapping[str, Database]]:
    bus = load_bus(app)
    found = bus.make_databases()
    try:
        if not found:
            raise ConfigurationError(f"{app} has no databases, so there are no tables; give Bus(databases={{...}})")
        if wanted is not None and wanted not in found:
            raise ConfigurationError(
                f"{app} has no database {wanted!r}; the nearest is {nearest(wanted, list(found))!r}"
            )
        yield {name: one for name, one in found.items() if wanted in (None, name)}
    finally:
        for one in found.values():
            one.close()


def _checked(database: Database, *, create: bool) -> SchemaRow:
    try:
        if create:
            database.create_schema()
        return SchemaRow(database.name, tuple(database.verify()), None)
    except StoreError as exc:
        return SchemaRow(database.name, (), f"{type(exc).__name__}: {exc}")


def _show(rows: list[SchemaRow], as_json: bool) -> None:
    if as_json:
        print_json({"databases": rows})
    else:
        print_table(
            "Schema",
            [
                (row.database, text)
                for row in rows
                for text in ([row.error] if row.error else row.problems or ["right"])
            ],
            {"database": lambda r: r[0], "tables": lambda r: r[1]},
        )
    if any(row.problems or row.error for row in rows):
        raise typer.Exit(1)
