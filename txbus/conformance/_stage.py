"""One case's clients, topics and group members, with the waiting that cases share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from txbus.conformance._harness import Harness, PromiseBroken
from txbus.spi import (
    Backend,
    Batch,
    BrokerTransaction,
    BrokerTransactions,
    Capability,
    Envelope,
    Log,
    Receipt,
    Received,
    Receiver,
    Sender,
    Subscription,
    TopicKind,
    TopicPartition,
    TopicSpec,
)

__all__ = ["Member", "Stage", "envelope", "require", "texts"]


POLLS_MIN = 20


def require(kept: bool, otherwise: str) -> None:
    """PromiseBroken with the reason unless the promise is kept."""
    if not kept:
        raise PromiseBroken(otherwise)


def envelope(
    topic: str,
    text: str,
    key: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    tag: str | None = None,
    deliver_at_s: float | None = None,
) -> Envelope:
    """A message whose id and payload are both ``text``."""
    attributes = {"ce_id": text, "ce_source": "/conformance", **(headers or {})}
    return Envelope(topic, text.encode(), key, attributes, tag, deliver_at_s)


def texts(received: Sequence[Received]) -> list[str]:
    """The payloads as text, in the order of arrival."""
    return [one.envelope.payload.decode() for one in received]


class Member:
    """A group member that remembers what it was given. Used by one thread at a time."""

    def __init__(self, receiver: Receiver, client: Backend, poll_s: float) -> None:
        self.receiver = receiver
        self.client = client
        self.seen: list[Received] = []
        self.batches: list[Batch] = []
        self._poll_s = poll_s

    def poll(self, max_messages: int = 100) -> Batch:
        batch = self.receiver.receive(max_messages, self._poll_s)
        self.batches.append(batch)
        self.seen.extend(batch.received)
        return batch

    @property
    def owned(self) -> frozenset[TopicPartition]:
        """The newest snapshot's partitions."""
        return self.batches[-1].membership.partitions if self.batches else frozenset()

    @property
    def lost(self) -> frozenset[TopicPartition]:
        """Everything ever reported as lost."""
        return frozenset(where for batch in self.batches for where in batch.lost)

    def texts(self) -> list[str]:
        return texts(self.seen)

    def ack_all(self) -> None:
        self.receiver.ack(self.seen)


