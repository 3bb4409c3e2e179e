"""Which line of the application is running: the innermost frame that is neither a library's nor ours."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from types import CodeType

import txbus

__all__ = ["application_line"]

_PATHS = sysconfig.get_paths()
_LIBRARIES = tuple(
    os.path.realpath(folder) + os.sep
    for folder in (
        _PATHS["stdlib"],
        _PATHS["platstdlib"],
        _PATHS["purelib"],
        _PATHS["platlib"],
        os.path.dirname(txbus.__file__),
        os.path.dirname(__file__),
    )
)


@cache
def is_library(filename: str) -> bool:
    """Whether a source file belongs to Python, an installed distribution or txbus itself."""
    return filename.startswith("<") or os.path.realpath(filename).startswith(_LIBRARIES)


@cache
def _is_library_code(code: CodeType) -> bool:
    return is_library(code.co_filename)


def application_line() -> str:
    """``file:line`` of the application's innermost frame, "" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        if not _is_library_code(frame.f_code):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
