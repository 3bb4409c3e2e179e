"""What a SQL statement does, read from its text: its verb, and the table that its label names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

__all__ = ["Statement", "Verb", "read", "split"]


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
    RELEASE = "release"
    ROLLBACK_TO = "rollback-to"
    PRAGMA = "pragma"
    ATTACH = "attach"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Statement:
    """``name``: of the table for SELECT, INSERT, UPDATE, DELETE, of the savepoint, or of the pragma (in
    lower case); "" if there is none. ``value``: what a pragma is set to, None if it is asked."""

    verb: Verb
    name: str = ""
    value: str | None = None
    takes_lock: bool = False
    """BEGIN IMMEDIATE or EXCLUSIVE."""
    begun_by_driver: bool = False
    """Python's sqlite3 begins a local transaction before it, unless told otherwise."""
    keeps_rows: bool = False
    """``OR FAIL``: if it fails, what it had changed stays."""

    def label(self, prefix: str, database: str) -> str:
        """Such as ``sql.insert:shop.orders``: the same for every statement of this verb on this table."""
        about = f".{self.name}" if self.name and self.verb in _WITH_TABLE else ""
        return f"{prefix}.{self.verb.value}:{database}{about}"


_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))"""
    r"""|(?P<text>'(?:[^']|'')*')"""
    r"""|(?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])"""
    r"""|(?P<word>[^\W\d][\w$]*)"""
    r"""|(?P<number>\d[\w.]*)"""
    r"""|(?P<sign>.)""",
    re.DOTALL,
)
_WITH_TABLE = (Verb.SELECT, Verb.INSERT, Verb.UPDATE, Verb.DELETE)
_VERBS = {
    "SELECT": Verb.SELECT,
    "VALUES": Verb.SELECT,
    "EXPLAIN": Verb.OTHER,
    "INSERT": Verb.INSERT,
    "REPLACE": Verb.INSERT,
    "UPDATE": Verb.UPDATE,
    "DELETE": Verb.DELETE,
    "CREATE": Verb.DDL,
    "DROP": Verb.DDL,
    "ALTER": Verb.DDL,
    "REINDEX": Verb.DDL,
    "ANALYZE": Verb.DDL,
    "VACUUM": Verb.DDL,
    "BEGIN": Verb.BEGIN,
    "COMMIT": Verb.COMMIT,
    "END": Verb.COMMIT,
    "ROLLBACK": Verb.ROLLBACK,
    "SAVEPOINT": Verb.SAVEPOINT,
    "RELEASE": Verb.RELEASE,
    "PRAGMA": Verb.PRAGMA,
    "ATTACH": Verb.ATTACH,
    "DETACH": Verb.ATTACH,
}
_CONFLICTS = ("ROLLBACK", "ABORT", "REPLACE", "FAIL", "IGNORE")


class _Tokens:
    """The tokens of a statement without blanks; words that are not quoted in upper case too."""

    def __init__(self, sql: str) -> None:
        self.plain: list[str] = []
        self.upper: list[str] = []
        for found in _TOKEN.finditer(sql):
            kind = found.lastgroup
            if kind == "blank":
                continue
            text = found.group()
            if kind == "quoted":
                self.plain.append(_unquoted(text))
                self.upper.append("")
            else:
                self.plain.append(text)
                self.upper.append(text.upper() if kind == "word" else text)

    def at(self, place: int) -> str:
        """In upper case if it is a word without quotes; "" beyond the end, and for a quoted name."""
        return self.upper[place] if place < len(self.upper) else ""

    def name(self, place: int) -> str:
        """The identifier at a place, or the one after its schema: ``main.orders`` is ``orders``."""
        if place + 2 < len(self.plain) and self.plain[place + 1] == ".":
            place += 2
        text = self.plain[place] if place < len(self.plain) else ""
        return text if text and (self.upper[place] == "" or text[0].isalpha() or text[0] == "_") else ""


@lru_cache(maxsize=4096)
def read(sql: str) -> Statement:
    """Read a statement. Kept for each text: applications have few, but may write values into them."""
    tokens = _Tokens(sql)
    first = tokens.at(0)
    verb = _VERBS.get(first, Verb.OTHER)
    driver = verb in (Verb.INSERT, Verb.UPDATE, Verb.DELETE)
    start = 0
    if first == "WITH":
        start = _main(tokens)
        verb = _VERBS[tokens.at(start)] if start else Verb.SELECT
    match verb:
        case Verb.SELECT:
            return Statement(verb, _table(tokens))
        case Verb.INSERT | Verb.UPDATE | Verb.DELETE:
            fails = tokens.at(start + 1) == "OR" and tokens.at(start + 2) == "FAIL"
            return Statement(verb, _target(tokens, start), begun_by_driver=driver, keeps_rows=fails)
        case Verb.BEGIN:
            return Statement(verb, takes_lock=tokens.at(1) in ("IMMEDIATE", "EXCLUSIVE"))
        case Verb.ROLLBACK:
            place = 2 if tokens.at(1) == "TRANSACTION" else 1
            if tokens.at(place) == "TO":
                return Statement(Verb.ROLLBACK_TO, _savepoint(tokens, place + 1))
            return Statement(verb)
        case Verb.SAVEPOINT | Verb.RELEASE:
            return Statement(verb, _savepoint(tokens, 1))
        case Verb.PRAGMA:
            return _pragma(tokens)
        case _:
            return Statement(verb)


def split(script: str) -> Iterator[str]:
    """The statements of a script, in order, comments and all."""
    text = ""
    for piece in re.split(r"(;)", script):
        text += piece
        if piece == ";" and sqlite_complete(text):
            if read(text) != _EMPTY:
                yield text
            text = ""
    if read(text) != _EMPTY:
        yield text


_EMPTY = Statement(Verb.OTHER)


def sqlite_complete(text: str) -> bool:
    from sqlite3 import complete_statement

    return complete_statement(text)


def _main(tokens: _Tokens) -> int:
    """Where the statement after WITH begins, 0 if there is none."""
    depth = 0
    for place, token in enumerate(tokens.upper):
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif depth == 0 and token in ("SELECT", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE"):
            return place
    return 0


def _table(tokens: _Tokens) -> str:
    """The first table that a SELECT names, in a subquery or a WITH too."""
    for place in range(len(tokens.upper)):
        if tokens.upper[place] == "FROM" and tokens.at(place + 1) not in ("(", "SELECT"):
            return tokens.name(place + 1)
    return ""


def _target(tokens: _Tokens, start: int) -> str:
    """The table that is written."""
    place = start + 1
    if tokens.at(place) == "OR" and tokens.at(place + 1) in _CONFLICTS:
        place += 2
    if tokens.at(place) in ("INTO", "FROM"):
        place += 1
    return tokens.name(place)


def _savepoint(tokens: _Tokens, place: int) -> str:
    if tokens.at(place) == "SAVEPOINT" and place + 1 < len(tokens.plain):
        place += 1
    name = tokens.plain[place] if place < len(tokens.plain) else ""
    return (_unquoted(name) if name.startswith("'") else name).lower()


def _pragma(tokens: _Tokens) -> Statement:
    place = 3 if tokens.at(2) == "." else 1
    name = tokens.plain[place].lower() if place < len(tokens.plain) else ""
    values = [token for token in tokens.plain[place + 1 :] if token not in ("=", "(", ")", ";")]
    return Statement(Verb.PRAGMA, name, "".join(values).strip("'") if values else None)


def _unquoted(text: str) -> str:
    quote = text[-1]
    return text[1:-1].replace(quote * 2, quote)
