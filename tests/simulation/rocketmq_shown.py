"""Which tests show which behaviours of the RocketMQ dialect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["SHOWN", "shows"]

F = TypeVar("F", bound=Callable[..., object])
SHOWN: dict[str, list[str]] = {}


def shows(*behaviours: str) -> Callable[[F], F]:
    """This test fails if the dialect does not behave so."""

    def note(test: F) -> F:
        for id in behaviours:
            SHOWN.setdefault(id, []).append(test.__name__)
        return test

    return note
