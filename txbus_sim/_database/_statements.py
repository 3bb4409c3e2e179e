"""What a SQL statement does, read from its text: the verb and the table that its label names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache

__all__ = ["Statement", "Verb", "read"]


class Verb(Enum):
    """The kinds of statements that are told apart. The value is its word in a label."""

    SELECT = "select"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    DDL = "ddl"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    PRAGMA = "pragma"
    OTHER = "statement"

    @property
    def writes(self) -> bool:
        return self in (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.DDL)


@dataclass(frozen=True, slots=True)
class Statement:
    """``sql``: the text to run, in which the present time comes from the simulation. ``label``: what
    the point is called, without the database's name."""

    verb: Verb
    table: str
    sql: str
    begins_writing: bool = False

    def label(self, database: str) -> str:
        return f"sql.{self.verb.value}:{database}{'.' + self.table if self.table else ''}"


_SKIPPED = re.compile(r"(?:\s+|--[^\n]*\n?|/\*.*?\*/)+", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
_NAME = r"""["'`\[]?(?:main["'`\]]?\.["'`\[]?)?(?P<table>[A-Za-z_][A-Za-z0-9_$]*)"""
_TABLES = {
    Verb.INSERT: re.compile(rf"\bINTO\s+{_NAME}", re.IGNORECASE),
    Verb.UPDATE: re.compile(rf"\bUPDATE\s+(?:OR\s+[A-Z]+\s+)?{_NAME}", re.IGNORECASE),
    Verb.DELETE: re.compile(rf"\bFROM\s+{_NAME}", re.IGNORECASE),
    Verb.SELECT: re.compile(rf"\bFROM\s+{_NAME}", re.IGNORECASE),
}
_VERBS = {
    "SELECT": Verb.SELECT,
    "VALUES": Verb.SELECT,
    "INSERT": Verb.INSERT,
    "REPLACE": Verb.INSERT,
    "UPDATE": Verb.UPDATE,
    "DELETE": Verb.DELETE,
    "CREATE": Verb.DDL,
    "DROP": Verb.DDL,
    "ALTER": Verb.DDL,
    "BEGIN": Verb.BEGIN,
    "COMMIT": Verb.COMMIT,
    "END": Verb.COMMIT,
    "ROLLBACK": Verb.ROLLBACK,
    "SAVEPOINT": Verb.SAVEPOINT,
    "RELEASE": Verb.SAVEPOINT,
    "PRAGMA": Verb.PRAGMA,
}
_WITH_VERB = re.compile(r"\)\s*(SELECT|INSERT|REPLACE|UPDATE|DELETE)\b", re.IGNORECASE)
_NOW = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\])"""
    r"""|(?P<default>\bDEFAULT\s+)?\bCURRENT_(?P<kind>TIMESTAMP|DATE|TIME)\b""",
    re.IGNORECASE,
)
_FUNCTIONS = {"TIMESTAMP": "datetime", "DATE": "date", "TIME": "time"}


@cache
def read(sql: str) -> Statement:
    """Read a statement. Kept for each text: applications run few different ones."""
    begun = _SKIPPED.match(sql)
    start = begun.end() if begun else 0
    first = _WORD.match(sql, start)
    word = first.group().upper() if first else ""
    verb = _VERBS.get(word, Verb.OTHER)
    if word == "WITH":
        found = _WITH_VERB.search(sql)
        verb = _VERBS[found.group(1).upper()] if found else Verb.SELECT
    if verb is Verb.ROLLBACK and re.search(r"\bTO\b", sql, re.IGNORECASE):
        verb = Verb.SAVEPOINT
    pattern = _TABLES.get(verb)
    named = pattern.search(sql, start) if pattern else None
    exclusive = verb is Verb.BEGIN and re.search(r"\b(IMMEDIATE|EXCLUSIVE)\b", sql, re.IGNORECASE)
    return Statement(verb, named["table"] if named else "", _NOW.sub(_in_virtual_time, sql), bool(exclusive))


def _in_virtual_time(found: re.Match[str]) -> str:
    """SQLite's keywords for the present cannot be overridden; its functions can."""
    if found["quoted"] is not None:
        return found.group()
    call = f"{_FUNCTIONS[found['kind'].upper()]}('now')"
    return f"{found['default']}({call})" if found["default"] else call
