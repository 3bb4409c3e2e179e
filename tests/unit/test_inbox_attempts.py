"""Attempts survive the death of the process; one poisonous message costs its neighbours nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.unit.test_consumer_broker import PATIENCE_S, PORTS
from tests.unit.test_inbox import Order, Shop, effect, handle, run_of
from txbus._consumer_contract import Done, GiveBack, RetryAfter, Run
from txbus._inbox_attempts import Attempts
from txbus._inbox_signature import Delivery
from txbus._retry import Retry
from txbus.errors import StoreUnavailable
from txbus.stores.contract import AttemptRow
from txbus.stores.sql import SqlDatabase

MAX = 3
RETRY = Retry(max_attempts=MAX, backoff_s=(0.0, 0.0))


class Killed(BaseException):
    """The process dies here: its transaction is rolled back, nothing of its memory is left."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path / "shop.db")
    yield made
    made.engine.dispose()


class Statements:
    """Counts the calls of a database's methods that cost a commit or a query."""

    def __init__(self, database: SqlDatabase) -> None:
        self._database = database
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        if name in ("runs_started", "start_runs", "attempt", "record_attempt", "handled"):
            self.calls[name] += 1
        return getattr(self._database, name)


def one_process(shop: Shop, poison: set[int], offsets: list[int], ran: Counter[int], counted: int = 0) -> list[int]:
    """Handles what is not acknowledged, in order, until it is killed; returns what it acknowledged."""

    def function(order: Order, connection: Connection) -> None:
        ran[order.n] += 1
        if order.n in poison:
            raise Killed
        effect(order, connection)

    handler = shop.handler(function, retry=RETRY, counted=bool(counted), claim_ahead=4)
    end = max(offsets) + 1
    acked: list[int] = []
    for n in offsets:
        try:
            disposition = handle(handler, run_of(n, end=end, attempt=counted or 1))
        except Killed:
            break
        assert disposition == Done()
        acked.append(n)
    return acked


@pytest.mark.parametrize("broker_counts", [False, True])
def test_killed_in_each_run_it_runs_at_most_max_attempts_and_one_times(shop: Shop, broker_counts: bool) -> None:
    """A message that kills every process that runs it is a dead letter after max_attempts + 1 runs at most,
    and every other message has its effect once."""
    ran: Counter[int] = Counter()
    left = list(range(6))
    for life in range(1, 20):
        for n in one_process(shop, {2}, left, ran, life if broker_counts else 0):
            left.remove(n)
        if not left:
            break
    assert left == []
    assert MAX <= ran[2] <= MAX + 1
    assert shop.dead() == [("m2", MAX)]
    assert sorted(shop.effects()) == [0, 1, 3, 4, 5]


def test_killed_after_each_failed_run_it_is_counted_on(shop: Shop) -> None:
    """Exceptions and kills add up: the next process goes on where the last one was."""
    ran: list[int] = []

    def broken(order: Order, delivery: Delivery) -> None:
        ran.append(delivery.attempt)
        raise ValueError("broken")

    for _ in range(MAX):
        last = handle(shop.handler(broken, retry=RETRY), run_of(0))
    assert (ran, last, shop.dead()) == ([1, 2, 3], Done(), [("m0", 3)])


def test_the_dead_letter_of_a_killer_says_so(shop: Shop) -> None:
    """A message whose runs never ended has an error that says that and what was before."""
    ran: Counter[int] = Counter()
    while not one_process(shop, {0}, [0], ran):
        pass
    (letter,) = shop.database.dead_letters("reserve", 10)
    assert letter.error == "a run began whose end is not known"


class Crowd(Statements):
    """Lets whoever recorded an attempt wait a moment for others to do so too."""

    def __init__(self, database: SqlDatabase) -> None:
        super().__init__(database)
        self.changed = threading.Condition()
        self.begun: set[str] = set()
        self.most = 0

    def record_attempt(self, row: AttemptRow) -> None:
        self._database.record_attempt(row)
        with self.changed:
            self.begun.add(row.message_id)
            self.most = max(self.most, len(self.begun))
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(self.begun) > 1, 0.03)

    def end(self, n: int) -> None:
        with self.changed:
            self.begun.discard(f"m{n}")


