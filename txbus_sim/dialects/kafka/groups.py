"""The group coordinator: members and generations of the classic protocol, positions, pending positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from txbus.spi import Committed, TopicPartition
from txbus_sim.dialects.kafka.assignor import assign
from txbus_sim.dialects.kafka.codes import Code, Refusal
from txbus_sim.dialects.kafka.deadlines import Deadlines

__all__ = ["Assignment", "GroupCoordinator", "Membership"]

_MS = 1_000_000
_SESSION_NS_MIN = 6_000 * _MS
_SESSION_NS_MAX = 1_800_000 * _MS
_METADATA_CHARS_MAX = 4_095
_NO_GENERATION = -1


@dataclass(frozen=True, slots=True)
class Membership:
    """What a client says of itself (group metadata). ``Membership("", -1)``: it never joined."""

    member: str
    generation: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a rebalance gave to a member."""

    generation: int
    partitions: frozenset[TopicPartition]


@dataclass(slots=True)
class _Member:
    id: str
    client: str
    topics: tuple[str, ...]
    session_ns: int
    rebalance_ns: int
    deadline_ns: int
    owned: frozenset[TopicPartition]
    joined: bool = True
    assigned: frozenset[TopicPartition] = frozenset()


@dataclass(slots=True)
class _Group:
    name: str
    generation: int = 0
    rebalancing: bool = False
    rebalances: int = 0
    turn: int = 0
    members: dict[str, _Member] = field(default_factory=dict)
    target: dict[TopicPartition, str] = field(default_factory=dict)
    positions: dict[TopicPartition, Committed] = field(default_factory=dict)
    pending: dict[int, dict[TopicPartition, Committed]] = field(default_factory=dict)


