"""Who should own which partition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from txbus.embedded.assignment import assign


@given(
    partitions=st.integers(0, 24),
    members=st.integers(1, 7),
    owners=st.dictionaries(st.integers(0, 23), st.integers(0, 9), max_size=24),
)
def test_members_of_the_same_topics_share_evenly(partitions: int, members: int, owners: dict[int, int]) -> None:
    """Every partition has an owner, and each member has n // L or one more."""
    names = [f"m{index}" for index in range(members)]
    everything = frozenset(range(partitions))
    wants = dict.fromkeys(names, everything)
    held = {ident: f"m{owner}" for ident, owner in owners.items() if owner < members and ident < partitions}
    target = assign(wants, held, everything)
    assert set(target) == everything
    loads = [list(target.values()).count(name) for name in names]
    assert max(loads) - min(loads) <= 1


@given(owners=st.dictionaries(st.integers(0, 15), st.integers(0, 3), max_size=16))
def test_everybody_computes_the_same_and_it_is_stable(owners: dict[int, int]) -> None:
    """The result depends on no order, and applying it leaves nothing to do."""
    everything = frozenset(range(16))
    names = ["a", "b", "c", "d"]
    held = {ident: names[owner] for ident, owner in owners.items()}
    target = assign(dict.fromkeys(names, everything), held, everything)
    assert target == assign(dict.fromkeys(reversed(names), everything), dict(reversed(held.items())), everything)
    assert target == assign(dict.fromkeys(names, everything), target, everything)


def test_no_more_moves_than_needed() -> None:
    """A third member takes only what makes the shares even; the rest stays where it is."""
    everything = frozenset(range(6))
    held = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "b"}
    target = assign(dict.fromkeys(["a", "b", "c"], everything), held, everything)
    assert sum(target[ident] != held[ident] for ident in everything) == 2


def test_a_member_gets_partitions_of_its_own_topics_only() -> None:
    """Members of one group may read different topics."""
    wants = {"a": frozenset({0, 1}), "b": frozenset({0, 1, 2, 3})}
    target = assign(wants, {}, frozenset(range(5)))
    assert target[2] == target[3] == "b"
    assert 4 not in target
    assert list(target.values()).count("a") == 2
