"""One bus on a manual clock, for the tests of the embedded broker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.unit.embedded.manual import manual_ports
from txbus.embedded.backend import EmbeddedBackend
from txbus.embedded.plugin import plugin
from txbus.spi import Backend, BackendURL, Batch, Envelope, Receipt, Received, Receiver, Subscription, TopicSpec


class Station:
    """Backends of one bus, as several processes of one machine would have them."""

    def __init__(self, scheme: str, location: str, options: Mapping[str, str] | None = None) -> None:
        self.ports, self.clock, self.runtime = manual_ports()
        self.url = BackendURL(scheme, location, dict(options or {}))
        self._opened: list[Backend] = []
        self.backend = self.another()

    def another(self) -> EmbeddedBackend:
        """One more backend of the same bus, opened."""
        backend = plugin.create(self.url, self.ports)
        assert isinstance(backend, EmbeddedBackend)
        self._opened.append(backend)
        backend.open()
        return backend

    def topic(self, name: str = "t", partitions: int = 1, **more: object) -> None:
        spec = TopicSpec(name, partitions, **more)  # type: ignore[arg-type]
        self.backend.admin().create([spec])

    def send(self, *payloads: str, topic: str = "t", key: str | None = "k") -> tuple[Receipt, ...]:
        sender = self.backend.sender("test")
        try:
            return sender.send([message(payload, topic, key) for payload in payloads], 5.0)
        finally:
            sender.close()

    def receiver(self, group: str = "g", topics: tuple[str, ...] = ("t",), **more: object) -> Receiver:
        return self.backend.receiver(Subscription(group, topics, **more))  # type: ignore[arg-type]

    def close(self) -> None:
        for backend in self._opened:
            backend.close()


def message(payload: str, topic: str = "t", key: str | None = "k", **more: object) -> Envelope:
    headers = {"ce_id": payload, "ce_source": "test"}
    return Envelope(topic, payload.encode(), key, headers, **more)  # type: ignore[arg-type]


def texts(received: Sequence[Received]) -> list[str]:
    return [one.envelope.payload.decode() for one in received]


def drain(receiver: Receiver, count: int, timeout_s: float = 1.0, rounds: int = 50) -> list[Received]:
    """Receive until there are so many; fewer if nothing comes for a few rounds."""
    received: list[Received] = []
    for _ in range(rounds):
        received += receiver.receive(count - len(received), timeout_s).received
        if len(received) >= count:
            break
    return received


def settle(*receivers: Receiver, rounds: int = 6) -> None:
    """Let members share the partitions."""
    for _ in range(rounds):
        for receiver in receivers:
            owned_only(receiver.receive(1, 0.0))


def owned_only(batch: Batch) -> None:
    assert not batch.received, "settle is for groups without messages"
