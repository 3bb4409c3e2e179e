"""What an application hands over is in the history, whichever way it sends."""

from __future__ import annotations

import threading

import sqlalchemy as sa

from tests.simulation.applications import shop
from txbus import Bus, Delivery
from txbus_sim._runner import Runner, RunnerOptions
from txbus_sim.history import Intended, LocalCommitted, Visible
from txbus_sim.simulation import Simulation

KETTLE, TEAPOT = shop.WANTED


def sending(database_url: str, broker_url: str) -> None:
    """In four ways; the bus's name of the database is not the simulation's."""
    engine = sa.create_engine(database_url)
    topic = shop.orders_topic(broker_url)
    bus = Bus(broker_url, service="shop", databases={"books": engine}, topics=[topic], **shop.quick())

    @bus.on(topic, scope="again", database="books")
    def again(order: shop.OrderPlaced, delivery: Delivery) -> None:
        if order.id == "plain":
            delivery.send(topic, KETTLE.model_copy(update={"id": "passed-on"}))

    with bus:
        with bus.transaction("books") as tx:
            tx.send(topic, KETTLE.model_copy(update={"id": "own"}))
        with engine.begin() as connection:
            bus.attach(connection).send(topic, KETTLE.model_copy(update={"id": "attached"}), key="another")
        bus.send(topic, KETTLE.model_copy(update={"id": "plain"}))
        bus.send(topic, KETTLE.model_copy(update={"id": "named"}), message_id="a-name")
        bus.start()
        threading.Event().wait()


def scenario(sim: Simulation) -> None:
    database = sim.database("shop")
    sim.topic("orders", 1)
    sim.settle_s = shop.SETTLE_S
    sim.process("orders", sending, database.url, sim.broker_url)


def test_every_way_of_sending_is_in_the_history() -> None:
    """With the ledger's name of the database and id, the attempt and the key; a plain one before it can be read."""
    with Runner(scenario, RunnerOptions(broker="kafka")) as runner:
        result = runner()
    records = list(result.history)
    visible = {m.message_id: m for m in records if isinstance(m, Visible) and m.topic == "orders"}
    said = {
        shop.OrderPlaced.model_validate_json(visible[one.message_id].payload).id: one
        for one in records
        if isinstance(one, Intended)
    }
    assert list(said) == ["own", "attached", "plain", "named", "passed-on"]
    assert [one.key for one in said.values()] == ["ada", "another", "ada", "ada", "ada"]
    assert said["named"].message_id == "a-name"
    ledger = {
        (str(change.after["database_name"]), str(change.after["tx_id"]), change.after["attempt"])
        for one in records
        if isinstance(one, LocalCommitted)
        for change in one.rows or ()
        if change.table == "txbus_ledger" and change.before is None and change.after
    }
    assert ledger == {(said[name].database, said[name].tx_id, said[name].attempt) for name in said if said[name].tx_id}
    assert [name for name in said if not said[name].tx_id] == ["plain", "named"]
    for one in said.values():
        assert records.index(one) < records.index(visible[one.message_id])
    assert result.verdict is None
