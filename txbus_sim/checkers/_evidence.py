"""One pass over a history: what was stored, seen, handled and committed, ready to be asked.

Raises MalformedHistory for what no correct dialect can have made. ``seq`` is the index of a record
in the history: what happened before what is decided by it, because many records share a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, NoReturn

from txbus.spi import Outcome
from txbus_sim.checkers._facts import (
    DeadLetter,
    Delivery,
    Done,
    Kept,
    Ledgered,
    Message,
    Place,
    Places,
    RowBook,
    RowEvent,
    Where,
    base,
    columns_of,
    quoted,
    seconds,
)
from txbus_sim.checkers._vocabulary import Books
from txbus_sim.errors import MalformedHistory
from txbus_sim.faults import Fault
from txbus_sim.history import (
    Acknowledged,
    BrokerTransactionEnded,
    Checked,
    Delivered,
    FaultHappened,
    HalfStored,
    History,
    Intended,
    LocalCommitted,
    LocalRolledBack,
    PositionCommitted,
    ProcessEnded,
    ProcessStarted,
    Read,
    Record,
    RowChange,
    Settled,
    SqlValue,
    Stored,
    Visible,
)

__all__ = ["Evidence"]

_DEAD_SCOPE, _DEAD_ATTEMPTS, _DEAD_ERROR = "txbus-dead-scope", "txbus-dead-attempts", "txbus-dead-error"
_HALF_LOG = "txbus.half."
_TAG = "txbus-tag"


class Evidence:
    """What the history of one run shows."""

    def __init__(self, history: History, books: Books | None = None) -> None:
        self.messages: dict[str, list[Message]] = defaultdict(list)
        self.at: dict[Where, dict[int, Message]] = defaultdict(dict)
        self.stored: dict[Where, dict[int, Kept]] = defaultdict(dict)
        self.tagged: set[str] = set()
        """Topics in which tags are in use: a subscription by tags leaves out untagged messages as well."""
        self.by_id: dict[str, list[Message]] = defaultdict(list)
        self.rewritten: list[tuple[Message, Kept]] = []
        """Messages that readers had seen, and what a failover gave their offsets to."""
        self.ends: list[tuple[BrokerTransactionEnded, int]] = []
        self.rows: dict[str, list[RowEvent]] = defaultdict(list)
        """By ``database.table``."""
        self.rows_noted = True
        self.rolled_back: list[tuple[LocalRolledBack, int]] = []
        self.ledger: dict[tuple[str, str], list[Ledgered]] = defaultdict(list)
        """By the database's name in its service and the local transaction's id."""
        self.ledger_commits: set[int] = set()
        """Commits that made a ledger row durable: those of transactional sends."""
        self.handled: dict[tuple[str, str], dict[tuple[str, str], list[RowEvent]]] = defaultdict(
            lambda: defaultdict(list)
        )
        """Inbox rows by database and scope, then by source and message id."""
        self.dead: list[DeadLetter] = []
        self.runs: dict[tuple[str, str], tuple[int, RowEvent]] = {}
        """By scope and message id: the most runs that were counted in a database."""
        self.intended: list[tuple[Intended, int]] = []
        self.intents_of: dict[str, list[tuple[Intended, int]]] = defaultdict(list)
        self.halves: dict[str, HalfStored] = {}
        self.checked: dict[str, list[tuple[Checked, int]]] = defaultdict(list)
        self.settled: dict[str, list[tuple[Settled, int]]] = defaultdict(list)
        self.reads: list[tuple[Read, int]] = []
        self.places: dict[Place, Places] = defaultdict(Places)
        self.faults: list[tuple[FaultHappened, int]] = []
        self.alive: dict[str, int] = {}
        self.ended: dict[str, tuple[ProcessEnded, int]] = {}
        self.half_writers: dict[str, dict[str, None]] = defaultdict(dict)
        self.half_readers: dict[str, dict[str, None]] = defaultdict(dict)
        self._open: dict[str, list[Kept]] = defaultdict(list)
        self._half_ids: dict[str, None] = {}
        self._senders: dict[tuple[str, str], str] = {}
        self._books: dict[tuple[str, str], RowBook] = {}
        self._fields: dict[tuple[str, str], dict[str, list[Message]]] = {}
        self._seq = 0
        self._pass(history)
        if not self.rows_noted and books is not None:
            self._take_files(books)

    def _pass(self, history: History) -> None:
        takes: dict[type, Callable[[Any], None]] = {
            Stored: self._take_stored,
            Visible: self._take_visible,
            BrokerTransactionEnded: self._take_end,
            LocalCommitted: self._take_commit,
            LocalRolledBack: lambda record: self.rolled_back.append((record, self._seq)),
            Intended: self._take_intended,
            HalfStored: self._take_half,
            Checked: lambda record: self.checked[record.half].append((record, self._seq)),
            Settled: lambda record: self.settled[record.half].append((record, self._seq)),
            Read: self._take_read,
            Delivered: self._take_delivered,
            Acknowledged: self._take_done,
            PositionCommitted: self._take_done,
            FaultHappened: lambda record: self.faults.append((record, self._seq)),
            ProcessStarted: self._take_started,
            ProcessEnded: self._take_ended,
        }
        at_ns = 0
        find = takes.get
        for seq, record in enumerate(history.records):
            if record.at_ns < at_ns:
                self._malformed(record, f"its time is before {seconds(at_ns)} of the record before it")
            at_ns = record.at_ns
            take = find(type(record))
            if take is not None:
                self._seq = seq
                take(record)

    def _malformed(self, record: Record, why: str) -> NoReturn:
        raise MalformedHistory(f"record {self._seq} cannot be: {record!r:.400}: {why}. A model is at fault")

    # processes

    def _take_started(self, record: ProcessStarted) -> None:
        if record.process in self.alive or record.process in self.ended:
            self._malformed(record, "this incarnation was started before")
        self.alive[record.process] = self._seq

    def _take_ended(self, record: ProcessEnded) -> None:
        self.alive.pop(record.process, None)
        self.ended[record.process] = (record, self._seq)

    def _alive(self, record: Intended | Delivered | Read) -> None:
        ended = self.ended.get(record.process)
        if ended is not None and ended[0].how != "over":
            self._malformed(record, f"{record.process} had ended at {seconds(ended[0].at_ns)}")

    # brokers

    def _take_stored(self, record: Stored) -> None:
        where = Where(record.topic, record.partition)
        kept = self.stored[where]
        before = kept.get(record.offset)
        if before is not None and not self._failed_over_since(before.seq):
            self._malformed(record, f"offset {record.offset} held {before.record.message_id!r} already")
        one = Kept(record, self._seq, "open" if record.producer else "plain")
        seen = self.at[where].get(record.offset)
        if seen is None:
            kept[record.offset] = one
        elif seen.id != record.message_id:
            self.rewritten.append((seen, one))
        if record.producer:
            self._open[record.producer].append(one)
        if record.message_id:
            self._senders.setdefault((record.topic, record.message_id), record.process)
        if record.topic.startswith(_HALF_LOG):
            self.half_writers[base(record.process)][record.topic] = None

    def _failed_over_since(self, seq: int) -> bool:
        return any(at > seq and fault.fault is Fault.FAILOVER for fault, at in self.faults)

    def _take_visible(self, record: Visible) -> None:
        where = Where(record.topic, record.partition)
        seen = self.at[where]
        if record.offset in seen:
            self._malformed(record, "it became visible before")
        kept = self.stored.get(where)
        if kept and record.offset not in kept and record.message_id not in self._half_ids:
            self._malformed(record, "nothing was stored at this offset")
        message = Message(record, self._seq)
        seen[record.offset] = message
        self.messages[record.topic].append(message)
        if record.message_id:
            self.by_id[record.message_id].append(message)
        if _TAG in record.headers:
            self.tagged.add(record.topic)
        if _DEAD_SCOPE in record.headers:
            self._take_dead_message(record)

    def _take_end(self, record: BrokerTransactionEnded) -> None:
        for kept in self._open.pop(record.producer, ()):
            kept.state, kept.ended = "committed" if record.committed else "aborted", self._seq
        self.ends.append((record, self._seq))

    def _take_half(self, record: HalfStored) -> None:
        self.halves[record.half] = record
        self._half_ids[record.message_id] = None
        self._senders.setdefault((record.topic, record.message_id), record.process)

    def _take_read(self, record: Read) -> None:
        self._alive(record)
        if any(not record.start <= offset < record.to for offset in record.offsets):
            self._malformed(record, "it returned what lies outside of what it read")
        self.reads.append((record, self._seq))
        if record.topic.startswith(_HALF_LOG):
            self.half_readers[record.topic][record.process] = None

    def _take_delivered(self, record: Delivered) -> None:
        self._alive(record)
        where = Where(record.topic, record.partition)
        if record.offset not in self.at[where]:
            kept = self.stored[where].get(record.offset)
            if kept is None or kept.state not in ("open", "aborted"):
                self._malformed(record, "it was not visible")
        place = Place(record.group, record.topic, record.partition)
        self.places[place].deliveries.append(Delivery(record, self._seq))
        if record.topic.startswith(_HALF_LOG):
            self.half_readers[record.topic][record.process] = None

    def _take_done(self, record: Acknowledged | PositionCommitted) -> None:
        place = Place(record.group, record.topic, record.partition)
        self.places[place].done.append(Done(record, self._seq))

    # the application

    def _take_intended(self, record: Intended) -> None:
        self._alive(record)
        self.intended.append((record, self._seq))
        self.intents_of[record.message_id].append((record, self._seq))
        self._senders[record.topic, record.message_id] = record.process

    def sender_of(self, message: Message) -> str:
        """The process that wanted the message sent, else the one that stored it, else ""."""
        record = message.record
        kept = self.stored.get(Where(record.topic, record.partition), {}).get(record.offset)
        known = self._senders.get((record.topic, record.message_id)) if record.message_id else None
        return known or (kept.record.process if kept is not None else "")

    # databases

    def _take_commit(self, record: LocalCommitted) -> None:
        if record.rows is None:
            self.rows_noted = self.rows_noted and not record.changed
            return
        for change in record.rows:
            event = RowEvent(change, record, self._seq)
            self.rows[f"{record.database}.{change.table}"].append(event)
            if change.table.startswith("txbus_"):
                self._take_own(event, change.table, change.after)

    def _take_own(self, event: RowEvent, table: str, row: Mapping[str, SqlValue] | None) -> None:
        """A row of txbus's own tables; their shape is that of the store's schema."""
        if row is None:
            return
        if table == "txbus_ledger":
            committed = row["outcome"] == Outcome.COMMITTED.value
            key = (str(row["database_name"]), str(row["tx_id"]))
            attempt, messages = int(row["attempt"] or 0), int(row["messages"] or 0)
            if event.change.before is None:
                self.ledger[key].append(Ledgered(event, attempt, committed, messages))
                if committed:
                    self.ledger_commits.add(self._seq)
        elif table == "txbus_inbox" and event.change.before is None:
            scope = (event.commit.database, str(row["scope"]))
            self.handled[scope][str(row["source"]), str(row["message_id"])].append(event)
        elif table == "txbus_attempts":
            counted = (int(row["attempts"] or 0), event)
            about = (str(row["scope"]), str(row["message_id"]))
            self.runs[about] = max(self.runs.get(about, counted), counted, key=lambda one: one[0])
        elif table == "txbus_dead_letters":
            attempts = int(row["attempts"] or 0)
            letter = (str(row["scope"]), str(row["message_id"]), attempts, str(row["error_text"]))
            commit = event.commit
            line = f"{seconds(commit.at_ns)}  {commit.process} kept a dead letter of scope {letter[0]}: {letter[1]}"
            self.dead.append(DeadLetter(self._seq, commit.at_ns, commit.process, *letter, line))

    def _take_dead_message(self, record: Visible) -> None:
        headers = record.headers
        scope, attempts = headers[_DEAD_SCOPE], headers.get(_DEAD_ATTEMPTS, "")
        line = f"{seconds(record.at_ns)}  a dead letter of scope {scope} became visible in {record.topic}"
        self.dead.append(
            DeadLetter(
                self._seq,
                record.at_ns,
                "",
                scope,
                record.message_id,
                int(attempts) if attempts.isdigit() else 0,
                headers.get(_DEAD_ERROR, ""),
                line,
            )
        )

    def _take_files(self, books: Books) -> None:
        """The rows at the end, where commits do not tell theirs: when they were committed is unknown,
        so they count as older than everything."""
        self._seq = -1
        for database in books.names():
            for table in books.tables(database):
                columns = columns_of(books, database, table)
                events = self.rows[f"{database}.{table}"] = []
                for values in books.rows(database, f"SELECT * FROM {quoted(table)}"):
                    change = RowChange(table, None, dict(zip(columns, values, strict=True)))
                    event = RowEvent(change, LocalCommitted(0, "", database, 0, {}, True, (change,)), -1)
                    events.append(event)
                    if table.startswith("txbus_"):
                        self._take_own(event, table, change.after)

    def book(self, table: str, column: str) -> RowBook:
        """The values of a column over time."""
        book = self._books.get((table, column))
        if book is None:
            book = self._books[table, column] = RowBook()
            for _, events in groupby(self.rows.get(table, ()), key=lambda event: event.seq):
                book.enter(list(events), column)
        return book

    def by_field(self, topic: str, path: str) -> Mapping[str, list[Message]]:
        """A topic's visible messages by the value of one field, in the order of their first ones."""
        found = self._fields.get((topic, path))
        if found is None:
            found = self._fields[topic, path] = defaultdict(list)
            for message in self.messages.get(topic, ()):
                value = message.fields().get(path)
                if value is not None:
                    found[value].append(message)
        return found

    # the end

    @property
    def calm(self) -> bool:
        """Whether every declared process is there at the end, or ended by itself: what should happen
        in the end can be asked for then."""
        gone = {base(name) for name, (end, _) in self.ended.items() if end.how == "crashed"}
        there = {base(name) for name in self._last}
        return gone <= there

    @property
    def _last(self) -> list[str]:
        """Incarnations that were there at the end, or returned by themselves."""
        ended = [name for name, (end, _) in self.ended.items() if end.how in ("over", "returned")]
        return [*self.alive, *ended]

    def there_at_end(self, process: str) -> bool:
        """Whether this incarnation was still running when the run was over."""
        ended = self.ended.get(process)
        return process in self.alive or (ended is not None and ended[0].how == "over")

    def name_at_end(self, process: str) -> bool:
        """Whether some incarnation or replica of a process was still running when the run was over."""
        wanted = base(process)
        return any(base(name) == wanted and self.there_at_end(name) for name in (*self.alive, *self.ended))

    def published_for(self, process: str) -> bool:
        """Whether somebody was there at the end who publishes what this process sends transactionally."""
        if self.name_at_end(process):
            return True
        topics = self.half_writers.get(base(process), ())
        return any(self.there_at_end(reader) for topic in topics for reader in self.half_readers.get(topic, ()))
