"""Failing runs for tests of the reports: real runs of the world with a small shop in it.

The shop's models note what real ones note: an order is committed to a database and only then
published, so a crash in between loses the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from txbus_sim import history as h
from txbus_sim._html import Tried, render_html
from txbus_sim._world import Limits, Process, ProcessSpec, Tape, World, current_process
from txbus_sim.faults import COMMIT, CRASHES, RECEIVE, REQUEST, Fault
from txbus_sim.report import Told, render_failure
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Deviation, Schedule
from txbus_sim.shrink import Necessity
from txbus_sim.strategies import Replay

S = 1_000_000_000
MS = 1_000_000


@dataclass
class Shop:
    """The models: one database, one topic, one group."""

    world: World
    orders: int = 2
    payload: bytes = b"{}"
    committed: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    handled: int = 0

    def sell(self, process: Process) -> None:
        """The orders service, as it runs in production: commits, then publishes."""
        world = self.world
        while len(self.committed) < self.orders:
            order = f"order-{len(self.committed) + 1}"
            self.log("INFO", "shop.orders", f"selling {order}")
            self.commit(order)
            self.publish(order)
            world.sleep_ns(S)

    def commit(self, order: str) -> None:
        world, process = self.world, current_process()
        assert process is not None
        world.leave(world.enter("sql.begin:shop", CRASHES))

        def undo() -> None:
            world.history.add(h.LocalRolledBack(world.now_ns, process.key, "shop", 1, "crash"))

        process.at_death.append(undo)
        world.leave(world.enter("sql.insert:shop.orders", CRASHES))
        fault = world.enter("sql.commit:shop", COMMIT)
        process.at_death.remove(undo)
        self.committed.append(order)
        world.history.add(h.LocalCommitted(world.now_ns, process.key, "shop", 1, {"orders": 1}))
        world.progress()
        world.leave(fault)

    def publish(self, order: str) -> None:
        world, process = self.world, current_process()
        assert process is not None
        world.history.add(h.Intended(world.now_ns, process.key, "", "", "orders", order, None))
        fault = world.enter("broker.send:orders", REQUEST)
        world.sleep_ns(MS // 2)
        offset = len(self.published)
        self.published.append(order)
        world.history.add(h.Stored(world.now_ns, process.key, "orders", 0, offset, order, None))
        world.history.add(h.Visible(world.now_ns, "orders", 0, offset, order, None, self.payload))
        world.progress()
        world.leave(fault)
        world.sleep_ns(MS // 2)

    def consume(self, process: Process) -> None:
        """The stock service: polls, and takes what is there."""
        world = self.world
        while True:
            world.leave(world.enter("broker.receive:stock", RECEIVE))
            while self.handled < len(self.published):
                order, offset = self.published[self.handled], self.handled
                world.history.add(h.Delivered(world.now_ns, process.key, "stock", "orders", 0, offset, order, 1))
                self.log("WARNING" if offset else "INFO", "shop.stock", f"took {order}")
                world.leave(world.enter("broker.ack:stock", REQUEST))
                self.handled += 1
                world.history.add(h.Acknowledged(world.now_ns, process.key, "stock", "orders", 0, offset, order))
                world.progress()
            world.sleep_ns(S // 4)

    def log(self, level: str, logger: str, text: str) -> None:
        process = current_process()
        assert process is not None
        self.world.history.add(h.Logged(self.world.now_ns, process.key, level, logger, text))

    def lost(self) -> list[str]:
        return [order for order in self.committed if order not in self.published]


@dataclass
class ShopRunner:
    """Runs the shop under a schedule or a tape; a lost message is its verdict."""

    change: Callable[[Shop], object] | None = None

    def __call__(
        self, schedule: Schedule | None = None, tape: Tape | None = None, *, note_sites: bool = False
    ) -> RunResult:
        schedule = schedule or Schedule()
        replay = Replay(schedule)
        world = World(tape or replay, limits=Limits(settle_ns=3 * S), note_sites=note_sites)
        shop = Shop(world)
        if self.change is not None:
            self.change(shop)
        world.start(ProcessSpec("orders", shop.sell))
        world.start(ProcessSpec("stock", shop.consume))
        world.run()
        world.close()
        world.free()
        return RunResult(
            schedule,
            _verdict(shop),
            world.history,
            replay.unreached(),
            {"everything was handled": int(shop.handled == shop.orders)},
            {"no-loss": len(shop.committed), "order-per-key": 0},
            virtual_ns=world.now_ns,
            steps=world.steps,
        )


def _verdict(shop: Shop) -> Verdict | None:
    if not shop.lost():
        return None
    lost = shop.lost()[0]
    return Verdict(
        VerdictKind.PROPERTY,
        "no-loss",
        f"message {lost} of topic orders is lost: its row is committed, and it was never visible",
        (f"shop.orders has the row of {lost}", "learned: shop.orders (id) and topic orders (id)"),
    )


def run(schedule: str = "", change: Callable[[Shop], object] | None = None) -> RunResult:
    """One run of the shop under the deviations in a text, a line each."""
    deviations = [Deviation.parse(text) for text in schedule.strip().splitlines()]
    return ShopRunner(change)(Schedule.of(deviations), note_sites=True)


LOST = "orders/sql.commit:shop#2 crash-after"
"""The second order is committed and never published."""


def matrix(change: Callable[[Shop], object] | None = None) -> Iterator[Tried]:
    """The shop crashed before and after each of its operations, one run each."""
    for point in run(change=change).history.points():
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            yield Tried(point.site, run(str(Deviation(point.address, fault)), change))


def page() -> str:
    """The page of the same run, with its crash matrix."""
    result = run(LOST)
    (deviation,) = result.schedule
    told = Told((Necessity(deviation, Schedule(), None),), Path("tests/schedules/lost.sched"))
    return render_html(result, told, matrix())


def report() -> str:
    """The report that is kept on file."""
    result = run(LOST)
    (deviation,) = result.schedule
    return render_failure(result, Told((Necessity(deviation, Schedule(), None),), Path("tests/schedules/lost.sched")))


if __name__ == "__main__":
    Path(__file__).with_name("report_lost.txt").write_text(report(), encoding="utf-8")
