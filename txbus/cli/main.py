"""The ``txbus`` command's entry point: light, so that it can say what is missing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = {"typer", "rich"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on ``argv`` (default: the process's arguments); returns the exit code.

    0 done, 1 failed or found something, 2 wrong usage or configuration, 130 interrupted.
    """
    try:
        from txbus.cli._app import make_app
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in _NEEDED:
            raise
        print(f'txbus: the command line needs {exc.name}: pip install "txbus[cli]"', file=sys.stderr)
        return 2
    try:
        make_app()(args=list(argv) if argv is not None else None, prog_name="txbus")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    return 0
