"""What a driver's error means: one place that knows SQLSTATEs and driver codes."""

from __future__ import annotations

import enum
from typing import Any, NoReturn

from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import Dialect, Engine

from txbus.errors import SchemaMismatch, StoreBusy, StoreError, StoreFull, StoreUnavailable, TxbusError

__all__ = ["Fault", "commit_refused", "fault_of", "raise_translated", "shown"]


class Fault(enum.Enum):
    """The kinds of failure that the store tells apart."""

    BUSY = "a lock was not given in time"
    FULL = "the database cannot grow"
    LOST = "the database cannot be reached"
    SCHEMA = "a table or column is missing"
    REFUSED = "a constraint or a conflict refused it"
    OTHER = "the database refused it"
    FOREIGN = "no error of the database"


_SQLITE = {5: Fault.BUSY, 6: Fault.BUSY, 13: Fault.FULL, 19: Fault.REFUSED}
# permission, out of memory, read-only, I/O, corrupt, cannot open, authorisation, not a database
_SQLITE_LOST = frozenset({3, 7, 8, 10, 11, 14, 23, 26})
_SQLITE_SCHEMA = ("no such table", "no such column", "no column named")
_STATES = {
    "55P03": Fault.BUSY,  # lock_not_available
    "57014": Fault.BUSY,  # query_canceled: statement_timeout
    "25P04": Fault.LOST,  # transaction_timeout
    "25P03": Fault.LOST,  # idle_in_transaction_session_timeout
    "25006": Fault.LOST,  # read_only_sql_transaction: a replica
    "53100": Fault.FULL,  # disk_full
    "42P01": Fault.SCHEMA,
    "42703": Fault.SCHEMA,
}
_STATE_CLASSES = {
    "08": Fault.LOST,
    "53": Fault.LOST,
    "57": Fault.LOST,
    "58": Fault.LOST,
    "28": Fault.LOST,
    "40": Fault.BUSY,
    "23": Fault.REFUSED,
}
_MYSQL = {
    1205: Fault.BUSY,  # lock wait timeout
    1213: Fault.BUSY,  # deadlock
    1020: Fault.BUSY,  # record has changed since last read (snapshot isolation)
    1969: Fault.BUSY,  # max_statement_time exceeded
    3024: Fault.BUSY,  # max_execution_time exceeded
    3572: Fault.BUSY,  # NOWAIT
    1021: Fault.FULL,  # disk full
    1114: Fault.FULL,  # table is full
    1146: Fault.SCHEMA,
    1054: Fault.SCHEMA,
    1290: Fault.LOST,  # read-only server
    1836: Fault.LOST,
}


def fault_of(error: BaseException, dialect: Dialect) -> Fault:
    """Which kind of failure a SQLAlchemy or driver error is."""
    if isinstance(error, sa_exc.TimeoutError):
        return Fault.LOST  # the pool had no connection to give
    orig: Any = error
    if isinstance(error, sa_exc.DBAPIError):
        if error.connection_invalidated:
            return Fault.LOST
        orig = error.orig
    driver = _driver_errors(dialect)
    if driver is None or not isinstance(orig, driver.Error):
        return Fault.FOREIGN
    if dialect.name == "sqlite":
        return _sqlite_fault(orig)
    return _server_fault(orig, driver)


def raise_translated(error: BaseException, dialect: Dialect, doing: str, database: str) -> NoReturn:
    """Raise the StoreError for a database's failure; what is no such failure is raised as it is."""
    if isinstance(error, TxbusError):
        raise error
    fault = fault_of(error, dialect)
    reason = f"database {database!r}: {doing}: {_text(error)}"
    match fault:
        case Fault.BUSY:
            raise StoreBusy(f"{reason}; another transaction holds the lock: try again") from error
        case Fault.FULL:
            raise StoreFull(f"{reason}; make room on its disk and try again") from error
        case Fault.LOST:
            hint = "check that it runs, is writable and has connections left"
            raise StoreUnavailable(f"{reason}; {hint}") from error
        case Fault.SCHEMA:
            raise SchemaMismatch(f"{reason}; run `txbus schema create APP`") from error
        case Fault.REFUSED | Fault.OTHER:
            raise StoreError(reason) from error
        case Fault.FOREIGN:
            raise error


def shown(engine: Engine) -> str:
    """An engine's URL without its password, and without options, which may hold another one."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def commit_refused(error: BaseException, dialect: Dialect) -> bool:
    """Does this answer to COMMIT say that the transaction is definitely rolled back?

    SQLSTATE classes 23 and 40 without 40003 (statement completion unknown) and their equals. For
    SQLite the caller decides: its COMMIT is a local call, see `_sql_flavour.Sqlite.refused`.
    """
    orig: Any = error.orig if isinstance(error, sa_exc.DBAPIError) else error
    if isinstance(error, sa_exc.DBAPIError) and error.connection_invalidated:
        return False
    state = _state(orig)
    if state is not None:
        return state != "40003" and state[:2] in ("23", "40")
    driver = _driver_errors(dialect)
    if driver is not None and isinstance(orig, driver.IntegrityError):
        return True
    return dialect.name in ("mysql", "mariadb") and _number(orig) == 1213


def _sqlite_fault(orig: Any) -> Fault:
    code = getattr(orig, "sqlite_errorcode", None)
    if not isinstance(code, int):
        return Fault.LOST  # the module's own complaint: a closed connection
    primary = code & 0xFF
    if primary in _SQLITE_LOST:
        return Fault.LOST
    if primary == 1 and any(words in str(orig) for words in _SQLITE_SCHEMA):
        return Fault.SCHEMA
    return _SQLITE.get(primary, Fault.OTHER)


def _server_fault(orig: Any, driver: Any) -> Fault:
    state = _state(orig)
    if state is not None:
        return _STATES.get(state) or _STATE_CLASSES.get(state[:2], Fault.OTHER)
    number = _number(orig)
    if number in _MYSQL:
        return _MYSQL[number]
    if isinstance(orig, driver.IntegrityError):
        return Fault.REFUSED
    if isinstance(orig, (driver.OperationalError, driver.InterfaceError)):
        return Fault.LOST
    return Fault.OTHER


def _state(orig: Any) -> str | None:
    """The SQLSTATE that psycopg, psycopg2 or MySQL Connector attach; None if there is none."""
    for name in ("sqlstate", "pgcode"):
        state = getattr(orig, name, None)
        if isinstance(state, str) and len(state) == 5 and state != "HY000":
            return state
    return None


def _number(orig: Any) -> int:
    """The error number of a MySQL driver; 0 if there is none."""
    args = getattr(orig, "args", ())
    return args[0] if args and isinstance(args[0], int) else 0


def _driver_errors(dialect: Dialect) -> Any:
    return dialect.dbapi


def _text(error: BaseException) -> str:
    """The driver's own words: SQLAlchemy's add the statement and its values, which may be secret."""
    orig = error.orig if isinstance(error, sa_exc.DBAPIError) and error.orig is not None else error
    return f"{type(orig).__name__}: {orig}"
