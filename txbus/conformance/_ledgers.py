"""The ledger of a store: the row is the fence, and its answer is the same for ever."""

from __future__ import annotations

from txbus._halves import HalfId
from txbus.conformance._harness import PromiseBroken
from txbus.conformance._stage import require
from txbus.conformance._stores import StoreStage, store_case
from txbus.errors import AlreadyCommitted, StoreBusy, Superseded, TxbusError
from txbus.spi import Outcome
from txbus.stores.contract import CommitResult, Database, LedgerRow, LocalTransaction


def _id(stage: StoreStage, attempt: int = 1) -> HalfId:
    return HalfId(stage.harness.unique("tx"), attempt)


def _row(stage: StoreStage, id: HalfId, messages: int = 1, created_s: float | None = None) -> LedgerRow:
    now_s = stage.now_s() if created_s is None else created_s
    return LedgerRow(id, Outcome.COMMITTED, stage.database.name, messages, now_s)


def _written(stage: StoreStage, id: HalfId) -> LocalTransaction:
    """An open local transaction with an effect and the ledger row of this id."""
    transaction = stage.begin()
    stage.harness.write(transaction, str(id))
    transaction.insert_ledger(_row(stage, id))
    return transaction


def _committed(stage: StoreStage, id: HalfId, messages: int = 1, created_s: float | None = None) -> None:
    transaction = stage.begin()
    transaction.insert_ledger(_row(stage, id, messages, created_s))
    result = transaction.commit()
    require(result is CommitResult.COMMITTED, f"commit answered {result}: {transaction.commit_error}")


def _settle(stage: StoreStage, *ids: HalfId, client: Database | None = None) -> dict[HalfId, Outcome]:
    database = client or stage.database
    return dict(database.settle(ids, stage.now_s(), stage.harness.busy_s))


def _refused(transaction: LocalTransaction, row: LedgerRow, error: type[TxbusError]) -> None:
    try:
        transaction.insert_ledger(row)
    except error:
        return
    raise PromiseBroken(f"the row {row.id} was inserted instead of {error.__name__}")


@store_case(property="create_schema may be repeated, from several clients; verify then finds nothing wrong")
def schema_is_created_once(stage: StoreStage) -> None:
    for database in (stage.client(), stage.client()):
        database.create_schema()
        require(not database.verify(), f"just created, verify says {list(database.verify())}")


@store_case(property="the ledger's identity is in the database: every client reads the same one")
def identity_is_stored(stage: StoreStage) -> None:
    found = {stage.client().identity() for _ in range(3)}
    require(len(found) == 1 and "" not in found, f"three clients read {found}")


@store_case(property="commit makes the ledger row and the application's effect durable together")
def row_and_effect_commit_together(stage: StoreStage) -> None:
    id = _id(stage)
    result = _written(stage, id).commit()
    require(result is CommitResult.COMMITTED, f"commit answered {result}")
    require(str(id) in stage.harness.effects(), "the effect is missing")
    rows = stage.client().look([id])
    require(id in rows and rows[id].outcome is Outcome.COMMITTED, f"another client reads {rows}")


@store_case(property="rollback leaves neither the ledger row nor the effect, and may be repeated")
def rollback_leaves_neither(stage: StoreStage) -> None:
    id = _id(stage)
    transaction = _written(stage, id)
    transaction.rollback()
    transaction.rollback()
    require(str(id) not in stage.harness.effects(), "the effect of a rolled-back local transaction is there")
    require(not stage.database.look([id]), "the row of a rolled-back local transaction is there")


@store_case(property="a row is kept as it was written: database, messages, time")
def row_is_kept_as_written(stage: StoreStage) -> None:
    id = _id(stage)
    _committed(stage, id, messages=7, created_s=1234.5)
    wanted = LedgerRow(id, Outcome.COMMITTED, stage.database.name, 7, 1234.5)
    got = stage.client().look([id]).get(id)
    require(got == wanted, f"wrote {wanted}, read {got}")


