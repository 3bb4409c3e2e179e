"""A member of a consumer group as the client library keeps it up in the background."""

from __future__ import annotations

from collections.abc import Callable

from txbus.spi import Subscription, TopicPartition
from txbus_sim._kafka.server import KafkaServer, here, later
from txbus_sim._world import Process
from txbus_sim.dialects.kafka import Assignment, Code, Membership, Refusal

__all__ = ["NOBODY", "GroupMember"]

_S = 1_000_000_000
NOBODY = Membership("", -1)


class GroupMember:
    """Joins, beats and learns assignments; `receive` serves them.

    A heartbeat goes out every third of the session timeout. Who does not poll for max.poll.interval
    leaves by itself. Both are ``lease_s``. Nothing happens while the process is paused.
    """

    def __init__(
        self, server: KafkaServer, process: Process, subscription: Subscription, changed: Callable[[], None]
    ) -> None:
        self.identity = NOBODY
        self.owned: frozenset[TopicPartition] = frozenset()
        """What `serve` gave to the application last."""
        self.kicked = False
        """The broker does not know this member any more; what it owned is lost."""
        self.polling = False
        self.polled_ns = server.world.now_ns
        self._server = server
        self._process = process
        self._group = subscription.group
        self._topics = subscription.topics
        self._lease_ns = round(subscription.lease_s * _S)
        self._changed = changed
        self._joining = False
        self._assignment: Assignment | None = None
        self._rejoin = False
        self._ended = False
        later(process, self._lease_ns // 3, self._beat)

    # the background

    def _beat(self) -> None:
        if self._ended:
            return
        now_ns = self._server.world.now_ns
        if self.identity.member and not self.polling and now_ns - self.polled_ns >= self._lease_ns:
            self._leave()
            self._kick()
        elif self._joining:
            self.sync()
        elif self.identity.member:
            self._heartbeat()
        due_ns = now_ns + self._lease_ns // 3
        if not self.polling and self.identity.member:
            due_ns = min(due_ns, max(self.polled_ns + self._lease_ns, now_ns + 1))
        later(self._process, due_ns - now_ns, self._beat)

    def _heartbeat(self) -> None:
        try:
            self._server.ask(
                lambda cluster: cluster.groups.heartbeat(self._group, self.identity, self._server.world.now_ns)
            )
        except Refusal as exc:
            if exc.code is not Code.REBALANCE_IN_PROGRESS:
                self._kick()
            elif self._assignment is not None:
                self._rejoin = True  # the library serves the last one to the application first
            else:
                self.join()

    def _kick(self) -> None:
        self.identity = NOBODY
        self.kicked = True
        self._joining = self._rejoin = False
        self._assignment = None
        self._changed()

    def join(self) -> None:
        """As a new member, or again with what is owned."""
        self._joining = True
        try:
            member = self._server.ask(
                lambda cluster: cluster.groups.join(
                    self._group,
                    self.identity.member,
                    self._process.key,
                    self._topics,
                    self.owned,
                    self._lease_ns,
                    self._lease_ns,
                    self._server.world.now_ns,
                )
            )
        except Refusal:
            self._kick()
            return
        self.identity = Membership(member, self.identity.generation)
        self.sync()

    def sync(self) -> None:
        """Learn the assignment if every member has joined."""
        if not self._joining or not self.identity.member or not here(self._process):
            return
        try:
            assignment = self._server.cluster.groups.assignment(self._group, self.identity.member)
        except Refusal:
            self._kick()
            return
        if assignment is not None:
            self._joining = False
            self._assignment = assignment
            self.identity = Membership(self.identity.member, assignment.generation)
            self._changed()

    def coordinator_told(self) -> None:
        """The group has a new generation."""
        if not self._ended:
            self.sync()

    # the application's poll

    def serve(self) -> tuple[frozenset[TopicPartition], frozenset[TopicPartition]]:
        """What was gained and lost since the last call; joins if need be. What was lost is free for
        others from now on."""
        if self.kicked:
            self.kicked = False
            lost, self.owned = self.owned, frozenset()
            self.join()
            return frozenset(), lost
        if not self.identity.member:
            self.join()
        self.sync()
        assignment, self._assignment = self._assignment, None
        if assignment is None:
            return frozenset(), frozenset()
        gained, lost = assignment.partitions - self.owned, self.owned - assignment.partitions
        self.owned = assignment.partitions
        if lost or self._rejoin:
            self._rejoin = False
            self.join()
        return gained, lost

    def _leave(self) -> None:
        member = self.identity.member
        if member:
            self._server.ask(lambda cluster: cluster.groups.leave(self._group, member, self._server.world.now_ns))

    def end(self, leave: bool) -> None:
        """``leave``: in order; else the broker has to find out by the session timeout."""
        if leave and not self._ended:
            self._leave()
        self._ended = True
        self.identity = NOBODY
