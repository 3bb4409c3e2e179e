"""Files of a simulated process: those of the simulated directory go to its model, real ones are read only.

The model is ``world.services["files"]``, where a run has one.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from typing import Any, Protocol

from greenlet import getcurrent

from txbus_sim._interpose._patches import Patches
from txbus_sim._interpose._place import refuse
from txbus_sim._world import Process, Strand

__all__ = ["FileModel", "patch_files"]

_INSTEAD = "write files in the simulated directory only (sim.directory)"
_ONE_PATH = ("mkdir", "rmdir", "unlink", "remove", "truncate", "chmod", "chown", "utime", "mkfifo", "mknod")
_TWO_PATHS = ("rename", "replace", "link", "symlink")
_LOOKING = ("listdir", "scandir", "stat", "lstat", "access", "readlink", "statvfs")
_DESCRIPTORS = (
    *("write", "read", "close", "fsync", "fdatasync", "fstat", "ftruncate", "lseek", "pread", "pwrite"),
    *("readv", "writev", "fchmod", "dup", "isatty", "fdopen"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class FileModel(Protocol):
    """The simulated directory of a run, as processes reach it."""

    def owns(self, path: str) -> bool:
        """Whether a path (absolute, or relative to the real working directory) is inside of it."""
        ...

    def owns_descriptor(self, descriptor: int) -> bool:
        """Whether a file descriptor is one that it gave out."""
        ...

    def call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """``open`` (the builtin), ``os.open``, ``os.rename`` …, with the arguments of the original."""
        ...


def patch_files(patches: Patches) -> None:
    patches.function(builtins.open, _open)
    patches.function(os.open, _os_open)
    for names, call in (
        (_ONE_PATH, _changing(1)),
        (_TWO_PATHS, _changing(2)),
        (_LOOKING, _looking),
        (_DESCRIPTORS, _describing),
    ):
        for name in names:
            original = getattr(os, name, None)
            if original is None:
                continue  # not on this system
            if type(original) is type(_open):
                patches.code(original, call(name))
            else:
                patches.function(original, call(name))


def _model(process: Process) -> FileModel | None:
    model: FileModel | None = process.world.services.get("files")
    return model


def _owned(model: FileModel | None, place: object) -> bool:
    """Whether a path or descriptor belongs to the simulated directory."""
    if model is None:
        return False
    if isinstance(place, int):
        return model.owns_descriptor(place)
    if isinstance(place, (str, bytes, os.PathLike)):
        return model.owns(os.fsdecode(place))
    return False


def _open(original: Callable[..., Any], file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(file, mode, *args, **kwargs)
    model = _model(strand.process)
    if model is not None and _owned(model, file):
        return model.call("open", file, mode, *args, **kwargs)
    writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    if writes and not isinstance(file, int) and file != os.devnull:
        refuse(f"writing {file!r}", _INSTEAD)
    return original(file, mode, *args, **kwargs)


def _os_open(original: Callable[..., int], path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(path, flags, *args, **kwargs)
    model = _model(strand.process)
    if model is not None and _owned(model, path):
        return model.call("os.open", path, flags, *args, **kwargs)
    if flags & _WRITING and path != os.devnull:
        refuse(f"writing {path!r}", _INSTEAD)
    return original(path, flags, *args, **kwargs)


def _changing(paths: int) -> Callable[[str], Callable[..., Any]]:
    def of(name: str) -> Callable[..., Any]:
        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            strand = getcurrent()
            if type(strand) is not Strand:
                return original(*args, **kwargs)
            model = _model(strand.process)
            places = [*args[:paths], *(kwargs[word] for word in ("path", "src", "dst") if word in kwargs)]
            if model is not None and any(_owned(model, place) for place in places):
                return model.call(f"os.{name}", *args, **kwargs)
            return refuse(f"os.{name} of {', '.join(map(repr, places))}", _INSTEAD)

        return call

    return of


def _looking(name: str) -> Callable[..., Any]:
    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        strand = getcurrent()
        if type(strand) is Strand:
            model = _model(strand.process)
            if model is not None and _owned(model, args[0] if args else kwargs.get("path")):
                return model.call(f"os.{name}", *args, **kwargs)
        return original(*args, **kwargs)

    return call


def _describing(name: str) -> Callable[..., Any]:
    def call(original: Callable[..., Any], descriptor: Any, *args: Any, **kwargs: Any) -> Any:
        strand = getcurrent()
        if type(strand) is Strand:
            model = _model(strand.process)
            if model is not None and _owned(model, descriptor):
                return model.call(f"os.{name}", descriptor, *args, **kwargs)
        return original(descriptor, *args, **kwargs)

    return call
