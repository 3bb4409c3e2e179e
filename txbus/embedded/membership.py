"""A member's standing in its group: its lease, its partitions with their epochs, its fencing.

Everything here runs inside a write transaction, so that two members never see two truths. Leases
end on the monotonic clock, which the processes of one boot share; an end further away than the
lease is long was written before a reboot and counts as over.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from txbus.embedded.assignment import assign
from txbus.embedded.topics import Topics

__all__ = ["Standing", "Token", "fenced_of", "leave", "refresh"]


@dataclass(frozen=True, slots=True)
class Token:
    """The proof of membership that `Membership.token` carries: lease epochs by partition row id."""

    group: str
    member: str
    epochs: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """What `refresh` found and did. ``fenced``: the lease was over, nothing is owned, join anew.

    ``look_again_s``: monotonic time at which another member's lease may be over.
    """

    fenced: bool
    epochs: Mapping[int, int] = field(default_factory=dict)
    generation: int = -1
    look_again_s: float = float("inf")
    changed: bool = False


def _alive(expires_at: float, lease_s: float, now_s: float) -> bool:
    # A second of grace: the clock was read a moment before the row was.
    return now_s < expires_at <= now_s + lease_s + 1.0


def refresh(
    connection: sqlite3.Connection,
    topics: Topics,
    token: Token,
    topic_names: tuple[str, ...],
    lease_s: float,
    now_s: float,
    joining: bool,
) -> Standing:
    """Heartbeat: extend the lease, bury the dead, give back what is too much, take what is free."""
    group, member = token.group, token.member
    rows = connection.execute(
        "SELECT member, topics, lease_s, expires_at FROM members WHERE group_name = ?", (group,)
    ).fetchall()
    dead = [row[0] for row in rows if not _alive(row[3], row[2], now_s)]
    living = {row[0]: (json.loads(row[1]), row[3]) for row in rows if row[0] not in dead}
    _bury(connection, group, dead)
    fenced = not joining and member not in living
    if fenced:
        generation = _next_generation(connection, group) if dead else -1
        return Standing(fenced=True, generation=generation, changed=bool(dead))
    connection.execute(
        "INSERT INTO members (group_name, member, topics, lease_s, expires_at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (group_name, member) DO UPDATE SET expires_at = excluded.expires_at",
        (group, member, json.dumps(topic_names), lease_s, now_s + lease_s),
    )
    others = [expires_at for name, (_, expires_at) in living.items() if name != member]
    living[member] = (list(topic_names), now_s + lease_s)
    epochs, moved = _share(connection, topics, token, {name: names for name, (names, _) in living.items()})
    changed = joining or moved or bool(dead)
    return Standing(
        fenced=False,
        epochs=epochs,
        generation=_next_generation(connection, group) if changed else _generation(connection, group),
        look_again_s=min(others, default=float("inf")),
        changed=changed,
    )


def _share(
    connection: sqlite3.Connection, topics: Topics, token: Token, living: Mapping[str, list[str]]
) -> tuple[dict[int, int], bool]:
    """Release and claim until this member has what is its own; (its epochs, whether any moved)."""
    group, member = token.group, token.member
    wants: dict[str, frozenset[int]] = {}
    for name, names in living.items():
        found = (topics.find(topic, connection) for topic in names)
        wants[name] = frozenset(ident for topic in found if topic is not None for ident in topic.ids)
    leases = {
        row[0]: (row[1], row[2])
        for row in connection.execute(
            "SELECT partition, member, epoch FROM leases WHERE group_name = ?", (group,)
        ).fetchall()
    }
    owners = {ident: owner for ident, (owner, _) in leases.items() if owner in wants}
    targets = assign(wants, owners, frozenset().union(*wants.values()))
    epochs: dict[int, int] = {}
    moved = False
    for ident in sorted(wants[member] | {i for i, owner in owners.items() if owner == member}):
        owner, epoch = leases.get(ident, (None, 0))
        mine = targets.get(ident) == member
        if owner == member and mine:
            epochs[ident] = epoch
        elif owner == member:
            _release(connection, group, [ident])
            moved = True
        elif mine and ident not in owners:
            connection.execute(
                "INSERT INTO leases (group_name, partition, member, epoch) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (group_name, partition) DO UPDATE SET member = excluded.member, epoch = excluded.epoch",
                (group, ident, member, epoch + 1),
            )
            epochs[ident] = epoch + 1
            moved = True
    return epochs, moved


def _release(connection: sqlite3.Connection, group: str, idents: Iterable[int]) -> None:
    connection.executemany(
        "UPDATE leases SET member = NULL WHERE group_name = ? AND partition = ?",
        [(group, ident) for ident in idents],
    )


def _bury(connection: sqlite3.Connection, group: str, members: Iterable[str]) -> None:
    pairs = [(group, member) for member in members]
    connection.executemany("DELETE FROM members WHERE group_name = ? AND member = ?", pairs)
    connection.executemany("UPDATE leases SET member = NULL WHERE group_name = ? AND member = ?", pairs)


def _generation(connection: sqlite3.Connection, group: str) -> int:
    row = connection.execute("SELECT generation FROM groups WHERE name = ?", (group,)).fetchone()
    return int(row[0]) if row else 0


def _next_generation(connection: sqlite3.Connection, group: str) -> int:
    """Tell the other members that something changed; they look at it when they see the number."""
    row = connection.execute(
        "INSERT INTO groups (name, generation) VALUES (?, 1) "
        "ON CONFLICT (name) DO UPDATE SET generation = generation + 1 RETURNING generation",
        (group,),
    ).fetchall()
    return int(row[0][0])


def leave(connection: sqlite3.Connection, group: str, member: str) -> None:
    """Leave the group; the member's partitions are free at once."""
    _bury(connection, group, [member])
    _next_generation(connection, group)


def fenced_of(
    connection: sqlite3.Connection, group: str, member: str, epochs: Mapping[int, int], now_s: float
) -> list[int]:
    """Those of the partitions that the member does not own with this epoch and a running lease."""
    row = connection.execute(
        "SELECT expires_at, lease_s FROM members WHERE group_name = ? AND member = ?", (group, member)
    ).fetchone()
    if row is None or not _alive(row[0], row[1], now_s):
        return list(epochs)
    fenced = []
    for ident, epoch in epochs.items():
        lease = connection.execute(
            "SELECT member, epoch FROM leases WHERE group_name = ? AND partition = ?", (group, ident)
        ).fetchone()
        if lease != (member, epoch):
            fenced.append(ident)
    return fenced
