"""Small applications, right and wrong, whose histories are written by hand under every crash.

Not a simulator: one process runs after the other, and each step of the text is where it may die or,
if it is a commit, fail. What counts is that the checkers see what such an application leaves behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.unit.sim.checkers_story import Story, inbox, ledger
from txbus_sim.faults import Fault

RESTARTS_MAX = 5


class Died(Exception):
    """The process is gone; its supervisor starts it anew."""


class Refused(Exception):
    """The database refused a commit; nothing of it is durable."""


@dataclass
class Run:
    """One run; at the ``at``-th step the process dies or its commit fails, once."""

    at: int = 0
    fails: bool = False
    story: Story = field(default_factory=Story)
    steps: int = 0
    process: str = ""
    halves: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    published: set[str] = field(default_factory=set)
    position: int = 0
    fresh: int = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at and not self.fails:
            self.story.fault(Fault.CRASH_BEFORE, self.process)
            raise Died

    def live(self, name: str, main: Callable[[Run], None]) -> None:
        """Run a process to its end, through its deaths."""
        for incarnation in range(RESTARTS_MAX):
            self.process = f"{name}+{incarnation}" if incarnation else name
            self.story.start(self.process)
            try:
                main(self)
                return
            except Died:
                self.story.end(self.process, how="crashed")
            except Refused:
                self.story.end(self.process, how="raised")
        raise AssertionError(f"{name} does not come to its end")

    def identity(self) -> str:
        """A fresh one, as a UUID is."""
        self.fresh += 1
        return f"id-{self.fresh}"

    def commit(self, database: str, *changes: tuple[str, Any, Any], **inserted: Mapping[str, Any]) -> None:
        """A local transaction; it may die before, fail, or die before it sees the answer."""
        self.step()
        self.steps += 1
        if self.steps == self.at and self.fails:
            self.story.fault(Fault.FAIL, self.process, f"sql.commit:{database}")
            self.story.rollback(self.process, database, "refused")
            raise Refused
        rows = ((table, None, row) for table, row in inserted.items())
        self.story.commit(self.process, database, *rows, *changes)
        self.step()

    def send(self, payload: dict[str, Any], message_id: str = "") -> None:
        """A plain send."""
        self.step()
        self.story.send(self.process, "orders", message_id or self.identity(), payload)
        self.step()

    def rows(self, database: str, table: str, column: str) -> list[Any]:
        if database not in self.story.databases or table not in self.story.tables(database):
            return []
        return [value for (value,) in self.story.rows(database, f'SELECT "{column}" FROM "{table}"')]

    def transact(self, payload: dict[str, Any], **inserted: Mapping[str, Any]) -> None:
        """A local transaction with a half message."""
        name = self.identity()
        self.story.send(self.process, "orders", f"m-{name}", payload, tx_id=name, attempt=1)
        self.step()
        self.story.store(self.process, "txbus.half.shop", "", {})
        self.halves[name] = (f"m-{name}", payload)
        self.commit("shop", txbus_ledger=ledger(name), **inserted)

    def relay(self, believes: Callable[[str], bool] | None = None) -> None:
        """Publish what the ledger, or a checker, says is committed."""
        committed = believes or self.rows("shop", "txbus_ledger", "tx_id").__contains__
        for name, (message_id, payload) in self.halves.items():
            if name not in self.published and committed(name):
                self.step()
                self.story.publish(self.process, "orders", message_id, payload)
                self.published.add(name)

    def received(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Messages from the group's position on, as they are handed over."""
        records = [one for one in self.story.history if type(one).__name__ == "Visible"]
        mine: list[Any] = [one for one in records if getattr(one, "topic", "") == "orders"]
        for one in sorted(mine, key=lambda record: record.offset):
            if one.offset >= self.position:
                self.step()
                self.story.deliver(self.process, "stock.reserve", "orders", one.offset, one.message_id)
                yield one.offset, one.message_id, json.loads(one.payload)

    def done(self, offset: int) -> None:
        self.step()
        self.position = offset + 1
        self.story.position(self.process, "stock.reserve", "orders", self.position)
        self.step()


ORDERS = ("o-1", "o-2", "o-3")
Main = Callable[[Run], None]


def missing(run: Run) -> list[str]:
    taken = run.rows("shop", "orders", "id")
    return [order for order in ORDERS if order not in taken]


# senders that are right


def with_half_messages(run: Run) -> None:
    run.relay()
    for order in missing(run):
        try:
            run.transact({"id": order}, orders={"id": order})
        except Refused:
            run.transact({"id": order}, orders={"id": order})
    run.relay()


def with_an_outbox(run: Run) -> None:
    """Order and outbox row together; sent under the row's id, then deleted."""
    for order in missing(run):
        while order in missing(run):
            try:
                run.commit("shop", orders={"id": order}, outbox={"id": f"out-{order}", "order_id": order})
            except Refused:
                continue
    for name in run.rows("shop", "outbox", "id"):
        run.send({"id": name.removeprefix("out-")}, name)
        row = {"id": name, "order_id": name.removeprefix("out-")}
        try:
            run.commit("shop", ("outbox", row, None))
        except Refused:
            run.commit("shop", ("outbox", row, None))


def with_an_outbox_of_fresh_ids(run: Run) -> None:
    """As the outbox, but each try is sent under a fresh message id: the receiver has to look."""
    send = run.send
    run.send = lambda payload, message_id="": send(payload)  # type: ignore[method-assign]
    try:
        with_an_outbox(run)
    finally:
        run.send = send  # type: ignore[method-assign]


