"""The protocol's scenarios: small services under a storm, and the books that must balance after it.

Each is a function of a `Simulation`; the services are in `services.py`. The checks look into databases,
topics and the history, never at what the services say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.simulation.protocol import services
from tests.simulation.protocol.services import Order, Ways, one_by_one
from tests.simulation.protocol.story import Story, published
from txbus_sim import Attempts
from txbus_sim._database import SimDatabase
from txbus_sim.history import Logged
from txbus_sim.simulation import Broker, Simulation

__all__ = ["ALL", "BROKERS", "HALF_LOG", "STALL_S", "Scenario", "scenario_of"]

BROKERS: tuple[Broker, ...] = ("kafka", "rocketmq", "embedded")
STALL_S = 15
HALF_LOG: tuple[Broker, ...] = ("kafka", "embedded")
"""Brokers whose half messages are the core's."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """``brokers``: those that declare what it needs. ``stall_s``: the longest pause or delay; beyond every
    timeout of its services, and shorter than RocketMQ asks about a half before it gives it up."""

    name: str
    declare: Callable[[Simulation], None]
    brokers: tuple[Broker, ...] = BROKERS
    stall_s: int = STALL_S

    def __call__(self, sim: Simulation) -> None:
        self.declare(sim)

    def __str__(self) -> str:
        return self.name


ALL: list[Scenario] = []


Declare = Callable[[Simulation], None]


def scenario(*brokers: Broker, stall_s: int = STALL_S) -> Callable[[Declare], Declare]:
    def add(declare: Declare) -> Declare:
        ALL.append(Scenario(declare.__name__, declare, brokers or BROKERS, stall_s))
        return declare

    return add


def scenario_of(name: str) -> Scenario:
    return next(one for one in ALL if one.name == name)


# the books


class Books:
    """What the databases of a run must say when it is over."""

    def __init__(self, sim: Simulation, *sources: SimDatabase, topic: str = "placed") -> None:
        self._sim = sim
        self._sources = sources
        self._topic = topic
        self.stock = sim.database("stock", schema=services.STOCK.create_all)

    def placed(self) -> list[tuple[str, str]]:
        """(id, customer) in the order in which each database committed them."""
        return [row for one in self._sources for row in one.rows("SELECT id, customer FROM orders ORDER BY number")]

    def reserved(self) -> list[tuple[str, str]]:
        """(id, customer) in the order in which they were handled."""
        return self.stock.rows("SELECT order_id, customer FROM reservations ORDER BY number")

    def everything(self, orders: int) -> Callable[[], None]:
        """So many orders; each reserved once, in the order of its customer, and published once."""

        def books_balance() -> None:
            placed = self.placed()
            assert len(placed) >= orders, f"only {len(placed)} orders of {orders} were placed: {placed}"
            assert len(placed) == orders, f"doubled: {len(placed)} orders where {orders} were to be placed: {placed}"
            self.each_once(placed)
            self.in_order(placed)

        return books_balance

    def each_once(self, placed: Sequence[tuple[str, str]]) -> None:
        reserved = Counter(self.reserved())
        wanted = Counter(placed)
        assert not wanted - reserved, f"lost: {sorted((wanted - reserved).elements())} was placed and never reserved"
        assert not reserved - wanted, f"phantom or doubled: {sorted((reserved - wanted).elements())}"
        ids = Counter(one.message_id for one in published(self._sim, self._topic))
        twice = sorted(id for id, times in ids.items() if times > 1)
        assert self._sim.broker == "rocketmq" or not twice, f"doubled: published twice: {twice}"

    def in_order(self, placed: Sequence[tuple[str, str]]) -> None:
        """Per customer, who is the key. RocketMQ's half messages have no order."""
        if self._sim.broker == "rocketmq" or len(self._sources) > 1:
            return
        handled = _by_customer(self.reserved())
        for customer, ids in _by_customer(placed).items():
            found = handled.get(customer, [])
            assert found == ids, f"disordered: {customer} placed {ids}, and they were handled as {found}"
        topic = [(Order.model_validate_json(one.payload)) for one in published(self._sim, self._topic)]
        for customer, ids in _by_customer(placed).items():
            found = [order.id for order in topic if order.customer == customer]
            assert found == ids, f"disordered: {customer} placed {ids}, and they are in the topic as {found}"

    def all_confirmed(self) -> None:
        """Evidence that each committed message was published has come to its ledger row.

        Not on RocketMQ: of a sender that dies between the broker's OK and its note, nobody learns.
        """
        if self._sim.broker == "rocketmq":
            return
        for one in self._sources:
            waiting = one.rows(
                "SELECT tx_id FROM txbus_ledger WHERE outcome = 'committed' AND messages > 0 AND confirmed_s IS NULL"
            )
            assert not waiting, f"unconfirmed: ledger rows of {one.name}: {waiting}"


