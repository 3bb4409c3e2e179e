"""Consumer groups of the Kafka model: members, rebalances, positions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.kafka_bench import MS, NOBODY, Bench, P, Q, S, refused, shows
from txbus.spi import Committed, TopicPartition
from txbus_sim.dialects.kafka import Code, Membership
from txbus_sim.dialects.kafka.assignor import assign


def _two(bench: Bench) -> tuple[str, str]:
    """Two members that own one partition each."""
    first = bench.join(client="a")
    second = bench.join(client="b")
    bench.join(first, P, Q, client="a")
    bench.join(first, P, client="a")
    bench.join(second, client="b")
    assert (bench.assigned(first), bench.assigned(second)) == ([0], [1])
    return first, second


@shows("members-share", "moved-after-release", "rebalance-waits")
def test_a_joining_member_gets_its_part_once_it_is_released() -> None:
    """The rebalance waits for the first one; its partition moves only when it has let go of it."""
    bench = Bench()
    first = bench.join(client="a")
    assert bench.assigned(first) == [0, 1]
    second = bench.join(client="b")
    assert bench.assigned(second) is None and bench.beat(first) is Code.REBALANCE_IN_PROGRESS
    bench.join(first, P, Q, client="a")
    assert bench.assigned(first) == [0] and bench.assigned(second) == []
    assert bench.cluster.groups.owners("g") == {P: first}
    bench.join(first, P, client="a")
    assert bench.beat(second) is Code.REBALANCE_IN_PROGRESS
    bench.join(second, client="b")
    assert bench.assigned(first) == [0] and bench.assigned(second) == [1]
    assert bench.beat(first) is None and bench.beat(second) is None


PLACES = [TopicPartition(topic, number) for topic in "tu" for number in range(4)]
MEMBERS = ["m1", "m2", "m3", "m4"]


@shows("members-share")
@given(
    count=st.integers(1, 4),
    partitions=st.integers(0, 8),
    owned=st.lists(st.integers(0, 4), min_size=8, max_size=8),
    turn=st.integers(0, 3),
)
def test_every_partition_has_one_member_and_shares_are_even(
    count: int, partitions: int, owned: list[int], turn: int
) -> None:
    """Whatever was owned before: all are dealt, shares differ by one at most, and who has its fair
    share or less keeps all of it."""
    members, places = MEMBERS[:count], PLACES[:partitions]
    had = {m: frozenset(p for p, n in zip(places, owned, strict=False) if n == at) for at, m in enumerate(members)}
    dealt = assign(dict.fromkeys(members, places), had, {}, turn)
    assert sorted(dealt) == sorted(places)
    shares = {m: {p for p, owner in dealt.items() if owner == m} for m in members}
    sizes = [len(share) for share in shares.values()]
    assert max(sizes) - min(sizes) <= 1
    if not turn:
        for member in members:
            if len(had[member]) <= partitions // count:
                assert had[member] <= shares[member]


@shows("members-share")
def test_a_member_gets_only_what_it_subscribed_to() -> None:
    """With different topics nobody gets a partition of a topic that it does not read."""
    t, u = PLACES[:4], PLACES[4:]
    dealt = assign({"both": [*t, *u], "one": u}, {}, {})
    assert all(dealt[where] == "both" for where in t)
    assert {dealt[where] for where in u} == {"one"}


@shows("session-timeout", "rebalance-waits")
def test_a_silent_member_is_removed_and_its_partitions_are_dealt() -> None:
    """After 10 s without a heartbeat; until then a rebalance waits for it."""
    bench = Bench()
    first, second = _two(bench)
    for _ in range(3):
        bench.pass_ns(3 * S)
        assert bench.beat(second) is None
    bench.pass_ns(S - 1)
    assert bench.beat(second) is None
    bench.pass_ns(1)
    assert bench.beat(second) is Code.REBALANCE_IN_PROGRESS
    bench.join(second, Q, client="b")
    assert bench.assigned(second) == [0, 1]
    assert bench.beat(first) is Code.UNKNOWN_MEMBER_ID


@shows("rebalance-waits", "session-timeout")
def test_a_newcomer_waits_for_the_session_of_a_dead_member() -> None:
    """As after the crash and restart of a process: what the dead one owned comes with its time-out."""
    bench = Bench()
    bench.join(client="dead")
    bench.pass_ns(2 * S)
    heir = bench.join(client="heir")
    bench.pass_ns(8 * S - 1)
    assert bench.assigned(heir) is None
    bench.pass_ns(1)
    assert bench.assigned(heir) == [0, 1]


@shows("rebalance-waits")
def test_who_beats_and_does_not_join_is_out_at_the_rebalance_time_out() -> None:
    """A member may keep its session and hold the rebalance up for so long, no longer."""
    bench = Bench()
    first = bench.join(client="a")
    second = bench.join(client="b")
    for _ in range(4):
        bench.pass_ns(2 * S)
        assert bench.beat(first) is Code.REBALANCE_IN_PROGRESS
    bench.pass_ns(2 * S)
    assert bench.assigned(second) == [0, 1] and bench.beat(first) is Code.UNKNOWN_MEMBER_ID


@shows("leave-frees-at-once")
def test_who_leaves_frees_its_partitions() -> None:
    """The next rebalance deals them; nobody waits for a time-out."""
    bench = Bench()
    first, second = _two(bench)
    bench.cluster.groups.leave("g", first, bench.now_ns)
    assert bench.beat(second) is Code.REBALANCE_IN_PROGRESS
    bench.join(second, Q, client="b")
    assert bench.assigned(second) == [0, 1]
    bench.cluster.groups.leave("g", second, bench.now_ns)
    assert bench.cluster.groups.owners("g") == {}


@shows("session-timeout-bounds")
def test_a_session_time_out_has_bounds() -> None:
    """6 s and 30 min are allowed."""
    groups = Bench().cluster.groups

    def join(session_ns: int) -> object:
        return groups.join("g", "", "c", ("t",), frozenset(), session_ns, session_ns, 0)

    for session_ns in (6 * S - MS, 1_800 * S + MS):
        assert refused(lambda session_ns=session_ns: join(session_ns)) is Code.INVALID_SESSION_TIMEOUT  # type: ignore[misc]
    assert join(6 * S) and join(1_800 * S)


@shows("group-coordinator-failover")
def test_a_group_survives_its_coordinator() -> None:
    """Members and generation stand; a session that was nearly over begins anew."""
    bench = Bench()
    member = bench.join()
    generation = bench.cluster.groups.generation("g")
    bench.pass_ns(9 * S)
    bench.cluster.groups.move("g", bench.now_ns)
    bench.pass_ns(9 * S)
    assert bench.beat(member) is None and bench.cluster.groups.generation("g") == generation


@shows("rebalance-on-demand")
def test_a_rebalance_deals_one_member_further() -> None:
    """Two members with one partition each have changed places when both have let go and joined."""
    bench = Bench()
    first, second = _two(bench)
    generation = bench.cluster.groups.generation("g")
    bench.cluster.groups.rebalance("g", bench.now_ns)
    bench.join(first, P, client="a")
    bench.join(second, Q, client="b")
    assert (bench.assigned(first), bench.assigned(second)) == ([], [])
    bench.join(first, client="a")
    bench.join(second, client="b")
    assert (bench.assigned(first), bench.assigned(second)) == ([1], [0])
    assert bench.cluster.groups.generation("g") == generation + 2


# positions


def _plain(bench: Bench, who: Membership, where: TopicPartition = P) -> Code | None:
    return refused(lambda: bench.cluster.groups.commit("g", who, {where: Committed(5)}, "p"))


def _inside(bench: Bench, who: Membership, where: TopicPartition = P) -> Code | None:
    owner = bench.init("inside")
    return refused(lambda: bench.offsets(owner, who, 5, where))


@shows("generation-checked")
def test_an_older_generation_is_refused() -> None:
    """After a rebalance, kept partition or not, what was captured before it is refused."""
    bench = Bench()
    member = bench.join()
    old = bench.membership(member)
    bench.join(member, P, Q)
    for commit in (_plain, _inside):
        assert commit(bench, old) is Code.ILLEGAL_GENERATION
        assert commit(bench, bench.membership(member)) is None


@shows("member-checked")
def test_a_member_that_is_gone_is_refused() -> None:
    """Its id is unknown from then on."""
    bench = Bench()
    first, _ = _two(bench)
    gone = bench.membership(first)
    bench.cluster.groups.leave("g", first, bench.now_ns)
    for commit in (_plain, _inside):
        assert commit(bench, gone) is Code.UNKNOWN_MEMBER_ID


@shows("never-joined-accepted", "plain-commit-of-no-member")
def test_metadata_of_no_member_passes_in_a_broker_transaction() -> None:
    """A plain commit without a member is taken by an empty group only."""
    bench = Bench()
    assert _plain(bench, NOBODY) is None
    bench.join()
    assert _plain(bench, NOBODY) is Code.UNKNOWN_MEMBER_ID
    assert _inside(bench, NOBODY) is None


@shows("ownership-not-checked")
def test_the_owner_of_a_partition_is_not_checked() -> None:
    """A member's own current metadata moves the position of another member's partition."""
    bench = Bench()
    first, _ = _two(bench)
    assert bench.assigned(first) == [0]
    for commit in (_plain, _inside):
        assert commit(bench, bench.membership(first), Q) is None


@shows("commit-while-rebalancing")
def test_the_generation_stands_while_a_rebalance_waits() -> None:
    """A member that has not joined again yet can still acknowledge what it has done."""
    bench = Bench()
    member = bench.join()
    who = bench.membership(member)
    bench.join(client="newcomer")
    for commit in (_plain, _inside):
        assert commit(bench, who) is None


@shows("positions-with-the-commit", "pending-blocks-committed")
def test_positions_count_with_the_commit() -> None:
    """Pending ones block the reading of theirs and of no other; an abort leaves the old one."""
    bench = Bench()
    member = bench.join()
    who = bench.membership(member)
    bench.cluster.groups.commit("g", who, {P: Committed(1), Q: Committed(1)}, "p")
    owner = bench.init()
    for commit, offset in ((False, 1), (True, 5)):
        bench.offsets(owner, who, 5)
        assert refused(lambda: bench.cluster.groups.committed("g", P)) is Code.UNSTABLE_OFFSET_COMMIT
        assert bench.cluster.groups.committed("g", Q) == Committed(1)
        bench.end(owner, commit)
        assert bench.cluster.groups.committed("g", P) == Committed(offset)


@shows("note-beside-a-position")
def test_a_note_has_a_limit() -> None:
    """4095 characters come back, one more is refused and moves nothing."""
    bench = Bench()
    note = "n" * 4_095
    bench.cluster.groups.commit("g", NOBODY, {P: Committed(1, note)}, "p")
    longer = {P: Committed(2, note + "n")}
    assert refused(lambda: bench.cluster.groups.commit("g", NOBODY, longer, "p")) is Code.OFFSET_METADATA_TOO_LARGE
    assert bench.cluster.groups.committed("g", P) == Committed(1, note)
