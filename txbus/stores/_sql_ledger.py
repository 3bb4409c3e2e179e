"""The ledger from outside of the application's transactions: fences, reservations, evidence, purge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, delete, or_, select, tuple_, update

from txbus._halves import HalfId
from txbus._outcome import Outcome
from txbus.errors import AlreadyCommitted, ConfigurationError, StoreBusy
from txbus.stores._sql_gate import CHUNK, Gate
from txbus.stores._sql_tables import LEDGER, TX_ID_CHARS, UNCONFIRMED
from txbus.stores._sql_text import fits, stored_key, stored_text, text_from
from txbus.stores.contract import LedgerRow

__all__ = ["Ledger", "checked_tx_id", "ledger_values"]

T = TypeVar("T")
# A row that vanishes between the insert that met it and the reading was rolled back; asked again.
_LOOKS = 3


class Ledger:
    """The methods of `Database` that concern the ledger. Thread-safe."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._fence = gate.flavour.insert_ignore(LEDGER)
        c = LEDGER.c
        self._rows_of = select(LEDGER).where(c.tx_id == bindparam("tx")).order_by(c.attempt)
        self._look = select(LEDGER).where(tuple_(c.tx_id, c.attempt).in_(bindparam("keys", expanding=True)))
        self._confirm = (
            update(LEDGER)
            .where(c.tx_id == bindparam("tx"), c.attempt == bindparam("nr"))
            .where(c.outcome == Outcome.COMMITTED.value, c.confirmed_s.is_(None))
            .values(confirmed_s=bindparam("now"))
        )

    def settle(self, ids: Sequence[HalfId], now_s: float, lock_wait_s: float) -> Mapping[HalfId, Outcome]:
        """See `Database.settle`."""
        answers = self._outcomes(ids, lock_wait_s)
        missing = [id for id in dict.fromkeys(ids) if id not in answers]
        if not missing:
            return answers
        if self._gate.flavour.fence_together:
            for chunk in _chunks(missing):
                answers.update(self._fence_all(chunk, now_s, lock_wait_s))
        else:
            for id in missing:
                answers.update(self._fence_one(id, now_s, lock_wait_s))
        return answers

    def look(self, ids: Sequence[HalfId]) -> Mapping[HalfId, LedgerRow]:
        """See `Database.look`."""
        with self._gate.read("reading the ledger") as connection:
            return self._find(connection, ids)

    def attempts_of(self, tx_id: str) -> Sequence[LedgerRow]:
        """See `Database.attempts_of`."""
        with self._gate.read("reading the ledger") as connection:
            rows = connection.execute(self._rows_of, {"tx": stored_key(tx_id, TX_ID_CHARS)})
            return [_row(row, tx_id) for row in rows]

    def reserve(self, tx_id: str, now_s: float, lock_wait_s: float) -> int:
        """See `Database.reserve`.

        Attempt 1 may run without asking; attempt k+1 only by whoever inserted row k as reserved.
        So the one attempt that may be open is the first without a row: insert its row, and either
        it is fenced and the next attempt is ours, or it settled itself and is looked at again. A
        fence of a checker in between settles its attempt but reserves nothing, and its successor
        is fenced by us in the same way.
        """
        checked_tx_id(tx_id)
        while True:
            rows = self.attempts_of(tx_id)
            for row in rows:
                if row.outcome is Outcome.COMMITTED:
                    raise AlreadyCommitted(
                        f"tx_id {tx_id!r} committed in its attempt {row.id.attempt}: its effect and its messages stand"
                    )
            unsettled = rows[-1].id.attempt + 1 if rows else 1
            # Each turn that does not return has seen a row appear, so this ends when others rest.
            if self._insert_reserved(HalfId(tx_id, unsettled), now_s, lock_wait_s):
                return unsettled + 1

    def decide(self, row: LedgerRow) -> Outcome:
        """See `Database.decide`."""
        assert row.outcome is not Outcome.UNKNOWN, row
        for _ in range(_LOOKS):
            with self._gate.write(f"deciding {row.id}") as connection:
                inserted = self._fence.run(connection, ledger_values(row))
            if inserted == 1:
                return row.outcome
            found = self.look([row.id])
            if row.id in found:
                return found[row.id].outcome
        raise StoreBusy(f"database {self._gate.name!r}: {row.id} is still open: try again when it has ended")

    def confirm(self, ids: Sequence[HalfId], now_s: float) -> None:
        """See `Database.confirm`."""
        for chunk in _chunks(list(dict.fromkeys(ids))):
            with self._gate.write("confirming ledger rows") as connection:
                connection.execute(
                    self._confirm,
                    # In one order everywhere: two relays that confirm the same rows cannot deadlock.
                    [{"tx": key[0], "nr": key[1], "now": now_s} for key in sorted(_key(id) for id in chunk)],
                )

    def confirm_parts(self, parts: Sequence[tuple[HalfId, int, int]], now_s: float) -> None:
        """See `Database.confirm_parts`."""
        by_key: dict[tuple[str, int], tuple[int, set[int]]] = {}
        for id, part, count in parts:
            by_key.setdefault(_key(id), (count, set()))[1].add(part)
        for chunk in _chunks(sorted(by_key)):
            with self._gate.write("confirming parts of ledger rows") as connection:
                for key in chunk:
                    self._confirm_parts_of(connection, key, *by_key[key], now_s)

    def _confirm_parts_of(
        self, connection: Connection, key: tuple[str, int], count: int, parts: set[int], now_s: float
    ) -> None:
        """Add parts to those of a row, under its lock: other relays add theirs at the same time."""
        c = LEDGER.c
        ours = (c.tx_id == key[0], c.attempt == key[1], c.outcome == Outcome.COMMITTED.value)
        waiting = select(c.confirmed_parts).where(*ours, c.confirmed_s.is_(None)).with_for_update()
        row = connection.execute(waiting).first()
        if row is None:
            return
        known = {int(number) for number in (row.confirmed_parts or "").split(",") if number}
        complete = len(known | parts) >= count
        values = {"confirmed_parts": ",".join(map(str, sorted(known | parts)))}
        connection.execute(update(LEDGER).where(*ours).values(**values, confirmed_s=now_s if complete else None))

    def unconfirmed(self, older_than_s: float, limit: int) -> Sequence[LedgerRow]:
        """See `Database.unconfirmed`."""
        c = LEDGER.c
        query = (
            select(LEDGER)
            .where(UNCONFIRMED, c.created_s < older_than_s, c.outcome == Outcome.COMMITTED.value)
            .order_by(c.created_s)
            .limit(limit)
        )
        with self._gate.read("listing unconfirmed ledger rows") as connection:
            return [_row(row, None) for row in connection.execute(query)]

    def purge(self, created_before_s: float, limit: int) -> int:
        """See `Database.purge_ledger`."""
        c = LEDGER.c
        settled = or_(c.outcome == Outcome.ROLLED_BACK.value, c.confirmed_s.is_not(None), c.messages == 0)
        old = select(c.tx_id, c.attempt).where(c.created_s < created_before_s, settled)
        old = old.order_by(c.created_s).limit(limit)
        with self._gate.write("purging the ledger") as connection:
            keys = sorted(tuple(row) for row in connection.execute(old))
            return sum(
                connection.execute(delete(LEDGER).where(tuple_(c.tx_id, c.attempt).in_(chunk))).rowcount
                for chunk in _chunks(keys)
            )

    # how a fence is made

    def _fence_all(self, ids: Sequence[HalfId], now_s: float, wait_s: float) -> Mapping[HalfId, Outcome]:
        """Every fence in one transaction that has the database's write lock."""
        try:
            with self._gate.write("fencing in the ledger", wait_s) as connection:
                for id in ids:
                    self._fence.run(connection, self._rolled_back(id, now_s, reserved=False))
                return {id: row.outcome for id, row in self._find(connection, ids).items()}
        except StoreBusy:
            return {}  # a writer holds the lock: perhaps one of these very rows, so nothing is known

    def _fence_one(self, id: HalfId, now_s: float, wait_s: float) -> Mapping[HalfId, Outcome]:
        """One fence in a transaction of its own, which waits for that row and no other."""
        for _ in range(_LOOKS):
            try:
                with self._gate.write("fencing in the ledger", wait_s) as connection:
                    inserted = self._fence.run(connection, self._rolled_back(id, now_s, reserved=False))
                if inserted == 1:
                    return {id: Outcome.ROLLED_BACK}
                # Read in a new transaction: an old snapshot would not show what was waited for.
                found = self._outcomes([id], wait_s)
                if found:
                    return found
            except StoreBusy:
                return {}
        return {}

    def _insert_reserved(self, id: HalfId, now_s: float, wait_s: float) -> bool:
        try:
            with self._gate.write(f"reserving an attempt of tx_id {id.tx_id!r}", wait_s) as connection:
                return self._fence.run(connection, self._rolled_back(id, now_s, reserved=True)) == 1
        except StoreBusy as exc:
            raise StoreBusy(
                f"attempt {id.attempt} of tx_id {id.tx_id!r} is still open, or the database is busy, after "
                f"lock_wait_s={wait_s:g}: try again when it has ended"
            ) from exc

    def _rolled_back(self, id: HalfId, now_s: float, *, reserved: bool) -> dict[str, Any]:
        return ledger_values(LedgerRow(id, Outcome.ROLLED_BACK, self._gate.name, 0, now_s, None, reserved))

    def _outcomes(self, ids: Sequence[HalfId], wait_s: float) -> dict[HalfId, Outcome]:
        try:
            with (
                self._gate.read("reading the ledger") as connection,
                connection.begin(),
                self._gate.flavour.waiting(connection, wait_s),
            ):
                return {id: row.outcome for id, row in self._find(connection, ids).items()}
        except StoreBusy:
            return {}

    def _find(self, connection: Connection, ids: Sequence[HalfId]) -> dict[HalfId, LedgerRow]:
        found: dict[HalfId, LedgerRow] = {}
        for chunk in _chunks(list(dict.fromkeys(ids))):
            by_key = {_key(id): id for id in chunk}
            for row in connection.execute(self._look, {"keys": list(by_key)}):
                id = by_key[row.tx_id, row.attempt]
                found[id] = _row(row, id.tx_id)
        return found