def _by_customer(rows: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for id, customer in rows:
        found.setdefault(customer, []).append(id)
    return found


def _begin(sim: Simulation, *names: str) -> tuple[Ways, list[SimDatabase], Books, Story]:
    # Longer than what is given back waits for its next try, after a stall.
    sim.settle_s = 20.0
    sim.topic("placed", 2)
    sources = [sim.database(name, schema=services.SHOP.create_all) for name in names]
    url = sim.broker_url
    if sim.broker == "embedded":
        # A writer that stands still holds the file: whoever wants to write looks again and again.
        url += f"{'&' if '?' in url else '?'}busy_timeout_s=0.05"
    ways = Ways(url, sim.broker != "rocketmq")
    return ways, sources, Books(sim, *sources), Story(sim)


def _process(sim: Simulation, name: str, target: Callable[..., object], *arguments: Any, **keywords: Any) -> None:
    """Started anew after five seconds: seldom enough that a broker file held by a process
    that stands still does not look like a service that can never start."""
    sim.process(name, target, *arguments, restart_after_s=5.0, **keywords)


def _begin_plain(sim: Simulation) -> tuple[Ways, Books, Story]:
    """Plain messages, but on RocketMQ, where a topic takes one kind only: there they are sent in blocks."""
    if sim.broker == "rocketmq":
        ways, (shop,), books, story = _begin(sim, "shop")
        _process(sim, "sender", services.orders, ways, {"shop": shop.url}, one_by_one(services.THREE))
    else:
        ways, _, books, story = _begin(sim)
        _process(sim, "sender", services.plain_sender, ways, services.THREE)
    return ways, books, story


# sending


@scenario()
def ledger(sim: Simulation) -> None:
    """A local transaction that sends, one relay inside, a consumer with an inbox."""
    ways, (shop,), books, story = _begin(sim, "shop")
    _process(sim, "orders", services.orders, ways, {"shop": shop.url}, one_by_one(services.THREE))
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.eventually(books.all_confirmed)
    sim.sometimes(story.told("CheckBack rolled_back"), "a check-back fenced")
    sim.sometimes(story.told("CheckBack committed"), "a check-back found it committed")
    sim.sometimes(story.told("DuplicateSuppressed"), "a duplicate was suppressed")
    if sim.broker != "rocketmq":
        sim.sometimes(story.told("TakeOver", times=3), "a relay took over")


@scenario()
def named(sim: Simulation) -> None:
    """Blocks that are run again under their own tx_id until they are known to be committed."""
    ways, (shop,), books, story = _begin(sim, "shop")
    _process(sim, "orders", services.orders_by_name, ways, {"shop": shop.url}, services.THREE)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.sometimes(story.told("again under its tx_id"), "a block was run again under its id")
    sim.sometimes(story.told("committed before"), "a block had committed before it was run again")


@scenario()
def two_databases(sim: Simulation) -> None:
    """One service with two ledgers, whose blocks take turns; a relay that lacks one may not join."""
    ways, (east, west), books, story = _begin(sim, "east", "west")
    _process(sim, "orders", services.orders, ways, {"east": east.url, "west": west.url}, one_by_one(services.THREE))
    _process(sim, "lame", services.relay, ways, {"east": east.url}, leaves_after_s=25.0)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.sometimes(story.told("CheckBack rolled_back"), "a check-back fenced")
    sim.sometimes(story.told("CheckBack committed"), "a check-back found it committed")
    if sim.broker != "rocketmq":
        sim.eventually(books.all_confirmed)
        sim.sometimes(story.told("refused"), "a relay without all databases was refused")


@scenario(*HALF_LOG)
def wrong_copy(sim: Simulation) -> None:
    """For a time a relay runs on a copy of the database: another ledger, whose answers do not count."""
    ways, (shop, copy), books, story = _begin(sim, "shop", "copy")
    _process(sim, "orders", services.orders, ways, {"shop": shop.url}, one_by_one(services.THREE))
    _process(sim, "staging", services.relay, ways, {"shop": copy.url}, leaves_after_s=25.0)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.sometimes(story.told("Alarm foreign half"), "the copy was asked about a foreign half")


@scenario()
def own_checker(sim: Simulation) -> None:
    """The application answers check-backs by its own table; ROLLED_BACK is fenced before it counts."""
    ways, (shop,), books, story = _begin(sim, "shop")
    how = {"checker": "looks"}
    _process(
        sim, "orders", services.orders, ways, {"shop": shop.url}, one_by_one(services.THREE), relay="outside", **how
    )
    _process(sim, "relay", services.relay, ways, {"shop": shop.url}, **how)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.sometimes(story.told("own checker says rolled_back"), "the own checker was asked about a rolled back one")


@scenario()
def local_timeout(sim: Simulation) -> None:
    """A block that is too slow the first time is rolled back, and placed by the next try."""
    ways, (shop,), books, story = _begin(sim, "shop")
    todo = one_by_one(services.THREE)
    _process(sim, "orders", services.orders, ways, {"shop": shop.url}, todo, dawdles="o-2", local_timeout_s=3.0)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))

    def too_slow_is_rolled_back() -> None:
        late = [one for one in sim.history if type(one) is Logged and one.text == "placed o-2 by try 1"]
        assert not late, f"too late: {late[0].process} committed a block after local_timeout_s"

    sim.at_end(too_slow_is_rolled_back)
    sim.sometimes(story.told("Alarm local timeout"), "a local transaction came too late")


