"""Making, printing and checking the store's tables."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, inspect, select
from sqlalchemy.schema import CreateIndex, CreateTable

from txbus.errors import ConfigurationError, SchemaMismatch
from txbus.stores._sql_gate import Gate
from txbus.stores._sql_tables import META, METADATA, SCHEMA_VERSION

__all__ = ["create_schema", "differences", "identity", "schema_sql"]

_REPAIR = "run `txbus schema create APP`"
_SCHEMA_WAIT_S = 60.0


def create_schema(gate: Gate) -> None:
    """Create what is missing, under a lock that lets one process at a time do it."""
    refuse_unshareable(gate)
    flavour = gate.flavour
    insert_meta = flavour.insert_ignore(META)
    with gate.write("creating the schema", _SCHEMA_WAIT_S) as connection:
        flavour.schema_lock(connection)
        try:
            METADATA.create_all(connection)
            insert_meta.run(connection, {"id": 1, "version": SCHEMA_VERSION, "identity": gate.entropy.unique_id()})
        finally:
            flavour.schema_unlock(connection)


def schema_sql(gate: Gate) -> str:
    """The DDL, and an INSERT whose identity is made by the database that executes it."""
    dialect = gate.engine.dialect
    parts = []
    for table in METADATA.sorted_tables:
        parts.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        for index in sorted(table.indexes, key=str):
            parts.append(str(CreateIndex(index).compile(dialect=dialect)).strip())
    parts.append(
        f"INSERT INTO {META.name} (id, version, identity)\nVALUES (1, {SCHEMA_VERSION}, {gate.flavour.identity_sql})"
    )
    return "".join(f"{part};\n" for part in parts)


def identity(gate: Gate) -> str:
    """The ledger's identity; SchemaMismatch if the tables are not there."""
    with gate.read("reading the ledger's identity") as connection:
        row = connection.execute(select(META.c.identity).where(META.c.id == 1)).first()
    if row is None:
        raise SchemaMismatch(f"database {gate.name!r}: {META.name} has no row: {_REPAIR}")
    return str(row.identity)


def differences(gate: Gate) -> Sequence[str]:
    """What is missing or differs, a sentence each. ConfigurationError for an unusable engine."""
    refuse_unshareable(gate)
    with gate.read("checking the schema") as connection:
        found = inspect(connection)
        names = set(found.get_table_names())
        problems = []
        for table in METADATA.sorted_tables:
            if table.name not in names:
                problems.append(f"database {gate.name!r}: table {table.name} is missing: {_REPAIR}")
                continue
            columns = {column["name"] for column in found.get_columns(table.name)}
            for column in table.columns:
                if column.name not in columns:
                    problems.append(
                        f"database {gate.name!r}: table {table.name} has no column {column.name}: rename or "
                        f"drop the table if it is not in use, then {_REPAIR}"
                    )
        if META.name in names and not any(META.name in problem for problem in problems):
            problems += _version_differences(gate, connection)
    return problems


def refuse_unshareable(gate: Gate) -> None:
    reason = gate.flavour.unshareable(gate.engine)
    if reason is not None:
        raise ConfigurationError(f"database {gate.name!r}: {reason}")


def _version_differences(gate: Gate, connection: Connection) -> list[str]:
    row = connection.execute(select(META).where(META.c.id == 1)).first()
    if row is None:
        return [f"database {gate.name!r}: {META.name} has no row with the ledger's identity: {_REPAIR}"]
    if row.version > SCHEMA_VERSION:
        return [
            f"database {gate.name!r}: its tables are of version {row.version}, this txbus knows "
            f"{SCHEMA_VERSION}: install the txbus that made them; `txbus schema create APP` cannot go back"
        ]
    if row.version < SCHEMA_VERSION:
        return [
            f"database {gate.name!r}: its tables are of version {row.version}, this txbus needs "
            f"{SCHEMA_VERSION}: {_REPAIR}"
        ]
    return []
