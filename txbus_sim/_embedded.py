"""What the embedded broker did in a run, told from its file and from what its members were handed.

The broker runs as it is, within the processes. After each commit to its file the rows are looked at,
so that the history says what is durable, and not what the code under test says of itself. Nothing
uncommitted is ever in the file: a record is `Stored` and `Visible` with the commit that gave it its
offset. A delayed message has none before a receiver moves it, at or after its delivery time: it is
`Stored` and `Visible` then, as sent by the process that had it stored for later.

Deliveries are not in the file: they are noted where the broker hands them over, as acknowledgements
and reads by position are. Not told are `BrokerTransactionEnded` and the ``producer`` of a record: one
that does not commit leaves nothing in the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Container, Sequence
from types import MappingProxyType
from typing import Any

from txbus.spi import Batch, Envelope, Received
from txbus_sim._world import Process, World, current_process
from txbus_sim.errors import ProcessIsDead
from txbus_sim.history import Acknowledged, Delivered, PositionCommitted, Read, Stored, Visible

__all__ = ["SERVICE", "EmbeddedNotes"]

SERVICE = "embedded"
_OFFSET_BITS = 40
_PLACES = "SELECT p.id, t.name, p.number FROM partitions p JOIN topics t ON t.id = p.topic"
_ENDS = "SELECT id, next_offset FROM partitions ORDER BY id"
_RECORDS = "SELECT id, key, headers, payload FROM records WHERE id >= ? AND id < ? ORDER BY id"
_DELAYED = "SELECT id, partition, headers FROM delayed ORDER BY id"
_POSITIONS = (
    # What waits for its redelivery is not done, though the file's position is beyond it.
    "SELECT s.group_name, s.partition, min(s.position, coalesce((SELECT min(r.offset) FROM redeliveries r "
    "WHERE r.group_name = s.group_name AND r.partition = s.partition), s.position)) "
    "FROM positions s ORDER BY s.group_name, s.partition"
)


class EmbeddedNotes:
    """The observer of one run's bus file; make one for each run, it puts itself in the world's services.

    `committed` is called after each commit to the file at ``path``, before anybody else runs;
    `attend` with each process that opens it.
    """

    def __init__(self, world: World, path: str, receiver: type, log: type) -> None:
        self.world = world
        self.path = path
        self._boundary: tuple[type, type] = (receiver, log)
        self._present: set[Process] = set()
        self._undo: list[Callable[[], None]] = []
        self._places: dict[int, tuple[str, int]] = {}
        self._ends: dict[int, int] = {}
        self._positions: dict[tuple[str, int], int] = {}
        self._delayed: dict[int, tuple[int, str, str]] = {}
        world.services[SERVICE] = self

    # what is committed

    def committed(self, connection: sqlite3.Connection, process: str, tables: Container[str]) -> None:
        """A process's local transaction of the file, which wrote to these tables, became durable."""
        look = sqlite3.Cursor(connection)
        look.row_factory = None
        if "delayed" in tables:
            self._look_at_delayed(look, process)
        if "records" in tables:
            self._look_at_records(look, process)
        if "delayed" in tables:
            self._forget_moved(look)
        if "positions" in tables or "redeliveries" in tables:
            self._look_at_positions(look, process)
        look.close()

    def _look_at_delayed(self, look: sqlite3.Cursor, process: str) -> None:
        for ident, partition, headers in look.execute(_DELAYED).fetchall():
            self._delayed.setdefault(ident, (partition, headers, process))

    def _forget_moved(self, look: sqlite3.Cursor) -> None:
        left = {ident for ident, _, _ in look.execute(_DELAYED).fetchall()}
        self._delayed = {ident: entry for ident, entry in self._delayed.items() if ident in left}

    def _look_at_records(self, look: sqlite3.Cursor, process: str) -> None:
        senders = {(partition, headers): sender for partition, headers, sender in self._delayed.values()}
        for ident, end in look.execute(_ENDS).fetchall():
            known, self._ends[ident] = self._ends.get(ident, 0), end
            if end == known:
                continue
            first = ident << _OFFSET_BITS
            rows = look.execute(_RECORDS, (first + known, first + end)).fetchall()
            assert len(rows) == end - known, (
                f"partition {ident} says it ends at {end}, and holds {len(rows)} new records"
            )
            for place, key, headers, payload in rows:
                where = (*self._place(look, ident), place - first)
                self._tell_record(senders.get((ident, headers), process), where, key, json.loads(headers), payload)

    def _tell_record(
        self, sender: str, where: tuple[str, int, int], key: str | None, headers: dict[str, str], payload: bytes
    ) -> None:
        message_id = Envelope(where[0], payload, key, headers).id or ""
        now_ns, add = self.world.now_ns, self.world.history.add
        add(Stored(now_ns, sender, *where, message_id, key))
        add(Visible(now_ns, *where, message_id, key, payload, MappingProxyType(headers)))

    def _look_at_positions(self, look: sqlite3.Cursor, process: str) -> None:
        for group, ident, position in look.execute(_POSITIONS).fetchall():
            if self._positions.get((group, ident)) != position:
                self._positions[group, ident] = position
                topic, partition = self._place(look, ident)
                self.world.history.add(PositionCommitted(self.world.now_ns, process, group, topic, partition, position))

    def _place(self, look: sqlite3.Cursor, partition_id: int) -> tuple[str, int]:
        """The topic and number of a partition; neither ever changes."""
        if partition_id not in self._places:
            self._places = {ident: (topic, number) for ident, topic, number in look.execute(_PLACES).fetchall()}
        return self._places[partition_id]

    # what is handed over

    def attend(self, process: Process) -> None:
        """A process opened the file: the broker's own classes tell what they hand over while such a
        process is there, and are as they were when the last one is gone."""
        if process in self._present:
            return
        self._present.add(process)
        process.at_death.append(lambda: self._leave(process))
        if not self._undo:
            receiver, log = self._boundary
            self._around(receiver, "receive", self._delivered)
            self._around(receiver, "ack", self._acknowledged)
            self._around(log, "read", self._read)

    def _leave(self, process: Process) -> None:
        self._present.discard(process)
        if not self._present:
            while self._undo:
                self._undo.pop()()

    def _around(self, owner: type, name: str, note: Callable[..., None]) -> None:
        """Have a method tell what it was given and what it returned, once it has returned."""
        original = getattr(owner, name)

        def observed(self_: Any, *arguments: Any) -> Any:
            result = original(self_, *arguments)
            process = current_process()
            if process in self._present and self_._database.label == self.path:
                if not process.alive or self.world.closed:
                    raise ProcessIsDead
                note(process.key, self_, result, *arguments)
            return result

        setattr(owner, name, observed)
        self._undo.append(lambda: setattr(owner, name, original))

    def _delivered(self, process: str, receiver: Any, batch: Batch, *_: object) -> None:
        group = receiver._subscription.group
        for one in batch.received:
            at = one.position
            self.world.history.add(
                Delivered(
                    *(self.world.now_ns, process, group, at.topic, at.partition, at.offset),
                    *(one.envelope.id or "", one.attempt),
                )
            )

    def _acknowledged(self, process: str, receiver: Any, _: None, received: Sequence[Received]) -> None:
        group = receiver._subscription.group
        for one in received:
            at = one.position
            self.world.history.add(
                Acknowledged(
                    *(self.world.now_ns, process, group, at.topic, at.partition, at.offset), one.envelope.id or ""
                )
            )

    def _read(
        self,
        process: str,
        log: Any,
        result: tuple[tuple[Received, ...], int],
        partition: int,
        start: int,
        *_: object,
    ) -> None:
        records, to = result
        offsets = tuple(one.position.offset for one in records)
        self.world.history.add(Read(self.world.now_ns, process, log._name, partition, start, offsets, to))
