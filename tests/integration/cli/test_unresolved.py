"""`txbus unresolved list|resolve|audit`."""

from __future__ import annotations

import json
import sqlite3
import time

import pytest

from tests.integration.cli.conftest import App, Invoke
from tests.integration.cli.halves import ledger, write_damaged, write_half, write_ledger, write_wide_half
from tests.integration.cli.test_run import PATIENCE_S, running
from txbus import Outcome


@pytest.fixture
def shop(app: App, invoke: Invoke) -> App:
    """The application with its tables made."""
    assert invoke("schema", "create", app.name).code == 0
    return app


def listed(app: App, invoke: Invoke) -> dict[str, dict[str, object]]:
    done = invoke("unresolved", "list", app.name, "--json")
    return {half["tx_id"]: half for half in json.loads(done.out)["halves"]}


def numbers(app: App, script: Invoke) -> list[int]:
    """What the handler did after relay and handlers ran until nothing was left."""
    done = script("run", app.name, "--until-idle", "0.4", "--log-level", "error")
    assert done.code == 0, done.err
    connection = sqlite3.connect(app.folder / "shop.db")
    try:
        return [number for (number,) in connection.execute("SELECT number FROM effects ORDER BY rowid")]
    finally:
        connection.close()


def test_undecided_and_parked_halves_are_listed(shop: App, invoke: Invoke) -> None:
    """With age, topics, keys, reason and the number of halves behind; looking changes nothing."""
    write_half(shop, "tx-parked", number=5, parked="too old to know", age_s=7200)
    write_half(shop, "tx-behind", number=5)
    write_half(shop, "tx-other", number=6)
    for _ in range(2):
        halves = listed(shop, invoke)
        assert set(halves) == {"tx-parked", "tx-behind", "tx-other"}
    parked = halves["tx-parked"]
    assert (parked["state"], parked["reason"], parked["behind"]) == ("parked", "too old to know", 1)
    assert 7200 <= float(str(parked["age_s"])) < 7900
    assert (parked["topics"], parked["messages"], parked["database"]) == (["placed"], 1, "shop")
    assert halves["tx-behind"]["state"] == halves["tx-other"]["state"] == "undecided"
    assert halves["tx-other"]["behind"] == 0


def test_a_parked_half_makes_the_exit_code_1(shop: App, invoke: Invoke) -> None:
    """An operator is needed for a parked one only."""
    assert invoke("unresolved", "list", shop.name).code == 0
    write_half(shop, "tx-young")
    assert invoke("unresolved", "list", shop.name).code == 0
    write_half(shop, "tx-parked", number=2, parked="why not")
    done = invoke("unresolved", "list", shop.name)
    assert done.code == 1
    assert "tx-parked" in done.out and "why not" in done.out


def test_a_commit_goes_into_the_ledger_and_is_published(shop: App, invoke: Invoke, script: Invoke) -> None:
    """The operator's word on a parked half: its message and those behind it arrive, in order."""
    write_half(shop, "tx-parked", number=5, parked="too old to know")
    done = invoke("unresolved", "resolve", shop.name, "tx-parked", "--commit", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["asked"], told["stands"], told["attempt"]) == ("committed", "committed", 1)
    assert ledger(shop, "tx-parked") == {1: Outcome.COMMITTED}
    assert numbers(shop, script) == [5]
    assert listed(shop, invoke) == {}


def test_a_rollback_forgets_the_messages(shop: App, invoke: Invoke, script: Invoke) -> None:
    """Nothing of it is published, and what waited behind it is freed."""
    write_half(shop, "tx-parked", number=5, parked="too old to know")
    write_ledger(shop, "tx-behind", Outcome.COMMITTED)
    write_half(shop, "tx-behind", number=5)
    assert invoke("unresolved", "resolve", shop.name, "tx-parked", "--rollback").code == 0
    assert ledger(shop, "tx-parked") == {1: Outcome.ROLLED_BACK}
    assert numbers(shop, script) == [5]
    assert listed(shop, invoke) == {}


def test_a_ledger_that_says_otherwise_wins_and_is_shown(shop: App, invoke: Invoke, script: Invoke) -> None:
    """The row stands, the log is told what stands, and the exit code is 1."""
    write_ledger(shop, "tx-known", Outcome.COMMITTED)
    write_half(shop, "tx-known", number=9, parked="too old to know")
    done = invoke("unresolved", "resolve", shop.name, "tx-known", "--rollback")
    assert done.code == 1
    assert "was committed already" in done.out and "not rolled_back" in done.out
    assert ledger(shop, "tx-known") == {1: Outcome.COMMITTED}
    assert numbers(shop, script) == [9]


