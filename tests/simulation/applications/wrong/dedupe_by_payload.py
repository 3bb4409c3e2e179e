"""A handler that takes an equal payload for the same message: the second cup of coffee is never made."""

from __future__ import annotations

import pydantic
import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Delivery, Topic
from txbus_sim.checkers import Effect
from txbus_sim.simulation import Simulation


class Ordered(pydantic.BaseModel):
    table: int
    drink: str


ORDERED = Topic("drinks", Ordered)
WANTED = (Ordered(table=1, drink="coffee"), Ordered(table=2, drink="tea"), Ordered(table=1, drink="coffee"))

tables = sa.MetaData()
made_table = sa.Table(
    "made",
    tables,
    sa.Column("message_id", sa.String, primary_key=True),
    sa.Column("at_table", sa.Integer),
    sa.Column("drink", sa.String),
)


def waiter(broker_url: str) -> None:
    """Takes a slip of paper, whose number is the message's id, and passes it on at least once."""
    bus = Bus(broker_url, service="waiter", topics=[ORDERED], **shop.quick())
    with bus:
        for number, drink in enumerate(WANTED, 1):
            bus.send(ORDERED, drink, message_id=f"slip-{number}")
        shop.for_ever()


def main(database_url: str, broker_url: str) -> None:
    engine = sa.create_engine(database_url)
    bus = Bus(broker_url, service="bar", databases={"bar": engine}, **shop.quick("outside"))

    @bus.on(ORDERED, scope="make", database="bar")
    def make(ordered: Ordered, delivery: Delivery, connection: sa.Connection) -> None:
        known = sa.select(made_table.c.message_id).where(
            made_table.c.at_table == ordered.table, made_table.c.drink == ordered.drink
        )
        if connection.scalar(known) is None:
            values = {"message_id": delivery.message_id, "at_table": ordered.table, "drink": ordered.drink}
            connection.execute(sa.insert(made_table).values(**values))

    bus.run()


def scenario(sim: Simulation) -> None:
    """Equal payloads are two orders: that has to be declared."""
    bar = sim.database("bar", schema=tables.create_all)
    sim.topic("drinks", 1)
    sim.settle_s = shop.SETTLE_S
    sim.process("waiter", waiter, sim.broker_url)
    sim.process("bar", main, bar.url, sim.broker_url)
    sim.expect(Effect("drinks", "ce_id", "bar.made", "message_id"))
