"""``txbus demo``: the shop under kills."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from txbus.cli._output import explained
from txbus.errors import ConfigurationError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=explained(demo.__doc__))(demo)


def demo(
    orders: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A CSV of orders; default: the sample that is shipped.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(metavar="URL", help="Another broker; default: an embedded one in the folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the kills; the same seed asks for the same ones.")] = 1,
    kills: Annotated[int, typer.Option(min=1, metavar="N", help="Kills for each window of the protocol.")] = 5,
    workdir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where databases and logs go; default: a temporary folder.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder there, to look into it.")] = False,
) -> None:
    """Run three services under kill -9 and check their books, then the same shop written naively.

    An order service, a stock service and a payment service, each with its own database, work through
    orders on one bus while they and the relay are killed and restarted in every window of the
    protocol. At the end the books are compared row by row. Exit code 1 if they do not balance or a
    window was never hit. Takes about two minutes.

    \b
    Examples:
      txbus demo
      txbus demo --seed 7 --kills 10
      txbus demo --orders orders.csv --workdir /tmp/shop --keep
    """
    if orders is not None and not orders.is_file():
        raise ConfigurationError(f"--orders {str(orders)!r} is not a file")
    try:
        from txbus.examples.shop.demo import run_demo
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "txbus":
            raise
        raise ConfigurationError(f'the demo needs {exc.name}: pip install "txbus[sql,cli]"') from exc
    code = run_demo(orders=orders, broker=broker, seed=seed, kills=kills, workdir=workdir, keep=keep)
    if code:
        raise typer.Exit(code)