def ledger_values(row: LedgerRow) -> dict[str, Any]:
    """A ledger row as the values of its columns."""
    return {
        "tx_id": stored_key(row.id.tx_id, TX_ID_CHARS),
        "attempt": row.id.attempt,
        "outcome": row.outcome.value,
        "database_name": stored_text(row.database),
        "messages": row.messages,
        "created_s": row.created_s,
        "confirmed_s": row.confirmed_s,
        "confirmed_parts": None,
        "reserved": int(row.reserved),
    }


def checked_tx_id(tx_id: str) -> str:
    """The id if the ledger can keep it as a whole; ConfigurationError otherwise."""
    if not tx_id or not fits(tx_id, TX_ID_CHARS):
        raise ConfigurationError(f"tx_id {tx_id[:200]!r} must have 1 to {TX_ID_CHARS} characters")
    return tx_id


def _key(id: HalfId) -> tuple[str, int]:
    return stored_key(id.tx_id, TX_ID_CHARS), id.attempt


def _row(row: Any, tx_id: str | None) -> LedgerRow:
    return LedgerRow(
        id=HalfId(text_from(row.tx_id) if tx_id is None else tx_id, row.attempt),
        outcome=Outcome(row.outcome),
        database=text_from(row.database_name),
        messages=row.messages,
        created_s=row.created_s,
        confirmed_s=row.confirmed_s,
        reserved=bool(row.reserved),
    )


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
