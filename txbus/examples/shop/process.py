"""One process of the shop: ``python -m txbus.examples.shop.process ROLE FOLDER``.

The supervisor starts it, with the window that it has to die in, and starts it again when it is dead.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Engine, Table, func, select

from txbus import Bus, Outcome
from txbus.events import (
    Alarm,
    CheckBack,
    DeadLettered,
    DuplicateSuppressed,
    EffectCommitted,
    Event,
    FencedOff,
    HalfParked,
    HalfStored,
    HandlerFailed,
    LocalCommitted,
    OutcomeTold,
    StepOpen,
    TakeOver,
)
from txbus.examples.shop import naive, orders, payment, stock
from txbus.examples.shop.place import Place
from txbus.examples.shop.tables import CHARGES, RESERVATIONS, engine_for
from txbus.examples.shop.windows import Deathbed, KillOrder, Role, Window

__all__ = ["main"]

_WINDOWS: dict[type[Event], Window] = {
    HalfStored: Window.HALF_STORED,
    LocalCommitted: Window.COMMITTED,
    OutcomeTold: Window.TOLD,
    StepOpen: Window.STEP_OPEN,
    EffectCommitted: Window.EFFECT,
}
_JOURNALLED = (Alarm, CheckBack, DeadLettered, DuplicateSuppressed, FencedOff, HalfParked, HandlerFailed, TakeOver)


class _Progress:
    """Orders that came through: those found in the database at the start, and those since."""

    def __init__(self, before: int) -> None:
        self._count = itertools.count(before + 1)
        self.value = before

    def one_more(self) -> None:
        self.value = next(self._count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One process of the demo's shop.")
    parser.add_argument("role", choices=[role.value for role in Role])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--naive", action="store_true", help="the shop without txbus's promises")
    parser.add_argument("--replica", type=int, help="its number, where several share the work")
    parser.add_argument("--kill", type=KillOrder.parse, help="the window to die in, and after how many orders")
    chosen = parser.parse_args(arguments)
    _die_with_parent()
    place, role = Place.load(chosen.folder), Role(chosen.role)
    name = role.value if not chosen.replica else f"{role.value}-{chosen.replica}"
    place.pid(name).write_text(f"{os.getpid()}\n")
    if chosen.naive:
        _run_naive(place, role, chosen.kill)
    else:
        _run(place, role, chosen.kill, shared=chosen.replica is not None)
    return 0


def _die_with_parent() -> None:
    """The supervisor holds the other end of our standard input: when that ends, so do we."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(3)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _run(place: Place, role: Role, kill: KillOrder | None, *, shared: bool) -> None:
    if role is Role.ORDERS:
        engine = engine_for(place.orders_db)
        progress = _Progress(orders.handled(engine))
        bus = orders.make_bus(place, engine)
        _watch(bus, place, role, Deathbed(kill, lambda: progress.value), progress)
        with bus:
            orders.take_orders(bus, place.topics, engine, place.orders().rows, _until_asked())
        return
    if role is Role.RELAY:
        engine = engine_for(place.orders_db)
        bus = orders.make_bus(place, engine)
        _watch(bus, place, role, Deathbed(kill, lambda: orders.handled(engine)), _Progress(0))
        bus.run_relay()
        return
    engine, table = _consumer(place, role)
    progress = _Progress(_last_id(engine, table))
    # What other replicas did is only in the database; one alone need not ask it.
    far = (lambda: _last_id(engine, table)) if shared else (lambda: progress.value)
    bus = stock.make_bus(place, engine) if role is Role.STOCK else payment.make_bus(place, engine)
    _watch(bus, place, role, Deathbed(kill, far), progress)
    bus.run()


def _run_naive(place: Place, role: Role, kill: KillOrder | None) -> None:
    if role is Role.ORDERS:
        engine = engine_for(place.orders_db)
        # Each order asks where it is: the naive shop has no events to count.
        deathbed = Deathbed(kill, lambda: orders.handled(engine))
        with naive.orders_bus(place) as bus:
            naive.take_orders(bus, place.topics, engine, place.orders().rows, _until_asked(), deathbed.reached)
        return
    engine, table = _consumer(place, role)
    reached = Deathbed(kill, lambda: _last_id(engine, table)).reached
    make = naive.stock_bus if role is Role.STOCK else naive.payment_bus
    make(place, engine, reached).run()


def _consumer(place: Place, role: Role) -> tuple[Engine, Table]:
    """A consumer's database, and the table of its effects."""
    assert role in (Role.STOCK, Role.PAYMENT), role
    if role is Role.STOCK:
        return engine_for(place.stock_db), RESERVATIONS
    return engine_for(place.payment_db), CHARGES


def _last_id(engine: Engine, table: Table) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.max(table.c.id))).scalar_one() or 0


def _watch(bus: Bus, place: Place, role: Role, deathbed: Deathbed, progress: _Progress) -> None:
    """Die in the window that was ordered, and write down what the books want to know.

    Each line goes to the file with one write: a kill loses none that was written before it.
    """
    journal = os.open(place.journal(role.value), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @bus.subscribe
    def seen(event: Event) -> None:
        if isinstance(event, _JOURNALLED):
            os.write(journal, f"{type(event).__name__} {_detail(event)}\n".encode())
        if isinstance(event, LocalCommitted):
            if not event.messages:
                return
            progress.one_more()
        if isinstance(event, OutcomeTold) and event.outcome is not Outcome.COMMITTED:
            return
        window = _WINDOWS.get(type(event))
        if window is not None:
            deathbed.reached(window)


def _detail(event: Event) -> str:
    if isinstance(event, CheckBack):
        return f"{event.outcome.value} {event.tx_id} {event.reason}"
    if isinstance(event, DuplicateSuppressed):
        return f"{event.scope} {event.message_id}"
    return repr(event).replace("\n", " ")


def _until_asked() -> Callable[[], bool]:
    """True until SIGTERM or SIGINT: the order in hand is finished."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    return lambda: not asked.is_set()


if __name__ == "__main__":
    sys.exit(main())
