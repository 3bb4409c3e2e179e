"""The URL of an embedded bus."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.unit.embedded.station import Station
from txbus._system import system_ports
from txbus.embedded.options import read_options
from txbus.embedded.plugin import plugin
from txbus.errors import CapabilityMissing, NotOpen, SettingsError
from txbus.spi import BackendPlugin, BackendURL, Capability, Subscription


def url(location: str, scheme: str = "embedded", **options: str) -> BackendURL:
    return BackendURL(scheme, location, options)


def test_importing_the_plugin_loads_no_sqlite() -> None:
    """Backends can be listed without the database library."""
    code = "import sys, txbus.embedded.plugin as p; p.plugin.capabilities(); print('sqlite3' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "False"


def test_the_plugin_is_a_backend_plugin() -> None:
    """It serves both schemes and needs nothing to be installed."""
    assert isinstance(plugin, BackendPlugin)
    assert plugin.schemes == ("embedded", "memory")
    assert plugin.missing() is None and plugin.extra is None


def test_making_a_backend_does_no_io() -> None:
    """A backend of an impossible path is made, and says no before it is open."""
    backend = plugin.create(url("/nonexistent/bus.db"), system_ports())
    assert backend.name == "embedded"
    assert Capability.LOG in backend.capabilities()
    with pytest.raises(NotOpen, match="open"):
        backend.sender("g")
    backend.close()


def test_an_unknown_option_names_the_nearest() -> None:
    """A typing error is found when the backend is made."""
    with pytest.raises(SettingsError, match="'busy_timeout'.*did you mean 'busy_timeout_s'"):
        plugin.create(url("/x/bus.db", busy_timeout="5"), system_ports())
    with pytest.raises(SettingsError, match="known are sync"):
        plugin.create(url("/x/bus.db", qqqqqq="5"), system_ports())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sync", "off"),
        ("wake_poll_s", "0"),
        ("wake_poll_s", "five"),
        ("busy_timeout_s", "nan"),
        ("busy_timeout_s", "1e9"),
        ("network_fs", "yes"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: str) -> None:
    """The message has the option and the value."""
    with pytest.raises(SettingsError, match=f"{name}='{value}'"):
        read_options(url("/x/bus.db", **{name: value}))


def test_a_location_is_needed_and_percent_decoded() -> None:
    """No name, or a directory, is refused; %20 is a blank."""
    with pytest.raises(SettingsError, match="names no bus"):
        read_options(url(""))
    with pytest.raises(SettingsError, match="not the name of a file"):
        read_options(url("/var/lib/"))
    assert read_options(url("./my%20bus.db")).path == "./my bus.db"
    assert read_options(url("tests", "memory")).path is None


def test_what_is_not_declared_is_refused(file_station: Station) -> None:
    """Native half messages and tag filters raise, with what works instead."""
    with pytest.raises(CapabilityMissing, match=r"bus\.transaction"):
        file_station.backend.half_messages("g", ["t"])
    with pytest.raises(CapabilityMissing, match="TAG_FILTER"):
        file_station.backend.receiver(Subscription("g", ("t",), tags=frozenset({"a"})))
