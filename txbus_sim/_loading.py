"""Finds a scenario by the words that a shell gives."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from txbus.errors import ConfigurationError

__all__ = ["load"]


def load(name: str) -> Callable[..., object]:
    """The function ``package.module:name``, looked for in the working directory first."""
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path:
        raise ConfigurationError(
            f"{name!r} names no function: write package.module:name, such as tests.test_shop:test_shop"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module_name}.".startswith(f"{exc.name}."):
            raise ConfigurationError(f"{name!r}: there is no module {exc.name} (from {os.getcwd()})") from exc
        raise
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{name!r}: {module_name} has no {part!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(f"{name!r} is no function")
    return found