def test_a_released_key_lets_later_halves_pass(shop: App, invoke: Invoke) -> None:
    """The half stays parked; the halves behind it are published before it."""
    write_half(shop, "tx-parked", number=5, parked="why not")
    write_ledger(shop, "tx-behind", Outcome.COMMITTED)
    write_half(shop, "tx-behind", number=5)
    done = invoke("unresolved", "resolve", shop.name, "tx-parked", "--release-key")
    assert done.code == 0, done.err
    assert "no longer holds its keys" in done.out
    assert ledger(shop, "tx-parked") == {}
    deadline_s = time.monotonic() + PATIENCE_S
    with running(shop, "relay", shop.name):
        while "tx-behind" in listed(shop, invoke):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert [(h["tx_id"], h["behind"]) for h in listed(shop, invoke).values()] == [("tx-parked", 0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tx-a"], "--commit, --rollback or --release-key"),
        (["tx-a", "--commit", "--rollback"], "exclude each other"),
        (["tx-nobody", "--commit"], "no unresolved half of tx 'tx-nobody'"),
        (["tx-a", "--commit", "--attempt", "3"], "attempt 3 of tx 'tx-a' is not unresolved; these are: 1, 2"),
        (["tx-a", "--commit"], "has unresolved attempts 1, 2: name one with --attempt"),
        (["tx-b", "--release-key"], "is not parked"),
        (["tx-foreign", "--rollback"], "belongs to ledger elsewhere"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_writes_nothing(
    shop: App, invoke: Invoke, arguments: list[str], said: str
) -> None:
    """Exit code 2, and neither ledger nor half log has a word of it."""
    write_half(shop, "tx-a", attempt=1)
    write_half(shop, "tx-a", attempt=2)
    write_half(shop, "tx-b")
    write_half(shop, "tx-foreign", ledger_id="elsewhere")
    before = listed(shop, invoke)
    done = invoke("unresolved", "resolve", shop.name, *arguments)
    assert done.code == 2
    assert said in done.err
    assert {name: half["state"] for name, half in listed(shop, invoke).items()} == {
        name: half["state"] for name, half in before.items()
    }
    assert ledger(shop, arguments[0]) == {}


def test_one_attempt_of_several_is_settled(shop: App, invoke: Invoke) -> None:
    """The other one stays as it is."""
    write_half(shop, "tx-a", attempt=1)
    write_half(shop, "tx-a", attempt=2)
    assert invoke("unresolved", "resolve", shop.name, "tx-a", "--attempt", "1", "--rollback").code == 0
    assert ledger(shop, "tx-a") == {1: Outcome.ROLLED_BACK}


def test_a_half_of_a_ledger_that_is_gone_can_be_settled_on_demand(shop: App, invoke: Invoke) -> None:
    """After a restored backup nobody else can: with --foreign the database of that name decides."""
    write_half(shop, "tx-foreign", ledger_id="elsewhere")
    assert invoke("unresolved", "resolve", shop.name, "tx-foreign", "--rollback", "--foreign").code == 0
    assert ledger(shop, "tx-foreign") == {1: Outcome.ROLLED_BACK}


def test_a_half_in_several_partitions_is_settled_in_all_of_them(shop: App, invoke: Invoke, script: Invoke) -> None:
    """Each of its parts gets the operator's word, and all its messages are published."""
    partitions = write_wide_half(shop, "tx-wide")
    assert partitions == {0, 1}
    done = invoke("unresolved", "resolve", shop.name, "tx-wide", "--commit", "--json")
    assert (done.code, set(json.loads(done.out)["partitions"])) == (0, partitions)
    assert sorted(numbers(shop, script)) == list(range(20))
    assert listed(shop, invoke) == {}


def test_a_damaged_record_hides_no_other(shop: App, invoke: Invoke) -> None:
    """It is named on stderr and skipped, as the relay does."""
    write_damaged(shop)
    write_half(shop, "tx-a", number=1)
    write_half(shop, "tx-b", number=2)
    done = invoke("unresolved", "list", shop.name, "--json")
    assert "txbus.half.shop/0 at 0 skipped" in done.err
    assert {half["tx_id"] for half in json.loads(done.out)["halves"]} == {"tx-a", "tx-b"}


def test_an_open_local_transaction_is_not_overruled(shop: App, invoke: Invoke) -> None:
    """While its database is locked the operator's word changes nothing, and the exit code is 1."""
    write_half(shop, "tx-open")
    connection = sqlite3.connect(shop.folder / "shop.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = invoke("unresolved", "resolve", shop.name, "tx-open", "--rollback")
    finally:
        connection.execute("ROLLBACK")
        connection.close()
    assert done.code == 1
    assert ledger(shop, "tx-open") == {}
    assert listed(shop, invoke)["tx-open"]["state"] == "undecided"


def test_audit_finds_what_was_committed_and_never_published(shop: App, invoke: Invoke) -> None:
    """Rows that are old enough, committed, with messages and without confirmation; exit code 1."""
    write_ledger(shop, "tx-lost", Outcome.COMMITTED, age_s=600, messages=3)
    write_ledger(shop, "tx-young", Outcome.COMMITTED, age_s=1)
    write_ledger(shop, "tx-silent", Outcome.COMMITTED, age_s=600, messages=0)
    write_ledger(shop, "tx-undone", Outcome.ROLLED_BACK, age_s=600)
    done = invoke("unresolved", "audit", shop.name, "--json")
    (row,) = json.loads(done.out)["unconfirmed"]
    assert done.code == 1
    assert (row["tx_id"], row["messages"], row["database"]) == ("tx-lost", 3, "shop")
    assert "tx-lost" in invoke("unresolved", "audit", shop.name).out
    done = invoke("unresolved", "audit", shop.name, "--older-than", "1000", "--json")
    assert (done.code, json.loads(done.out)["unconfirmed"]) == (0, [])


def test_audit_needs_no_broker(shop: App, invoke: Invoke) -> None:
    """The ledgers alone answer it."""
    source = (shop.folder / f"{shop.module}.py").read_text()
    (shop.folder / f"{shop.module}_away.py").write_text(
        source.replace(f"embedded://{shop.folder}/bus.db", "embedded:///proc/no/such/bus.db")
    )
    assert invoke("unresolved", "audit", f"{shop.module}_away:bus").code == 0