def in_parallel(shop: Shop, poison: int, left: list[int], ran: Counter[int]) -> tuple[list[int], Crowd]:
    """A process with a worker for each message; the poisonous one kills all that have begun."""
    dead = threading.Event()
    acked: list[int] = []
    runs = {n: run_of(n, end=max(left) + 1) for n in left}

    def function(order: Order) -> None:
        ran[order.n] += 1
        if order.n == poison:
            for run in runs.values():
                run.ownership.closing = True
            dead.set()
        if dead.is_set():
            raise Killed

    crowd = Crowd(shop.database)
    handler = shop.handler(function, retry=RETRY, database=crowd)  # type: ignore[arg-type]

    def work(n: int) -> None:
        try:
            if handle(handler, runs[n]) == Done() and not dead.is_set():
                acked.append(n)
        except Killed:
            pass
        crowd.end(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in sorted(left, key=lambda n: n != poison)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return acked, crowd


def test_a_poisonous_message_does_not_use_up_the_attempts_of_its_neighbours(shop: Shop) -> None:
    """With a worker for each message, killed together again and again: only the poisonous one is dead,
    and no two messages whose last run nobody saw the end of are ever begun together."""
    ran: Counter[int] = Counter()
    left = list(range(8))
    for _ in range(40):
        acked, crowd = in_parallel(shop, 3, left, ran)
        assert crowd.most <= 1
        left = [n for n in left if n not in acked]
        if not left:
            break
    assert left == []
    assert shop.dead() == [("m3", MAX)]
    assert MAX <= ran[3] <= MAX + 1


def test_a_suspect_that_waited_is_left_to_the_next_owner_after_a_stop(shop: Shop) -> None:
    """What waited for its turn while the consumer was asked to stop does not run any more."""
    ran: Counter[int] = Counter()
    one_process(shop, {0}, [0, 1], ran)
    run = run_of(1, end=2)
    run.ownership.closing = True
    assert isinstance(handle(shop.handler(effect), run), GiveBack)
    assert shop.effects() == []


def test_the_happy_path_costs_a_marker_for_many_messages(shop: Shop) -> None:
    """Messages one by one cost no row of attempts, and a marker only once for as many as are claimed."""
    database = Statements(shop.database)
    handler = shop.handler(effect, database=database, claim_ahead=49)  # type: ignore[arg-type]
    for n in range(100):
        assert handle(handler, run_of(n)) == Done()
    assert database.calls == {"runs_started": 2, "start_runs": 2}
    assert len(shop.effects()) == 100


def test_a_batch_costs_one_marker(shop: Shop) -> None:
    """The marker is raised past everything received so far, in one commit."""
    database = Statements(shop.database)
    handler = shop.handler(effect, database=database)  # type: ignore[arg-type]
    for n in range(50):
        handle(handler, run_of(n, end=50))
    assert database.calls == {"runs_started": 1, "start_runs": 1}
    assert shop.database.runs_started("reserve", "orders", 0) == 50


def test_a_broker_that_counts_needs_no_marker(shop: Shop) -> None:
    """Where hand-overs are counted the first one is free and the second is not."""
    database = Statements(shop.database)
    handler = shop.handler(effect, database=database, counted=True)  # type: ignore[arg-type]
    handle(handler, run_of(0))
    assert database.calls == {}
    handle(handler, run_of(1, attempt=2))
    assert database.calls["record_attempt"] == 1


def test_two_processes_that_both_believe_to_own_a_partition_do_not_both_run_free(shop: Shop) -> None:
    """Both read the same marker before either raises it: only one may run the message uncounted."""
    both = threading.Barrier(2)

    class ReadTogether(SqlDatabase):
        def runs_started(self, scope: str, topic: str, partition: int) -> int | None:
            read = super().runs_started(scope, topic, partition)
            both.wait(PATIENCE_S)
            return read

    free: list[bool] = []

    def process() -> None:
        database = ReadTogether("shop", shop.engine, PORTS, shop.log)
        free.append(Attempts("reserve", database, PORTS, 64, False).free(run_of(0)))

    threads = [threading.Thread(target=process) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(free) == [False, True]


def test_what_another_process_claimed_is_counted(shop: Shop) -> None:
    """The marker is read when a partition is gained: what is below it may have been run elsewhere."""
    shop.database.start_runs("reserve", "orders", 0, 5)
    database = Statements(shop.database)
    handler = shop.handler(effect, database=database)  # type: ignore[arg-type]
    handle(handler, run_of(4))
    assert database.calls["record_attempt"] == 1
    handle(handler, run_of(5))
    assert database.calls["record_attempt"] == 1


def test_a_partition_gained_again_is_read_anew(shop: Shop) -> None:
    """What this process claimed in an earlier gain is not free in the next one."""
    database = Statements(shop.database)
    handler = shop.handler(effect, database=database, claim_ahead=10)  # type: ignore[arg-type]
    handle(handler, run_of(0, gain=1))
    handle(handler, run_of(1, gain=2))
    assert database.calls["record_attempt"] == 1
    # A straggler of the gain before finds nothing free either.
    handle(handler, run_of(2, gain=1))
    assert database.calls["record_attempt"] == 2


def test_two_owners_at_once_do_not_both_run_it_free(shop: Shop) -> None:
    """A process that does not know it lost the partition, and its successor: one of them counts."""
    databases = [Statements(shop.database), Statements(shop.database)]
    old, new = (shop.handler(effect, database=d) for d in databases)  # type: ignore[arg-type]
    handle(old, run_of(0, end=1))
    handle(new, run_of(0, end=3))
    handle(new, run_of(1, end=3))
    handle(old, run_of(1, end=2))
    assert [d.calls["record_attempt"] for d in databases] == [0, 0]
    assert databases[0].calls["handled"] == 1
    assert sorted(shop.effects()) == [0, 1]


def test_a_due_time_survives_the_process(shop: Shop) -> None:
    """A process that takes over waits until the retry is due, without a run."""

    def broken(order: Order) -> None:
        raise ValueError("later")

    retry = Retry(max_attempts=5, backoff_s=(1000.0, 1000.0), jitter=0.0)
    assert handle(shop.handler(broken, retry=retry), run_of(0)) == RetryAfter(1000.0)
    disposition = handle(shop.handler(effect, retry=retry), run_of(0))
    assert isinstance(disposition, GiveBack)
    assert 0.0 < disposition.after_s <= 1000.0
    assert shop.effects() == []


def test_a_run_that_did_not_count_is_not_recorded_twice(shop: Shop) -> None:
    """Given back after its attempt was recorded, the next run has the same number."""
    shop.database.start_runs("reserve", "orders", 0, 5)
    seen: list[int] = []

    def away(order: Order, delivery: Delivery) -> None:
        seen.append(delivery.attempt)
        raise StoreUnavailable("gone")

    handler, run = shop.handler(away), run_of(0)
    for _ in range(5):
        assert isinstance(handle(handler, run), GiveBack)
    row = shop.attempt("m0")
    assert (seen, row and row.attempts) == ([1] * 5, 1)


def test_an_attempt_that_cannot_be_recorded_is_not_run(shop: Shop) -> None:
    """What may have run before does not run while its attempt cannot be committed."""
    shop.database.start_runs("reserve", "orders", 0, 5)

    class Away(Statements):
        def record_attempt(self, row: object) -> None:
            raise StoreUnavailable("gone")

    handler = shop.handler(effect, database=Away(shop.database))  # type: ignore[arg-type]
    assert isinstance(handle(handler, run_of(0)), GiveBack)
    assert shop.effects() == []


def test_an_error_text_that_a_database_refuses_is_made_storable(shop: Shop) -> None:
    """NUL and lone surrogates in an error do not hinder counting."""

    def broken(order: Order) -> None:
        raise ValueError("a\0b\udc80")

    run: Run = run_of(0)
    assert handle(shop.handler(broken), run) == RetryAfter(0.0)
    row = shop.attempt("m0")
    assert row is not None
    assert row.error == "ValueError: a\\0b\\udc80"
