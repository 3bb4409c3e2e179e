"""Savepoints of a connection, told to the core as they begin and end."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from txbus.stores.contract import LocalTransaction, SavepointHooks

__all__ = ["SavepointStack"]

_OUTSIDE = "savepoint 0"


class SavepointStack:
    """The open savepoints of one local transaction. SQLAlchemy names a savepoint only after its
    event, and again when it ends; so they are counted here, and found by their depth."""

    def __init__(self, transaction: LocalTransaction, hooks: SavepointHooks) -> None:
        self._transaction = transaction
        self._hooks = hooks
        self._open: list[str] = []
        self._count = 0
        self._outside = False

    def start(self, connection: Connection) -> None:
        """Savepoints that are open by now hold everything that is sent from now on."""
        if connection.in_nested_transaction():
            self._outside = True
            self._hooks.savepoint(self._transaction, _OUTSIDE)

    def began(self) -> None:
        self._count += 1
        name = f"savepoint {self._count}"
        self._open.append(name)
        self._hooks.savepoint(self._transaction, name)

    def rolled_back(self, connection: Connection, sql_name: str) -> None:
        depth = _depth(connection, sql_name)
        if depth < len(self._open):
            target = self._open[-1 - depth]
            del self._open[-1 - depth :]
            self._hooks.savepoint_rolled_back(self._transaction, target)
        elif self._outside:
            self._open.clear()
            self._hooks.savepoint_rolled_back(self._transaction, _OUTSIDE)
            # There may be another one around it.
            self._hooks.savepoint(self._transaction, _OUTSIDE)

    def released(self, connection: Connection, sql_name: str) -> None:
        """Releasing one releases those inside of it."""
        ended = min(_depth(connection, sql_name) + 1, len(self._open))
        for _ in range(ended):
            self._hooks.savepoint_released(self._transaction, self._open.pop())


def _depth(connection: Connection, sql_name: str) -> int:
    """How many savepoints are open inside of this one."""
    nested: Any = connection.get_nested_transaction()
    depth = 0
    while nested is not None and nested._savepoint != sql_name:
        nested = nested._previous_nested
        depth += 1
    assert nested is not None, f"{sql_name} is no open savepoint of {connection!r}"
    return depth
