"""Discovery of plugins: real distributions on the path of fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy

from txbus._registry import adapt_database, backends, broken, create_backend, install_command, stores
from txbus._system import system_ports
from txbus.errors import ConfigurationError
from txbus.spi import BackendURL, Capability

PLUGIN = """
from txbus.spi import Capabilities, Limits, TopicKind

class Plugin:
    schemes = ("pigeon", "dove")
    extra = {extra!r}
    def missing(self):
        return {missing!r}
    def capabilities(self, kind=TopicKind.PLAIN):
        return Capabilities(frozenset(), Limits(None, None, None, None))
    def create(self, url, ports):
        return ("created", url.location)

plugin = Plugin()
"""


def distribution(folder: Path, name: str, module: str, entry_points: str) -> None:
    """Write an installed distribution as pip leaves it: a module and its metadata."""
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))


def run(folder: Path, script: str) -> str:
    """Run a script in a fresh interpreter that sees the distributions in a folder."""
    prelude = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    prelude += "from txbus._registry import *\nfrom txbus._system import system_ports\n"
    prelude += "from txbus.errors import ConfigurationError\nfrom txbus.spi import BackendURL\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_third_party_backend_is_found_and_made_by_each_of_its_schemes(tmp_path: Path) -> None:
    """Installing a distribution is all it takes; the location goes to the plugin as written."""
    distribution(
        tmp_path,
        "pigeons",
        PLUGIN.format(extra=None, missing=None),
        "[txbus.backends]\npigeon = pigeons:plugin\n",
    )
    script = """
        assert "pigeon" in backends()
        print(create_backend(BackendURL("dove", "roof"), system_ports()))
    """
    assert run(tmp_path, script) == "('created', 'roof')"


def test_a_missing_client_library_is_named_with_the_command(tmp_path: Path) -> None:
    """A backend whose client is not installed is listed, and says what to install when it is used."""
    distribution(
        tmp_path,
        "pigeons",
        PLUGIN.format(extra="txbus-pigeons[loft]", missing="loft"),
        "[txbus.backends]\npigeon = pigeons:plugin\n",
    )
    script = """
        assert "pigeon" in backends()
        try:
            create_backend(BackendURL("pigeon", "x"), system_ports())
        except ConfigurationError as error:
            print(error)
    """
    assert run(tmp_path, script) == "pigeon:// needs loft, which is not installed: pip install txbus-pigeons[loft]"


@pytest.mark.parametrize(
    ("module", "value", "reason"),
    [
        ("raise RuntimeError('the roof is gone')", "pigeons:plugin", "RuntimeError: the roof is gone"),
        ("", "pigeons:plugin", "AttributeError"),
        ("", "hawks:plugin", "ModuleNotFoundError"),
        ("plugin = 3", "pigeons:plugin", "pigeon is a int, not a txbus.spi.BackendPlugin"),
    ],
)
def test_a_broken_plugin_is_reported_and_stops_nobody_else(
    tmp_path: Path, module: str, value: str, reason: str
) -> None:
    """Other backends are found all the same; the broken one is named in `broken` and in the error."""
    distribution(tmp_path, "pigeons", module, f"[txbus.backends]\npigeon = {value}\n")
    distribution(
        tmp_path,
        "storks",
        PLUGIN.format(extra=None, missing=None),
        "[txbus.backends]\nstork = storks:plugin\n",
    )
    script = """
        assert "stork" in backends() and "pigeon" not in backends(), backends()
        found, = [b for b in broken() if b.name == "pigeon"]
        print(found.group, found.value, found.error)
        try:
            create_backend(BackendURL("owl", "x"), system_ports())
        except ConfigurationError as error:
            assert "could not be loaded: pigeon" in str(error), error
        else:
            raise AssertionError("not refused")
    """
    assert run(tmp_path, script).startswith(f"txbus.backends {value} ")
    assert reason in run(tmp_path, script)


def test_two_distributions_of_one_name_are_broken_rather_than_chosen_by_chance(tmp_path: Path) -> None:
    """Which one would be loaded depends on the order of the path, so neither is."""
    for name in ("pigeons", "storks"):
        distribution(tmp_path, name, PLUGIN.format(extra=None, missing=None), f"[txbus.backends]\nb = {name}:plugin\n")
    script = """
        assert "b" not in backends()
        print([b.value for b in broken() if b.name == "b"])
    """
    assert run(tmp_path, script) == "['pigeons:plugin and storks:plugin']"


def test_sub_commands_of_other_distributions_are_found(tmp_path: Path) -> None:
    """A typer application registered in txbus.commands is listed by its name."""
    module = "import typer\napp = typer.Typer()\n@app.command()\ndef coo(): pass\n"
    distribution(tmp_path, "pigeons", module, "[txbus.commands]\npigeon = pigeons:app\nwrong = pigeons:coo\n")
    script = """
        print(sorted(commands()), [b.name for b in broken() if b.group == "txbus.commands"])
    """
    assert run(tmp_path, script) == "['pigeon', 'sim'] ['wrong']"


def test_the_core_s_own_plugins_are_registered_and_whole() -> None:
    """`embedded` and `sql` are found, and nothing that is installed here is broken."""
    assert "embedded" in backends()
    assert "sql" in stores()
    assert broken() == ()


def test_listing_backends_imports_no_client_library(tmp_path: Path) -> None:
    """Backends and their capabilities are listed without SQLite or SQLAlchemy."""
    script = """
        for plugin in backends().values():
            assert plugin.capabilities().native
        loaded = {"sqlite3", "sqlalchemy", "confluent_kafka", "typer", "rich"} & set(sys.modules)
        print(sorted(loaded))
    """
    assert run(tmp_path, script) == "[]"


def test_an_unknown_scheme_is_named_with_the_nearest_and_the_known() -> None:
    """A misspelt scheme shows what was probably meant."""
    with pytest.raises(ConfigurationError, match=r"embeded://.*nearest known is embedded://.*memory://"):
        create_backend(BackendURL("embeded", "/x"), system_ports())


@pytest.mark.parametrize("scheme", ["kafka", "rocketmq"])
def test_a_planned_scheme_is_said_to_be_planned(scheme: str) -> None:
    """Who reads the plan and tries its URL learns that it is not there yet."""
    if scheme in backends():
        pytest.fail(f"{scheme} is registered now: take it from the list of planned ones")
    with pytest.raises(ConfigurationError, match=f"{scheme} is planned"):
        create_backend(BackendURL(scheme, "x"), system_ports())


def test_creating_a_backend_does_no_input_or_output(tmp_path: Path) -> None:
    """A bus may be declared where its file can never be."""
    backend = create_backend(BackendURL("embedded", f"{tmp_path}/missing/bus.db"), system_ports())
    assert Capability.DURABLE_SEND in backend.capabilities()
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_adapted_under_its_name() -> None:
    """A SQLAlchemy Engine becomes a Database with the service's name for it."""
    engine = sqlalchemy.create_engine("sqlite://")
    assert adapt_database("shop", engine, system_ports(), lambda event: None).name == "shop"


def test_an_unknown_database_is_refused_without_showing_it() -> None:
    """The message has the name and the type and what to give; a URL's password is not in it."""
    with pytest.raises(ConfigurationError, match=r"databases\['shop'\] is of type str.*create_engine") as raised:
        adapt_database("shop", "postgresql://ann:secret@host/db", system_ports(), lambda event: None)
    assert "secret" not in str(raised.value)


def test_the_install_command_knows_the_extras_of_this_distribution() -> None:
    """An extra of txbus is installed as one, everything else by its name."""
    assert install_command("sql") == 'pip install "txbus[sql]"'
    assert install_command("pigeons") == "pip install pigeons"
