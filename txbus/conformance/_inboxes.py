"""The receiving side of a store: inbox, attempts, started runs, dead letters."""

from __future__ import annotations

from txbus.conformance._harness import PromiseBroken
from txbus.conformance._stage import require
from txbus.conformance._stores import StoreStage, store_case
from txbus.errors import StoreBusy
from txbus.stores.contract import AttemptRow, DeadLetter

SOURCE = "/conformance"


def _take(stage: StoreStage, scope: str, message_id: str, *, commit: bool = True) -> bool:
    """Take a message in a local transaction of its own."""
    transaction = stage.begin()
    taken = transaction.insert_inbox(scope, SOURCE, message_id, stage.harness.busy_s)
    if commit:
        transaction.commit()
    else:
        transaction.rollback()
    return taken


def _letter(stage: StoreStage, scope: str, message_id: str, error: str = "boom") -> DeadLetter:
    return DeadLetter(
        scope,
        SOURCE,
        message_id,
        "orders",
        3,
        17,
        "ключ",
        {"ce_id": message_id, "naïve": "値"},
        b"\x00\xff raw",
        4,
        error,
        stage.now_s(),
    )


@store_case(property="a message is taken once for a scope, whichever client asks")
def message_is_taken_once(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    require(not stage.database.handled(scope, SOURCE, id), "handled before it came")
    require(_take(stage, scope, id), "the first was refused")
    require(not _take(stage, scope, id), "the same message was taken twice")
    require(stage.client().handled(scope, SOURCE, id), "another client does not know it")


@store_case(property="a rolled-back handler leaves the message untaken")
def rollback_gives_it_back(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    require(_take(stage, scope, id, commit=False), "the first was refused")
    require(not stage.database.handled(scope, SOURCE, id), "handled although it was rolled back")
    require(_take(stage, scope, id), "the second was refused")


@store_case(property="scopes and sources are independent, and message ids are exact")
def scopes_are_independent(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    require(_take(stage, scope, id), "the first was refused")
    require(_take(stage, f"{scope}-other", id), "another scope was refused")
    require(_take(stage, scope, id.upper()), "an id in capitals was refused")
    require(not stage.database.handled(scope, "/elsewhere", id), "another source's message is handled")


@store_case(property="effect and inbox row commit together")
def effect_and_inbox_commit_together(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    for commit in (False, True):
        transaction = stage.begin()
        transaction.insert_inbox(scope, SOURCE, id, stage.harness.busy_s)
        stage.harness.write(transaction, id)
        if commit:
            transaction.commit()
        else:
            transaction.rollback()
        both = stage.database.handled(scope, SOURCE, id), id in stage.harness.effects()
        require(both == (commit, commit), f"commit={commit}: handled, effect = {both}")


@store_case(property="a message in an open handler's hands is StoreBusy for another one")
def message_in_flight_is_busy(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    first, second = stage.begin(), stage.begin(stage.client())
    require(first.insert_inbox(scope, SOURCE, id, stage.harness.busy_s), "the first was refused")
    try:
        taken = second.insert_inbox(scope, SOURCE, id, stage.harness.busy_s)
    except StoreBusy:
        return
    raise PromiseBroken(f"the second handler was told {taken} while the first is open")


@store_case(property="purge_inbox forgets what was handled before a time, at most its limit at once")
def inbox_is_purged(stage: StoreStage) -> None:
    while stage.database.purge_inbox(stage.now_s() + 3600.0, 1000):
        pass
    scope, ids = stage.harness.unique("scope"), [stage.harness.unique("m") for _ in range(3)]
    for id in ids:
        _take(stage, scope, id)
    require(stage.database.purge_inbox(stage.now_s() - 3600.0, 1000) == 0, "purged what is younger")
    counts = [stage.database.purge_inbox(stage.now_s() + 3600.0, 2) for _ in range(3)]
    require(counts == [2, 1, 0], f"3 rows in batches of 2: {counts}")
    require(not any(stage.database.handled(scope, SOURCE, id) for id in ids), "purged, yet handled")


# attempts and started runs


@store_case(property="attempts are durable apart from any handler's transaction, and the last word counts")
def attempts_are_kept(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    require(stage.database.attempt(scope, SOURCE, id) is None, "an attempt that nobody made")
    for count in (1, 2, 3):
        row = AttemptRow(scope, SOURCE, id, count, 1000.5 + count, f"boom {count} ж")
        stage.database.record_attempt(row)
        got = stage.client().attempt(scope, SOURCE, id)
        require(got == row, f"recorded {row}, read {got}")


@store_case(property="clear_attempt forgets the attempts if its transaction commits, and only then")
def attempts_are_cleared_with_the_effect(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    stage.database.record_attempt(AttemptRow(scope, SOURCE, id, 2, 0.0, "boom"))
    for commit in (False, True):
        transaction = stage.begin()
        transaction.clear_attempt(scope, SOURCE, id)
        if commit:
            transaction.commit()
        else:
            transaction.rollback()
        left = stage.database.attempt(scope, SOURCE, id)
        require((left is None) is commit, f"commit={commit}: {left}")


@store_case(property="runs_started is None at first; start_runs only raises it and tells what it was before")
def started_runs_only_grow(stage: StoreStage) -> None:
    scope, topic = stage.harness.unique("scope"), "orders"
    require(stage.database.runs_started(scope, topic, 0) is None, "started before anything ran")
    before: int | None = None
    for below, wanted in ((5, 5), (9, 9), (7, 9), (9, 9)):
        told = stage.database.start_runs(scope, topic, 0, below)
        require(told == before, f"start_runs({below}) told {told}, it was {before}")
        before = got = stage.client().runs_started(scope, topic, 0)
        require(got == wanted, f"after start_runs({below}): {got}, not {wanted}")
    require(stage.database.runs_started(scope, topic, 1) is None, "another partition was raised too")


# dead letters


@store_case(property="a dead letter is kept as it was, raw bytes included, and counted by scope")
def dead_letter_is_kept(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    letter = _letter(stage, scope, id)
    stage.database.record_dead_letter(letter)
    got = list(stage.client().dead_letters(scope, 10))
    require(got == [letter], f"kept {letter}, read {got}")
    require(stage.database.count_dead_letters().get(scope) == 1, "it is not counted")


@store_case(property="record_dead_letter marks the message as handled and forgets its attempts")
def dead_letter_ends_the_message(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    stage.database.record_attempt(AttemptRow(scope, SOURCE, id, 4, 0.0, "boom"))
    stage.database.record_dead_letter(_letter(stage, scope, id))
    require(stage.database.handled(scope, SOURCE, id), "not handled")
    require(stage.database.attempt(scope, SOURCE, id) is None, "its attempts are still there")
    require(not _take(stage, scope, id), "it was taken again")


@store_case(property="the first dead letter of a message stays")
def first_dead_letter_stays(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    stage.database.record_dead_letter(_letter(stage, scope, id, "first"))
    stage.database.record_dead_letter(_letter(stage, scope, id, "second"))
    transaction = stage.begin()
    transaction.insert_dead_letter(_letter(stage, scope, id, "third"))
    transaction.commit()
    got = [letter.error for letter in stage.database.dead_letters(scope, 10)]
    require(got == ["first"], f"kept {got}")


@store_case(property="a dead letter written in a handler's transaction follows that transaction")
def dead_letter_in_a_transaction(stage: StoreStage) -> None:
    scope, id = stage.harness.unique("scope"), stage.harness.unique("m")
    for commit in (False, True):
        transaction = stage.begin()
        transaction.insert_dead_letter(_letter(stage, scope, id))
        if commit:
            transaction.commit()
        else:
            transaction.rollback()
        count = len(stage.database.dead_letters(scope, 10))
        require(count == commit, f"commit={commit}: {count} dead letters")


@store_case(property="dead_letters lists one scope or all of them, at most its limit")
def dead_letters_are_listed(stage: StoreStage) -> None:
    scopes = [stage.harness.unique("scope") for _ in range(2)]
    for scope in scopes:
        for _ in range(3):
            stage.database.record_dead_letter(_letter(stage, scope, stage.harness.unique("m")))
    require(len(stage.database.dead_letters(scopes[0], 10)) == 3, "a scope has 3")
    require(len(stage.database.dead_letters(scopes[0], 2)) == 2, "a limit of 2 was asked for")
    every = {letter.scope for letter in stage.database.dead_letters(None, 10_000)}
    require(set(scopes) <= every, f"all scopes: {every}")
