"""One schedule: applications and relays of a service under faults, then calm, then the books.

The code that runs is the real one: `TransactionScope`, `HalfLogSender`, `Relay`, `HalfPartition`,
`HalfIndex`, `LedgerDesk`. Only broker, databases, clock and threads are the world's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.unit.halflog.broker import Broker, Connection
from tests.unit.halflog.ledger import ModelDatabase, ModelTransaction, Tables
from tests.unit.halflog.world import WALL_S, Chances, Crash, Process, World
from txbus._halflog.ledgerdesk import LedgerDeskBudget
from txbus._halflog.partition import PartitionBudget
from txbus._halflog.records import DecisionEntry, encode, half_topic
from txbus._halflog.relay import Relay, RelayBudget
from txbus._halflog.sender import HalfLogSender, HalfSenderBudget
from txbus._message import Envelope, Topic, TopicPartition
from txbus._outcome import Outcome
from txbus._transactional import LocalBudget, LocalParts, TransactionScope
from txbus.errors import StoreBusy, TxbusError
from txbus.stores.contract import LedgerRow

__all__ = ["Books", "Schedule", "run_schedule"]

SERVICE = "shop"
HALVES = half_topic(SERVICE)
PARTITIONS = 2
RETENTION_S = 1_000.0
COPY_IDENTITY = "ledger-of-a-copy"
ANY: Topic[Any] = Topic("any", str)
"""`TransactionScope` is given envelopes as they are; see ``make``."""

BUDGET = RelayBudget(
    check_after_s=2.0,
    check_interval_s=1.0,
    steps_per_poll=2,
    reconnect_s=(0.1, 0.5),
    partition=PartitionBudget(
        step_halves_max=3,
        payload_budget_bytes=1_500,
        reappend_records=4,
        reappend_batch_bytes=600,
        truncate_records=6,
        backoff_s=(0.1, 0.5),
        destination_backoff_s=0.5,
    ),
    desk=LedgerDeskBudget(retention_s=RETENTION_S, confirm_interval_s=0.5),
)


class _RolledBack(Exception):
    """The business logic decided against it."""


@dataclass(slots=True)
class Books:
    """What went wrong; all empty if the half log kept its promise."""

    lost: list[str] = field(default_factory=list)
    phantom: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    published: int = 0

    @property
    def broken(self) -> frozenset[str]:
        names = ("lost", "phantom", "doubled", "disordered", "stuck", "unexpected")
        return frozenset(name for name in names if getattr(self, name))


class _App:
    """A process of the service that runs local transactions."""

    def __init__(self, schedule: Schedule, name: str) -> None:
        self.process = Process(name)
        self._schedule = schedule
        self.connection = Connection(schedule.broker, self.process)
        self.sender = HalfLogSender(
            self.connection.sender(SERVICE),
            HALVES,
            PARTITIONS,
            schedule.world.ports(self.process),
            HalfSenderBudget(),
            frozenset,
        )

    def transact(self) -> None:
        """One local transaction over one to three business rows, each with a message."""
        world = self._schedule.world
        chance = world.chance
        tables = chance.choice(self._schedule.tables)
        rows = chance.sample(range(4), chance.randint(1, 3))
        messages = [self._message(f"{tables.name}-{row}") for row in rows]
        if chance.random() < 0.2:
            messages.append(self._message(None))
        parts = LocalParts(
            service=SERVICE,
            database=ModelDatabase(tables, world, self.process),
            channel=self.sender,
            make=lambda topic, payload, options: payload,
            ports=world.ports(self.process),
            emit=world.emit,
            heard=lambda kind: True,
            budget=LocalBudget(local_timeout_s=10_000.0, settle_s=3.0),
        )
        scope = TransactionScope(parts)
        rolls_back = world.happens(world.chances.roll_back)
        with scope as tx:
            assert isinstance(tx.local, ModelTransaction)
            for message in messages:
                assert message.id is not None
                self._change(tx.local, message)
                tx.send(ANY, message)
            if rolls_back:
                raise _RolledBack

    def _change(self, local: ModelTransaction, message: Envelope) -> None:
        assert message.id is not None
        local.change(message.key, message.id)

    def _message(self, key: str | None) -> Envelope:
        world = self._schedule.world
        world.ids += 1
        topic = world.chance.choice(("a", "b")) if key is None else "ab"[int(key[-1]) % 2]
        return Envelope(topic, b"x" * world.chance.choice((5, 50, 300)), key, {"ce_id": f"m{world.ids}"})


class _RelayProcess:
    """A process that runs a relay; perhaps one whose URL leads to a copy of a database."""

    def __init__(self, schedule: Schedule, name: str, wrong: bool) -> None:
        world = schedule.world
        self.process = Process(name)
        databases = {t.name: ModelDatabase(t, world, self.process) for t in schedule.tables}
        if wrong:
            databases["one"] = ModelDatabase(schedule.copy, world, self.process)
        self.relay = Relay(
            SERVICE,
            HALVES,
            PARTITIONS,
            Connection(schedule.broker, self.process),
            databases,
            {},
            world.ports(self.process),
            world.emit,
            BUDGET,
            lambda partition, held: None,
        )


class Schedule:
    """One world with its service. `act` takes one random action."""

    def __init__(self, seed: int, chances: Chances) -> None:
        self.world = World(seed, chances)
        self.world.meanwhile = self.act
        self.broker = Broker(self.world)
        self.broker.create(HALVES, PARTITIONS)
        for topic in ("a", "b"):
            self.broker.create(topic, 2)
        self.tables = [Tables("one", "ledger-one"), Tables("two", "ledger-two")]
        self.copy = Tables("one", COPY_IDENTITY)
        self.names = 0
        self.unexpected: list[str] = []
        self.apps = [_App(self, self._name("app")) for _ in range(2)]
        self.relays = [self._relay() for _ in range(2)]
        self._share()

    def _name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    def _relay(self) -> _RelayProcess:
        return _RelayProcess(self, self._name("relay"), self.world.happens(self.world.chances.wrong_database))

    def _share(self) -> None:
        members = [r.process.name for r in self.relays if r.process.alive]
        where = [TopicPartition(HALVES, number) for number in range(PARTITIONS)]
        self.broker.rebalance(members, where)

    # actions

    def act(self) -> None:
        self.world.chance.choices(
            (self._transact, self._turn, self._answer, self._pass_time, self._deliver, self._rebalance, self._maintain),
            (10, 40, 12, 14, 6, 3, 3),
        )[0]()

    def _as(self, process: Process, call: Callable[[], object]) -> None:
        if process.busy or not process.alive:
            return
        process.busy = True
        try:
            call()
        except (Crash, _RolledBack, TxbusError):
            pass
        except Exception as exc:
            self.unexpected.append(f"{type(exc).__name__}: {exc}")
        finally:
            process.busy = False

    def _transact(self) -> None:
        app = self.world.chance.choice(self.apps)
        self._as(app.process, app.transact)
        if self.world.chance.random() < 0.7:
            self._as(app.process, app.sender.flush)

    def _turn(self) -> None:
        relay = self.world.chance.choice(self.relays)
        self._as(relay.process, relay.relay.turn)

    def _answer(self) -> None:
        relay = self.world.chance.choice(self.relays)
        self._as(relay.process, relay.relay._desk.turn)

    def _pass_time(self) -> None:
        self.world.now_s += self.world.chance.choice((0.2, 1.0, 2.5))

    def _deliver(self) -> None:
        """Late records arrive; a server ends what belongs to nobody any more."""
        self.broker.deliver_late()
        for tables in self.tables:
            for orphan in [t for t in tables.undecided if t.orphan]:
                orphan.end(commit=orphan.committing and self.world.chance.random() < 0.7)

    def _rebalance(self) -> None:
        """Restart the dead; share the partitions anew; sometimes somebody is left out."""
        self.apps = [a if a.process.alive else _App(self, self._name("app")) for a in self.apps]
        self.relays = [r if r.process.alive else self._relay() for r in self.relays]
        self._share()

    def _maintain(self) -> None:
        """Purge; rarely after a very long time; very rarely the group's position is lost."""
        if self.world.chance.random() < self.world.chances.long_wait:
            self.world.now_s += RETENTION_S * self.world.chance.choice((0.6, 1.1))
        if self.world.chance.random() < self.world.chances.position_lost:
            self.broker.positions.pop(TopicPartition(HALVES, self.world.chance.randrange(PARTITIONS)), None)
        self.purge()

    def purge(self) -> None:
        for tables in self.tables:
            database = ModelDatabase(tables, self.world, Process("purge"))
            database.purge_ledger(WALL_S + self.world.now_s - RETENTION_S, 100)

    # calm

    def calm(self) -> None:
        """No more faults; whoever is dead is replaced, and everything late arrives."""
        self.world.storm = False
        for app in self.apps:
            app.process.alive = False
        while self.broker.late:
            self.broker.deliver_late()
        for tables in self.tables:
            for orphan in [t for t in tables.undecided if t.orphan]:
                orphan.end(commit=False)
        self.relays = [r if r.process.alive else self._relay() for r in self.relays]
        for relay in self.relays:
            relay.process.alive = False
        self.relays = [self._relay()]
        self._share()

    def settle(self) -> list[str]:
        """Let the last relay finish; an operator decides what is parked. What stays open in the end."""
        relay = self.relays[0].relay
        for _ in range(150):
            relay.turn()
            relay._desk.turn()
            self.world.now_s += 0.6
            owned = list(relay._owned.values())
            self._operate(relay)
            behind = any(self.broker.unread(p.where, p.read_next) for p in owned)
            if len(owned) == PARTITIONS and not behind and not any(p.index.halves for p in owned):
                relay.turn()
                return []
        return [f"{p.where} {p.phase.value}: {sorted(map(str, p.index.halves))}" for p in relay._owned.values()]

    def _operate(self, relay: Relay) -> None:
        sender = Connection(self.broker, Process("operator")).sender(SERVICE)
        for partition in relay._owned.values():
            for half in list(partition.index.parked()):
                tables = next(t for t in self.tables if t.name == half.entry.half.database)
                database = ModelDatabase(tables, self.world, Process("operator"))
                row = LedgerRow(half.id, Outcome.ROLLED_BACK, tables.name, 0, WALL_S + self.world.now_s)
                try:
                    outcome = database.decide(row)
                except StoreBusy:
                    continue
                word = encode([DecisionEntry(half.id, outcome, operator=True)])
                sender.append(Envelope(HALVES, word), partition.where.partition)

    # books

    def books(self, stuck: list[str]) -> Books:
        books = Books(stuck=stuck, unexpected=list(self.unexpected))
        books.unexpected += [a.detail for a in self.world.alarms if "unexpected" in a.detail]
        seen: Counter[str] = Counter()
        order: dict[str, list[str]] = {}
        for topic in ("a", "b"):
            for partition in self.broker.readable(topic):
                for envelope in partition:
                    if envelope.id is None:
                        books.phantom.append(f"an empty record in {topic}")
                        continue
                    seen[envelope.id] += 1
                    if envelope.key is not None:
                        order.setdefault(envelope.key, []).append(envelope.id)
        changes = [change for tables in self.tables for change in tables.business]
        wanted = {message for _, message in changes}
        books.lost = sorted(wanted - set(seen))
        books.phantom += sorted(set(seen) - wanted)
        books.doubled = sorted(m for m, count in seen.items() if count > 1)
        books.published = sum(seen.values())
        for key, ids in order.items():
            if [m for row, m in changes if row == key and m in ids] != ids:
                books.disordered.append(f"{key}: {ids}")
        return books


def run_schedule(seed: int, chances: Chances | None = None, actions: int = 45) -> Books:
    """A storm, then calm, then the books."""
    schedule = Schedule(seed, chances or Chances())
    for _ in range(actions):
        schedule.act()
    schedule.calm()
    return schedule.books(schedule.settle())
