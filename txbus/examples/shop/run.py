"""One run of the shop from empty databases to audited books."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, func, select

from txbus import Topic
from txbus.examples.shop import orders
from txbus.examples.shop.books import Books, audit, read_published
from txbus.examples.shop.broker import BrokerView, looking, traits_of
from txbus.examples.shop.opening import decide, open_shop
from txbus.examples.shop.orderfile import OrderRow
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.plan import KillPlan
from txbus.examples.shop.supervisor import Supervisor, Tally
from txbus.examples.shop.tables import CHARGES, RESERVATIONS, Databases, create_tables, engine_for
from txbus.examples.shop.windows import Role, Window

__all__ = ["Progress", "RunResult", "ShowProgress", "run_shop", "totals_of"]

_LOOK_S = 0.3
_PATIENCE_S = 25.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: orders taken or refused, effects in stock and payment, and kills so far."""

    done: int
    total: int
    kills: int
    stage: str


ShowProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that came to its end. ``seconds``: from the first start to the last stop."""

    books: Books
    tally: Tally
    events: Mapping[str, int]
    windows: frozenset[Window]
    kills_left: int
    seconds: float

    @property
    def check_backs(self) -> int:
        """Questions that were answered."""
        return self.events.get("CheckBack", 0)

    @property
    def suppressed(self) -> int:
        return self.events.get("DuplicateSuppressed", 0)


def totals_of(rows: Sequence[OrderRow], *, relay: bool = True) -> dict[Role, int]:
    """How many orders come through each process."""
    committed = len(decide(rows, open_shop(rows)).committed)
    totals = {Role.ORDERS: len(rows), Role.RELAY: len(rows), Role.STOCK: committed, Role.PAYMENT: committed}
    if not relay:
        del totals[Role.RELAY]
    return totals


def run_shop(
    place: Place,
    rows: Sequence[OrderRow],
    plan: KillPlan,
    *,
    naive: bool,
    show: ShowProgress,
    replicas: int = 1,
) -> RunResult:
    """Run a shop under a plan of kills, until nothing moves any more, and audit it.

    Leaves no process behind, whatever happens. Raises `ServiceFailed` and errors of the bus.
    """
    opening = open_shop(rows)
    expected = decide(rows, opening)
    place.folder.mkdir(parents=True, exist_ok=True)
    place.save()
    databases = Databases(engine_for(place.orders_db), engine_for(place.stock_db), engine_for(place.payment_db))
    supervisor = Supervisor(place, plan, naive=naive, replicas=replicas)
    began_s = time.monotonic()
    try:
        create_tables(databases, rows, opening)
        with looking(place) as view:
            sizes = len(rows), len(expected.committed)
            meter = _Meter(place, view, databases, sizes, supervisor, naive=naive, show=show)
            try:
                supervisor.start()
                supervisor.run(meter.share_done, meter.settled)
            finally:
                meter.stopping()
                supervisor.close()
            seconds = time.monotonic() - began_s
            published = read_published(view, place.topics)
        books = audit(rows, opening, expected, databases, published, published_once=traits_of(place).publishes_once)
    finally:
        databases.close()
    left = sum(len(orders) for orders in supervisor.left.values())
    return RunResult(books, supervisor.tally, _events(place), plan.windows, left, seconds)


class _Meter:
    """Watches a run from outside: how far it is, and whether anything still moves."""

    def __init__(
        self,
        place: Place,
        view: BrokerView,
        databases: Databases,
        sizes: tuple[int, int],
        supervisor: Supervisor,
        *,
        naive: bool,
        show: ShowProgress,
    ) -> None:
        self._topics = place.topics
        self._view = view
        self._databases = databases
        self._rows, self._committed = sizes
        self._supervisor = supervisor
        self._naive = naive
        self._show = show
        self._looked_s = 0.0
        self._moved_s = time.monotonic()
        self._seen: tuple[int, ...] = ()

    def share_done(self) -> float:
        total = self._rows + 2 * self._committed
        done = sum(self._counts())
        stage = "orders are taken" if not self._supervisor.orders_done else "the last ones come through"
        self._show(Progress(min(done, total), total, self._supervisor.tally.kills, stage))
        return done / total

    def stopping(self) -> None:
        total = self._rows + 2 * self._committed
        self._show(Progress(min(sum(self._counts()), total), total, self._supervisor.tally.kills, "stopping"))

    def settled(self) -> bool:
        """Nothing is left to do, or nothing has moved for so long that nothing will.

        A doubled effect would come late: when all is there, it waits for a lease and a half more.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return False
        self._looked_s = now_s
        published = [len(self._view.payloads(topic)) for topic in self._all_topics()]
        lag = self._view.lag()
        seen = (*self._counts(), *published, lag)
        if seen != self._seen:
            self._seen, self._moved_s = seen, now_s
        complete = all(count >= self._committed for count in (*self._counts()[1:], *published))
        grace_s = 1.5 * PACE["lease_s"] if lag == 0 and (complete or self._naive) else _PATIENCE_S
        return now_s - self._moved_s >= grace_s

    def _all_topics(self) -> tuple[Topic[Any], ...]:
        topics = self._topics
        return (topics.orders, topics.mails, topics.reserved, topics.paid)

    def _counts(self) -> tuple[int, int, int]:
        return (
            orders.handled(self._databases.orders),
            _count(self._databases.stock, RESERVATIONS),
            _count(self._databases.payment, CHARGES),
        )


def _count(engine: Engine, table: Table) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _events(place: Place) -> Mapping[str, int]:
    """How often each event was written down, over all processes and their deaths."""
    counts: Counter[str] = Counter()
    for role in Role:
        journal: Path = place.journal(role.value)
        if journal.exists():
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, detail = line.partition(" ")
                # UNKNOWN is no answer: the question is asked again.
                counts["CheckBackUnanswered" if name == "CheckBack" and detail.startswith("unknown") else name] += 1
    return counts
