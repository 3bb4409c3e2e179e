"""What the processes of a service tell each other: the keys that a relay holds back, and the names of
its databases."""

from __future__ import annotations

from collections.abc import Mapping, Set

from sqlalchemy import delete, select

from txbus.stores._sql_gate import Gate
from txbus.stores._sql_tables import DATABASES, HELD, KEY_CHARS, TOPIC_CHARS
from txbus.stores._sql_text import stored_key, stored_text, text_from

__all__ = ["Held"]


class Held:
    """The methods of `Database` that concern held keys and the service's databases. Thread-safe."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._insert = gate.flavour.insert_ignore(HELD)
        self._insert_name = gate.flavour.insert_ignore(DATABASES)

    def replace(self, partition: int, held: Mapping[tuple[str, str], int]) -> None:
        """See `Database.replace_held`."""
        with self._gate.write("noting held keys") as connection:
            connection.execute(delete(HELD).where(HELD.c.partition_no == partition))
            for (topic, key), waiting in sorted(held.items()):
                values = {
                    "partition_no": partition,
                    "topic": stored_key(topic, TOPIC_CHARS),
                    "message_key": stored_key(key, KEY_CHARS),
                    "key_text": stored_text(key),
                    "waiting": waiting,
                }
                self._insert.run(connection, values)

    def keys(self) -> frozenset[tuple[str, str]]:
        """See `Database.held_keys`."""
        with self._gate.read("reading held keys") as connection:
            rows = connection.execute(select(HELD.c.topic, HELD.c.key_text))
            return frozenset((text_from(topic), text_from(key)) for topic, key in rows)

    def join_service(self, service: str, names: Set[str]) -> frozenset[str]:
        """See `Database.join_service`. Writes only what is new, so that most calls take no lock."""
        find = select(DATABASES.c.database_name).where(DATABASES.c.service == service)
        with self._gate.read("reading the service's databases") as connection:
            known = {text_from(name) for name in connection.scalars(find)}
        new = names - known
        if new:
            with self._gate.write("noting the service's databases") as connection:
                for name in sorted(new):
                    values = {"service": service, "database_name": stored_text(name)}
                    self._insert_name.run(connection, values)
                # Another process may have joined since: seen here, because the writes wait for one another.
                known = {text_from(name) for name in connection.scalars(find)}
        return frozenset(known | names)
