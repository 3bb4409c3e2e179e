"""The store's plugin recognises Engines without importing SQLAlchemy."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, make_url

from txbus._system import system_ports
from txbus.errors import ConfigurationError
from txbus.stores._sql_errors import shown
from txbus.stores.contract import StorePlugin
from txbus.stores.plugin import plugin
from txbus.stores.sql import SqlDatabase


def test_engine_is_recognised() -> None:
    """An Engine becomes a SqlDatabase under the name it was given; nothing else does."""
    assert isinstance(plugin, StorePlugin)
    engine = create_engine("sqlite:///nowhere.db")
    database = plugin.adapt("shop", engine, system_ports(), lambda event: None)
    assert isinstance(database, SqlDatabase) and database.name == "shop" and database.engine is engine
    optioned = engine.execution_options(logging_token="shop")
    assert plugin.adapt("shop", optioned, system_ports(), lambda event: None) is not None
    for other in ("sqlite:///x.db", None, engine.url, engine.pool, engine.dialect):
        assert plugin.adapt("shop", other, system_ports(), lambda event: None) is None


def test_unknown_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Engine of a database that the store does not know is refused by name, not passed over."""
    engine = create_engine("sqlite:///nowhere.db")
    monkeypatch.setattr(engine.dialect, "name", "oracle")
    with pytest.raises(ConfigurationError, match="'oracle'"):
        plugin.adapt("shop", engine, system_ports(), lambda event: None)


def test_plugin_does_not_import_sqlalchemy() -> None:
    """In a fresh interpreter the plugin answers for other objects without loading SQLAlchemy."""
    code = (
        "import sys; from txbus.stores.plugin import plugin; from txbus._system import system_ports\n"
        "assert plugin.adapt('x', object(), system_ports(), print) is None\n"
        "assert not [m for m in sys.modules if m.partition('.')[0] in ('sqlalchemy', 'sqlite3')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_namesake_is_not_recognised() -> None:
    """An object that only looks like an Engine is none."""
    double = SimpleNamespace(dialect=SimpleNamespace(name="sqlite"), connect=lambda: None)
    assert plugin.adapt("shop", double, system_ports(), lambda event: None) is None


def test_secrets_are_not_shown() -> None:
    """Neither the password nor the options of an Engine's URL are in repr or messages."""
    url = make_url("postgresql+psycopg://shop:secret@db.example/shop?password=hidden")
    engine = create_engine("sqlite:///nowhere.db")
    engine.url = url
    for text in (shown(engine), repr(SqlDatabase("shop", engine, system_ports(), lambda event: None))):
        assert "secret" not in text and "hidden" not in text and "db.example/shop" in text
