"""Puts the command line together, other packages' sub-commands included."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from txbus import _registry
from txbus._version import __version__
from txbus.cli import _backends, _demo, _doctor, _run, _schema, _status, _unresolved
from txbus.cli._output import explained
from txbus.errors import ConfigurationError, TxbusError

__all__ = ["FAILED", "OWN_COMMANDS", "USAGE", "make_app"]

FAILED, USAGE = 1, 2
OWN_COMMANDS = ("backends", "demo", "doctor", "relay", "run", "schema", "status", "unresolved")

_HELP = """Transactional messaging: a database change and its messages, both or neither.

APP is always "module.path:attribute": a Bus, or a callable without arguments that returns one. It is
looked for in the current folder first.

\b
Begin with:
  txbus demo                            services under kill -9, books checked
  txbus schema create shop.app:bus      the tables in the bus's databases
  txbus run shop.app:bus                run the handlers (and the relay)
  txbus status shop.app:bus             lag, undecided halves, dead letters
  txbus doctor                          versions, extras, plugins, environment

\b
Exit codes:
  0    done
  1    failed, or found something wrong (doctor, verify, audit, ...)
  2    wrong usage or configuration; nothing was done
  130  interrupted by Ctrl-C
"""


class _Reporting(TyperGroup):
    """Turns errors of txbus into one line and an exit code, for sub-commands of others too."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TxbusError as exc:
            print(f"txbus: {type(exc).__name__}: {exc}", file=sys.stderr)
            raise typer.Exit(USAGE if isinstance(exc, ConfigurationError) else FAILED) from exc


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"txbus {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def make_app() -> typer.Typer:
    """The command line: our own commands, then those registered in ``txbus.commands``.

    One that is broken or takes a name of ours is left out; `txbus doctor` reports it.
    """
    app = typer.Typer(
        cls=_Reporting,
        help=explained(_HELP),
        no_args_is_help=True,
        rich_markup_mode="rich",
        # A traceback with local variables would show URLs with their passwords.
        pretty_exceptions_show_locals=False,
    )
    app.callback()(_root)
    for group in (_demo, _run, _status, _unresolved, _schema, _backends, _doctor):
        group.register(app)
    for name, command in sorted(_registry.commands().items()):
        if name not in OWN_COMMANDS and isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
    return app
