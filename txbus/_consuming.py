"""Makes a consumer of each declared handler, and runs them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar, Unpack

from txbus._atomic_consumer import AtomicBudget, AtomicConsumer
from txbus._capability import Capabilities, Capability
from txbus._channels import topic_kind
from txbus._consumer import Consumer, ConsumerBudget
from txbus._consumer_contract import ConsumerHealth, Disposition, Handle, Run
from txbus._consumer_limit import DeliveryLimit
from txbus._deadletter import DeadLetters, dead_envelope, describe_error, lighter_letters
from txbus._declare import HandlerDeclaration
from txbus._inbox import InboxBudget, InboxHandler
from txbus._inbox_signature import Delivery, HandlerSignature
from txbus._message import Envelope, Topic
from txbus._telemetry import Alarm
from txbus._wire import SendArguments, SendOptions, identity, tag_of
from txbus.errors import DecodeError, NotOpen
from txbus.spi import Received, Receiver, Subscription
from txbus.stores.contract import LocalTransaction

if TYPE_CHECKING:
    from txbus._open import OpenBus

__all__ = ["Consuming"]

T = TypeVar("T")


class _Running(Protocol):
    """What `Consumer` and `AtomicConsumer` have in common."""

    group: str

    def start(self, limit: DeliveryLimit | None = None) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout_s: float | None = None) -> bool: ...

    def idle(self) -> bool: ...

    def health(self) -> ConsumerHealth: ...

    @property
    def handled(self) -> int: ...

    @property
    def interrupt(self) -> BaseException | None: ...


class Consuming:
    """The consumers of an open bus. Thread-safe."""

    def __init__(self, bus: OpenBus) -> None:
        self._bus = bus
        self._lock = bus.ports.runtime.lock()
        self._stopping = bus.ports.runtime.lock()
        self._in_hand = bus.ports.runtime.local()
        self._running: list[tuple[HandlerDeclaration, _Running]] = []
        self._handled_before = 0
        self._limit: DeliveryLimit | None = None
        self._interrupt: BaseException | None = None

    @staticmethod
    def check_signature(declared: HandlerDeclaration) -> None:
        HandlerSignature.of(declared.function, declared.topic, database=declared.database is not None)

    def start(self, workers: int | None = None, max_messages: int | None = None) -> None:
        """Start a consumer for each handler. ``max_messages``: all of them together end when so many
        deliveries are finished."""
        limit = None if max_messages is None else DeliveryLimit(max_messages, self._bus.ports)
        with self._lock:
            if any(running.health().running for _, running in self._running):
                raise NotOpen("the handlers of this bus are running already: stop() them first")
            self._forget(list(self._running))
            self._limit, self._interrupt = limit, None
            made = [(h, self._atomic(h) if h.atomic else self._consumer(h, workers)) for h in self._bus.handlers]
            self._running = made
            for _, running in made:
                running.start(limit)

    def stop(self, timeout_s: float) -> None:
        """Ask all to stop, then wait for the deliveries in hand; a handler only asks."""
        with self._lock:
            stopping = list(self._running)
        for _, running in stopping:
            running.stop()
        if self._in_hand.get() is not None:
            # The delivery in hand is the caller's own.
            return
        with self._stopping:
            clock = self._bus.ports.clock
            deadline_s = clock.monotonic_s() + timeout_s
            for declared, running in stopping:
                if not running.join(max(0.0, deadline_s - clock.monotonic_s())):
                    detail = (
                        f"scope {declared.scope}: a handler still runs after stop_timeout_s={timeout_s:g}; its "
                        "delivery is not acknowledged and comes again"
                    )
                    self._bus.emit(Alarm(self._bus.service, "", "a handler did not stop in time", detail))
            with self._lock:
                self._forget([pair for pair in stopping if pair in self._running])

    def _forget(self, ended: list[tuple[HandlerDeclaration, _Running]]) -> None:
        """Keep what they leave behind; under the lock."""
        for pair in ended:
            self._running.remove(pair)
            self._handled_before += pair[1].handled
            self._interrupt = self._interrupt or pair[1].interrupt

    @property
    def handled(self) -> int:
        """Deliveries finished by this process since the bus was opened."""
        with self._lock:
            return self._handled_before + sum(running.handled for _, running in self._running)

    @property
    def interrupt(self) -> BaseException | None:
        """The KeyboardInterrupt or SystemExit that a handler raised since they were started."""
        with self._lock:
            running = [one.interrupt for _, one in self._running]
            return next((found for found in (self._interrupt, *running) if found is not None), None)

    def finished(self) -> bool:
        """Did they end by themselves, was one interrupted, or is the limit of deliveries over?"""
        if self.interrupt is not None or (self._limit is not None and self._limit.over):
            return True
        with self._lock:
            return bool(self._running) and not any(running.health().running for _, running in self._running)

    def caught_up(self) -> bool:
        """Is every message of the handlers' topics handled and acknowledged?"""
        admin = self._bus.backend.admin()
        try:
            for declared, running in list(self._running):
                if not running.idle():
                    return False
                for row in admin.group_status(running.group, [declared.topic.name]):
                    if row.committed is None:
                        # Nothing was read yet, or the group began at the end: its poll tells.
                        if row.end > 0 and declared.start == "earliest":
                            return False
                    elif row.committed < row.end:
                        return False
        finally:
            admin.close()
        return True

    def health(self) -> tuple[ConsumerHealth, ...]:
        return tuple(running.health() for _, running in list(self._running))

    # making them

    def _native(self, declared: HandlerDeclaration) -> Capabilities:
        """What the broker keeps for the handler's topic."""
        bus = self._bus
        return bus.capabilities(topic_kind(bus.backend, declared.topic, bool(bus.databases)))

    def _receiver(self, declared: HandlerDeclaration) -> Callable[[], Receiver]:
        native = self._native(declared)
        subscription = Subscription(
            group=declared.group(self._bus.service),
            topics=(declared.topic.name,),
            start=declared.start_at,
            tags=declared.tags if Capability.TAG_FILTER in native else None,
            lease_s=self._bus.settings.lease_s,
        )
        return lambda: self._bus.backend.receiver(subscription)

    def _consumer(self, declared: HandlerDeclaration, workers: int | None) -> _Running:
        bus, settings = self._bus, self._bus.settings
        native = self._native(declared)
        database = bus.databases[declared.database] if declared.database is not None else None
        handler = InboxHandler(
            topic=declared.topic,
            signature=HandlerSignature.of(declared.function, declared.topic, database=database is not None),
            scope=declared.scope,
            service=bus.service,
            database=database,
            begin=(lambda trace: bus.transaction(declared.database, None, trace)) if database is not None else None,
            dead_letters=DeadLetters(
                scope=declared.scope,
                service=bus.service,
                database=database,
                send=bus.send_dead_letter,
                clock=bus.ports.clock,
                emit=bus.emit,
            ),
            retry=declared.retry,
            ports=bus.ports,
            emit=bus.emit,
            heard=bus.heard,
            budget=InboxBudget(lock_wait_s=settings.lock_wait_s),
            in_flight=declared.in_flight,
            tags=declared.tags if Capability.TAG_FILTER not in native else None,
            attempts_counted=Capability.ATTEMPTS_COUNTED in native,
        )
        return Consumer(
            make_receiver=self._receiver(declared),
            handle=self._noting(handler),
            ports=bus.ports,
            emit=bus.emit,
            service=bus.service,
            scope=declared.scope,
            group=declared.group(bus.service),
            budget=ConsumerBudget(
                workers=workers or settings.workers, max_in_flight=settings.max_in_flight, poll_s=settings.poll_s
            ),
            native_redelivery=Capability.NATIVE_REDELIVERY in native,
            ended=bus.handlers_ended,
        )

    def _noting(self, handle: Handle) -> Handle:
        """Note what this thread has in hand, for `stop`."""
        in_hand = self._in_hand

        def noting(received: Received, run: Run, /) -> Disposition:
            in_hand.set(received)
            try:
                return handle(received, run)
            finally:
                in_hand.set(None)

        return noting

    def _atomic(self, declared: HandlerDeclaration) -> _Running:
        bus = self._bus
        signature = HandlerSignature.of(declared.function, declared.topic, database=False)
        group = declared.group(bus.service)

        def handle(received: Received, attempt: int, send: Callable[[Envelope], None]) -> None:
            if declared.tags is not None and tag_of(received.envelope) not in declared.tags:
                return
            source, message_id = identity(received)
            payload = declared.topic.decode(received.envelope.payload)
            sending = _AtomicSending(bus, send)
            delivery = Delivery(received, source, message_id, attempt, declared.scope, sending)
            self._in_hand.set(received)
            try:
                signature.call(payload, delivery, None)
            finally:
                self._in_hand.set(None)
                delivery.end()

        def dead_letters(received: Received, attempts: int, error: Exception) -> Iterator[Envelope]:
            letter = dead_envelope(received, declared.scope, bus.service, attempts, describe_error(error))
            bus.ensure_topic(letter.topic)
            yield letter
            yield from lighter_letters(received, letter)

        return AtomicConsumer(
            bus.service,
            declared.scope,
            group,
            self._receiver(declared),
            lambda: bus.backend.broker_transactions(
                f"txbus.atomic.{group}.{bus.ports.entropy.unique_id()}",
                bus.settings.broker_transaction_timeout_s,
            ),
            handle,
            dead_letters,
            declared.retry.never_for(DecodeError),
            bus.ports,
            bus.emit,
            AtomicBudget(poll_s=bus.settings.poll_s, pending_max=bus.settings.max_in_flight),
            bus.handlers_ended,
        )


class _AtomicSending:
    """Lets `Delivery.send` join a broker transaction (`HandlerTransaction`)."""

    def __init__(self, bus: OpenBus, send: Callable[[Envelope], None]) -> None:
        self._bus = bus
        self._send = send

    def __enter__(self) -> _AtomicSending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        return None

    @property
    def local(self) -> LocalTransaction:
        raise AssertionError("an atomic handler has no local transaction")

    def send(
        self,
        topic: Topic[T],
        payload: T,
        **options: Unpack[SendArguments],
    ) -> str:
        envelope = self._bus.make_envelope(topic, payload, SendOptions(**options))
        self._send(envelope)
        assert envelope.id is not None
        return envelope.id
