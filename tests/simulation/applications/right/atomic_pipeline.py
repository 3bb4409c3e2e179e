"""Broker transactions from end to end: prices in, notices out, no database until the last."""

from __future__ import annotations

from functools import partial

import pydantic
import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Delivery, Topic, TxbusError
from txbus_sim._database import SimDatabase
from txbus_sim.simulation import Simulation


class Price(pydantic.BaseModel):
    sku: str
    cents: int


class Notice(pydantic.BaseModel):
    text: str


PRICES = Topic("prices", Price, key=lambda price: price.sku)
NOTICES = Topic("notices", Notice)
LIST = (Price(sku="kettle", cents=1_999), Price(sku="teapot", cents=2_499))

tables = sa.MetaData()
poster_table = sa.Table(
    "posters", tables, sa.Column("number", sa.Integer, primary_key=True), sa.Column("text", sa.String)
)


def price_list(broker_url: str) -> None:
    """All prices or none, under ids of their own, so that they may be sent again."""
    bus = Bus(broker_url, service="prices", topics=[PRICES], **shop.quick("outside"))
    with bus:
        while True:
            try:
                with bus.atomic() as tx:
                    for price in LIST:
                        tx.send(PRICES, price, message_id=f"price-{price.sku}")
                break
            except TxbusError as error:
                if not error.retryable and error.outcome_known:
                    raise
        shop.for_ever()


def announcing(broker_url: str) -> None:
    bus = Bus(broker_url, service="announcing", topics=[NOTICES], **shop.quick("outside"))

    @bus.on(PRICES, scope="announce", database=None, atomic=True)
    def announce(price: Price, delivery: Delivery) -> None:
        notice = Notice(text=f"{price.sku} is {price.cents / 100:.2f} now")
        delivery.send(NOTICES, notice, message_id=f"notice-{delivery.message_id}")

    bus.run()


def posting(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="posting", databases={"wall": engine}, **shop.quick("outside"))

    @bus.on(NOTICES, scope="post", database="wall")
    def post(notice: Notice, connection: sa.Connection) -> None:
        connection.execute(sa.insert(poster_table).values(text=notice.text))

    bus.run()


def posted(wall: SimDatabase) -> None:
    """Each notice once, also where prices were sent again."""
    texts = sorted(row[0] for row in wall.rows("SELECT text FROM posters"))
    assert texts == ["kettle is 19.99 now", "teapot is 24.99 now"], texts


def scenario(sim: Simulation) -> None:
    wall = sim.database("wall", schema=tables.create_all)
    sim.topic("prices", 2)
    sim.topic("notices", 1)
    sim.settle_s = shop.SETTLE_S
    sim.process("prices", price_list, sim.broker_url)
    sim.process("announcing", announcing, sim.broker_url)
    sim.process("posting", posting, wall.url, sim.broker_url)
    sim.at_end(partial(posted, wall), "posted")
