"""What the applications have in common: messages, tables, settings, and one right service of each sort."""

from __future__ import annotations

import time
from typing import Literal

import pydantic
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from txbus import Bus, Topic, TxbusError
from txbus.settings import SettingsArguments
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation

__all__ = [
    "ORDERS",
    "WANTED",
    "OrderPlaced",
    "for_ever",
    "is_placed",
    "order_service",
    "order_table",
    "orders_topic",
    "place",
    "quick",
    "reservation_table",
    "reserved_once",
    "shop_tables",
    "stock_service",
    "stock_tables",
    "with_order_service",
    "with_stock_service",
]

SETTLE_S = 15.0


class OrderPlaced(pydantic.BaseModel):
    id: str
    customer: str
    quantity: int


WANTED = (
    OrderPlaced(id="o-kettle-1", customer="ada", quantity=1),
    OrderPlaced(id="o-teapot-2", customer="ada", quantity=2),
)
ORDERS = Topic("orders", OrderPlaced)
_BY_CUSTOMER = Topic("orders", OrderPlaced, key=lambda order: order.customer)

shop_tables = sa.MetaData()
order_table = sa.Table(
    "orders",
    shop_tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("customer", sa.String),
    sa.Column("quantity", sa.Integer),
)
stock_tables = sa.MetaData()
reservation_table = sa.Table(
    "reservations",
    stock_tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("order_id", sa.String),
    sa.Column("quantity", sa.Integer),
)


def orders_topic(broker_url: str) -> Topic[OrderPlaced]:
    """With the customer as key, where half messages can have one (not on RocketMQ)."""
    return ORDERS if "rocketmq" in broker_url else _BY_CUSTOMER


def quick(relay: Literal["inside", "outside"] = "inside") -> SettingsArguments:
    """Short timeouts and rare polls: a run has fewer operations, and none of another sort."""
    return SettingsArguments(
        half_partitions=2,
        lease_s=6.0,
        send_timeout_s=2.0,
        half_timeout_s=2.0,
        broker_transaction_timeout_s=5.0,
        poll_s=2.0,
        workers=1,
        relay=relay,
    )


def for_ever() -> None:
    """A service does not end."""
    while True:
        time.sleep(5.0)


def is_placed(engine: sa.Engine, order: OrderPlaced) -> bool:
    with engine.connect() as connection:
        found = connection.scalar(sa.select(order_table.c.id).where(order_table.c.id == order.id))
    return found is not None


def place(bus: Bus, engine: sa.Engine, topic: Topic[OrderPlaced], order: OrderPlaced) -> None:
    """Order and message together, or neither."""
    while not is_placed(engine, order):
        try:
            with bus.transaction("shop") as tx:
                tx.connection.execute(sa.insert(order_table).values(**order.model_dump()))
                tx.send(topic, order)
        except IntegrityError:
            continue  # another replica was faster
        except TxbusError as error:
            if not error.retryable:
                raise


def order_service(database_url: str, broker_url: str) -> None:
    """Places what is wanted, once."""
    engine = sa.create_engine(database_url)
    topic = orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"shop": engine}, topics=[topic], **quick())
    with bus:
        for order in WANTED:
            place(bus, engine, topic, order)
        for_ever()


def stock_service(database_url: str, broker_url: str) -> None:
    """Reserves what was ordered, once."""
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="stock", databases={"stock": engine}, **quick("outside"))

    @bus.on(orders_topic(broker_url), scope="reserve", database="stock")
    def reserve(order: OrderPlaced, connection: sa.Connection) -> None:
        connection.execute(sa.insert(reservation_table).values(order_id=order.id, quantity=order.quantity))

    bus.run()


def with_order_service(sim: Simulation, replicas: int = 1) -> SimDatabase:
    """Declare it and what it needs; its database."""
    shop = sim.database("shop", schema=shop_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = SETTLE_S
    sim.process("orders", order_service, shop.url, sim.broker_url, replicas=replicas)
    return shop


def with_stock_service(sim: Simulation, replicas: int = 1) -> SimDatabase:
    """Declare it and what it needs; its database."""
    stock = sim.database("stock", schema=stock_tables.create_all)
    sim.topic("orders", 2)
    sim.settle_s = SETTLE_S
    sim.process("stock", stock_service, stock.url, sim.broker_url, replicas=replicas)
    return stock


def reserved_once(stock: SimDatabase) -> None:
    """Everything that is wanted was reserved, once."""
    reserved = sorted(row[0] for row in stock.rows("SELECT order_id FROM reservations"))
    assert reserved == sorted(order.id for order in WANTED), reserved