class GroupCoordinator:
    """Every consumer group of the cluster."""

    def __init__(
        self,
        deadlines: Deadlines,
        partitions_of: Callable[[str], int],
        rebalanced: Callable[[str], None],
        moved: Callable[[str, TopicPartition, int, str], None],
        unblocked: Callable[[str], None],
    ) -> None:
        self._deadlines = deadlines
        self._partitions_of = partitions_of
        self._rebalanced = rebalanced
        self._moved = moved
        self._unblocked = unblocked
        self._groups: dict[str, _Group] = {}
        self._joins = 0

    def _group(self, name: str) -> _Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(name)
        return group

    # membership

    def join(
        self,
        name: str,
        member: str,
        client: str,
        topics: tuple[str, ...],
        owned: frozenset[TopicPartition],
        session_ns: int,
        rebalance_ns: int,
        now_ns: int,
    ) -> str:
        """JoinGroup, as a new member ("") or again; the member's id. The assignment comes when every
        member has joined, see `assignment`."""
        if not _SESSION_NS_MIN <= session_ns <= _SESSION_NS_MAX:
            raise Refusal(Code.INVALID_SESSION_TIMEOUT, f"{session_ns // _MS} ms, 6000 to 1800000 are allowed")
        group = self._group(name)
        if not member:
            self._joins += 1
            member = f"{client}-{self._joins}"
            one = _Member(member, client, topics, session_ns, rebalance_ns, now_ns + session_ns, owned)
            group.members[member] = one
            self._watch(group, one, one.deadline_ns)
        one = self._member(group, member)
        one.topics, one.owned = topics, owned
        one.deadline_ns = now_ns + session_ns
        if not group.rebalancing:
            self._begin_rebalance(group, now_ns)
        one.joined = True
        self._complete_if_all_joined(group, now_ns)
        return member

    def assignment(self, name: str, member: str) -> Assignment | None:
        """SyncGroup: None while the rebalance waits for others. Refuses a member that is unknown."""
        group = self._group(name)
        one = self._member(group, member)
        return None if group.rebalancing else Assignment(group.generation, one.assigned)

    def heartbeat(self, name: str, who: Membership, now_ns: int) -> None:
        """Refused with REBALANCE_IN_PROGRESS: join again; with UNKNOWN_MEMBER_ID: all is lost."""
        group = self._group(name)
        one = self._validated(group, who)
        one.deadline_ns = now_ns + one.session_ns
        if group.rebalancing and not one.joined:
            raise Refusal(Code.REBALANCE_IN_PROGRESS, name)

    def leave(self, name: str, member: str, now_ns: int) -> None:
        """Its partitions are free at once. Nothing happens if the member is unknown."""
        group = self._group(name)
        if member in group.members:
            self._remove(group, member, now_ns)

    def expire(self, name: str, member: str, now_ns: int) -> None:
        """The broker counts a member as dead although it is not."""
        self.leave(name, member, now_ns)

    def move(self, name: str, now_ns: int) -> None:
        """The coordinator dies, another broker loads the group: sessions begin anew."""
        for one in self._group(name).members.values():
            one.deadline_ns = now_ns + one.session_ns

    def rebalance(self, name: str, now_ns: int) -> None:
        """The partitions are dealt anew, one member further."""
        group = self._group(name)
        group.turn += 1
        group.target = {}
        if group.members and not group.rebalancing:
            self._begin_rebalance(group, now_ns)

    def owners(self, name: str) -> Mapping[TopicPartition, str]:
        """Which member each partition is assigned to, as a describe of the group says it."""
        return {where: one.id for one in self._group(name).members.values() for where in one.assigned}

    def generation(self, name: str) -> int:
        return self._group(name).generation

    def _member(self, group: _Group, member: str) -> _Member:
        one = group.members.get(member)
        if one is None:
            raise Refusal(Code.UNKNOWN_MEMBER_ID, f"{member or '(no id)'} of group {group.name}")
        return one

    def _validated(self, group: _Group, who: Membership) -> _Member:
        one = self._member(group, who.member)
        if who.generation != group.generation:
            raise Refusal(
                Code.ILLEGAL_GENERATION, f"{who.member}: generation {who.generation}, current {group.generation}"
            )
        return one

    def _watch(self, group: _Group, one: _Member, at_ns: int) -> None:
        """End the session when its deadline has come, which heartbeats move on."""

        def look(now_ns: int) -> None:
            if group.members.get(one.id) is not one:
                return
            if group.rebalancing and one.joined:
                one.deadline_ns = now_ns + one.session_ns  # it waits for the others, and is awaited
            if one.deadline_ns > now_ns:
                self._watch(group, one, one.deadline_ns)
            else:
                self._remove(group, one.id, now_ns)

        self._deadlines.at(at_ns, look)

    def _remove(self, group: _Group, member: str, now_ns: int) -> None:
        del group.members[member]
        if not group.members:
            group.rebalancing = False
            group.generation += 1
            self._rebalanced(group.name)
        elif group.rebalancing:
            self._complete_if_all_joined(group, now_ns)
        else:
            self._begin_rebalance(group, now_ns)

    def _begin_rebalance(self, group: _Group, now_ns: int) -> None:
        group.rebalancing = True
        group.rebalances += 1
        for one in group.members.values():
            one.joined = False
        number = group.rebalances
        due_ns = now_ns + max(one.rebalance_ns for one in group.members.values())

        def give_up(now_ns: int) -> None:
            """Who has not joined by now is out."""
            if group.rebalancing and group.rebalances == number:
                group.members = {name: one for name, one in group.members.items() if one.joined}
                self._complete(group, now_ns)

        self._deadlines.at(due_ns, give_up)

    def _complete_if_all_joined(self, group: _Group, now_ns: int) -> None:
        if group.rebalancing and all(one.joined for one in group.members.values()):
            self._complete(group, now_ns)

    def _complete(self, group: _Group, now_ns: int) -> None:
        group.rebalancing = False
        group.generation += 1
        counts = {topic: self._partitions_of(topic) for one in group.members.values() for topic in one.topics}
        subscribed = {
            one.id: [TopicPartition(topic, number) for topic in one.topics for number in range(counts[topic])]
            for one in group.members.values()
        }
        owned = {one.id: one.owned for one in group.members.values()}
        turn, group.turn = group.turn, 0
        group.target = assign(subscribed, owned, group.target, turn)
        claimed = {where: one.id for one in group.members.values() for where in one.owned}
        for one in group.members.values():
            # Cooperative: what another one still owns is given when that one has let go.
            one.assigned = frozenset(
                where
                for where, member in group.target.items()
                if member == one.id and claimed.get(where, one.id) == one.id
            )
            one.deadline_ns = now_ns + one.session_ns
        self._rebalanced(group.name)

    # positions

    def commit(self, name: str, who: Membership, positions: Mapping[TopicPartition, Committed], by: str) -> None:
        """OffsetCommit: checks the membership and the generation, never who owns a partition."""
        group = self._group(name)
        if who.generation < 0 and not who.member:
            if group.members:
                raise Refusal(Code.UNKNOWN_MEMBER_ID, f"group {name} has members; who commits is none of them")
        else:
            self._validated(group, who)
        self._check_metadata(positions)
        for where, committed in positions.items():
            group.positions[where] = committed
            self._moved(name, where, committed.offset, by)

    def commit_in_transaction(
        self, name: str, who: Membership, positions: Mapping[TopicPartition, Committed], producer_id: int
    ) -> None:
        """TxnOffsetCommit: pending until the markers come. A client that never joined is let through."""
        group = self._group(name)
        if who.generation >= 0 or who.member:
            self._validated(group, who)
        self._check_metadata(positions)
        group.pending.setdefault(producer_id, {}).update(positions)

    def _check_metadata(self, positions: Mapping[TopicPartition, Committed]) -> None:
        for where, committed in positions.items():
            if len(committed.note) > _METADATA_CHARS_MAX:
                raise Refusal(
                    Code.OFFSET_METADATA_TOO_LARGE, f"{where}: {len(committed.note)} characters, at most 4095"
                )

    def resolve(self, name: str, producer_id: int, commit: bool, by: str) -> None:
        """The marker in the group's log: pending positions of this producer count, or do not."""
        group = self._group(name)
        pending = group.pending.pop(producer_id, None)
        if pending is None:
            return
        if commit:
            for where, committed in pending.items():
                group.positions[where] = committed
                self._moved(name, where, committed.offset, by)
        self._unblocked(name)

    def committed(self, name: str, where: TopicPartition) -> Committed | None:
        """OffsetFetch with require_stable: refused while a broker transaction's position is pending."""
        group = self._group(name)
        if any(where in pending for pending in group.pending.values()):
            raise Refusal(Code.UNSTABLE_OFFSET_COMMIT, f"{where} of group {name}")
        return group.positions.get(where)
