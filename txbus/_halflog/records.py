"""The records of a half log, and their bytes (halflog.md, table "record").

One log record holds one or more entries, so that concurrent callers share an append (rule 7). Its
bytes are ``TXH1``, the length of a JSON head (4 bytes, big-endian), the head, and the payloads of
its envelopes one after the other; a payload is never escaped or copied into the JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from txbus._halves import Half, HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome
from txbus.errors import DecodeError

__all__ = [
    "DecisionEntry",
    "Entry",
    "HalfEntry",
    "ReleaseEntry",
    "StepEntry",
    "decode",
    "encode",
    "entry_size",
    "half_partition",
    "half_topic",
    "split",
]

_MAGIC = b"TXH1"
_HEAD_OVERHEAD_BYTES = 160
"""JSON of ids, names and numbers around an entry's texts, rounded up: sizes may be over-estimated."""


@dataclass(frozen=True, slots=True)
class HalfEntry:
    """H, or H′ where ``first`` is set: a half with what is known of it.

    ``part`` of ``parts``: a local transaction with several keys has one H per half partition.
    """

    half: Half
    part: int = 0
    parts: int = 1
    first: tuple[int, int] | None = None
    outcome: Outcome | None = None
    checks: int = 0
    parked: str | None = None
    released: bool = False


@dataclass(frozen=True, slots=True)
class DecisionEntry:
    """D: the sender's or an operator's word on the outcome. The first in log order wins."""

    id: HalfId
    outcome: Outcome
    operator: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """An operator gives up order for the keys of a parked half: later ones need not wait."""

    id: HalfId


@dataclass(frozen=True, slots=True)
class StepEntry:
    """S: the last record of a relay's step; the ids that it settled."""

    step: int
    settled: tuple[tuple[HalfId, Outcome], ...]


Entry: TypeAlias = HalfEntry | DecisionEntry | ReleaseEntry | StepEntry


def half_topic(service: str) -> str:
    """The name of a service's half log."""
    return f"txbus.half.{service}"


def half_partition(key: str, partitions: int) -> int:
    """The half partition of a key: computed here, never by a client library (rule 2)."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


def split(half: Half, partitions: int) -> dict[int, HalfEntry]:
    """One H per half partition, with the messages whose key belongs there (rule 3).

    A message without a key has no order and joins a partition that is used anyway.
    """
    groups: dict[int, list[Envelope]] = {}
    keyless: list[Envelope] = []
    for envelope in half.envelopes:
        if envelope.key is None:
            keyless.append(envelope)
        else:
            groups.setdefault(half_partition(envelope.key, partitions), []).append(envelope)
    if keyless:
        home = next(iter(groups), None)
        if home is None:
            home = half_partition(half.id.tx_id, partitions)
        groups.setdefault(home, []).extend(keyless)
    return {
        partition: HalfEntry(
            half=Half(half.id, half.ledger_id, half.database, half.created_s, tuple(envelopes)),
            part=part,
            parts=len(groups),
        )
        for part, (partition, envelopes) in enumerate(sorted(groups.items()))
    }


def entry_size(entry: Entry) -> int:
    """An upper estimate of an entry's bytes in a record."""
    match entry:
        case HalfEntry():
            texts = sum(e.size + len(e.topic) + 64 + 8 * len(e.headers) for e in entry.half.envelopes)
            return _HEAD_OVERHEAD_BYTES + len(entry.half.id.tx_id) + texts
        case StepEntry():
            return _HEAD_OVERHEAD_BYTES + sum(len(id.tx_id) + 40 for id, _ in entry.settled)
        case _:
            return _HEAD_OVERHEAD_BYTES + len(entry.id.tx_id)


def encode(entries: Iterable[Entry]) -> bytes:
    """The bytes of one record."""
    blobs: list[bytes] = []
    head = json.dumps([_dump(entry, blobs) for entry in entries], separators=(",", ":")).encode("ascii")
    return b"".join((_MAGIC, len(head).to_bytes(4, "big"), head, *blobs))


def decode(data: bytes) -> tuple[Entry, ...]:
    """The entries of one record; DecodeError if these are no bytes of ours."""
    if data[:4] != _MAGIC:
        raise DecodeError(f"not a half log record: begins with {data[:4]!r}, not {_MAGIC!r}")
    try:
        head_end = 8 + int.from_bytes(data[4:8], "big")
        rows = json.loads(data[8:head_end])
        return tuple(_Loader(data, head_end).entries(rows))
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise DecodeError(f"damaged half log record of {len(data)} bytes: {exc}") from exc


def _dump(entry: Entry, blobs: list[bytes]) -> list[Any]:
    match entry:
        case HalfEntry(half=half):
            envelopes = []
            for e in half.envelopes:
                blobs.append(e.payload)
                envelopes.append([e.topic, e.key, dict(e.headers), e.tag, e.deliver_at_s, len(e.payload)])
            known = None
            if entry.first is not None:
                outcome = entry.outcome.value if entry.outcome else None
                known = [*entry.first, outcome, entry.checks, entry.parked, entry.released]
            about = [half.id.tx_id, half.id.attempt, half.ledger_id, half.database, half.created_s]
            return ["H", *about, entry.part, entry.parts, envelopes, known]
        case DecisionEntry():
            return ["D", entry.id.tx_id, entry.id.attempt, entry.outcome.value, int(entry.operator)]
        case ReleaseEntry():
            return ["R", entry.id.tx_id, entry.id.attempt]
        case StepEntry():
            return ["S", entry.step, [[i.tx_id, i.attempt, o.value] for i, o in entry.settled]]


class _Loader:
    """Reads entries back, taking payloads from behind the head in their order."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def entries(self, rows: Sequence[Any]) -> Iterable[Entry]:
        for row in rows:
            match row[0]:
                case "H":
                    yield self._half(row)
                case "D":
                    yield DecisionEntry(HalfId(row[1], row[2]), Outcome(row[3]), bool(row[4]))
                case "R":
                    yield ReleaseEntry(HalfId(row[1], row[2]))
                case "S":
                    settled = tuple((HalfId(tx, attempt), Outcome(o)) for tx, attempt, o in row[2])
                    yield StepEntry(row[1], settled)
                case kind:
                    raise ValueError(f"entry of unknown kind {kind!r}; written by a newer txbus?")
        if self._offset != len(self._data):
            raise ValueError(f"{len(self._data) - self._offset} bytes too many")

    def _half(self, row: Sequence[Any]) -> HalfEntry:
        _, tx_id, attempt, ledger_id, database, created_s, part, parts, envelopes, known = row
        half = Half(
            HalfId(tx_id, attempt), ledger_id, database, created_s, tuple(self._envelope(e) for e in envelopes)
        )
        if known is None:
            return HalfEntry(half, part, parts)
        offset, index, outcome, checks, parked, released = known
        return HalfEntry(
            half, part, parts, (offset, index), Outcome(outcome) if outcome else None, checks, parked, released
        )

    def _envelope(self, row: Sequence[Any]) -> Envelope:
        topic, key, headers, tag, deliver_at_s, length = row
        payload = self._data[self._offset : self._offset + length]
        if len(payload) != length:
            raise ValueError(f"payload cut off at {len(payload)} of {length} bytes")
        self._offset += length
        return Envelope(topic, payload, key, headers, tag, deliver_at_s)
