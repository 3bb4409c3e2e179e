"""Broker transactions for the application: several sends, visible together."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, Unpack

from txbus._message import Envelope, Topic
from txbus._ports import Ports
from txbus._wire import SendArguments, SendOptions
from txbus.errors import BackendError, NotOpen
from txbus.spi import BrokerTransaction, BrokerTransactions

__all__ = ["AtomicPool", "AtomicScope"]

T = TypeVar("T")


class AtomicPool:
    """Keeps the broker transactions of finished scopes for the next ones. Thread-safe."""

    def __init__(self, make: Callable[[], BrokerTransactions], ports: Ports) -> None:
        self._make = make
        self._lock = ports.runtime.lock()
        self._idle: list[BrokerTransactions] = []
        self._closed = False

    def take(self) -> BrokerTransactions:
        with self._lock:
            if self._closed:
                raise NotOpen("the bus is closed: no broker transaction can begin")
            if self._idle:
                return self._idle.pop()
        return self._make()

    def give_back(self, transactions: BrokerTransactions) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(transactions)
                return
        transactions.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for transactions in idle:
            transactions.close()


class AtomicScope:
    """One broker transaction: what ``with bus.atomic()`` yields. One thread, one use.

    Leaving the block normally makes all its messages visible, in one step per partition; leaving
    it by an exception makes none visible. `CommitUnknown`: the broker did not answer the commit;
    the messages are visible all or none, and their ids tell which.
    """

    def __init__(self, pool: AtomicPool, make: Callable[[Topic[Any], Any, SendOptions], Envelope]) -> None:
        self._pool = pool
        self._make = make
        self._transactions: BrokerTransactions | None = None
        self._open: BrokerTransaction | None = None

    def send(
        self,
        topic: Topic[T],
        payload: T,
        **options: Unpack[SendArguments],
    ) -> str:
        """Add a message to the broker transaction; returns its id."""
        if self._open is None:
            raise NotOpen("this broker transaction is not open: send inside of its block")
        envelope = self._make(topic, payload, SendOptions(**options))
        self._open.send(envelope)
        assert envelope.id is not None
        return envelope.id

    def __enter__(self) -> AtomicScope:
        if self._transactions is not None:
            raise NotOpen("this broker transaction was entered before: make a new one for each block")
        self._transactions = self._pool.take()
        try:
            self._open = self._transactions.begin()
        except BaseException:
            self._transactions.abandon()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._open is not None and self._transactions is not None
        opened, self._open = self._open, None
        try:
            if value is None:
                opened.commit()
            else:
                opened.abort()
        except BaseException as exc:
            # Whatever state the client is in now, nobody shall inherit it.
            self._transactions.abandon()
            if value is not None and isinstance(exc, BackendError):
                # Nothing of it will be visible either way; what the block raised is what counts.
                return
            raise
        self._pool.give_back(self._transactions)
