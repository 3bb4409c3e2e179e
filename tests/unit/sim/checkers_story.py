"""Writes histories by hand, for tests of checkers: each call is what a model would have noted.

The databases behind it are real SQLite databases in memory that get the same rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from txbus import Capabilities, Capability, Limits, TopicKind
from txbus_sim import checkers, history
from txbus_sim.checkers import CheckReport, Expectation
from txbus_sim.faults import Fault
from txbus_sim.history import History, Record, RowChange
from txbus_sim.schedule import Address

ALL = frozenset(Capability)
LIMITS = Limits(None, None, None, None)
STEP_NS = 1_000_000
Row = Mapping[str, Any]


def log_broker(kind: TopicKind) -> Capabilities:
    """As Kafka and the embedded broker: half messages are the half log's."""
    left = {
        Capability.HALF_MESSAGE,
        Capability.TAG_FILTER,
        Capability.NATIVE_DEAD_LETTER,
        Capability.ATTEMPTS_COUNTED,
        Capability.NATIVE_REDELIVERY,
    }
    return Capabilities(ALL - left, LIMITS)


def queue_broker(kind: TopicKind) -> Capabilities:
    """As RocketMQ: native half messages, several owners, no broker transactions."""
    native = {Capability.DURABLE_SEND, Capability.HALF_MESSAGE, Capability.TAG_FILTER, Capability.NATIVE_REDELIVERY}
    return Capabilities(frozenset(native), LIMITS)


