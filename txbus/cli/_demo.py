"""``txbus demo``: the shop under kills."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from txbus.cli._output import JsonOption, explained
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
    seed: Annotated[int, typer.Option(help="Places the kills; the same seed places the same ones.")] = 1,
    kills: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="kill -9 in each window of the protocol; default: 6.")
    ] = None,
    random_kills: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="kill -9 at random moments; default: 4.")
    ] = None,
    workdir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder, which is kept; default: a temporary one.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder, to look into it.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The first 500 orders only, and fewer kills.")] = False,
    naive: Annotated[
        bool, typer.Option("--naive/--no-naive", help="Run the shop that is written naively too, for comparison.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Run three services under kill -9 and check their books, then the same shop written naively.

    An order service, a stock service and a payment service, each with its own database, work through
    orders on one bus while they and the relay are killed and restarted in every window of the
    protocol. At the end the books are compared row by row. Exit code 1 if they do not balance or a
    window was not hit often enough. Takes about two minutes; --quick less.

    \b
    Examples:
      txbus demo
      txbus demo --quick --seed 7
      txbus demo --orders orders.csv --workdir shop-demo
    """
    if orders is not None and not orders.is_file():
        raise ConfigurationError(f"--orders {str(orders)!r} is not a file")
    try:
        from txbus.examples.shop.demo import run_demo
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "txbus":
            raise
        raise ConfigurationError(f'the demo needs {exc.name}: pip install "txbus[sql,cli]"') from exc
    code = run_demo(
        orders,
        broker=broker,
        seed=seed,
        kills_per_window=kills,
        random_kills=random_kills,
        workdir=workdir,
        keep=keep,
        quick=quick,
        naive=naive,
        as_json=as_json,
    )
    if code:
        raise typer.Exit(code)
