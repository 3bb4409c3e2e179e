"""Looks at a bus's broker and databases without taking part: nothing is created, nothing is joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from txbus._bus import Bus
from txbus.spi import Backend
from txbus.stores.contract import Database

__all__ = ["Look", "looking"]


@dataclass(frozen=True, slots=True)
class Look:
    """A bus's open backend and its databases, for one command."""

    bus: Bus
    backend: Backend
    databases: Mapping[str, Database]


@contextmanager
def looking(bus: Bus) -> Iterator[Look]:
    """Reach the broker, and let go of everything at the end.

    The databases are reached when they are asked, so that one that is away hides nothing else.
    Raises BackendError if the broker cannot be reached.
    """
    databases = bus.make_databases()
    try:
        backend = bus.make_backend()
        try:
            backend.open()
            yield Look(bus, backend, databases)
        finally:
            backend.close()
    finally:
        for database in databases.values():
            database.close()
