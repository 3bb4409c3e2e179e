"""The SQL store's entry point. Importing it does not import SQLAlchemy.

Whoever gives a SQLAlchemy Engine has imported the library; so a look at the loaded modules and at
the candidate's class tells whether this store is meant.
"""

from __future__ import annotations

import sys
from typing import Any

from txbus._ports import Ports
from txbus._telemetry import Emit
from txbus.stores.contract import Database

__all__ = ["SqlStorePlugin", "plugin"]


class SqlStorePlugin:
    """Recognises SQLAlchemy Engines. Stateless; thread-safe."""

    def adapt(self, name: str, candidate: Any, ports: Ports, emit: Emit) -> Database | None:
        """A `Database` around an Engine, None for anything else.

        Does no I/O. ConfigurationError for an Engine of a database that the store does not know.
        """
        if "sqlalchemy" not in sys.modules or not _from_sqlalchemy(type(candidate)):
            return None
        from txbus.stores.sql import SqlDatabase, is_engine

        return SqlDatabase(name, candidate, ports, emit) if is_engine(candidate) else None


def _from_sqlalchemy(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == "sqlalchemy" for base in kind.__mro__)


plugin = SqlStorePlugin()
