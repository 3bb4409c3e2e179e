"""``txbus sim``: explore, replay and look at schedules from a shell."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from txbus_sim._brokers import Broker

__all__ = ["app"]

app = typer.Typer(
    help="Run services in virtual time, crash them at every step, and replay what failed.", no_args_is_help=True
)

_CORES = os.cpu_count() or 1
ScenarioArgument = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="a test or function of a Simulation: package.module:name")
]
BrokerOption = Annotated[
    Broker | None,
    typer.Option(help="which broker is simulated [default: what the test or schedule says, else kafka]"),
]
JobsOption = Annotated[int, typer.Option(min=1, help="processes to share the runs out to")]
HtmlOption = Annotated[Path | None, typer.Option(help="write the report as one HTML file")]


@app.command()
def run(
    scenario: ScenarioArgument,
    broker: BrokerOption = None,
    budget: Annotated[
        int | None, typer.Option(min=1, help="so many random schedules, in place of every fault at every point")
    ] = None,
    seed: Annotated[int, typer.Option(help="of random schedules")] = 0,
    jobs: JobsOption = _CORES,
    html: HtmlOption = None,
    save: Annotated[Path | None, typer.Option(help="write the shortest failing schedule there")] = None,
) -> None:
    """Explore a scenario: every fault at every point, or --budget random schedules.

    Exits with 1 if something failed, with 130 after Ctrl-C, which shows what was
    found so far; a second one ends at once.
    """
    raise typer.Exit(_shell().run(scenario, broker, budget, seed, jobs, html, save))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="a saved schedule", exists=True, dir_okay=False)],
    scenario: Annotated[str, typer.Argument(help="package.module:name [default: what the schedule names]")] = "",
    broker: BrokerOption = None,
    html: HtmlOption = None,
) -> None:
    """Run one saved schedule and show what happens. breakpoint() in the application works.

    Exits with 0 if it passes, 1 if it fails; a schedule whose address is never reached fails.
    """
    raise typer.Exit(_shell().replay(file, scenario, broker, html))


@app.command()
def matrix(
    scenario: ScenarioArgument,
    broker: BrokerOption = None,
    jobs: JobsOption = _CORES,
    html: HtmlOption = None,
) -> None:
    """Crash a scenario before and after each operation and show which source line is safe.

    Exits with 1 if any crash fails.
    """
    raise typer.Exit(_shell().matrix(scenario, broker, jobs, html))


@app.command()
def show(file: Annotated[Path, typer.Argument(help="a saved schedule", exists=True, dir_okay=False)]) -> None:
    """Say what a saved schedule does, line by line. Runs nothing."""
    _shell().show(file)


def _shell() -> Any:
    """Loaded now: every `txbus` command loads this module, and the simulator loads SQLAlchemy."""
    return importlib.import_module("txbus_sim._shell")