@dataclass
class Story:
    """A history in the making. Times grow by a millisecond a record."""

    history: History = field(default_factory=History)
    now_ns: int = 0
    rows_noted: bool = True
    databases: dict[str, sqlite3.Connection] = field(default_factory=dict)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)

    # books

    def names(self) -> Sequence[str]:
        return list(self.databases)

    def tables(self, database: str) -> Sequence[str]:
        found = self.rows(database, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [name for (name,) in found]

    def rows(self, database: str, sql: str) -> Sequence[tuple[Any, ...]]:
        return self.databases[database].execute(sql).fetchall()

    def file(self, name: str, *ddl: str) -> None:
        """A database with tables of a certain shape; others are made when a row comes."""
        connection = self.databases.setdefault(name, sqlite3.connect(":memory:"))
        for statement in ddl:
            connection.execute(statement)

    # processes

    def add(self, record: Record) -> None:
        self.history.add(record)

    def tick(self) -> int:
        self.now_ns += STEP_NS
        return self.now_ns

    def start(self, *processes: str) -> None:
        for process in processes:
            self.add(history.ProcessStarted(self.tick(), process))

    def end(self, *processes: str, how: str = "over") -> None:
        for process in processes:
            self.add(history.ProcessEnded(self.tick(), process, how))

    def crash(self, process: str, again: str = "") -> None:
        """``again``: the incarnation that follows."""
        self.end(process, how="crashed")
        if again:
            self.start(again)

    def fault(self, fault: Fault, process: str = "orders", label: str = "broker.send:orders") -> None:
        self.add(history.FaultHappened(self.tick(), Address(process, label, 1), fault))

    # databases

    def commit(
        self,
        process: str,
        database: str,
        *changes: tuple[str, Row | None, Row | None],
        answered: bool = True,
        **inserted: Row,
    ) -> None:
        """``inserted``: table=row; ``changes``: table, before, after."""
        rows = [RowChange(table, None, row) for table, row in inserted.items()]
        rows += [RowChange(table, before, after) for table, before, after in changes]
        for one in rows:
            self._write(database, one)
        changed = {one.table: 1 for one in rows}
        noted = tuple(rows) if self.rows_noted else None
        self.add(history.LocalCommitted(self.tick(), process, database, 1, changed, answered, noted))

    def rollback(self, process: str, database: str, why: str = "asked") -> None:
        self.add(history.LocalRolledBack(self.tick(), process, database, 1, why))

    def _write(self, database: str, change: RowChange) -> None:
        self.file(database)
        connection = self.databases[database]
        if change.before is not None:
            where = " AND ".join(f'"{name}" IS ?' for name in change.before)
            sql = (
                f'DELETE FROM "{change.table}" WHERE rowid = (SELECT rowid FROM "{change.table}" WHERE {where} LIMIT 1)'
            )
            assert connection.execute(sql, [*change.before.values()]).rowcount == 1, change
        if change.after is not None:
            names = ", ".join(f'"{name}"' for name in change.after)
            connection.execute(f'CREATE TABLE IF NOT EXISTS "{change.table}" ({names})')
            places = ", ".join("?" * len(change.after))
            connection.execute(f'INSERT INTO "{change.table}" ({names}) VALUES ({places})', [*change.after.values()])

    # messages

    def send(
        self,
        process: str,
        topic: str,
        message_id: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        partition: int = 0,
        headers: Mapping[str, str] | None = None,
        tx_id: str = "",
        database: str = "shop",
        attempt: int = 0,
        publish: bool = True,
    ) -> None:
        """A plain send (``tx_id`` "") is stored and visible at once; of a transactional one only what
        the application did is noted, unless it is published."""
        self.add(
            history.Intended(self.tick(), process, database if tx_id else "", tx_id, topic, message_id, key, attempt)
        )
        if publish and not tx_id:
            self.store(process, topic, message_id, payload, key=key, partition=partition, headers=headers)

    def store(
        self,
        process: str,
        topic: str,
        message_id: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        partition: int = 0,
        headers: Mapping[str, str] | None = None,
        producer: str = "",
        visible: bool = True,
    ) -> int:
        """A record gets the next offset, and is visible at once unless it says otherwise."""
        offset = self.offsets.get((topic, partition), 0)
        self.offsets[topic, partition] = offset + 1
        self.add(history.Stored(self.tick(), process, topic, partition, offset, message_id, key, producer))
        if visible and not producer:
            self.show(topic, offset, message_id, payload, key=key, partition=partition, headers=headers)
        return offset

    def show(
        self,
        topic: str,
        offset: int,
        message_id: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        partition: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        data = json.dumps(payload).encode()
        self.add(history.Visible(self.tick(), topic, partition, offset, message_id, key, data, dict(headers or {})))

    def publish(
        self,
        relay: str,
        topic: str,
        message_id: str,
        payload: Mapping[str, Any],
        *,
        key: str | None = None,
        partition: int = 0,
        headers: Mapping[str, str] | None = None,
        epoch: int = 0,
    ) -> int:
        """One step of a relay: a broker transaction with one message."""
        producer = "txbus.half.shop.0"
        offset = self.store(relay, topic, message_id, payload, key=key, partition=partition, producer=producer)
        self.add(history.BrokerTransactionEnded(self.tick(), producer, epoch, True, relay))
        self.show(topic, offset, message_id, payload, key=key, partition=partition, headers=headers)
        return offset

    def deliver(
        self,
        process: str,
        group: str,
        topic: str,
        offset: int,
        message_id: str,
        *,
        partition: int = 0,
        attempt: int = 1,
    ) -> None:
        record = history.Delivered(self.tick(), process, group, topic, partition, offset, message_id, attempt)
        self.add(record)

    def position(self, process: str, group: str, topic: str, offset: int, *, partition: int = 0) -> None:
        self.add(history.PositionCommitted(self.tick(), process, group, topic, partition, offset))

    def ack(self, process: str, group: str, topic: str, offset: int, message_id: str, *, partition: int = 0) -> None:
        self.add(history.Acknowledged(self.tick(), process, group, topic, partition, offset, message_id))

    # verdicts

    def check(self, *expectations: Expectation, broker: checkers.CapabilitiesOf = log_broker) -> CheckReport:
        return checkers.check(self.history, self, expectations, broker)

    def accused(self, *expectations: Expectation, broker: checkers.CapabilitiesOf = log_broker) -> list[str]:
        """The names of the properties that do not hold, the first one first."""
        return [verdict.name for verdict in self.check(*expectations, broker=broker).verdicts]


def ledger(
    tx_id: str, *, attempt: int = 1, outcome: str = "committed", messages: int = 1, database: str = "shop"
) -> Row:
    """A row of txbus_ledger."""
    return {
        "tx_id": tx_id,
        "attempt": attempt,
        "outcome": outcome,
        "database_name": "shop",
        "messages": messages,
        "created_s": 1.0,
        "confirmed_s": None,
        "confirmed_parts": None,
        "reserved": 0,
    }


def inbox(scope: str, message_id: str) -> Row:
    """A row of txbus_inbox."""
    return {"scope": scope, "source": "/txbus/shop", "message_id": message_id, "handled_s": 1.0}


def dead_letter(scope: str, message_id: str, *, attempts: int = 3, error: str = "app.Broken: no") -> Row:
    """A row of txbus_dead_letters."""
    return {
        "scope": scope,
        "source": "/txbus/shop",
        "message_id": message_id,
        "attempts": attempts,
        "error_text": error,
    }


@dataclass
class Shop:
    """The right shop: order row, ledger row and half; a relay publishes; stock handles with an inbox."""

    story: Story
    orders: str = "orders"
    stock: str = "stock"

    def place(self, number: int, *, commit: bool = True, key: str | None = None) -> None:
        """One local transaction with one message."""
        story, name = self.story, f"o-{number}"
        story.send(self.orders, "orders", f"m{number}", {}, tx_id=f"tx{number}", attempt=1, key=key)
        story.store(self.orders, "txbus.half.shop", "", {})
        if commit:
            story.commit(
                self.orders,
                "shop",
                orders={"id": name, "customer": f"c{number}", "cents": 500},
                txbus_ledger=ledger(f"tx{number}"),
            )
        else:
            story.rollback(self.orders, "shop")

    def relay(self, number: int, *, key: str | None = None) -> int:
        payload = {"id": f"o-{number}", "cents": 500}
        headers = {"ce_source": "/txbus/shop"}
        return self.story.publish(self.orders, "orders", f"m{number}", payload, key=key, headers=headers)

    def reserve(self, number: int, offset: int, *, ack: bool = True) -> None:
        story = self.story
        story.deliver(self.stock, "stock.reserve", "orders", offset, f"m{number}")
        story.commit(
            self.stock,
            "stock",
            reservations={"n": 100 + number, "order_id": f"o-{number}", "pieces": 2},
            txbus_inbox=inbox("reserve", f"m{number}"),
        )
        if ack:
            story.position(self.stock, "stock.reserve", "orders", offset + 1)

    def order(self, number: int, *, key: str | None = None) -> None:
        """All of it, undisturbed."""
        self.place(number, key=key)
        self.reserve(number, self.relay(number, key=key))


def faultless(orders: int = 3) -> Story:
    """The right shop's run without faults."""
    story = Story()
    story.start("orders", "stock")
    shop = Shop(story)
    for number in range(1, orders + 1):
        shop.order(number)
    story.end("orders", "stock")
    return story


def learned(story: Story) -> tuple[Expectation, ...]:
    return checkers.learn(story.history, story)
