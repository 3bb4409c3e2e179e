"""`txbus status`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.cli.conftest import App, Invoke
from tests.integration.cli.halves import write_half
from tests.integration.cli.test_run import place

DEAD = """
@bus.on(placed, scope="audit", database=None)
def audit(p: Placed) -> None:
    raise GiveUp("no audit")
"""


@pytest.fixture
def shop(app: App, invoke: Invoke) -> App:
    """The application with its tables made."""
    assert invoke("schema", "create", app.name).code == 0
    return app


def status(app: App, invoke: Invoke, code: int = 0) -> Any:
    done = invoke("status", app.name, "--json")
    assert done.code == code, done.err
    return json.loads(done.out)


def lag(found: Any, group: str) -> int:
    return sum(row["lag"] or 0 for row in found["groups"] if row["group"] == group)


def test_groups_are_shown_with_their_lag(shop: App, invoke: Invoke, script: Invoke) -> None:
    """Each handler's group and the relay's, a row for each partition; the lag goes when they run."""
    place(shop, *range(6))
    found = status(shop, invoke)
    rows = [(row["group"], row["topic"], row["partition"]) for row in found["groups"]]
    assert rows == [
        *(("shop.count", "placed", p) for p in range(2)),
        *(("txbus.relay.shop", "txbus.half.shop", p) for p in range(2)),
    ]
    assert script("run", shop.name, "--until-idle", "0.4").code == 0
    found = status(shop, invoke)
    assert lag(found, "shop.count") == 0
    assert sum(row["committed"] or 0 for row in found["groups"] if row["group"] == "shop.count") == 6


def test_undecided_and_parked_halves_are_apart(shop: App, invoke: Invoke) -> None:
    """Undecided ones with their age, parked ones with their reason; neither fails the command."""
    write_half(shop, "tx-a", age_s=300)
    write_half(shop, "tx-b", number=2, parked="why not")
    found = status(shop, invoke)
    assert [half["tx_id"] for half in found["undecided"]] == ["tx-a"]
    assert 300 <= found["undecided"][0]["age_s"] < 900
    assert [(half["tx_id"], half["reason"]) for half in found["parked"]] == [("tx-b", "why not")]


def test_dead_letters_are_counted_where_they_are_kept(app: App, invoke: Invoke, script: Invoke) -> None:
    """In the handler's database by scope, and in a topic for a handler without one."""
    source = (app.folder / f"{app.module}.py").read_text().replace("import Bus, Topic", "import Bus, GiveUp, Topic")
    source = source.replace("    connection.execute(effects", "    raise GiveUp('no')\n    connection.execute(effects")
    app.write(source + DEAD)
    assert invoke("schema", "create", app.name).code == 0
    place(app, 1, 2, 3)
    assert script("run", app.name, "--until-idle", "0.5", "--log-level", "error").code == 0
    found = status(app, invoke)
    assert [(row["kept_in"], row["scope"], row["count"]) for row in found["dead_letters"]] == [
        ("database shop", "count", 3),
        ("topic placed.dead.shop", "audit", 3),
    ]
    assert "topic placed.dead.shop" in invoke("status", app.name).out


def test_the_inbox_horizon_and_changed_settings_are_shown(shop: App, invoke: Invoke) -> None:
    """The horizon is computed from retry schedule, lease and replay reach; what differs from a
    default is among the settings."""
    place(shop, 1)
    found = status(shop, invoke)
    assert found["inbox_horizon_s"] > 7 * 86_400
    assert found["settings"]["poll_s"] == 0.1
    assert found["settings"]["lease_s"] == 10.0
    table = invoke("status", shop.name).out
    assert "inbox horizon (computed)" in table and "default 0.5" in table


def test_it_takes_no_part(shop: App, invoke: Invoke) -> None:
    """Nothing is published, no topic is created, no partition is owned by whoever looks."""
    before = status(shop, invoke, code=1)
    assert any("topic 'placed' does not exist yet" in text for text in before["problems"])
    assert status(shop, invoke, code=1)["problems"] == before["problems"]
    place(shop, 1)
    found = status(shop, invoke)
    assert [row["end"] for row in found["groups"] if row["group"] == "shop.count"] == [0, 0]
    assert {row["owner"] for row in found["groups"]} == {None}


def test_what_is_away_is_named_and_the_rest_is_shown(shop: App, invoke: Invoke) -> None:
    """A database that cannot be reached does not hide the broker; exit code 1."""
    place(shop, 1)
    source = (shop.folder / f"{shop.module}.py").read_text()
    source = source.replace("/shop.db", "/no/such/shop.db").replace("effects.metadata.create_all(engine)", "")
    (shop.folder / f"{shop.module}_away.py").write_text(source)
    done = invoke("status", f"{shop.module}_away:bus", "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert found["databases"][0]["state"].startswith("StoreUnavailable")
    assert len(found["groups"]) == 4


def test_tables_that_are_missing_are_a_problem(app: App, invoke: Invoke) -> None:
    """The command that makes them is in the row of the database."""
    found = status(app, invoke, code=1)
    assert "txbus schema create" in found["databases"][0]["state"]
