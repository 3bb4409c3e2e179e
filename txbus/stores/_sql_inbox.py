"""The receiving side's rows from outside of a handler's transaction: inbox, attempts, runs, dead letters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, tuple_, update

from txbus.stores._sql_flavour import Flavour, value
from txbus.stores._sql_gate import CHUNK, Gate
from txbus.stores._sql_tables import (
    ATTEMPTS,
    DEAD_LETTERS,
    INBOX,
    MESSAGE_ID_CHARS,
    RUNS,
    SCOPE_CHARS,
    SOURCE_CHARS,
    TOPIC_CHARS,
)
from txbus.stores._sql_text import fits, headers_from, headers_json, stored_key, stored_text, text_from
from txbus.stores.contract import AttemptRow, DeadLetter

__all__ = ["Inbox", "InboxStatements", "letter_values", "message_key"]

ERROR_CHARS_MAX = 4000


def message_key(scope: str, source: str, message_id: str) -> dict[str, Any]:
    """The key columns of a message in a scope."""
    return {
        "scope": stored_key(scope, SCOPE_CHARS),
        "source": stored_key(source, SOURCE_CHARS),
        "message_id": stored_key(message_id, MESSAGE_ID_CHARS),
    }


def letter_values(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as the values of its columns."""
    parts = (letter.scope, SCOPE_CHARS), (letter.source, SOURCE_CHARS), (letter.message_id, MESSAGE_ID_CHARS)
    whole = all(fits(part, chars) for part, chars in parts)
    return message_key(letter.scope, letter.source, letter.message_id) | {
        "identity_json": None if whole else json.dumps([letter.scope, letter.source, letter.message_id]),
        "topic": stored_key(letter.topic, TOPIC_CHARS),
        "partition_no": letter.partition,
        "offset_no": letter.offset,
        "message_key": None if letter.key is None else stored_text(letter.key),
        "headers": headers_json(letter.headers),
        "payload": letter.payload,
        "attempts": letter.attempts,
        "error_text": stored_text(letter.error),
        "dead_s": letter.dead_s,
    }


class InboxStatements:
    """What both a handler's transaction and the store's own ones execute. Compiled once."""

    def __init__(self, flavour: Flavour) -> None:
        self.take = flavour.insert_ignore(INBOX)
        self.bury = flavour.insert_ignore(DEAD_LETTERS)
        this_message = _same(ATTEMPTS, "scope", "source", "message_id")
        self.forget = flavour.compile(delete(ATTEMPTS).where(*this_message))


