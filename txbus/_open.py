"""An open bus: everything that lives between `Bus.open` and `Bus.close`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from txbus import _registry
from txbus._atomic import AtomicPool, AtomicScope
from txbus._capability import Capabilities, Capability, TopicKind
from txbus._channels import has_half_messages, native_channel, native_health, topic_kind
from txbus._checks import (
    check_all_databases,
    check_capabilities,
    check_partitions,
    check_schema,
    missing,
    refuse,
    refuse_half,
)
from txbus._consumer_contract import ConsumerHealth
from txbus._consuming import Consuming
from txbus._declare import HandlerDeclaration
from txbus._halflog.ledgerdesk import LedgerDeskBudget, OwnChecker
from txbus._halflog.partition import PartitionBudget
from txbus._halflog.records import half_topic
from txbus._halflog.relay import Relay, RelayBudget, RelayHealth
from txbus._halflog.sender import HalfLogSender, HalfSenderBudget
from txbus._halflog.survey import survey, waits_for_a_relay
from txbus._halves import HalfId
from txbus._maintenance import Maintenance, MaintenanceBudget
from txbus._message import Envelope, Receipt, Topic
from txbus._nativehalves import NativeHalves
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._runner import Runner
from txbus._telemetry import Events
from txbus._trace import current_traceparent
from txbus._transactional import (
    AttachedScope,
    AttachedSessions,
    LocalBudget,
    LocalParts,
    TransactionScope,
    settle_outcome,
)
from txbus._wire import SendOptions, make_envelope, source_of, trace_id
from txbus.errors import ConfigurationError, NotOpen, StoreBusy
from txbus.settings import Settings, inbox_horizon_s, mask
from txbus.spi import Backend, BackendURL, Sender, TopicSpec
from txbus.stores.contract import Database

__all__ = ["BusHealth", "OpenBus"]

_QUIET_S = 0.05


@dataclass(frozen=True, slots=True)
class BusHealth:
    """``relay`` is None where this process runs none. ``ok``: nothing that runs reports an error."""

    ok: bool
    handlers: tuple[ConsumerHealth, ...]
    relay: RelayHealth | None


class OpenBus:
    """The open parts of a bus. Made by `open` only; thread-safe."""

    def __init__(
        self,
        service: str,
        backend: Backend,
        databases: Mapping[str, Database],
        topics: Mapping[str, Topic[Any]],
        sends: frozenset[str],
        handlers: Sequence[HandlerDeclaration],
        checkers: Mapping[str, OwnChecker],
        settings: Settings,
        ports: Ports,
        events: Events,
    ) -> None:
        self.service = service
        self.backend = backend
        self.databases = databases
        self.settings = settings
        self.ports = ports
        self.emit = events.emit
        self.heard = events.heard
        self.topics = topics
        self._sends = sends
        self.handlers = handlers
        self._checkers = checkers
        self._ensured: set[str] = set()
        self._source = source_of(service)
        self._capabilities: dict[TopicKind, Capabilities] = {}
        self._sender: Sender = backend.sender(service)
        self._local_budget = LocalBudget(
            local_timeout_s=settings.local_timeout_s, half_timeout_s=settings.half_timeout_s
        )
        self.relay: Relay | None = None
        self._pool = AtomicPool(
            lambda: backend.broker_transactions(
                f"txbus.atomic.{service}.{ports.entropy.unique_id()}", settings.broker_transaction_timeout_s
            ),
            ports,
        )
        self.consuming = Consuming(self)
        self._runner = Runner(self)
        self.native = has_half_messages(backend)
        self.maintenance = Maintenance(service, databases, ports, self.emit, self._maintenance_budget())
        self.channel: HalfLogSender | NativeHalves | None = self._make_channel() if databases else None
        make = self._make_half if self.native else self.make_envelope
        self._local_parts = {
            name: LocalParts(service, one, self.channel, make, ports, events.emit, events.heard, self._local_budget)
            for name, one in databases.items()
        }
        # Last, because it runs from here on.
        self.maintenance.start()

    @classmethod
    def open(
        cls,
        *,
        url: BackendURL,
        service: str,
        candidates: Mapping[str, Any],
        topics: Mapping[str, Topic[Any]],
        sends: frozenset[str],
        handlers: Sequence[HandlerDeclaration],
        checkers: Mapping[str, OwnChecker],
        settings: Settings,
        ports: Ports,
        events: Events,
    ) -> OpenBus:
        """Reach broker and databases, check everything, start what a sender needs. ``sends``: the topics
        that were declared to send to, not by a handler only."""
        backend = _registry.create_backend(url, ports)
        databases: dict[str, Database] = {}
        try:
            for name, candidate in candidates.items():
                databases[name] = _registry.adapt_database(name, candidate, ports, events.emit)
            backend.open()
            check_capabilities(backend, handlers, list(topics.values()), bool(databases))
            check_schema(databases, settings.create_schema)
            for database in databases.values():
                database.join_service(service, set(databases))
            _prepare_topics(backend, service, topics, settings, bool(databases))
            opened = cls(service, backend, databases, topics, sends, handlers, checkers, settings, ports, events)
        except BaseException:
            _close_all(*(database.close for database in databases.values()), backend.close)
            raise
        try:
            if settings.relay == "inside" and databases:
                opened.start_relay()
        except BaseException:
            opened.close()
            raise
        return opened

    @staticmethod
    def check_signature(declared: HandlerDeclaration) -> None:
        """ConfigurationError for a handler whose parameters cannot be supplied."""
        Consuming.check_signature(declared)

    def close(self) -> None:
        """Each part is closed, whatever another one raises; the first error passes."""
        relay, channel = self.relay, self.channel
        _close_all(
            self.stop,
            lambda: relay.stop(self.settings.stop_timeout_s) if relay is not None else None,
            lambda: channel.close() if channel is not None else None,
            self.maintenance.stop,
            self._pool.close,
            self._sender.close,
            self.backend.close,
            *(database.close for database in self.databases.values()),
        )

    # sending

    def transaction(self, database: Any, tx_id: str | None, trace: str = "") -> TransactionScope:
        """``trace``: the trace id of its events where no span is current."""
        parts = self._local_parts[self._database(database).name]
        return TransactionScope(parts, tx_id, _current_trace() or trace)

    def attach(self, owner: Any) -> AttachedScope | AttachedSessions:
        database = next((one for one in self.databases.values() if one.recognises(owner)), None)
        if database is None:
            raise ConfigurationError(
                f"attach({type(owner).__name__}): it belongs to none of this bus's databases ({self._known()}); "
                "attach a Session, Connection or sessionmaker of an Engine that was given to Bus(databases=...)"
            )
        if database.makes_sessions(owner):
            end = database.adopt_sessions(owner, lambda _: self._attached_scope(database))
            return AttachedSessions(self.attached, end)
        known = database.hooks_of(owner)
        if isinstance(known, AttachedScope):
            return known
        scope = self._attached_scope(database)
        scope.join(database.adopt(owner, scope))
        return scope

    def attached(self, session: Any) -> AttachedScope:
        scope = self.attach(session)
        assert isinstance(scope, AttachedScope)
        return scope

    def _attached_scope(self, database: Database) -> AttachedScope:
        scope = AttachedScope(self._local_parts[database.name], None, _current_trace())
        scope.attached()
        return scope

    def _known(self) -> str:
        return ", ".join(sorted(self.databases)) or "none"

    def _database(self, wanted: Any) -> Database:
        if isinstance(wanted, str):
            found = self.databases.get(wanted)
            if found is not None:
                return found
        else:
            for database in self.databases.values():
                if database.recognises(wanted):
                    return database
        raise ConfigurationError(
            f"transaction({_shown(wanted)}): this bus has no such database (it has: {self._known()}); "
            "name one of Bus(databases={...}), or attach() to a Session that is open already"
        )

    def make_envelope(self, topic: Topic[Any], payload: Any, options: SendOptions) -> Envelope:
        envelope = make_envelope(
            topic,
            payload,
            source=self._source,
            options=options,
            wall_s=self.ports.clock.wall_s(),
            unique_id=self.ports.entropy.unique_id,
            traceparent=current_traceparent(),
        )
        refuse(self.capabilities, self.backend.name, self.topics, envelope, options.deliver_after_s)
        return envelope

    def _make_half(self, topic: Topic[Any], payload: Any, options: SendOptions) -> Envelope:
        """An envelope for a half message of the broker's own, which may keep less than a plain one."""
        refuse_half(self.capabilities(TopicKind.TRANSACTIONAL), self.backend.name, self._sends, topic, options)
        return self.make_envelope(topic, payload, options)

    def capabilities(self, kind: TopicKind) -> Capabilities:
        known = self._capabilities.get(kind)
        if known is None:
            known = self._capabilities[kind] = self.backend.capabilities(kind)
        return known

    def send(self, topic: Topic[Any], payloads: Sequence[Any], options: SendOptions) -> tuple[Receipt, ...]:
        envelopes = [self.make_envelope(topic, payload, options) for payload in payloads]
        return self._sender.send(envelopes, options.timeout_s or self.settings.send_timeout_s)

    def send_dead_letter(self, envelope: Envelope) -> None:
        """Send a dead letter to its topic, made if it is missing; durable on return."""
        self.ensure_topic(envelope.topic)
        self._sender.send([envelope], self.settings.send_timeout_s)

    def ensure_topic(self, name: str) -> None:
        """Create a topic for dead letters, kept without limit of time, unless it was seen before."""
        if name not in self._ensured:
            admin = self.backend.admin()
            try:
                admin.create([TopicSpec(name, self.settings.topic_partitions, retention_s=None)])
            finally:
                admin.close()
            self._ensured.add(name)

    def atomic(self) -> AtomicScope:
        capabilities = self.capabilities(TopicKind.PLAIN)
        if Capability.BROKER_TRANSACTION not in capabilities:
            raise missing(
                self.backend.name,
                capabilities,
                "bus.atomic()",
                Capability.BROKER_TRANSACTION,
                "it makes each message visible by itself",
                "bus.send for each message",
            )
        return AtomicScope(self._pool, self.make_envelope)

    def outcome(self, tx_id: str, name: str | None) -> Outcome:
        if name is None and len(self.databases) != 1:
            raise ConfigurationError(f"outcome({tx_id!r}): name the database, this bus has: {self._known()}")
        database = self._database(name if name is not None else next(iter(self.databases)))
        rows = database.attempts_of(tx_id)
        if any(row.outcome is Outcome.COMMITTED for row in rows):
            return Outcome.COMMITTED
        last = max(rows, key=lambda row: row.id.attempt, default=None)
        if last is not None and not last.reserved:
            return Outcome.ROLLED_BACK
        running = HalfId(tx_id, last.id.attempt + 1 if last is not None else 1)
        try:
            return settle_outcome(database, running, self.ports.clock, self._local_budget)
        except StoreBusy:
            return Outcome.UNKNOWN

    # the half log

    def _make_channel(self) -> HalfLogSender | NativeHalves:
        settings = self.settings
        if self.native:
            return native_channel(
                self.service,
                self.backend,
                [name for name in self.topics if name in self._sends and self.topics[name].key is None],
                self.databases,
                self._checkers,
                settings,
                self.ports,
                self.emit,
            )
        return HalfLogSender(
            self.backend.sender(self.service),
            half_topic(self.service),
            settings.half_partitions,
            self.ports,
            HalfSenderBudget(hint_linger_s=settings.hint_linger_s),
            held_keys=self.maintenance.held_keys,
            emit=self.emit,
            service=self.service,
        )

    def start_relay(self) -> None:
        """Run a relay in this process, unless one runs already. Where half messages are the broker's
        own there is none: every process of the service answers, and this one must know every database."""
        if self.relay is None:
            if not self.databases:
                raise NotOpen("this bus has no database, so it has no half log to relay")
            check_all_databases(self.service, self.databases)
            if self.native:
                return
            self.relay = Relay(
                self.service,
                half_topic(self.service),
                self.settings.half_partitions,
                self.backend,
                self.databases,
                self._checkers,
                self.ports,
                self.emit,
                _relay_budget(self.settings),
                self.maintenance.note_held,
            )
            self.relay.start()

    def _maintenance_budget(self) -> MaintenanceBudget:
        settings = self.settings
        return MaintenanceBudget(
            # Keys are held by the half log only, so there is nothing to look for between two purges.
            interval_s=settings.purge_interval_s if self.native else 1.0,
            purge_interval_s=settings.purge_interval_s,
            purge_batch=settings.purge_batch,
            ledger_retention_s=settings.ledger_retention_s,
            inbox_horizon_s=inbox_horizon_s(settings, [h.retry for h in self.handlers]),
            held_key_max=settings.held_key_max,
        )

    # running

    def start(self, workers: int | None = None) -> None:
        self.consuming.start(workers)

    def stop(self) -> None:
        self._runner.stop()
        self.consuming.stop(self.settings.stop_timeout_s)

    def handlers_ended(self) -> None:
        """A consumer has ended; called by its thread."""
        self._runner.nudge()

    def run(self, until_idle: float | None, max_messages: int | None, workers: int | None) -> int:
        return self._runner.run(until_idle, max_messages, workers)

    def run_relay(self, until_idle: float | None) -> None:
        self._runner.run_relay(until_idle)

    def idle(self, timeout_s: float) -> bool:
        """Is nothing left to do? Every half stored so far is settled (where the relay runs here), and
        every message in the handlers' topics is handled and acknowledged."""
        if self.relay is not None and not self._settled(self.relay, timeout_s):
            return False
        if isinstance(self.channel, NativeHalves) and not self.channel.wait_quiet(timeout_s):
            return False
        return self.consuming.caught_up()

    def _settled(self, relay: Relay, timeout_s: float) -> bool:
        """A relay that shares the half log with others knows its own part only; the log tells the rest."""
        clock = self.ports.clock
        deadline_s = clock.monotonic_s() + timeout_s
        while not relay.wait_quiet(min(_QUIET_S, timeout_s)):
            shared = len(relay.health().partitions) < self.settings.half_partitions
            if shared and not waits_for_a_relay(survey(self.backend, self.service, clock)):
                return True
            if clock.monotonic_s() >= deadline_s:
                return False
        return True

    def health(self) -> BusHealth:
        handlers = self.consuming.health()
        relay = self.relay.health() if self.relay is not None else None
        if isinstance(self.channel, NativeHalves):
            relay = native_health(self.channel)
        ok = all(h.running and not h.error for h in handlers) and (relay is None or relay.running)
        return BusHealth(ok, handlers, relay)