@scenario()
def several_messages(sim: Simulation) -> None:
    """One block places for two customers in two half partitions: all or none, whatever is cut short."""
    ways, (shop,), books, story = _begin(sim, "shop")
    _process(sim, "orders", services.orders, ways, {"shop": shop.url}, services.TWO_PAIRS)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(4))
    sim.eventually(books.all_confirmed)
    sim.sometimes(story.told("CheckBack committed"), "a check-back found it committed")


@scenario(*HALF_LOG)
def several_keys(sim: Simulation) -> None:
    """One block with two keys of one half partition, then a block for each of them: held by any key."""
    ways, (shop,), books, story = _begin(sim, "shop")
    first, second, third, fourth = services.of("bob cyd cyd bob")
    blocks = ((first, second), (third,), (fourth,))
    _process(sim, "orders", services.orders, ways, {"shop": shop.url}, blocks)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(4))
    sim.sometimes(story.told("CheckBack committed"), "a check-back found it committed")


@scenario(*HALF_LOG)
def two_senders(sim: Simulation) -> None:
    """Two processes write for the same customer at the same time: the order of their commits counts."""
    ways, (shop,), books, story = _begin(sim, "shop")
    for name, first in (("east", 1), ("west", 11)):
        todo = one_by_one(services.of("ada ada", first))
        _process(sim, name, services.orders, ways, {"shop": shop.url}, todo, by_orm=True)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(4))
    sim.eventually(books.all_confirmed)
    sim.sometimes(story.relays(3), "three incarnations took over")
    sim.sometimes(story.told("FencedOff", "Reconnected"), "a relay was fenced or lost its clients")


@scenario(*HALF_LOG)
def relays_outside(sim: Simulation) -> None:
    """The sender runs no relay; two processes run nothing else, and outlive it when it stands still."""
    ways, (shop,), books, story = _begin(sim, "shop")
    databases = {"shop": shop.url}
    _process(sim, "orders", services.orders, ways, databases, one_by_one(services.THREE), relay="outside")
    _process(sim, "relay", services.relay, ways, databases, replicas=2)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.eventually(books.all_confirmed)
    sim.sometimes(story.told("CheckBack unknown its local transaction"), "a check-back waited for an open row")
    sim.sometimes(story.relays(3), "three incarnations took over")


@scenario(*HALF_LOG)
def small_log(sim: Simulation) -> None:
    """Two relays read one record at a time and re-append after a few, while an own checker hesitates."""
    ways, (shop,), books, story = _begin(sim, "shop")
    databases = {"shop": shop.url}
    todo = one_by_one(services.of("bob cyd bob cyd bob"))
    how: dict[str, Any] = {"checker": "hesitates", "reappend_records": 4, "check_interval_s": 0.5}
    _process(sim, "orders", services.orders, ways, databases, todo, relay="outside", **how)
    _process(sim, "relay", services.relay, ways, databases, replicas=2, records_max=1, **how)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(5))
    sim.sometimes(story.told("TakeOver unsettled=1", "TakeOver unsettled=2"), "a half was taken over unsettled")
    sim.sometimes(story.relays(3), "three incarnations took over")


@scenario(*HALF_LOG)
def parked(sim: Simulation) -> None:
    """An own checker never knows; what it leaves is parked, and an operator resolves it."""
    ways, (shop,), books, story = _begin(sim, "shop")
    databases = {"shop": shop.url}
    todo = one_by_one(services.THREE)
    how: dict[str, Any] = {"checker": "knows nothing", "check_max": 2}
    _process(sim, "orders", services.orders, ways, databases, todo, relay="outside", **how)
    _process(sim, "relay", services.relay, ways, databases, **how)
    _process(sim, "operator", services.operator, ways, databases)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(3))
    sim.sometimes(story.told("HalfParked"), "a half was parked")
    sim.sometimes(story.told("resolved rolled_back"), "an operator resolved it")