@store_case(property="settle fences a missing row: ROLLED_BACK, and its late local transaction is Superseded")
def missing_row_is_fenced(stage: StoreStage) -> None:
    id = _id(stage)
    late = stage.begin()
    answer = _settle(stage, id, client=stage.client())
    require(answer == {id: Outcome.ROLLED_BACK}, f"a missing row is {answer}")
    _refused(late, _row(stage, id), Superseded)
    late.rollback()
    require(_settle(stage, id) == {id: Outcome.ROLLED_BACK}, "the answer changed")


@store_case(property="settle answers COMMITTED for a committed row, every time and to every client")
def committed_row_is_committed(stage: StoreStage) -> None:
    id = _id(stage)
    _committed(stage, id)
    for _ in range(2):
        answer = _settle(stage, id, client=stage.client())
        require(answer == {id: Outcome.COMMITTED}, f"a committed row is {answer}")


@store_case(property="settle gives no answer for an open transaction's row; afterwards its outcome")
def open_row_is_not_answered(stage: StoreStage) -> None:
    for commit, outcome in ((True, Outcome.COMMITTED), (False, Outcome.ROLLED_BACK)):
        id, other = _id(stage), stage.client()
        transaction = _written(stage, id)
        answer = _settle(stage, id, client=other)
        require(id not in answer, f"an open row was answered: {answer}")
        if commit:
            transaction.commit()
        else:
            transaction.rollback()
        answer = _settle(stage, id, client=other)
        require(answer == {id: outcome}, f"ended as {outcome}, settled as {answer}")
        require((str(id) in stage.harness.effects()) is commit, "effect and answer differ")


@store_case(property="one settle answers many ids, each for itself")
def many_are_settled(stage: StoreStage) -> None:
    committed, missing = [_id(stage) for _ in range(5)], [_id(stage) for _ in range(5)]
    for id in committed:
        _committed(stage, id)
    answer = _settle(stage, *committed, *missing)
    wanted = dict.fromkeys(committed, Outcome.COMMITTED) | dict.fromkeys(missing, Outcome.ROLLED_BACK)
    require(answer == wanted, f"expected {wanted}, got {answer}")
    require(_settle(stage, *missing, *committed) == wanted, "the answers changed")
    require(_settle(stage) == {}, "no question, yet an answer")


@store_case(property="attempts of one local transaction are settled apart from each other")
def attempts_are_apart(stage: StoreStage) -> None:
    first = _id(stage)
    second = HalfId(first.tx_id, 2)
    require(_settle(stage, first) == {first: Outcome.ROLLED_BACK}, "attempt 1 is not fenced")
    _committed(stage, second)
    wanted = {first: Outcome.ROLLED_BACK, second: Outcome.COMMITTED}
    require(_settle(stage, first, second) == wanted, f"got {_settle(stage, first, second)}")
    rows = [(row.id.attempt, row.outcome) for row in stage.database.attempts_of(first.tx_id)]
    require(rows == [(1, Outcome.ROLLED_BACK), (2, Outcome.COMMITTED)], f"attempts_of says {rows}")


@store_case(property="a second row of the same id is Superseded, and nothing of its transaction is written")
def second_row_is_superseded(stage: StoreStage) -> None:
    id = _id(stage)
    _committed(stage, id)
    again, effect = stage.begin(), stage.harness.unique("again")
    stage.harness.write(again, effect)
    _refused(again, _row(stage, id), Superseded)
    again.rollback()
    require(effect not in stage.harness.effects(), "the effect of the second attempt is there")


@store_case(property="look fences nothing: the local transaction can still insert its row")
def look_does_not_fence(stage: StoreStage) -> None:
    id = _id(stage)
    require(not stage.database.look([id]), "a row that nobody wrote")
    require(not stage.database.attempts_of(id.tx_id), "an attempt that nobody made")
    _committed(stage, id)


@store_case(property="ids that differ in case, or in a trailing blank, are different ids")
def ids_are_exact(stage: StoreStage) -> None:
    base = stage.harness.unique("tx")
    ids = [HalfId(f"{base}a", 1), HalfId(f"{base}A", 1), HalfId(f"{base}a ", 1)]
    _committed(stage, ids[0])
    answer = _settle(stage, *ids)
    outcomes = [answer.get(id) for id in ids]
    wanted = [Outcome.COMMITTED, Outcome.ROLLED_BACK, Outcome.ROLLED_BACK]
    require(outcomes == wanted, f"only the first was committed: {answer}")