def _close_all(*closing: Callable[[], None]) -> None:
    with ExitStack() as stack:
        for close in reversed(closing):
            stack.callback(close)


def _current_trace() -> str:
    """The trace id of the current span; empty where there is none."""
    traceparent = current_traceparent()
    return trace_id({"traceparent": traceparent}) if traceparent else ""


def _shown(wanted: Any) -> str:
    """What was given in place of a database; it may be a URL with a password."""
    return repr(mask(wanted)) if isinstance(wanted, str) else f"{wanted!r:.100}"


def _prepare_topics(
    backend: Backend, service: str, topics: Mapping[str, Topic[Any]], settings: Settings, halves: bool
) -> None:
    """Create what is missing, if that is wanted, and verify the rest."""
    specs = [
        TopicSpec(
            name,
            topic.partitions or settings.topic_partitions,
            topic_kind(backend, topic, halves),
            settings.topic_retention_s,
        )
        for name, topic in topics.items()
    ]
    halves = halves and not has_half_messages(backend)
    internal = TopicSpec(half_topic(service), settings.half_partitions, retention_s=None, internal=True)
    admin = backend.admin()
    try:
        wanted = [*specs, internal] if halves else specs
        check_partitions(backend, wanted)
        found = admin.describe([spec.name for spec in wanted])
        absent = [spec for spec in wanted if found[spec.name] is None]
        if absent and not settings.create_topics:
            each = ", ".join(f"{spec.name!r} with {spec.partitions} partitions" for spec in absent)
            unlimited = f" ({internal.name!r} without a limit of retention)" if internal in absent else ""
            raise ConfigurationError(
                f"these topics do not exist and create_topics is off: {each}; create them{unlimited}, or leave "
                "create_topics on"
            )
        admin.create(absent)
        if halves:
            wrong = admin.verify(internal)
            if wrong:
                raise ConfigurationError(f"internal topic {internal.name!r}: " + "; ".join(wrong))
    finally:
        admin.close()


def _relay_budget(settings: Settings) -> RelayBudget:
    return RelayBudget(
        check_after_s=settings.check_after_s,
        check_interval_s=settings.check_interval_s,
        poll_s=settings.poll_s,
        lease_s=settings.lease_s,
        partition=PartitionBudget(
            step_messages_max=settings.step_messages_max,
            step_bytes_max=settings.step_bytes_max,
            window_halves_max=settings.window_halves_max,
            payload_budget_bytes=settings.payload_budget_bytes,
            reappend_records=settings.reappend_records,
            broker_transaction_timeout_s=settings.broker_transaction_timeout_s,
        ),
        desk=LedgerDeskBudget(
            lock_wait_s=settings.check_lock_wait_s,
            held_after_s=settings.local_timeout_s + settings.half_timeout_s,
            round_s=settings.check_budget_s,
            retention_s=settings.ledger_retention_s,
            check_max=settings.check_max,
            confirm_interval_s=settings.confirm_interval_s,
        ),
    )