def importing(run: Run) -> None:
    """Publish a file's lines under ids of their own, then mark them: at least once on purpose."""
    for order in missing(run):
        for _ in range(2):
            run.send({"id": order}, f"line-{order}")
            try:
                run.commit("shop", orders={"id": order})
                break
            except Refused:
                continue


def announcing_some(run: Run) -> None:
    """Only the big ones are announced."""
    for number, order in enumerate(ORDERS):
        if order not in missing(run):
            continue
        row = {"id": order, "cents": number * 1000}
        if number:
            run.transact({"id": order}, orders=row)
        else:
            run.commit("shop", orders=row)
    run.relay()


def telling_twice(run: Run) -> None:
    """Two messages of each order."""
    with_half_messages(run)
    for order in ORDERS:
        if f"paid-{order}" not in run.rows("shop", "payments", "id"):
            run.transact({"id": order, "paid": True}, payments={"id": f"paid-{order}"})
    run.relay()


def changing_later(run: Run) -> None:
    """Orders are changed, and one is cancelled and deleted, after they were announced."""
    with_half_messages(run)
    if "o-2" in run.rows("shop", "orders", "id") and not run.rows("shop", "cancelled", "id"):
        run.commit("shop", ("orders", {"id": "o-2"}, None), cancelled={"id": "o-2"})


def giving_up(run: Run) -> None:
    """An order that the database refuses is not taken."""
    for order in missing(run):
        try:
            run.transact({"id": order}, orders={"id": order})
        except Refused:
            pass
    run.relay()


# senders that are wrong


def commit_then_publish(run: Run) -> None:
    for order in missing(run):
        try:
            run.commit("shop", orders={"id": order})
        except Refused:
            continue
        run.send({"id": order})


def publish_then_commit(run: Run) -> None:
    """Each try under a fresh order id: who comes back is another customer."""
    while len(run.rows("shop", "orders", "id")) < len(ORDERS):
        order = run.identity()
        run.send({"id": order})
        try:
            run.commit("shop", orders={"id": order})
        except Refused:
            pass


def publish_then_commit_again(run: Run) -> None:
    """The restart makes good for it, with the same order."""
    for order in missing(run):
        run.send({"id": order})
        try:
            run.commit("shop", orders={"id": order})
        except Refused:
            pass


def believing_all(run: Run) -> None:
    """A checker that always answers COMMITTED."""
    run.relay(lambda _: True)
    for order in missing(run):
        try:
            run.transact({"id": order}, orders={"id": order})
        except Refused:
            pass
    run.relay(lambda _: True)


# receivers


def handling(run: Run, handle: Callable[[str, dict[str, Any]], None], *, ack_first: bool = False) -> None:
    for offset, message_id, payload in run.received():
        if ack_first:
            run.done(offset)
        for _ in range(2):
            try:
                handle(message_id, payload)
                break
            except Refused:
                continue
        if not ack_first:
            run.done(offset)


def with_an_inbox(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        if message_id not in run.rows("stock", "txbus_inbox", "message_id"):
            row = {"order_id": payload["id"], "by": message_id}
            run.commit("stock", reservations=row, txbus_inbox=inbox("reserve", message_id))

    handling(run, handle)


def with_an_upsert(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        if payload["id"] not in run.rows("stock", "reservations", "order_id"):
            run.commit("stock", reservations={"order_id": payload["id"], "by": message_id})

    handling(run, handle)


def logging_its_tries(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        run.commit("stock", reserve_attempts={"order_id": payload["id"], "by": message_id})
        if message_id not in run.rows("stock", "txbus_inbox", "message_id"):
            row = {"order_id": payload["id"]}
            run.commit("stock", reservations=row, txbus_inbox=inbox("reserve", message_id))

    handling(run, handle)


def summing_up(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        if message_id not in run.rows("stock", "txbus_inbox", "message_id"):
            before = run.rows("stock", "balance", "orders")
            row = {"orders": before[0]} if before else None
            change = ("balance", row, {"orders": before[0] + 1 if before else 1})
            run.commit("stock", change, txbus_inbox=inbox("reserve", message_id))

    handling(run, handle)


def without_an_inbox(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        run.commit("stock", reservations={"order_id": payload["id"]})

    handling(run, handle)


def acknowledging_first(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        run.commit("stock", reservations={"order_id": payload["id"]})

    handling(run, handle, ack_first=True)


def swallowing(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        try:
            run.commit("stock", reservations={"order_id": payload["id"]})
        except Refused:
            pass

    handling(run, handle)


def outside_of_the_transaction(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        if message_id not in run.rows("stock", "txbus_inbox", "message_id"):
            run.commit("stock", reservations={"order_id": payload["id"]})
            run.commit("stock", txbus_inbox=inbox("reserve", message_id))

    handling(run, handle)


def inbox_in_its_own_transaction(run: Run) -> None:
    def handle(message_id: str, payload: dict[str, Any]) -> None:
        if message_id not in run.rows("stock", "txbus_inbox", "message_id"):
            run.commit("stock", txbus_inbox=inbox("reserve", message_id))
            run.commit("stock", reservations={"order_id": payload["id"]})

    handling(run, handle)


def remembering(run: Run) -> None:
    seen: set[str] = set()

    def handle(message_id: str, payload: dict[str, Any]) -> None:
        if message_id not in seen:
            run.commit("stock", reservations={"order_id": payload["id"]})
            seen.add(message_id)

    handling(run, handle)


def play(sender: Main, receiver: Main, at: int = 0, *, fails: bool = False) -> Run:
    """One run to its end; what is there at the end stays until the end."""
    run = Run(at, fails)
    run.live("orders", sender)
    first = run.process
    run.live("stock", receiver)
    run.story.end(first, run.process)
    return run