class Stage:
    """What one case uses of a harness; everything opened here is closed when the case is over."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self._clients: list[Backend] = []
        self._killed: list[Backend] = []

    # clients and what they hand out

    def client(self) -> Backend:
        """A new client, like a process of its own."""
        client = self.harness.backend()
        self._clients.append(client)
        return client

    @property
    def first(self) -> Backend:
        """The client of everything that does not care which it is."""
        return self._clients[0] if self._clients else self.client()

    def kill(self, client: Backend) -> None:
        self._clients.remove(client)
        self._killed.append(client)
        self.harness.kill(client)

    def topic(self, partitions: int = 1, kind: TopicKind = TopicKind.PLAIN, name: str = "topic") -> str:
        """A new topic; it exists on return."""
        topic = self.harness.unique(name)
        admin = self.first.admin()
        admin.create([TopicSpec(topic, partitions, kind)])
        self.until(lambda: admin.describe([topic])[topic] is not None, what=f"topic {topic} exists")
        admin.close()
        return topic

    def group(self) -> str:
        return self.harness.unique("group")

    def sender(self, client: Backend | None = None) -> Sender:
        return (client or self.first).sender(self.harness.unique("producers"))

    def send(self, *envelopes: Envelope, client: Backend | None = None) -> tuple[Receipt, ...]:
        """Send in one call, durably."""
        sender = self.sender(client)
        try:
            return sender.send(envelopes, self.harness.answer_s)
        finally:
            sender.close()

    def send_texts(self, topic: str, *contents: str, key: str | None = None) -> tuple[Receipt, ...]:
        return self.send(*(envelope(topic, content, key) for content in contents))

    def fill(self, topic: str, partition: int, *contents: str) -> tuple[Receipt, ...]:
        """Send one after the other to a named partition, durably."""
        sender = self.sender()
        pending = [sender.append(envelope(topic, content), partition) for content in contents]
        receipts = tuple(one.result(self.harness.answer_s) for one in pending)
        sender.close()
        return receipts

    def member(
        self,
        group: str,
        *topics: str,
        client: Backend | None = None,
        start: str | float = "earliest",
        tags: frozenset[str] | None = None,
        manual: bool = False,
    ) -> Member:
        """A group member in a client of its own unless one is given."""
        client = client or self.client()
        subscription = Subscription(group, topics, start, tags, manual, self.harness.lease_s)
        return Member(client.receiver(subscription), client, self.harness.poll_s)

    def transactions(self, id_: str, client: Backend | None = None) -> BrokerTransactions:
        return (client or self.client()).broker_transactions(id_, self.harness.transaction_timeout_s)

    def commit(self, *envelopes: Envelope, partition: int | None = None) -> None:
        """One broker transaction under an id of its own."""
        owner = self.transactions(self.harness.unique("id"), self.first)
        transaction = owner.begin()
        send_each(transaction, *envelopes, partition=partition)
        transaction.commit()
        owner.close()

    def log(self, topic: str) -> Log:
        return self.first.log(topic)

    def declares(self, capability: Capability, kind: TopicKind = TopicKind.PLAIN) -> bool:
        return capability in self.harness.derived or capability in self.first.capabilities(kind)

    # waiting

    def until(self, reached: Callable[[], bool], *members: Member, what: str, at_most: int = 100) -> None:
        """Poll the members until it is reached; PromiseBroken when the patience is over."""
        clock = self.harness.ports.clock
        deadline_s, polls = clock.monotonic_s() + self.harness.patience_s, 0
        while not reached():
            # On a stalled machine the time may be over before anybody had a chance.
            if polls >= POLLS_MIN and clock.monotonic_s() >= deadline_s:
                seen = "; ".join(f"seen {member.texts()}, owned {sorted(member.owned)}" for member in members)
                raise PromiseBroken(f"not within {self.harness.patience_s} s: {what} ({seen})")
            for member in members:
                member.poll(at_most)
            if not members:
                self.harness.ports.clock.sleep_s(self.harness.poll_s)
            polls += 1

    def until_seen(self, count: int, *members: Member, at_most: int = 100) -> None:
        """Until the members have seen this many together, ``at_most`` with each poll."""

        def reached() -> bool:
            return sum(len(member.seen) for member in members) >= count

        self.until(reached, *members, what=f"{count} deliveries", at_most=at_most)

    def until_texts(self, member: Member, *contents: str) -> None:
        """Until exactly these have arrived, in this order."""
        self.until_seen(len(contents), member)
        require(member.texts() == list(contents), f"expected {list(contents)}, got {member.texts()}")

    def settle(self, topic: str, partitions: int, *members: Member) -> None:
        """Until the members share all partitions of the topic: each has some and none is shared."""
        wanted = {TopicPartition(topic, number) for number in range(partitions)}

        def shared() -> bool:
            owned = [where for member in members for where in member.owned]
            return len(owned) == partitions and set(owned) == wanted and all(m.owned for m in members)

        self.until(shared, *members, what=f"{len(members)} members share {partitions} partitions")

    def quiet(self, *members: Member) -> None:
        """Poll as long as it takes to say that nothing more comes."""
        for _ in range(max(2, round(self.harness.quiet_s / self.harness.poll_s))):
            for member in members:
                member.poll()

    def never(self, member: Member, *contents: str) -> None:
        """Exactly these have arrived in this order, and after a quiet time there is no other."""
        self.until_texts(member, *contents)
        self.quiet(member)
        require(member.texts() == list(contents), f"expected only {list(contents)}, got {member.texts()}")

    def only(self, topic: str, *contents: str) -> None:
        """A new group sees exactly these, and then a marker that is sent now."""
        self.send_texts(topic, "marker")
        self.never(self.member(self.group(), topic), *contents, "marker")

    def pass_time(self, seconds: float, *keepers: Member) -> None:
        """Let time pass in steps short enough for the keepers to keep their leases by polling."""
        step_s = self.harness.lease_s / 4 if keepers else seconds
        left_s = seconds
        while left_s > 0:
            self.harness.advance(min(step_s, left_s))
            left_s -= step_s
            for keeper in keepers:
                keeper.poll()

    def expire(self, *keepers: Member) -> None:
        """Let the leases of everybody but the keepers run out."""
        self.pass_time(self.harness.lease_s * 1.5, *keepers)

    @contextmanager
    def refused(self, *errors: type[Exception], what: str) -> Iterator[None]:
        """The block must raise one of these errors."""
        try:
            yield
        except errors:
            return
        except Exception as exc:
            expected = " or ".join(error.__name__ for error in errors)
            raise PromiseBroken(f"{what}: expected {expected}, got {type(exc).__name__}: {exc}") from exc
        raise PromiseBroken(f"{what}: accepted instead of {' or '.join(e.__name__ for e in errors)}")

    def close(self) -> None:
        """Close all clients; of a killed one it no longer matters how that goes."""
        for client in self._killed:
            with suppress(Exception):
                client.close()
        for client in reversed(self._clients):
            client.close()


def send_each(transaction: BrokerTransaction, *envelopes: Envelope, partition: int | None = None) -> None:
    """Add each to the transaction, in order."""
    for one in envelopes:
        transaction.send(one, partition)