@scenario(stall_s=60)
def purge(sim: Simulation) -> None:
    """Ledger rows are kept as short as the settings allow; the last order comes when the first is purged."""
    ways, (shop,), books, _ = _begin(sim, "shop")
    sim.settle_s = 35.0
    databases = {"shop": shop.url}
    short = {"local_timeout_s": 3.0, "ledger_retention_s": 50.0, "purge_interval_s": 2.0}
    todo = one_by_one(services.of("ada ada"))
    _process(sim, "orders", services.orders, ways, databases, todo, rests="o-2", by_orm=True, relay="outside", **short)
    _process(sim, "relay", services.relay, ways, databases, **short)
    _process(sim, "stock", services.stock, ways, books.stock.url)
    sim.at_end(books.everything(2))

    def first_row_is_gone() -> bool:
        ((rows,),) = shop.rows("SELECT count(*) FROM txbus_ledger WHERE outcome = 'committed'")
        return int(rows) < len(books.placed())

    sim.sometimes(first_row_is_gone, "a ledger row was purged")


# receiving


@scenario()
def inbox(sim: Simulation) -> None:
    """Plain messages to two replicas of a consumer: each effect once, whoever dies in between."""
    ways, books, story = _begin_plain(sim)
    _process(sim, "stock", services.stock, ways, books.stock.url, packs=True, replicas=2)

    def each_effect_once() -> None:
        reserved = Counter(id for id, _ in books.reserved())
        assert set(reserved) == {order.id for order in services.THREE}, f"lost or phantom: {sorted(reserved)}"
        assert max(reserved.values()) == 1, f"doubled: {reserved}"

    def both_scopes() -> None:
        packed = sorted(id for (id,) in books.stock.rows("SELECT order_id FROM parcels"))
        assert packed == ["o-1", "o-2", "o-3"], f"lost or doubled: the other scope packed {packed}"

    sim.at_end(each_effect_once)
    sim.at_end(both_scopes)
    sim.sometimes(story.told("DuplicateSuppressed"), "a duplicate was suppressed")
    sim.sometimes(story.told("PartitionsChanged stock", times=3), "partitions changed hands")


@scenario()
def retry(sim: Simulation) -> None:
    """One message fails at first, one always: the latter is a dead letter after its attempts."""
    ways, books, story = _begin_plain(sim)
    _process(sim, "stock", services.stock, ways, books.stock.url, clumsy=True)
    sim.expect(Attempts("reserve", services.ATTEMPTS_MAX))

    def one_dead_letter() -> None:
        reserved = sorted(id for id, _ in books.reserved())
        letters = books.stock.rows("SELECT payload, attempts FROM txbus_dead_letters")
        dead = {Order.model_validate_json(payload).id: attempts for payload, attempts in letters}
        assert sorted([*reserved, *dead]) == ["o-1", "o-2", "o-3"], f"lost or doubled: {reserved}, dead letters: {dead}"
        if not story.crashes():
            assert reserved == ["o-1", "o-3"], f"dead letters at the wrong time: {dead}"
        most = services.ATTEMPTS_MAX
        assert all(most <= runs <= most + 1 for runs in dead.values()), f"attempts of dead letters: {dead}"
        tried = sum(one.text == "always fails" for one in sim.history if type(one) is Logged)
        assert tried <= most + 1, f"the handler ran {tried} times"

    sim.at_end(one_dead_letter)
    sim.sometimes(story.told("HandlerFailed"), "a handler failed")
    sim.sometimes(story.told("DeadLettered"), "a dead letter was kept")
    sim.sometimes(story.told("DuplicateSuppressed"), "a duplicate was suppressed")


@scenario(*HALF_LOG)
def atomic(sim: Simulation) -> None:
    """`bus.atomic` sends two messages or none, and an atomic handler hands each on exactly once."""
    ways, _, books, story = _begin(sim)
    sim.topic("packed", 2)
    _process(sim, "sender", services.atomic_sender, ways, services.TWO_PAIRS)
    _process(sim, "packer", services.atomic_packer, ways)
    _process(sim, "stock", services.stock, ways, books.stock.url, topic="packed")

    def all_or_none() -> None:
        placed = Counter(Order.model_validate_json(one.payload).id for one in published(sim, "placed"))
        for first, second in services.TWO_PAIRS:
            assert placed[first.id] == placed[second.id] > 0, f"torn: {placed}"
        packed = Counter(Order.model_validate_json(one.payload).id for one in published(sim, "packed"))
        assert packed == placed, f"handed on {packed} of {placed}"

    def handled_once() -> None:
        sent = Counter(one.message_id for one in published(sim, "packed"))
        reserved = Counter(id for id, _ in books.reserved())
        assert sum(reserved.values()) == len(sent), f"{reserved} of {sent}"

    sim.at_end(all_or_none)
    sim.at_end(handled_once)
    sim.sometimes(story.restarted, "a process was started anew")