class Inbox:
    """The methods of `Database` that concern the receiving side. Thread-safe."""

    def __init__(self, gate: Gate, statements: InboxStatements) -> None:
        self._gate = gate
        self._statements = statements
        flavour = gate.flavour
        a, r = ATTEMPTS.c, RUNS.c
        self._handled = flavour.compile(select(INBOX.c.handled_s).where(*_same(INBOX, "scope", "source", "message_id")))
        this_message = _same(ATTEMPTS, "scope", "source", "message_id")
        self._attempt = flavour.compile(select(a.attempts, a.due_s, a.error_text).where(*this_message))
        self._count = flavour.compile(
            update(ATTEMPTS)
            .where(*this_message)
            .values(attempts=value("attempts"), due_s=value("due_s"), error_text=value("error_text"))
        )
        self._first_attempt = flavour.insert_ignore(ATTEMPTS)
        this_partition = _same(RUNS, "scope", "topic", "partition_no")
        self._runs = flavour.compile(select(r.below).where(*this_partition))
        self._lock_runs = flavour.compile(select(r.below).where(*this_partition).with_for_update())
        self._raise_runs = flavour.compile(
            update(RUNS).where(*this_partition, r.below < value("below")).values(below=value("below"))
        )
        self._first_runs = flavour.insert_ignore(RUNS)

    def handled(self, scope: str, source: str, message_id: str) -> bool:
        """See `Database.handled`."""
        with self._gate.read("reading the inbox") as connection:
            return self._handled.row(connection, message_key(scope, source, message_id)) is not None

    def purge(self, handled_before_s: float, limit: int) -> int:
        """See `Database.purge_inbox`."""
        c = INBOX.c
        key = tuple_(c.scope, c.source, c.message_id)
        old = select(c.scope, c.source, c.message_id).where(c.handled_s < handled_before_s)
        with self._gate.write("purging the inbox") as connection:
            keys = sorted(tuple(row) for row in connection.execute(old.order_by(c.handled_s).limit(limit)))
            step = CHUNK // 2  # three variables a key
            return sum(
                connection.execute(delete(INBOX).where(key.in_(keys[start : start + step]))).rowcount
                for start in range(0, len(keys), step)
            )

    def attempt(self, scope: str, source: str, message_id: str) -> AttemptRow | None:
        """See `Database.attempt`."""
        with self._gate.read("reading attempts") as connection:
            row = self._attempt.row(connection, message_key(scope, source, message_id))
        if row is None:
            return None
        return AttemptRow(scope, source, message_id, row[0], row[1], text_from(row[2]))

    def record_attempt(self, row: AttemptRow) -> None:
        """See `Database.record_attempt`."""
        values = message_key(row.scope, row.source, row.message_id) | {
            "attempts": row.attempts,
            "due_s": row.due_s,
            "error_text": stored_text(row.error[:ERROR_CHARS_MAX]),
        }
        with self._gate.write("counting an attempt") as connection:
            if self._count.run(connection, values) == 0 and self._first_attempt.run(connection, values) == 0:
                self._count.run(connection, values)  # another process inserted it in between

    def runs_started(self, scope: str, topic: str, partition: int) -> int | None:
        """See `Database.runs_started`."""
        with self._gate.read("reading started runs") as connection:
            row = self._runs.row(connection, _partition_key(scope, topic, partition))
        return None if row is None else int(row[0])

    def start_runs(self, scope: str, topic: str, partition: int, below: int) -> int | None:
        """See `Database.start_runs`."""
        values = _partition_key(scope, topic, partition) | {"below": below}
        with self._gate.write("noting started runs") as connection:
            row = self._lock_runs.row(connection, values)
            if row is None:
                if self._first_runs.run(connection, values):
                    return None
                # Another process inserted it in between and has committed; its row can be locked now.
                row = self._lock_runs.row(connection, values)
            self._raise_runs.run(connection, values)
            return int(row[0])

    def record_dead_letter(self, letter: DeadLetter) -> None:
        """See `Database.record_dead_letter`."""
        key = message_key(letter.scope, letter.source, letter.message_id)
        with self._gate.write("keeping a dead letter") as connection:
            # The inbox row first: a handler that has the message in hand holds it, and is waited for.
            # If it has handled the message in the end, a letter would offer its effect once more.
            if self._statements.take.run(connection, key | {"handled_s": letter.dead_s}) == 1:
                self._statements.bury.run(connection, letter_values(letter))
            self._statements.forget.run(connection, key)

    def dead_letters(self, scope: str | None, limit: int) -> Sequence[DeadLetter]:
        """See `Database.dead_letters`."""
        c = DEAD_LETTERS.c
        query = select(DEAD_LETTERS).order_by(c.dead_s, c.scope, c.source, c.message_id).limit(limit)
        if scope is not None:
            query = query.where(c.scope == stored_key(scope, SCOPE_CHARS))
        with self._gate.read("listing dead letters") as connection:
            return [_letter(row) for row in connection.execute(query)]

    def count_dead_letters(self) -> Mapping[str, int]:
        """See `Database.count_dead_letters`."""
        c = DEAD_LETTERS.c
        query = select(c.scope, func.count()).group_by(c.scope).order_by(c.scope)
        with self._gate.read("counting dead letters") as connection:
            return {text_from(scope): count for scope, count in connection.execute(query)}


def _letter(row: Any) -> DeadLetter:
    if row.identity_json is None:
        scope, source, message_id = text_from(row.scope), text_from(row.source), text_from(row.message_id)
    else:
        scope, source, message_id = json.loads(row.identity_json)
    return DeadLetter(
        scope=scope,
        source=source,
        message_id=message_id,
        topic=text_from(row.topic),
        partition=row.partition_no,
        offset=row.offset_no,
        key=None if row.message_key is None else text_from(row.message_key),
        headers=headers_from(row.headers),
        payload=bytes(row.payload),
        attempts=row.attempts,
        error=text_from(row.error_text),
        dead_s=row.dead_s,
    )


def _partition_key(scope: str, topic: str, partition: int) -> dict[str, Any]:
    return {
        "scope": stored_key(scope, SCOPE_CHARS),
        "topic": stored_key(topic, TOPIC_CHARS),
        "partition_no": partition,
    }


def _same(table: Any, *names: str) -> tuple[Any, ...]:
    return tuple(table.c[name] == value(name) for name in names)
