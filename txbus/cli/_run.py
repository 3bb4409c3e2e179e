"""``txbus run`` and ``txbus relay``: a service's process in the foreground."""

from __future__ import annotations

import enum
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Literal

import typer

from txbus._bus import Bus
from txbus._declare import HandlerDeclaration
from txbus._halflog.relay import relay_group
from txbus.cli._loading import load_bus
from txbus.cli._output import AppArgument, explained, note
from txbus.errors import ConfigurationError

__all__ = ["register"]

INTERRUPTED = 130
_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class LogLevel(enum.StrEnum):
    """What is logged on stderr, and everything graver."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


LevelOption = Annotated[
    LogLevel | None,
    typer.Option("--log-level", case_sensitive=False, help="The least grave that is logged on stderr; default: info."),
]
IdleOption = Annotated[
    float | None,
    typer.Option("--until-idle", min=0.0, metavar="S", help="End after S seconds without anything to do."),
]


def register(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command(help=explained(run.__doc__))(run)
    app.command(help=explained(relay.__doc__))(relay)


def run(
    app: AppArgument,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads for each handler; default: the setting.")
    ] = None,
    until_idle: IdleOption = None,
    max_messages: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after about N deliveries.")] = None,
    inside: Annotated[
        bool | None,
        typer.Option("--relay/--no-relay", help="Run a relay in this process too, or none; default: the setting."),
    ] = None,
    log_level: LevelOption = None,
) -> None:
    """Run the handlers of a bus, and its relay unless it runs elsewhere.

    Ctrl-C or SIGTERM: no new delivery is begun, those in hand are finished (for up to
    stop_timeout_s), and the number of deliveries handled is shown. A second one ends at once.
    Logs go to stderr. After Ctrl-C the exit code is 130, after SIGTERM 0.

    \b
    Examples:
      txbus run shop.app:bus
      txbus run shop.app:bus --workers 8 --log-level warning
      txbus run shop.app:bus --no-relay          with: txbus relay shop.app:bus
      txbus run shop.app:bus --until-idle 2      end when all is handled
      txbus run shop.app:make_bus                a function that returns it
    """
    bus = load_bus(app)
    _configure_logging(log_level)
    where = _relay_of(bus, inside)
    if not bus.handlers and (where == "outside" or not bus.database_names):
        raise ConfigurationError(
            f"{app} declares no handlers and runs no relay here, so there is nothing to run; import the modules "
            "with @bus.on where the bus is made, or use --relay"
        )
    _introduce(app, bus)
    if bus.database_names:
        inside_text = "inside this process" if where == "inside" else f"outside: txbus relay {app}"
        note(f"  relay     {inside_text}; group {relay_group(bus.service)}")
    for handler in bus.handlers:
        note(f"  handler   {_describe(handler, bus.service)}")
    note(f"  workers   {workers or bus.settings.workers} threads for each handler")
    with _signals():
        bus.open(relay=where)
        try:
            note("running; Ctrl-C or SIGTERM finishes the deliveries in hand")
            handled = bus.run(until_idle=until_idle, max_messages=max_messages, workers=workers)
        finally:
            bus.close()
        note(f"stopped: {handled} {'delivery' if handled == 1 else 'deliveries'} handled")


def relay(app: AppArgument, until_idle: IdleOption = None, log_level: LevelOption = None) -> None:
    """Run nothing but the relay: publish what is committed, ask about what is undecided.

    Any number of them may run for one service; they share its half log. It needs every database of
    the service. Ctrl-C or SIGTERM finishes the step in hand.

    \b
    Examples:
      txbus relay shop.app:bus
      txbus relay shop.app:bus --until-idle 2      end when every half is settled
    """
    bus = load_bus(app)
    _configure_logging(log_level)
    if not bus.database_names:
        raise ConfigurationError(f"{app} has no database, so it has no half log to relay; give Bus(databases={{...}})")
    _introduce(app, bus)
    note(f"  relay     group {relay_group(bus.service)}, half partitions {bus.settings.half_partitions}")
    with _signals():
        bus.open(relay="inside")
        try:
            note("running; Ctrl-C or SIGTERM finishes the step in hand")
            bus.run_relay(until_idle=until_idle)
        finally:
            bus.close()
        note("stopped")


def _relay_of(bus: Bus, inside: bool | None) -> Literal["inside", "outside"]:
    if inside is None:
        return bus.settings.relay
    if inside and not bus.database_names:
        raise ConfigurationError("--relay: this bus has no database, so it has no half log to relay")
    return "inside" if inside else "outside"


def _introduce(app: str, bus: Bus) -> None:
    note(f"{app}, process {os.getpid()}")
    note(f"  service   {bus.service}")
    note(f"  bus       {bus.url}")
    note(f"  databases {', '.join(bus.database_names) or 'none'}")


def _describe(handler: HandlerDeclaration, service: str) -> str:
    kind = "a broker transaction" if handler.atomic else f"database {handler.database or 'none (at least once)'}"
    return f"{handler.scope}: topic {handler.topic.name}, {kind}, group {handler.group(service)}"


def _configure_logging(level: LogLevel | None) -> None:
    """Log to stderr, unless the application, imported before, made handlers of its own; a level that
    was asked for holds for txbus in any case."""
    logging.basicConfig(level=(level or LogLevel.info).value.upper(), stream=sys.stderr, format=_FORMAT)
    if level is not None:
        logging.getLogger("txbus").setLevel(level.value.upper())


class _AskedToStop(BaseException):
    """A signal came while the bus was being opened or closed, when nobody else handles it."""


class _Signals:
    """Which of SIGINT and SIGTERM came. The bus handles them while it runs and does not say which one
    it was, so their numbers are taken from the interpreter's wake-up descriptor."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._seen: list[int] = []

    def seen(self) -> list[int]:
        try:
            self._seen += os.read(self._reader, 4096)
        except BlockingIOError:
            pass  # nothing new
        return self._seen

    @property
    def interrupted(self) -> bool:
        return signal.SIGINT in self.seen()

    def handle(self, number: int, frame: FrameType | None) -> None:
        if len(self.seen()) > 1:
            # The bus took the first one and is finishing what is in hand; this one means at once.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        raise _AskedToStop


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Stop in order from the first moment to the last, then leave with the exit code of the signal."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signals = _Signals(reader)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    except _AskedToStop:
        note("stopped while it was opened or closed")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        interrupted = signals.interrupted
        os.close(reader)
        os.close(writer)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
