"""Who should own which partition: a pure function that every member of a group computes alike."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["assign"]


def assign(
    wants: Mapping[str, frozenset[int]], owners: Mapping[int, str], partitions: frozenset[int]
) -> dict[int, str]:
    """The owner of each partition: the present one where that is fair.

    ``wants`` maps a live member to the partitions of its topics, ``owners`` a partition to the
    live member that holds it. Members of the same topics get ``n // L`` partitions, or one more.
    A partition moves only from a member that has at least two more than the one that gets it.
    """
    result: dict[int, str] = {}
    load = dict.fromkeys(wants, 0)
    for partition in sorted(partitions):
        owner = owners.get(partition)
        if owner is not None and partition in wants.get(owner, ()):
            result[partition] = owner
            load[owner] += 1
    for partition in sorted(partitions):
        if partition not in result:
            candidates = [member for member in wants if partition in wants[member]]
            if candidates:
                poorest = min(candidates, key=lambda member: (load[member], member))
                result[partition] = poorest
                load[poorest] += 1
    moved = True
    while moved:
        moved = False
        for partition in sorted(result, reverse=True):
            owner = result[partition]
            candidates = [member for member in wants if partition in wants[member]]
            poorest = min(candidates, key=lambda member: (load[member], member))
            if load[owner] - load[poorest] >= 2:
                result[partition] = poorest
                load[owner] -= 1
                load[poorest] += 1
                moved = True
    return result
