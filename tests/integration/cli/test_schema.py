"""`txbus schema create|print|verify`."""

from __future__ import annotations

import json
import sqlite3

from tests.integration.cli.conftest import App, Invoke


def test_verify_finds_missing_tables_and_create_makes_them(app: App, invoke: Invoke) -> None:
    """Exit code 1 while something is missing, 0 afterwards; create may be run again."""
    done = invoke("schema", "verify", app.name, "--json")
    assert done.code == 1
    (row,) = json.loads(done.out)["databases"]
    assert any("txbus_ledger is missing" in text for text in row["problems"])
    for _ in range(2):
        assert invoke("schema", "create", app.name).code == 0
    done = invoke("schema", "verify", app.name, "--json")
    assert (done.code, json.loads(done.out)["databases"][0]["problems"]) == (0, [])


def test_the_printed_statements_make_the_same_tables(app: App, invoke: Invoke) -> None:
    """What `print` shows can be run by hand, and `verify` finds nothing wrong afterwards."""
    printed = invoke("schema", "print", app.name)
    assert printed.code == 0
    with sqlite3.connect(app.folder / "shop.db") as connection:
        connection.executescript(printed.out)
    connection.close()
    assert invoke("schema", "verify", app.name).code == 0


def test_no_broker_is_needed(app: App, invoke: Invoke) -> None:
    """The tables can be made where the broker's file can never be."""
    source = (app.folder / f"{app.module}.py").read_text()
    app.write(source.replace(f"embedded://{app.folder}/bus.db", "embedded:///proc/no/such/bus.db"))
    assert invoke("schema", "create", app.name).code == 0
    assert not list(app.folder.glob("bus.db*"))


def test_one_database_is_chosen_by_name(app: App, invoke: Invoke) -> None:
    """An unknown name is a usage error that shows the nearest."""
    done = invoke("schema", "create", app.name, "--database", "shopp")
    assert done.code == 2
    assert "no database 'shopp'; the nearest is 'shop'" in done.err
    assert invoke("schema", "create", app.name, "--database", "shop").code == 0


def test_a_database_that_cannot_be_reached_fails_by_name(app: App, invoke: Invoke) -> None:
    """The error is in the row of its database, and the exit code is 1."""
    source = (app.folder / f"{app.module}.py").read_text()
    source = source.replace("/shop.db", "/no/such/folder/shop.db").replace("effects.metadata.create_all(engine)", "")
    app.write(source)
    done = invoke("schema", "verify", app.name, "--json")
    assert done.code == 1
    (row,) = json.loads(done.out)["databases"]
    assert row["error"].startswith("StoreUnavailable")


def test_a_bus_without_databases_is_a_usage_error(app: App, invoke: Invoke) -> None:
    """There is nothing to do, and it is said."""
    app.write("from txbus import Bus\nbus = Bus('memory://x', service='x')\n")
    done = invoke("schema", "verify", app.name)
    assert (done.code, done.out) == (2, "")
    assert "has no databases" in done.err
