"""An application in a folder of its own, and the command line over it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from txbus import Bus
from txbus.cli._app import make_app
from txbus.cli._loading import load_bus

SOURCE = """
import pydantic
import sqlalchemy
from txbus import Bus, Topic

class Placed(pydantic.BaseModel):
    number: int

placed = Topic("placed", Placed, key=lambda p: str(p.number), partitions=2)
engine = sqlalchemy.create_engine("sqlite:///{folder}/shop.db")
effects = sqlalchemy.Table(
    "effects", sqlalchemy.MetaData(), sqlalchemy.Column("number", sqlalchemy.Integer, nullable=False)
)
bus = Bus(
    "embedded://{folder}/bus.db?sync=normal", service="shop", databases={{"shop": engine}},
    half_partitions=2, poll_s=0.1, check_after_s=0.2, check_interval_s=0.1, confirm_interval_s=0.1,
)

@bus.on(placed, scope="count", database="shop")
def count(p: Placed, connection: sqlalchemy.Connection) -> None:
    connection.execute(effects.insert().values(number=p.number))

effects.metadata.create_all(engine)
"""
TXBUS = Path(sysconfig.get_path("scripts")) / "txbus"
_numbers = itertools.count()


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class App:
    """A module in a folder: ``name`` is APP for the command line."""

    folder: Path
    module: str

    @property
    def name(self) -> str:
        return f"{self.module}:bus"

    def bus(self) -> Bus:
        return load_bus(self.name)

    def write(self, source: str) -> None:
        (self.folder / f"{self.module}.py").write_text(source)


Invoke = Callable[..., Result]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """A small application whose module has a name that no other test uses; the current folder is its."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = App(tmp_path, f"shop_{next(_numbers)}")
    made.write(SOURCE.format(folder=tmp_path))
    return made


@pytest.fixture
def invoke() -> Invoke:
    """Run the command line in this process."""

    def run(*arguments: str) -> Result:
        done = CliRunner().invoke(make_app(), list(arguments))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Result(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def script(tmp_path: Path) -> Invoke:
    """Run the installed ``txbus`` script in a process of its own, in the temporary folder."""

    def run(*arguments: str, **environment: str) -> Result:
        done = subprocess.run(
            [str(TXBUS), *arguments],
            cwd=tmp_path,
            env={**clean_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the installed script and leave it running."""
    return subprocess.Popen(
        [str(TXBUS), *arguments],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of a bus."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TXBUS_")}


def python(script: str, *path: Path) -> Result:
    """Run a script in a fresh interpreter with folders in front of its path."""
    prelude = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + script], env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    return Result(done.returncode, done.stdout, done.stderr)
