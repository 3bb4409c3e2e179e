"""Topics and groups of the embedded broker, for assembly and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from txbus.embedded.database import Database
from txbus.embedded.topics import Topics
from txbus.errors import NotOpen
from txbus.spi import GroupStatus, TopicDescription, TopicSpec

__all__ = ["EmbeddedAdmin"]

_STATUS = (
    "SELECT p.number, s.position, p.next_offset, l.member, m.expires_at, m.lease_s FROM partitions p "
    "JOIN topics t ON t.id = p.topic "
    "LEFT JOIN positions s ON s.partition = p.id AND s.group_name = :group "
    "LEFT JOIN leases l ON l.partition = p.id AND l.group_name = :group "
    "LEFT JOIN members m ON m.group_name = :group AND m.member = l.member "
    "WHERE t.name = :topic ORDER BY p.number"
)


class EmbeddedAdmin:
    """See `txbus.spi.Admin`. Thread-safe."""

    def __init__(self, database: Database, topics: Topics, forget: Callable[[object], None]) -> None:
        self._database = database
        self._topics = topics
        self._forget = forget
        self._closed = False

    def describe(self, topics: Sequence[str]) -> Mapping[str, TopicDescription | None]:
        """Each topic with its kind, retention_s and internal as settings; None if it is missing."""
        self._check_open()
        found: dict[str, TopicDescription | None] = {}
        for name in topics:
            row = self._topics.find(name)
            if row is None:
                found[name] = None
                continue
            internal = "true" if row.internal else "false"
            settings = {"kind": row.kind, "retention_s": _seconds(row.retention_s), "internal": internal}
            found[name] = TopicDescription(name, len(row.ids), settings)
        return found

    def create(self, specs: Sequence[TopicSpec]) -> None:
        """Create the missing ones, each durable on return. Idempotent, also between processes."""
        self._check_open()
        for spec in specs:
            self._topics.create(spec)

    def verify(self, spec: TopicSpec) -> Sequence[str]:
        """What differs from the specification: partitions, retention, internal."""
        self._check_open()
        row = self._topics.need(spec.name)
        again = f"stop the services and create it anew, or declare it as it is (topic {spec.name!r})"
        wrong = []
        if len(row.ids) != spec.partitions:
            wrong.append(
                f"topic {spec.name!r} has {len(row.ids)} partitions, not {spec.partitions}; their number is fixed, "
                f"since keys belong to partitions by it: {again}"
            )
        if row.retention_s != spec.retention_s:
            wrong.append(
                f"topic {spec.name!r} keeps records for {_seconds(row.retention_s)} s, not "
                f"{_seconds(spec.retention_s)} s: {again}"
            )
        if row.internal != spec.internal:
            wrong.append(
                f"topic {spec.name!r} is {'' if row.internal else 'not '}internal, declared is "
                f"{'' if spec.internal else 'not '}internal: {again}"
            )
        return wrong

    def group_status(self, group: str, topics: Sequence[str]) -> Sequence[GroupStatus]:
        """One row a partition; ``owner`` begins with the process id. A missing topic has no rows."""
        self._check_open()
        now_s = self._database.ports.clock.monotonic_s()
        result = []
        for name in topics:
            topic = self._topics.find(name)
            if topic is None:
                continue
            rows = self._database.rows(_STATUS, {"group": group, "topic": name})
            for number, position, end, owner, expires_at, lease_s in rows:
                alive = expires_at is not None and now_s < expires_at <= now_s + lease_s + 1.0
                result.append(GroupStatus(topic.places[number], position, end, owner if alive else None))
        return result

    def _check_open(self) -> None:
        if self._closed:
            raise NotOpen(f"{self._database.label}: the admin is closed")

    def close(self) -> None:
        self._closed = True
        self._forget(self)


def _seconds(retention_s: float | None) -> str:
    return "unlimited" if retention_s is None else f"{retention_s:g}"
