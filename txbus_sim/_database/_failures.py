"""The errors that a simulated database raises, as Python's driver would."""

from __future__ import annotations

import sqlite3
from typing import TypeVar

from txbus_sim._sites import application_line
from txbus_sim.errors import NotModelled

__all__ = ["ConnectionDropped", "dropped", "full", "locked", "refuse", "unreachable"]

E = TypeVar("E", bound=sqlite3.Error)


class ConnectionDropped(sqlite3.OperationalError):
    """The connection to a database broke. SQLAlchemy recognises it as a disconnect."""


def dropped(when: str) -> ConnectionDropped:
    return _coded(ConnectionDropped(f"the connection to the database broke {when}"), 10, "SQLITE_IOERR")


def locked() -> sqlite3.OperationalError:
    """What SQLite says to who did not get a lock in time. Nothing was done."""
    return _coded(sqlite3.OperationalError("database is locked"), 5, "SQLITE_BUSY")


def full() -> sqlite3.OperationalError:
    return _coded(sqlite3.OperationalError("database or disk is full"), 13, "SQLITE_FULL")


def unreachable() -> sqlite3.OperationalError:
    return _coded(sqlite3.OperationalError("unable to open database file"), 14, "SQLITE_CANTOPEN")


def refuse(what: str, instead: str) -> NotModelled:
    """To be raised for what is not modelled: what, where, and what to do."""
    return NotModelled(f"{what} is not simulated (at {application_line() or 'a line of a library'}): {instead}")


def _coded(error: E, code: int, name: str) -> E:
    error.sqlite_errorcode, error.sqlite_errorname = code, name
    return error