# reserving the next attempt


@store_case(property="reserve settles every attempt before the one it gives, which can be written")
def reserve_settles_what_came_before(stage: StoreStage) -> None:
    tx_id, late = _id(stage).tx_id, stage.begin()
    number = stage.client().reserve(tx_id, stage.now_s(), stage.harness.busy_s)
    earlier = [HalfId(tx_id, attempt) for attempt in range(1, number)]
    rows = stage.database.look(earlier)
    require(all(rows[id].outcome is Outcome.ROLLED_BACK for id in earlier), f"attempt {number} after {rows}")
    require(any(row.reserved for row in rows.values()) or number == 1, f"none is marked reserved: {rows}")
    for id in earlier[:1]:
        _refused(late, _row(stage, id), Superseded)
    late.rollback()
    _committed(stage, HalfId(tx_id, number))


@store_case(property="two callers never reserve the same attempt, and the later one fences the earlier")
def reservations_differ(stage: StoreStage) -> None:
    tx_id = _id(stage).tx_id
    numbers = [stage.client().reserve(tx_id, stage.now_s(), stage.harness.busy_s) for _ in range(3)]
    require(numbers == sorted(set(numbers)), f"reserved one after the other: {numbers}")
    late = stage.begin()
    _refused(late, _row(stage, HalfId(tx_id, numbers[1])), Superseded)


@store_case(property="reserve after a committed attempt is AlreadyCommitted")
def reserve_after_commit(stage: StoreStage) -> None:
    id = _id(stage)
    _committed(stage, id)
    try:
        number = stage.database.reserve(id.tx_id, stage.now_s(), stage.harness.busy_s)
    except AlreadyCommitted:
        return
    raise PromiseBroken(f"attempt {number} was given although attempt 1 committed")


@store_case(property="reserve is StoreBusy while an attempt is open")
def reserve_while_open(stage: StoreStage) -> None:
    id = _id(stage)
    transaction = _written(stage, id)
    try:
        number = stage.client().reserve(id.tx_id, stage.now_s(), stage.harness.busy_s)
    except StoreBusy:
        transaction.commit()
        return
    raise PromiseBroken(f"attempt {number} was given although attempt 1 is open")


# evidence and purge


@store_case(property="unconfirmed lists committed rows with messages until they are confirmed, and no others")
def unconfirmed_until_confirmed(stage: StoreStage) -> None:
    published, open_, empty, fenced = (_id(stage) for _ in range(4))
    for id, messages in ((published, 2), (open_, 1), (empty, 0)):
        _committed(stage, id, messages, created_s=50.0)
    _settle(stage, fenced)
    for _ in range(2):
        stage.database.confirm([published, fenced], stage.now_s())
    listed = {row.id for row in stage.client().unconfirmed(60.0, 10_000)}
    mine = listed & {published, open_, empty, fenced}
    require(mine == {open_}, f"only {open_} waits, listed are {mine}")
    require(open_ not in {row.id for row in stage.database.unconfirmed(40.0, 10_000)}, "listed too early")


@store_case(property="a row is confirmed once all its parts are, whoever tells them, and told twice or not")
def parts_are_confirmed_together(stage: StoreStage) -> None:
    id = _id(stage)
    _committed(stage, id, messages=3, created_s=50.0)
    for parts in ([2], [0], [2], [0, 2], [1]):
        listed = {row.id for row in stage.database.unconfirmed(60.0, 10_000)}
        require(id in listed, f"confirmed before part {parts} was told")
        stage.client().confirm_parts([(id, part, 3) for part in parts], stage.now_s())
    listed = {row.id for row in stage.database.unconfirmed(60.0, 10_000)}
    require(id not in listed, "all three parts were told, and it still waits")


