"""The bus: what an application declares and calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

from txbus import _registry
from txbus._atomic import AtomicScope
from txbus._checks import check_checkers, check_handlers
from txbus._declare import CheckerDeclaration, HandlerDeclaration, InFlight, Start
from txbus._halflog.ledgerdesk import OwnChecker
from txbus._message import Receipt, Topic
from txbus._open import BusHealth, OpenBus
from txbus._outcome import Outcome
from txbus._ports import Ports
from txbus._retry import Retry
from txbus._system import system_ports
from txbus._telemetry import Event, Events
from txbus._transactional import AttachedScope, AttachedSessions, TransactionScope
from txbus._wire import SendNowArguments, SendOptions
from txbus.errors import ConfigurationError, NotOpen
from txbus.settings import Settings, SettingsArguments, check_relations, mask, parse_url
from txbus.spi import Backend
from txbus.stores.contract import Database

if TYPE_CHECKING:
    # Types only: the core never imports a database library.
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session, sessionmaker

__all__ = ["Bus"]

T = TypeVar("T")
P = ParamSpec("P")
_DEFAULT_RETRY = Retry()


class Bus:
    """One service's connection to its broker and its databases.

    Made at module level, without I/O: topics, handlers and checkers are declared on it. Entering
    it (``with bus:`` or `open`) reaches the broker and the databases and checks every declaration.
    Thread-safe once it is open; declare before.

    ``url`` names the backend (``embedded:///var/lib/shop/bus.db``, ``memory://name``; `txbus
    backends` lists them). ``service`` is the producer group and the CloudEvents source. ``databases``
    gives each database of the service a name that never changes, because half messages carry it.
    ``topics`` are those the service sends to. Settings are keyword arguments (`txbus.settings`).
    """

    def __init__(
        self,
        url: str,
        *,
        service: str,
        databases: Mapping[str, Any] | None = None,
        topics: Iterable[Topic[Any]] = (),
        ports: Ports | None = None,
        **settings: Unpack[SettingsArguments],
    ) -> None:
        if not service or len(service) > 100 or not all(c.isalnum() or c in "._-" for c in service):
            raise ConfigurationError(f"service={service!r} is not usable: 1 to 100 letters, digits, '.', '_' or '-'")
        if service.startswith("txbus."):
            raise ConfigurationError(
                f"service={service!r} begins with 'txbus.', as the groups of relays do; name it otherwise, "
                f"for example {service.replace('.', '-')!r}"
            )
        backend_url, query = parse_url(url)
        self._settings, options = Settings.load(settings, query)
        self._url = type(backend_url)(backend_url.scheme, backend_url.location, options)
        self._shown = mask(url)
        self._service = service
        self._databases = dict(databases or {})
        self._topics: dict[str, Topic[Any]] = {}
        self._sends: set[str] = set()
        self._handlers: list[HandlerDeclaration] = []
        self._checkers: dict[str, CheckerDeclaration] = {}
        self._ports = ports or system_ports()
        self._events = Events()
        self._opened: OpenBus | None = None
        for topic in topics:
            self._declare_topic(topic)
            self._sends.add(topic.name)

    def __repr__(self) -> str:
        state = "open" if self._opened is not None else "closed"
        return f"<Bus {self._shown} service={self._service!r} {state}>"

    @property
    def service(self) -> str:
        """The service's name."""
        return self._service

    @property
    def url(self) -> str:
        """The bus URL without what may be secret."""
        return self._shown

    @property
    def ports(self) -> Ports:
        """Where its time, chance and threads come from."""
        return self._ports

    @property
    def settings(self) -> Settings:
        """The settings in force, wherever they came from."""
        return self._settings

    @property
    def database_names(self) -> tuple[str, ...]:
        """The names of the service's databases."""
        return tuple(self._databases)

    @property
    def handlers(self) -> tuple[HandlerDeclaration, ...]:
        """The handlers declared so far."""
        return tuple(self._handlers)

    @property
    def topics(self) -> tuple[Topic[Any], ...]:
        """The topics declared so far, those of handlers included."""
        return tuple(self._topics.values())

    # declaring

    def on(
        self,
        topic: Topic[T],
        *,
        scope: str,
        database: str | None,
        retry: Retry = _DEFAULT_RETRY,
        in_flight: InFlight = "wait",
        tags: Iterable[str] | None = None,
        start: Start = "earliest",
        atomic: bool = False,
    ) -> Callable[[Callable[Concatenate[T, P], None]], Callable[Concatenate[T, P], None]]:
        """Declare a handler: its effect happens once per message, whatever crashes.

        The function gets the payload first, and by annotation a `Delivery`, a SQLAlchemy
        ``Connection`` or ``Session`` of the local transaction that also holds the inbox row. It
        stays an ordinary function.

        ``scope`` names the inbox and the consumer group: rename the function freely, never the
        scope; 1 to 100 letters, digits, ``_`` or ``-``. ``database`` is where its effects go; None means
        no inbox, so at least once, or with ``atomic`` exactly once for messages it sends: they and the
        consumer's position commit in one broker transaction. ``in_flight`` says what to do while
        another process holds the same message: ``"wait"`` for it (``lock_wait_s``), ``"skip"`` it for
        now, or ``"fail"`` the attempt. On SQLite, which locks the whole database, any writer looks like
        such a process: use ``"wait"`` there. ``tags`` takes only messages with one of them. ``start`` is
        where a new group begins: ``"earliest"``, ``"latest"`` or a datetime.
        """

        def declare(function: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
            self._require_closed("bus.on")
            if isinstance(tags, str):
                raise ConfigurationError(f"bus.on: tags={tags!r} is one text; give a collection: tags=[{tags!r}]")
            declared = HandlerDeclaration(
                topic=topic,
                function=function,
                scope=scope,
                database=database,
                retry=retry,
                in_flight=in_flight,
                tags=frozenset(tags) if tags is not None else None,
                start=start,
                atomic=atomic,
            )
            OpenBus.check_signature(declared)
            self._declare_topic(topic)
            self._handlers.append(declared)
            return function

        return declare

    def checker(self, topic: Topic[Any]) -> Callable[[OwnChecker], OwnChecker]:
        """Declare an own checker for halves that carry a message of this topic.

        It gets the message's envelope and the number of the check, from 1, and answers an
        `Outcome`; anything else, and any exception, is UNKNOWN and an event. The ledger's row wins
        where there is one; ROLLED_BACK is fenced in the ledger before it counts.
        """

        def declare(function: OwnChecker) -> OwnChecker:
            self._require_closed("bus.checker")
            self._declare_topic(topic)
            self._sends.add(topic.name)
            if topic.name in self._checkers:
                raise ConfigurationError(f"topic {topic.name!r} has a checker already")
            self._checkers[topic.name] = CheckerDeclaration(topic, function)
            return function

        return declare

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[Event], None]:
        """Call ``subscriber`` with every event (`txbus.events`), in the thread that saw it; usable as
        a decorator. It must be quick; what it raises is logged and goes no further."""
        self._events.subscribe(subscriber)
        return subscriber

    def _declare_topic(self, topic: Topic[Any]) -> None:
        known = self._topics.setdefault(topic.name, topic)
        if known is not topic and known.model is not topic.model:
            raise ConfigurationError(
                f"topic {topic.name!r} is declared twice, with {known.model!r} and with {topic.model!r}"
            )

    def _require_closed(self, call: str) -> None:
        if self._opened is not None:
            raise ConfigurationError(f"{call}: the bus is open; declare before it is opened")

    # life

    def make_backend(self) -> Backend:
        """A backend of this bus of its own, not opened, for tools that look without taking part; the
        caller closes it. Does no I/O."""
        return _registry.create_backend(self._url, self._ports)

    def make_databases(self) -> Mapping[str, Database]:
        """The stores' views of this bus's databases, nothing of them checked, for tools that look
        without taking part; the caller closes them. Does no I/O."""
        return {
            name: _registry.adapt_database(name, candidate, self._ports, self._events.emit)
            for name, candidate in self._databases.items()
        }

    def open(self, *, relay: Literal["inside", "outside"] | None = None) -> Bus:
        """Reach broker and databases and check every declaration; raises what is wrong.

        ConfigurationError, CapabilityMissing, SchemaMismatch, SettingsError, BackendUnavailable …
        Idempotent. Nothing stays open when it raises. ``relay`` overrides the setting.
        """
        if self._opened is None:
            settings = self._settings if relay is None else self._settings.model_copy(update={"relay": relay})
            check_relations(settings, [h.retry for h in self._handlers])
            check_handlers(self._handlers, self._databases)
            check_checkers(self._checkers, self._databases)
            self._opened = OpenBus.open(
                url=self._url,
                service=self._service,
                candidates=self._databases,
                topics=self._topics,
                sends=frozenset(self._sends),
                handlers=self._handlers,
                checkers={name: c.function for name, c in self._checkers.items()},
                settings=settings,
                ports=self._ports,
                events=self._events,
            )
        return self

    def close(self) -> None:
        """Stop handlers and relay, send what is waiting, let go. Idempotent, bounded."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> Bus:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def opened(self) -> OpenBus:
        """The open bus's parts, for the command line and for tests; NotOpen if it is not."""
        if self._opened is None:
            raise NotOpen(f"{self!r}: use it inside of `with bus:` or after bus.open()")
        return self._opened

    # sending

    def transaction(self, database: Any, *, tx_id: str | None = None) -> TransactionScope:
        """A local transaction on a database (its name or its Engine) that sends: a context manager.

        txbus begins it on entering and commits it on leaving; messages become visible if and only
        if it commits. With ``tx_id`` the same block may be run again under that id, after
        `OutcomeUnknown` or a crash, and commits at most once (`AlreadyCommitted` on entering tells
        that it did); without it each block has a fresh id, and running it again doubles it.
        """
        return self.opened.transaction(database, tx_id)

    @overload
    def attach(self, owner: Session | Connection) -> AttachedScope: ...

    @overload
    def attach(self, owner: sessionmaker[Any] | scoped_session[Any]) -> AttachedSessions: ...

    def attach(self, owner: Any) -> AttachedScope | AttachedSessions:
        """Send with a local transaction that the caller begins and commits.

        ``owner`` is a SQLAlchemy Session or Connection: half messages are durable before the
        caller's COMMIT is issued, and the outcome follows it; a rollback, a close or a rolled-back
        savepoint drops its messages. It belongs to the local transaction in hand, attaching again
        meanwhile gives the same one; attach anew after a commit. A Connection in AUTOCOMMIT is
        refused. For a sessionmaker it returns a function from a session of it to its scope.
        """
        return self.opened.attach(owner)

    def send(
        self,
        topic: Topic[T],
        payload: T,
        **options: Unpack[SendNowArguments],
    ) -> Receipt:
        """Send one message, without any database; durable on return.

        `SendUnknown`: it may or may not be durable; sending again under the same ``message_id`` is
        safe for receivers with an inbox.
        """
        return self.opened.send(topic, [payload], SendOptions(**options))[0]

    def send_many(
        self, topic: Topic[T], payloads: Sequence[T], *, timeout_s: float | None = None
    ) -> tuple[Receipt, ...]:
        """Send several; all durable on return, receipts in their order. All or none where the
        backend has ATOMIC_SEND."""
        return self.opened.send(topic, payloads, SendOptions(timeout_s=timeout_s))

    def atomic(self) -> AtomicScope:
        """A broker transaction: its messages, to any topics, become visible together or never.

        Needs BROKER_TRANSACTION. No database takes part in it.
        """
        return self.opened.atomic()

    def outcome(self, tx_id: str, database: str | None = None) -> Outcome:
        """Settle a local transaction by its id: COMMITTED, or ROLLED_BACK for ever after.

        An attempt that is still open is waited for a short time, then UNKNOWN. ``database`` may be
        left out if the service has one.
        """
        return self.opened.outcome(tx_id, database)

    # receiving

    def run(
        self,
        *,
        until_idle: float | None = None,
        max_messages: int | None = None,
        workers: int | None = None,
    ) -> int:
        """Run the handlers until SIGINT, SIGTERM or `stop`; returns the number of deliveries handled.

        ``until_idle``: end after this many seconds without anything to do. ``max_messages``: end
        when all handlers together have finished this many deliveries. In the main thread it handles
        the two signals meanwhile: the deliveries in hand are finished, and it returns; a second
        signal acts as if nobody handled it. A KeyboardInterrupt or SystemExit of a handler stops all
        of them and is raised here, its delivery unfinished. Opens the bus if it is not.
        """
        if self._opened is None:
            with self:
                return self.run(until_idle=until_idle, max_messages=max_messages, workers=workers)
        return self.opened.run(until_idle, max_messages, workers)

    def run_relay(self, *, until_idle: float | None = None) -> None:
        """Run nothing but the relay until SIGINT, SIGTERM or `stop` (``txbus relay``)."""
        if self._opened is None:
            with self:
                return self.run_relay(until_idle=until_idle)
        return self.opened.run_relay(until_idle)

    def start(self, *, workers: int | None = None) -> None:
        """Run the handlers in threads of this process, and return."""
        self.opened.start(workers)

    def stop(self) -> None:
        """Finish the deliveries in hand, end the handlers' threads. Idempotent; from any thread.

        Returns when they have ended, after ``stop_timeout_s`` at the latest; called by a handler it
        only asks for it."""
        if self._opened is not None:
            self._opened.stop()

    def health(self) -> BusHealth:
        """What runs, what it waits for, and the last errors; for a readiness probe."""
        return self.opened.health()
