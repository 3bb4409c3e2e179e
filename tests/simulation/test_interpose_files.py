"""A process reads real files and writes none; those of the simulated directory are the model's."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.interpose_runs import Run, error, result
from txbus_sim import _interpose
from txbus_sim.errors import NotModelled


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


@pytest.fixture
def real(tmp_path: Path) -> Path:
    file = tmp_path / "real.txt"
    file.write_text("as it was")
    return file


WRITES: dict[str, Callable[[Path], Any]] = {
    "open w": lambda path: open(path, "w").close(),
    "open a": lambda path: open(path, "a").close(),
    "open x": lambda path: open(path.with_suffix(".new"), mode="x").close(),
    "open r+": lambda path: open(path, "r+b").close(),
    "os.open": lambda path: os.open(path, os.O_WRONLY),
    "os.open create": lambda path: os.open(path.with_suffix(".new"), os.O_CREAT),
    "Path.write_text": lambda path: path.write_text("x"),
    "Path.touch": lambda path: path.with_suffix(".new").touch(),
    "mkdir": lambda path: os.mkdir(path.parent / "folder"),
    "makedirs": lambda path: os.makedirs(path.parent / "a" / "b"),
    "Path.mkdir": lambda path: (path.parent / "folder").mkdir(),
    "rename": lambda path: os.rename(path, path.with_suffix(".new")),
    "replace": lambda path: os.replace(src=path, dst=path.with_suffix(".new")),
    "unlink": lambda path: path.unlink(),
    "remove": lambda path: os.remove(path),
    "rmdir": lambda path: os.rmdir(path.parent),
    "link": lambda path: os.link(path, path.with_suffix(".new")),
    "symlink": lambda path: os.symlink(path, path.with_suffix(".new")),
    "truncate": lambda path: os.truncate(path, 0),
    "chmod": lambda path: os.chmod(path, 0o600),
    "utime": lambda path: os.utime(path),
    "copy": lambda path: shutil.copy(path, path.with_suffix(".new")),
    "mkstemp": lambda path: tempfile.mkstemp(dir=path.parent),
}


@pytest.mark.parametrize("how", WRITES)
def test_writing_a_real_file_is_refused(how: str, real: Path) -> None:
    """In every way, with the path and what to do; nothing has happened to the file."""
    found = error(lambda: WRITES[how](real))
    assert isinstance(found, NotModelled)
    assert "simulated directory" in str(found) and str(real.parent) in str(found)
    assert os.listdir(real.parent) == ["real.txt"] and real.read_text() == "as it was"


def test_reading_a_real_file_is_allowed(real: Path) -> None:
    """Templates and modules need it."""

    def main() -> list[Any]:
        with open(real) as file:
            text = file.read()
        descriptor = os.open(real, os.O_RDONLY)
        raw = os.read(descriptor, 2)
        os.close(descriptor)
        return [text, raw, real.read_bytes(), os.listdir(real.parent), real.exists(), real.stat().st_size]

    assert result(main) == ["as it was", b"as", b"as it was", ["real.txt"], True, 9]


def test_the_null_device_and_open_descriptors_may_be_written() -> None:
    """They are no files."""

    def main() -> int:
        with open(os.devnull, "w") as file:
            print("x", file=file)
        return os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, b"")

    assert result(main) == 0


def test_outside_of_processes_files_are_written(tmp_path: Path) -> None:
    """While the simulation is installed."""
    (tmp_path / "a").write_text("x")
    os.rename(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    os.makedirs(tmp_path / "folder" / "inner")
    shutil.rmtree(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["b"]
    assert os.open in os.supports_dir_fd and os.stat in os.supports_follow_symlinks


class Recording:
    """A model that owns a folder and the descriptors from 1,000,000, and notes what it is asked for."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def owns(self, path: str) -> bool:
        return path.startswith(self.folder)

    def owns_descriptor(self, descriptor: int) -> bool:
        return descriptor >= 1_000_000

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((name, args))
        return 1_000_000 if name == "os.open" else name


def test_the_simulated_directory_is_the_models() -> None:
    """Every call with a path or descriptor of it goes to the model with its arguments, and to nobody else."""
    made = Run()
    model = Recording("/simulated/")
    made.world.services["files"] = model
    found: list[Any] = []

    def main() -> None:
        path = Path("/simulated/a")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        calls: list[Callable[[], Any]] = [
            lambda: open(path, "w"),  # noqa: SIM115
            lambda: os.write(descriptor, b"x"),
            lambda: os.fsync(descriptor),
            lambda: os.close(descriptor),
            lambda: os.rename("/simulated/a", b"/simulated/b"),
            lambda: os.listdir("/simulated/"),
            lambda: os.stat(path),
            lambda: os.unlink(path),
            lambda: os.mkdir("/simulated/c"),
            lambda: os.fdopen(descriptor, "w"),
        ]
        found.extend(call() for call in calls)

    made(main=main)
    assert [name for name, _ in model.calls] == ["os.open", *found]
    assert found[:4] == ["open", "os.write", "os.fsync", "os.close"]
    assert model.calls[5] == ("os.rename", ("/simulated/a", b"/simulated/b"))
