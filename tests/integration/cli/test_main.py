"""The entry point: help, exit codes, plugged-in sub-commands, and what is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import txbus
from tests.integration.cli.conftest import TXBUS, Invoke, python
from tests.unit.test_registry import distribution

PLUGIN = """
import typer
from txbus.errors import BackendUnavailable, ConfigurationError
app = typer.Typer(help="Pigeons.")

@app.command()
def coo(times: int = 1):
    "Coo."
    print("coo " * times)

@app.command()
def fly(where: str):
    raise (ConfigurationError if where == "nowhere" else BackendUnavailable)(f"cannot fly to {where}")

@app.command()
def ask():
    raise KeyboardInterrupt
"""
MAIN = "from txbus.cli.main import main\nsys.exit(main({arguments!r}))"
COMMANDS = [
    ("demo",),
    ("run",),
    ("relay",),
    ("backends",),
    ("status",),
    ("unresolved",),
    ("unresolved", "list"),
    ("unresolved", "resolve"),
    ("unresolved", "audit"),
    ("schema",),
    ("schema", "create"),
    ("schema", "print"),
    ("schema", "verify"),
    ("doctor",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_s_help_has_examples_of_itself(invoke: Invoke, command: tuple[str, ...]) -> None:
    """`--help` teaches: it shows a whole line that can be typed."""
    done = invoke(*command, "--help")
    assert done.code == 0
    assert "Examples:" in done.out
    assert f"  txbus {' '.join(command)}" in done.out


def test_the_list_of_commands_is_the_one_of_this_test(invoke: Invoke) -> None:
    """A command that is added must be added to the test of help as well."""
    from txbus.cli._app import OWN_COMMANDS

    assert {command[0] for command in COMMANDS} == set(OWN_COMMANDS)
    for name in OWN_COMMANDS:
        assert name in invoke("--help").out


def test_the_version_is_shown(script: Invoke) -> None:
    """The installed script answers."""
    done = script("--version")
    assert (done.code, done.out) == (0, f"txbus {txbus.__version__}\n")


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["run"], ["run", "--workers", "0", "shop:bus"], ["run", "nothing:bus"]]
)
def test_wrong_usage_exits_with_2_and_leaves_stdout_to_results(script: Invoke, arguments: list[str]) -> None:
    """Usage and configuration errors are told by exit code 2; the text is on stderr."""
    done = script(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err
    if arguments:
        assert done.out == ""
        assert done.err


@pytest.fixture
def pigeons(tmp_path: Path) -> Path:
    """An installed distribution that adds the sub-command `pigeon`."""
    distribution(tmp_path, "pigeons", PLUGIN, "[txbus.commands]\npigeon = pigeons:app\n")
    return tmp_path


def test_a_sub_command_of_another_distribution_is_run(pigeons: Path) -> None:
    """Installing it is all it takes: it is listed in the help, and gets its options."""
    assert "Pigeons." in python(MAIN.format(arguments=["--help"]), pigeons).out
    done = python(MAIN.format(arguments=["pigeon", "coo", "--times", "2"]), pigeons)
    assert (done.code, done.out.split()) == (0, ["coo", "coo"])


@pytest.mark.parametrize(("where", "code"), [("nowhere", 2), ("rome", 1)])
def test_errors_of_a_plugged_in_command_become_exit_codes(pigeons: Path, where: str, code: int) -> None:
    """It raises the errors of txbus and needs no code of its own to report them."""
    done = python(MAIN.format(arguments=["pigeon", "fly", where]), pigeons)
    assert (done.code, done.out) == (code, "")
    assert done.err.strip().endswith(f"cannot fly to {where}")


def test_ctrl_c_exits_with_130(pigeons: Path) -> None:
    """As shells expect of a program that SIGINT ended."""
    assert python(MAIN.format(arguments=["pigeon", "ask"]), pigeons).code == 130


@pytest.mark.parametrize("name", ["doctor", "run"])
def test_a_sub_command_cannot_take_the_place_of_ours(tmp_path: Path, name: str) -> None:
    """Ours stays; doctor reports the other one."""
    distribution(tmp_path, "pigeons", PLUGIN, f"[txbus.commands]\n{name} = pigeons:app\n")
    assert "Pigeons." not in python(MAIN.format(arguments=["--help"]), tmp_path).out


@pytest.mark.parametrize("library", ["typer", "rich"])
def test_without_its_libraries_it_says_how_to_get_them(tmp_path: Path, library: str) -> None:
    """The base installation has the script but not the extra: one line, exit code 2, no traceback."""
    # A module that says it is missing, in front of the installed one: what a fresh interpreter
    # without the library raises.
    (tmp_path / f"{library}.py").write_text(f"raise ModuleNotFoundError('No module', name={library!r})\n")
    done = python(MAIN.format(arguments=["doctor"]), tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.strip() == f'txbus: the command line needs {library}: pip install "txbus[cli]"'


def test_another_missing_module_is_not_taken_for_the_extra(tmp_path: Path) -> None:
    """A defect of an installation is shown as what it is."""
    (tmp_path / "pluggy.py").write_text("raise ModuleNotFoundError('No module', name='pluggy')\n")
    assert "txbus[cli]" not in python(MAIN.format(arguments=["doctor"]), tmp_path).err


def test_the_entry_point_is_light() -> None:
    """Importing it loads neither typer nor rich, and importing txbus loads no command line."""
    done = python(
        "import txbus.cli.main, txbus\n"
        "print({'typer', 'rich', 'sqlalchemy', 'sqlite3'} & set(sys.modules))\n"
        "import subprocess\n"
    )
    assert done.out.strip() == "set()"
    done = python("import txbus, txbus.spi\ntxbus.Bus\nprint([n for n in sys.modules if n.startswith('txbus.cli')])\n")
    assert done.out.strip() == "[]"


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    """`txbus backends | head -1` ends quietly."""
    done = subprocess.run(
        ["bash", "-c", f"{TXBUS} backends | head -1"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "Backends"
    assert "Traceback" not in done.stderr
