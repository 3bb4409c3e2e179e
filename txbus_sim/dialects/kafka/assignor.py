"""Who gets which partitions: balanced, and what a member has it keeps (cooperative-sticky)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from txbus.spi import TopicPartition

__all__ = ["assign"]


def assign(
    subscribed: Mapping[str, Sequence[TopicPartition]],
    owned: Mapping[str, frozenset[TopicPartition]],
    preferred: Mapping[TopicPartition, str],
    turn: int = 0,
) -> dict[TopicPartition, str]:
    """Each partition's member. ``subscribed`` names the members in the order of their joining, each
    with all partitions it could get; ``preferred``: who was meant to get a partition that nobody
    owns. ``turn`` above 0 deals anew, that many members further, and lets nobody keep anything."""
    members = list(subscribed)
    everything = sorted({where for wanted in subscribed.values() for where in wanted})
    able = {where: [m for m in members if where in set(subscribed[m])] for where in everything}
    shares: dict[str, list[TopicPartition]] = {member: [] for member in members}
    if turn:
        for number, where in enumerate(everything):
            # From where it is now: the partition's owner, else the one whose turn it is anyway.
            now = next((m for m in able[where] if where in owned.get(m, frozenset())), None)
            place = able[where].index(now) if now is not None else number
            shares[able[where][(place + turn) % len(able[where])]].append(where)
    else:
        _keep(everything, able, owned, preferred, shares)
    _balance(members, able, shares)
    return {where: member for where in everything for member in members if where in shares[member]}


def _keep(
    everything: Sequence[TopicPartition],
    able: Mapping[TopicPartition, Sequence[str]],
    owned: Mapping[str, frozenset[TopicPartition]],
    preferred: Mapping[TopicPartition, str],
    shares: dict[str, list[TopicPartition]],
) -> None:
    free: list[TopicPartition] = []
    for where in everything:
        keeper = next((m for m in able[where] if where in owned.get(m, frozenset())), None)
        keeper = keeper or (preferred.get(where) if preferred.get(where) in able[where] else None)
        if keeper is not None:
            shares[keeper].append(where)
        else:
            free.append(where)
    for where in free:
        if able[where]:
            shares[min(able[where], key=lambda m: len(shares[m]))].append(where)


def _balance(
    members: Sequence[str], able: Mapping[TopicPartition, Sequence[str]], shares: dict[str, list[TopicPartition]]
) -> None:
    """Move one at a time from who has most to who has least, until no move makes it more even."""
    moved = True
    while moved:
        moved = False
        for giver in sorted(members, key=lambda m: -len(shares[m])):
            for where in reversed(shares[giver]):
                taker = min(able[where], key=lambda m: len(shares[m]))
                if len(shares[giver]) - len(shares[taker]) >= 2:
                    shares[giver].remove(where)
                    shares[taker].append(where)
                    moved = True
                    break
            if moved:
                break
