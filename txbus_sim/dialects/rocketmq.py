"""A model of one RocketMQ 5.3 broker behind its proxy, as gRPC clients see it: a pure state machine.

No I/O and no clock: the caller gives the time, `RocketmqBroker.next_deadline_ns` says when something
happens by itself, and `RocketmqBroker.advance` lets it. What is modelled is `BEHAVIOURS`, a row each.

Not modelled, and refused with `NotModelled` where it could be asked for:

- more than one broker, replicas, and a proxy in cluster mode (it checks topics of type TRANSACTION only);
- the remoting protocol: push and pull consumers, its transaction producer, its check-back;
- retention: nothing is ever deleted, so the head of a topic is always in memory for a new group;
- power loss: an acknowledged message survives every death of a process, whatever the flush mode;
- the offset of the half queue, which a killed broker may read again from a little earlier;
- a half's own immunity time (``CHECK_IMMUNITY_TIME_IN_SECONDS``), SQL filters, batches, lite topics;
- a reset of a group's offsets by time, access control, namespaces;
- the cache of the proxy's routes: a topic is there as soon as it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from txbus.spi import Outcome
from txbus_sim.dialects.rocketmq_groups import Group, Popped, dead_letter_topic
from txbus_sim.dialects.rocketmq_halves import DISCARD_TOPIC, Halves, Producer, Question
from txbus_sim.dialects.rocketmq_messages import (
    ILLEGAL_TOPIC,
    INTERNAL,
    TOPIC_NOT_FOUND,
    UNAVAILABLE,
    Message,
    MessageType,
    Rules,
    ServerStatus,
    Stored,
    Topic,
    check_message,
)
from txbus_sim.dialects.rocketmq_table import BEHAVIOURS
from txbus_sim.errors import NotModelled
from txbus_sim.history import Record

__all__ = [
    "BEHAVIOURS",
    "DISCARD_TOPIC",
    "Message",
    "MessageType",
    "Popped",
    "Producer",
    "Question",
    "RocketmqBroker",
    "Rules",
    "ServerStatus",
    "Stored",
    "dead_letter_topic",
]

Publish = Callable[[Stored, str, int], None]
_SYSTEM = ("TRANS_CHECK_MAX_TIME_TOPIC", "RMQ_SYS_", "SCHEDULE_TOPIC_XXXX", "TBW102", "rmq_sys_", "%RETRY%")


class RocketmqBroker:
    """One broker with its proxy. Times are nanoseconds of the run.

    ``note`` takes history records; ``stored`` is told of each message that becomes visible, with who
    sent it and the time; ``message_id`` reads the CloudEvents id out of a message.
    """

    def __init__(
        self,
        rules: Rules,
        note: Callable[[Record], None],
        stored: Publish,
        message_id: Callable[[Message], str],
    ) -> None:
        self.rules = rules
        self._stored = stored
        self._topics: dict[str, Topic] = {}
        self._groups: dict[str, Group] = {}
        self._halves = Halves(rules, self._publish, note, message_id)
        self._delayed: list[tuple[int, int, str, Message]] = []
        self._delays = 0
        self._settings: set[object] = set()
        self._down_until_ns = 0

    # topics and groups

    def create_topic(self, name: str, type: MessageType, queues: int) -> None:
        """Make a topic; one that exists stays as it is."""
        if type is MessageType.MIXED and not self.rules.mixed_types:
            raise ServerStatus(INTERNAL, "MIXED message type is not supported (enableMixedMessageType)")
        if any(name.startswith(prefix) for prefix in _SYSTEM):
            raise ServerStatus(ILLEGAL_TOPIC, f"topic {name!r} is the system's")
        self._topics.setdefault(name, Topic(name, type, queues))

    def topic(self, name: str) -> Topic:
        """40402 for a missing topic, 40002 for the system's own, which gRPC cannot touch."""
        if any(name.startswith(prefix) for prefix in _SYSTEM):
            raise ServerStatus(ILLEGAL_TOPIC, f"topic {name!r} is the system's")
        found = self._topics.get(name)
        if found is None:
            raise ServerStatus(TOPIC_NOT_FOUND, f"no route of topic {name!r}")
        return found

    def topics(self) -> tuple[Topic, ...]:
        return tuple(self._topics.values())

    def group(self, name: str, *, ordered: bool = False) -> Group:
        """The group, made if it is missing; its kind stays as it was made."""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name, ordered, self.rules, lambda m, at: self._bury(name, m, at))
        return group

    def find_group(self, name: str) -> Group | None:
        return self._groups.get(name)

    def _bury(self, group: str, message: Message, now_ns: int) -> None:
        name = dead_letter_topic(group)
        topic = self._topics.setdefault(name, Topic(name, MessageType.NORMAL, 1))
        dead = Message(message.id, name, message.body, message.properties, message.tag, born_ns=message.born_ns)
        self._stored(topic.store(dead, now_ns), "broker", now_ns)

    # sending

    def send(self, message: Message, process: str, now_ns: int) -> Stored | None:
        """Store a message that is no half; None for a delayed one, which has no place yet."""
        self._require_up(now_ns)
        topic = self.topic(message.topic)
        check_message(message, topic, self.rules, now_ns)
        if message.transactional:
            raise NotModelled("a transactional message is prepared, not sent: RocketmqBroker.prepare")
        if message.deliver_at_ns is not None and message.deliver_at_ns > now_ns:
            self._delays += 1
            heappush(self._delayed, (message.deliver_at_ns, self._delays, process, message))
            return None
        return self._publish(message, process, now_ns)

    def _publish(self, message: Message, process: str, now_ns: int) -> Stored:
        stored = self.topic(message.topic).store(message, now_ns)
        self._stored(stored, process, now_ns)
        return stored

    # half messages

    def prepare(self, message: Message, process: str, now_ns: int) -> str:
        """Store a half message; its transaction id."""
        self._require_up(now_ns)
        check_message(message, self.topic(message.topic), self.rules, now_ns)
        return self._halves.prepare(message, process, now_ns)

    def end(
        self,
        transaction_id: str,
        outcome: Outcome,
        process: str,
        now_ns: int,
        *,
        round: int = 0,
        lost: bool = False,
    ) -> None:
        """`Halves.end`."""
        self._require_up(now_ns)
        self._halves.end(transaction_id, outcome, process, now_ns, round=round, lost=lost)

    def register(self, producer: Producer, now_ns: int) -> None:
        self._require_up(now_ns)
        self._halves.register(producer)

    def unregister(self, producer: Producer) -> None:
        self._halves.unregister(producer)

    def is_registered(self, producer: Producer) -> bool:
        """Whether it is asked: not after a restart of the proxy, until it is built anew."""
        return self._halves.is_registered(producer)

    @property
    def discarded(self) -> tuple[Message, ...]:
        return self._halves.discarded

    def resume(self, message_id: str, now_ns: int) -> None:
        """The administrator's rescue of a discarded half; not idempotent."""
        self._require_up(now_ns)
        self._halves.resume(message_id, now_ns)

    # receiving

    def begin_consumer(self, consumer: object, now_ns: int) -> None:
        """A consumer starts: its settings reach the proxy."""
        self._require_up(now_ns)
        self._settings.add(consumer)

    def end_consumer(self, consumer: object) -> None:
        self._settings.discard(consumer)

    def receive(
        self,
        consumer: object,
        group: Group,
        topic: str,
        tags: frozenset[str] | None,
        most: int,
        invisible_ns: int,
        now_ns: int,
    ) -> list[Popped]:
        """50001 for a consumer that the proxy does not know (any more)."""
        self._require_up(now_ns)
        if consumer not in self._settings:
            raise ServerStatus(INTERNAL, "settings is null")
        return group.pop(self.topic(topic), tags, most, invisible_ns, now_ns)

    def ack(self, group: Group, receipt: int, now_ns: int) -> Stored | None:
        self._require_up(now_ns)
        return group.ack(receipt, now_ns)

    def change_invisible(self, group: Group, receipt: int, after_ns: int, now_ns: int) -> Popped:
        self._require_up(now_ns)
        return group.change_invisible(receipt, after_ns, now_ns)

    # time and restarts

    def next_deadline_ns(self) -> int | None:
        """When something happens by itself: a check round, or a delayed message's time."""
        times = [self._delayed[0][0]] if self._delayed else []
        round_ns = self._halves.next_deadline_ns()
        if round_ns is not None:
            times.append(round_ns)
        # A broker that is down does nothing; it makes up for it when it is back.
        return max(min(times), self._down_until_ns) if times else None

    def advance(self, now_ns: int) -> bool:
        """Do what is due; whether anything durable happened."""
        if now_ns < self._down_until_ns:
            return False
        did = self._halves.advance(now_ns)
        while self._delayed and self._delayed[0][0] <= now_ns:
            _, _, process, message = heappop(self._delayed)
            self._publish(message, process, now_ns)
            did = True
        return did

    def restart_broker(self, now_ns: int) -> int:
        """The broker is killed and comes back, and the proxy with it, as both are one process.

        Messages and halves are all there; outcomes of the last second are not. How many were lost.
        """
        lost = self._halves.forget_marks(now_ns)
        self.restart_proxy(now_ns)
        return lost

    def restart_proxy(self, now_ns: int) -> None:
        """The proxy is killed and comes back: it knows no client and no half in doubt any more."""
        self._halves.forget_proxy()
        self._settings.clear()
        self._down_until_ns = now_ns + self.rules.restart_ns

    def _require_up(self, now_ns: int) -> None:
        if now_ns < self._down_until_ns:
            raise ServerStatus(UNAVAILABLE, "failed to connect to all addresses")