@store_case(property="purge deletes old settled rows, keeps young ones and those with unconfirmed messages")
def purge_keeps_what_is_needed(stage: StoreStage) -> None:
    confirmed, waiting, young = (_id(stage) for _ in range(3))
    _committed(stage, confirmed, created_s=50.0)
    _committed(stage, waiting, created_s=50.0)
    _committed(stage, young, created_s=5000.0)
    stage.database.confirm([confirmed, young], 60.0)
    while stage.database.purge_ledger(100.0, 10):
        pass
    left = set(stage.client().look([confirmed, waiting, young]))
    require(left == {waiting, young}, f"{waiting} and {young} must stay, left are {left}")


@store_case(property="purge deletes at most its limit, and says how many")
def purge_is_limited(stage: StoreStage) -> None:
    while stage.database.purge_ledger(100.0, 100):
        pass
    for _ in range(5):
        _committed(stage, _id(stage), messages=0, created_s=50.0)
    counts = [stage.database.purge_ledger(100.0, 2) for _ in range(4)]
    require(counts == [2, 2, 1, 0], f"5 rows in batches of 2: {counts}")


# what an operator decides, and which keys are held


@store_case(property="decide writes an operator's outcome where there is none, and yields to one that stands")
def operator_decides_what_is_open(stage: StoreStage) -> None:
    open_, committed, fenced = (_id(stage) for _ in range(3))
    _committed(stage, committed)
    _settle(stage, fenced)
    for id, wanted, stands in (
        (open_, Outcome.COMMITTED, Outcome.COMMITTED),
        (open_, Outcome.ROLLED_BACK, Outcome.COMMITTED),
        (committed, Outcome.ROLLED_BACK, Outcome.COMMITTED),
        (fenced, Outcome.COMMITTED, Outcome.ROLLED_BACK),
    ):
        row = LedgerRow(id, wanted, stage.database.name, 1, stage.now_s())
        got = stage.client().decide(row)
        require(got is stands, f"decided {wanted} for {id}: {stands} stands, the answer is {got}")
        require(_settle(stage, id) == {id: stands}, f"settle says {_settle(stage, id)}, decide said {got}")


@store_case(property="replace_held replaces one partition's held keys and leaves those of the others")
def held_keys_are_replaced(stage: StoreStage) -> None:
    topic = stage.harness.unique("topic")
    first, second, third = ((topic, key) for key in ("a", "A", "ключ "))
    stage.database.replace_held(1, {first: 2, second: 1})
    stage.client().replace_held(2, {third: 5})
    stage.database.replace_held(1, {first: 3})
    mine = {held for held in stage.client().held_keys() if held[0] == topic}
    require(mine == {first, third}, f"held are {mine}")
    for partition in (1, 2):
        stage.database.replace_held(partition, {})
    require(not any(held[0] == topic for held in stage.database.held_keys()), "released, yet held")


# the service's databases


def _join(stage: StoreStage, service: str, *names: str) -> frozenset[str]:
    """Join in a client of its own, as another process does."""
    return stage.client().join_service(service, set(names))


@store_case(property="join_service returns every name ever noted for the service, whichever client noted it")
def service_names_add_up(stage: StoreStage) -> None:
    service = stage.harness.unique("service")
    wanted: set[str] = set()
    for names in (["shop"], ["stock", "shop"], ["Shop"], []):
        wanted.update(names)
        got = _join(stage, service, *names)
        require(got == wanted, f"joined with {names}: noted so far are {sorted(wanted)}, the answer is {sorted(got)}")


@store_case(property="join_service may be repeated: names that are noted already change nothing")
def joining_again_changes_nothing(stage: StoreStage) -> None:
    service = stage.harness.unique("service")
    _join(stage, service, "shop", "stock")
    for names in (["stock"], ["shop"], ["shop", "stock"]):
        got = _join(stage, service, *names)
        require(got == {"shop", "stock"}, f"joined again with {names}, the answer is {sorted(got)}")


@store_case(property="the databases of another service are not this one's")
def services_are_apart(stage: StoreStage) -> None:
    base = stage.harness.unique("service")
    for service, name in ((base, "shop"), (f"{base}-b", "stock")):
        for _ in range(2):
            got = _join(stage, service, name)
            require(got == {name}, f"service {service!r} has only {name!r}, the answer is {sorted(got)}")
