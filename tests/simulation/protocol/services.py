"""The services of the protocol's scenarios: ordinary blocking code, as it would run in production."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pydantic
import sqlalchemy as sa
from sqlalchemy.orm import registry

from tests.simulation.protocol.story import tell
from txbus import Bus, Delivery, Outcome, Retry, Topic
from txbus._message import Envelope
from txbus.cli._halves import surveyed
from txbus.cli._look import looking
from txbus.cli._resolve import Wish, resolve_half
from txbus.errors import AlreadyCommitted, ConfigurationError, TxbusError

__all__ = [
    "ATTEMPTS_MAX",
    "SHOP",
    "STOCK",
    "THREE",
    "TWO_PAIRS",
    "Block",
    "Order",
    "Ways",
    "atomic_packer",
    "atomic_sender",
    "of",
    "one_by_one",
    "operator",
    "orders",
    "orders_by_name",
    "plain_sender",
    "relay",
    "stock",
]

_LOGGER = logging.getLogger("protocol")
ATTEMPTS_MAX = 2
FAST: dict[str, Any] = {
    "half_partitions": 2,
    "lease_s": 6.0,
    "poll_s": 2.0,
    "send_timeout_s": 2.0,
    "half_timeout_s": 2.0,
    "broker_transaction_timeout_s": 5.0,
    "workers": 2,
    "lock_wait_s": 2.0,
}


class Order(pydantic.BaseModel):
    id: str
    customer: str


THREE = (Order(id="o-1", customer="ada"), Order(id="o-2", customer="bob"), Order(id="o-3", customer="ada"))
"""``ada`` has one half partition, ``bob`` and ``cyd`` have the other."""
FOUR = (*THREE, Order(id="o-4", customer="bob"))
TWO_PAIRS = ((FOUR[0], FOUR[1]), (FOUR[2], FOUR[3]))
Block: TypeAlias = tuple[Order, ...]


def one_by_one(todo: Sequence[Order]) -> Sequence[Block]:
    """Each order in a block of its own."""
    return [(order,) for order in todo]


def of(customers: str, first: int = 1) -> tuple[Order, ...]:
    """An order for each of the customers, numbered through."""
    return tuple(Order(id=f"o-{n}", customer=customer) for n, customer in enumerate(customers.split(), first))


SHOP = sa.MetaData()
ORDERS = sa.Table(
    "orders",
    SHOP,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String),
    sa.Column("customer", sa.String),
    sa.Column("message_id", sa.String),
)


class Placed:
    """A row of the orders, for the ORM."""

    def __init__(self, id: str, customer: str, message_id: str) -> None:
        self.id = id
        self.customer = customer
        self.message_id = message_id


registry().map_imperatively(Placed, ORDERS)
PULSES = sa.Table("pulses", SHOP, sa.Column("number", sa.Integer, primary_key=True))
STOCK = sa.MetaData()
PARCELS = sa.Table(
    "parcels", STOCK, sa.Column("number", sa.Integer, primary_key=True), sa.Column("order_id", sa.String)
)
RESERVATIONS = sa.Table(
    "reservations",
    STOCK,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("order_id", sa.String),
    sa.Column("customer", sa.String),
)


@dataclass(frozen=True, slots=True)
class Ways:
    """Where the broker is, and whether its topics keep an order per key."""

    url: str
    keyed: bool

    def topic(self, name: str = "placed") -> Topic[Order]:
        return Topic(name, Order, key=(lambda order: order.customer) if self.keyed else None, partitions=2)


# sending


def orders(
    ways: Ways,
    databases: Mapping[str, str],
    todo: Sequence[Block],
    *,
    checker: str = "",
    dawdles: str = "",
    rests: str = "",
    by_orm: bool = False,
    **settings: Any,
) -> None:
    """Places the orders of each block together, once, in one of the databases, then stays.

    Whether a block is there is looked up in the tables, never concluded from an error.
    """
    engines = {name: sa.create_engine(url) for name, url in databases.items()}
    placed = ways.topic()
    bus = tell(Bus(ways.url, service="shop", databases=engines, topics=[placed], **(FAST | settings)))
    if checker:
        _own_checker(bus, placed, engines["shop"], checker)
    names = list(engines)
    with bus:
        for number, block in enumerate(todo):
            name = names[number % len(names)]
            if block[0].id == rests:
                _rest(engines[name])
            tries = 0
            while not _is_placed(engines[name], block[0]):
                tries += 1
                try:
                    with bus.transaction(name) as tx:
                        for order in block:
                            row = order.model_dump() | {"message_id": tx.send(placed, order)}
                            if by_orm:
                                tx.session.add(Placed(**row))
                            else:
                                tx.connection.execute(ORDERS.insert().values(**row))
                        if block[0].id == dawdles and tries == 1:
                            time.sleep(4.0)
                    if block[0].id == dawdles:
                        _LOGGER.warning("placed %s by try %d", block[0].id, tries)
                except (TxbusError, sa.exc.SQLAlchemyError) as exc:
                    _LOGGER.warning("try %d of %s failed: %s", tries, block[0].id, type(exc).__name__)
                    time.sleep(0.5)
        threading.Event().wait()


def _rest(engine: sa.Engine) -> None:
    """75 seconds in which this service still does something durable, so that the run is not over."""
    for _ in range(8):
        time.sleep(9.5)
        try:
            with engine.begin() as connection:
                connection.execute(PULSES.insert())
        except sa.exc.SQLAlchemyError:
            pass  # the next one


def _is_placed(engine: sa.Engine, order: Order) -> bool:
    while True:
        try:
            with engine.connect() as connection:
                return connection.execute(sa.select(ORDERS.c.id).where(ORDERS.c.id == order.id)).first() is not None
        except sa.exc.SQLAlchemyError:
            time.sleep(0.5)


def _own_checker(bus: Bus, placed: Topic[Order], engine: sa.Engine, how: str) -> None:
    @bus.checker(placed)
    def check(envelope: Envelope, attempt: int) -> Outcome:
        if how == "knows nothing" or (how == "hesitates" and attempt < 4):
            return Outcome.UNKNOWN
        with engine.connect() as connection:
            # By the message, not by the order: another try may have placed that.
            query = sa.select(ORDERS.c.id).where(ORDERS.c.message_id == envelope.id)
            there = connection.execute(query).first() is not None
        outcome = Outcome.COMMITTED if there else Outcome.ROLLED_BACK
        _LOGGER.warning("own checker says %s", outcome.value)
        return outcome


def orders_by_name(ways: Ways, databases: Mapping[str, str], todo: Sequence[Order]) -> None:
    """Runs each block under a tx_id of its own until it is known to be committed; looks nothing up."""
    engines = {name: sa.create_engine(url) for name, url in databases.items()}
    placed = ways.topic()
    with tell(Bus(ways.url, service="shop", databases=engines, topics=[placed], **FAST)) as bus:
        for order in todo:
            done = False
            while not done:
                try:
                    with bus.transaction("shop", tx_id=f"tx-{order.id}") as tx:
                        if tx.attempt > 2:
                            _LOGGER.warning("again under its tx_id %s", tx.id)
                        tx.connection.execute(ORDERS.insert().values(id=order.id, customer=order.customer))
                        tx.send(placed, order)
                    done = True
                except AlreadyCommitted:
                    _LOGGER.warning("committed before: %s", order.id)
                    done = True
                except (TxbusError, sa.exc.SQLAlchemyError):
                    time.sleep(0.5)
        threading.Event().wait()


def relay(
    ways: Ways,
    databases: Mapping[str, str],
    *,
    checker: str = "",
    leaves_after_s: float = 0.0,
    records_max: int = 0,
    **settings: Any,
) -> None:
    """Nothing but a relay, as ``txbus relay`` runs it. One that may not join says so and is gone.

    ``records_max``: it reads no more at once, as where fetches are slow; there is no setting for that.
    """
    engines = {name: sa.create_engine(url) for name, url in databases.items()}
    placed = ways.topic()
    bus = tell(Bus(ways.url, service="shop", databases=engines, topics=[placed], **(FAST | settings)))
    if checker:
        _own_checker(bus, placed, engines["shop"], checker)
    try:
        bus.open(relay="inside")
    except ConfigurationError as exc:
        _LOGGER.warning("refused: %s", exc)
        return
    if records_max and bus.opened.relay is not None:
        bus.opened.relay._budget = replace(bus.opened.relay._budget, records_max=records_max)
    if leaves_after_s:
        time.sleep(leaves_after_s)
        bus.close()
        return
    bus.run_relay()


def operator(ways: Ways, databases: Mapping[str, str]) -> None:
    """Looks every few seconds for parked halves, and gives them up, as ``txbus unresolved resolve`` does."""
    engines = {name: sa.create_engine(url) for name, url in databases.items()}
    bus = Bus(ways.url, service="shop", databases=engines, topics=[ways.topic()], **FAST)
    while True:
        time.sleep(5.0)
        try:
            with looking(bus) as look:
                for half in surveyed(look):
                    if half.state == "parked":
                        done = resolve_half(look, Wish(half.tx_id, half.attempt, Outcome.ROLLED_BACK, False, False))
                        assert done.stands is not None
                        _LOGGER.warning("resolved %s", done.stands.value)
        except (TxbusError, sa.exc.SQLAlchemyError):
            pass  # it looks again


def plain_sender(ways: Ways, todo: Sequence[Order]) -> None:
    """Sends each order until its receipt is there, under its own message id."""
    placed = ways.topic()
    with tell(Bus(ways.url, service="shop", topics=[placed], **FAST)) as bus:
        for order in todo:
            while True:
                try:
                    bus.send(placed, order, message_id=order.id)
                    break
                except TxbusError:
                    time.sleep(0.5)
    threading.Event().wait()


def atomic_sender(ways: Ways, pairs: Sequence[tuple[Order, Order]]) -> None:
    """Two messages in one broker transaction; tried again only where it is certain that none is visible."""
    placed = ways.topic()
    with tell(Bus(ways.url, service="shop", topics=[placed], **FAST)) as bus:
        for first, second in pairs:
            while True:
                try:
                    with bus.atomic() as scope:
                        scope.send(placed, first)
                        scope.send(placed, second)
                    break
                except TxbusError:
                    time.sleep(0.5)  # all or none; perhaps twice after CommitUnknown
    threading.Event().wait()


# receiving


def stock(ways: Ways, url: str, *, topic: str = "placed", clumsy: bool = False, packs: bool = False) -> None:
    """Reserves what was ordered, once. ``packs``: a second handler packs it, once."""
    engine = sa.create_engine(url)
    bus = tell(Bus(ways.url, service="stock", databases={"stock": engine}, relay="outside", **FAST))

    @bus.on(
        ways.topic(topic),
        scope="reserve",
        database="stock",
        retry=Retry(max_attempts=ATTEMPTS_MAX, backoff_s=(0.5, 2.0), jitter=0.0),
    )
    def reserve(order: Order, delivery: Delivery, connection: sa.Connection) -> None:
        if clumsy and order.id == "o-2":
            _LOGGER.warning("always fails")
        connection.execute(RESERVATIONS.insert().values(order_id=order.id, customer=order.customer))
        if clumsy and (order.id == "o-2" or (order.id == "o-1" and delivery.attempt == 1)):
            raise RuntimeError(f"clumsy with {order.id}")

    if packs:

        @bus.on(ways.topic(topic), scope="pack", database="stock")
        def pack(order: Order, connection: sa.Connection) -> None:
            connection.execute(PARCELS.insert().values(order_id=order.id))

    with bus:
        bus.run()


def atomic_packer(ways: Ways) -> None:
    """Hands each order on; what it sends and its position commit in one broker transaction."""
    packed = ways.topic("packed")
    bus = tell(Bus(ways.url, service="pack", topics=[packed], **FAST))

    @bus.on(ways.topic(), scope="pack", database=None, atomic=True)
    def pack(order: Order, delivery: Delivery) -> None:
        delivery.send(packed, order)

    with bus:
        bus.run()
