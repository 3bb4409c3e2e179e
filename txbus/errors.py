"""The one error tree of txbus.

Each class fixes two facts that callers act on, never the text of the message:

- ``retryable``: the same call may succeed later without a change of its arguments.
- ``outcome_known``: after this error it is certain that the call had no effect.

::

    TxbusError
    ├── ConfigurationError           wrong arguments, settings or declarations
    │   ├── SettingsError            a setting is unknown, out of range, or contradicts another
    │   ├── CapabilityMissing        the backend cannot keep a promise that was asked for
    │   ├── SchemaMismatch           a store's tables are missing or of another version
    │   └── NotOpen                  the bus, or a part of it, is not open (or closed already)
    ├── BackendError                 something a broker, or the way to it, said
    │   ├── BackendUnavailable       cannot be reached or is busy; nothing was done
    │   ├── SendUnknown              the record may or may not be durable
    │   ├── CommitUnknown            the broker transaction may or may not be committed
    │   ├── StepAborted              the broker transaction was aborted; begin again
    │   ├── Fenced                   another owner took over; this one must stop or rejoin
    │   ├── MessageRefused           the broker will never take this message (size, name, content)
    │   ├── DestinationRefused       the topic is missing, of the wrong kind, or not permitted
    │   └── BrokerFileError          the embedded broker's file is damaged, foreign or newer
    ├── StoreError                   something an application's database said
    │   ├── StoreUnavailable         cannot be reached; nothing was learnt
    │   ├── StoreBusy                a row lock was not given in time; nothing was learnt
    │   └── StoreFull                the database cannot grow; nothing was written
    ├── TransactionError             a local transaction did not end as its block meant it to
    │   ├── LocalTimeout             too late: rolled back before its half was sent
    │   ├── HalfFailed               the half message could not be stored in time: rolled back
    │   ├── Superseded               a checker or a later attempt settled it first: rolled back
    │   ├── AlreadyCommitted         an earlier attempt under this id committed: nothing to do
    │   ├── KeyHeld                  the message's key is held by parked halves: rolled back
    │   └── OutcomeUnknown           COMMIT was sent, its answer lost, the ledger out of reach
    ├── DecodeError                  a record is not a message of its topic
    └── HandlerError                 how a handler asks for a dead letter at once (GiveUp)
        ├── GiveUp
        └── DuplicateInFlight        another process is handling the same message just now
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AlreadyCommitted",
    "BackendError",
    "BackendUnavailable",
    "BrokerFileError",
    "CapabilityMissing",
    "CommitUnknown",
    "ConfigurationError",
    "DecodeError",
    "DestinationRefused",
    "DuplicateInFlight",
    "Fenced",
    "GiveUp",
    "HalfFailed",
    "HandlerError",
    "KeyHeld",
    "LocalTimeout",
    "MessageRefused",
    "NotOpen",
    "OutcomeUnknown",
    "SchemaMismatch",
    "SendUnknown",
    "SettingsError",
    "StepAborted",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "Superseded",
    "TransactionError",
    "TxbusError",
]


class TxbusError(Exception):
    """The root: every error that txbus raises on purpose is one of these."""

    retryable: ClassVar[bool] = False
    outcome_known: ClassVar[bool] = True


class ConfigurationError(TxbusError):
    """An argument, a setting or a declaration is wrong; found at open wherever it can be."""


class SettingsError(ConfigurationError):
    """A setting is unknown, out of its range, or contradicts another one."""


class CapabilityMissing(ConfigurationError):
    """The backend cannot keep a promise that the application asked for."""


class SchemaMismatch(ConfigurationError):
    """A table that a store needs is missing or differs; the message has the command that repairs it."""


class NotOpen(ConfigurationError):
    """The object was used before it was opened or after it was closed."""


class BackendError(TxbusError):
    """A broker, or the way to it, refused or failed."""


class BackendUnavailable(BackendError):
    """The broker cannot be reached or is busy. Nothing was done; the call may be repeated."""

    retryable = True


class SendUnknown(BackendError):
    """A record was handed over and no answer came: it may or may not be durable."""

    outcome_known = False


class CommitUnknown(BackendError):
    """A broker transaction's commit was sent and no answer came.

    Whoever sees it drops the client, takes over anew and looks for evidence in the log.
    """

    outcome_known = False


class StepAborted(BackendError):
    """The broker transaction was aborted; none of it is visible. Begin a new one."""

    retryable = True


class Fenced(BackendError):
    """Another owner has taken over this transactional id, lease or partition; nothing was done."""


class MessageRefused(BackendError):
    """The broker will never accept this message: its size, a name or its content."""


class DestinationRefused(BackendError):
    """The destination is missing, of the wrong kind, or not permitted. Others may work."""

    retryable = True


class BrokerFileError(BackendError):
    """The embedded broker's file is not a bus, is damaged, or is of a newer schema."""


class StoreError(TxbusError):
    """An application's database refused or failed."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, or broke off. Nothing was learnt."""

    retryable = True


class StoreBusy(StoreError):
    """A lock was not given within its wait. Nothing was learnt and nothing was written."""

    retryable = True


class StoreFull(StoreError):
    """The database or its disk is full. Nothing was written."""

    retryable = True


class TransactionError(TxbusError):
    """A local transaction did not end as its block meant it to."""


class LocalTimeout(TransactionError):
    """The block reached its end later than ``local_timeout_s``: rolled back, no message sent."""


class HalfFailed(TransactionError):
    """The half message was not durable within ``half_timeout_s``: rolled back."""

    retryable = True


class Superseded(TransactionError):
    """A checker, or a later attempt under the same id, settled this attempt first: rolled back."""


class AlreadyCommitted(TransactionError):
    """An earlier attempt under the same ``tx_id`` committed: its effect and messages stand."""


class KeyHeld(TransactionError):
    """Too many halves wait behind a parked one of the same key: rolled back until it is resolved."""

    retryable = True


class OutcomeUnknown(TransactionError):
    """COMMIT was sent, its answer was lost, and the ledger cannot be reached.

    ``tx_id`` and ``database`` name the local transaction; ``bus.outcome(tx_id)`` settles it once
    the database is back. Retrying the block under a new id doubles its effect.
    """

    outcome_known = False

    def __init__(self, message: str, *, tx_id: str, database: str) -> None:
        super().__init__(message)
        self.tx_id = tx_id
        self.database = database


class DecodeError(TxbusError):
    """A record's payload or attributes are not a message of its topic's model."""


class HandlerError(TxbusError):
    """Raised by, or on behalf of, a handler."""


class GiveUp(HandlerError):
    """Raised by a handler: this delivery goes to the dead letters at once, without further attempts."""


class DuplicateInFlight(HandlerError):
    """Another process holds the same message's inbox row and has not finished."""

    retryable = True
