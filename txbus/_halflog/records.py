"""The records of a half log, and their bytes (the format: docs/reference/wire.md).

One log record holds one or more entries, so that concurrent callers share an append (rule 7). Its
bytes are ``TXH1``, the CRC-32 of what follows and the length of a JSON head (4 bytes each,
big-endian), the head, and the payloads of its envelopes one after the other; a payload is never
escaped or copied into the JSON.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from txbus._halves import Half, HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome
from txbus.errors import DecodeError

__all__ = [
    "DecisionEntry",
    "EncodedEntry",
    "Entry",
    "HalfEntry",
    "NewerRecord",
    "ReleaseEntry",
    "Settled",
    "StepEntry",
    "decode",
    "encode",
    "encode_entry",
    "entry_size",
    "half_partition",
    "half_topic",
    "homes",
    "join",
    "split",
]

_MAGIC = b"TXH1"
_HEAD_AT = 12
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
class Settled:
    """One half that a step settled, with what its ledger row needs for its confirmation."""

    id: HalfId
    outcome: Outcome
    database: str = ""
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class StepEntry:
    """S: the last record of a relay's step; what it settled."""

    step: int
    settled: tuple[Settled, ...]


Entry: TypeAlias = HalfEntry | DecisionEntry | ReleaseEntry | StepEntry


def half_topic(service: str) -> str:
    """The name of a service's half log."""
    return f"txbus.half.{service}"


class NewerRecord(DecodeError):
    """A record that a newer txbus wrote: not to be skipped, its halves would be lost."""


@dataclass(frozen=True, slots=True)
class EncodedEntry:
    """An entry's bytes, ready to be joined with others into a record."""

    head: bytes
    blobs: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Its bytes in a record."""
        return len(self.head) + 1 + sum(map(len, self.blobs))


def half_partition(key: str, partitions: int) -> int:
    """The half partition of a key: computed here, never by a client library (rule 2)."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % partitions


def homes(half: Half, partitions: int) -> dict[int, list[Envelope]]:
    """The half partitions of a half with the messages that belong there (rule 3).

    A message without a key has no order and joins a partition that is used anyway.
    """
    groups: dict[int, list[Envelope]] = {}
    keyless: list[Envelope] = []
    for envelope in half.envelopes:
        if envelope.key is None:
            keyless.append(envelope)
        else:
            groups.setdefault(half_partition(envelope.key, partitions), []).append(envelope)
    if keyless or not groups:
        home = next(iter(groups), None)
        if home is None:
            home = half_partition(half.id.tx_id, partitions)
        groups.setdefault(home, []).extend(keyless)
    return groups


def split(half: Half, partitions: int) -> dict[int, HalfEntry]:
    """One H per half partition of a half."""
    groups = homes(half, partitions)
    return {
        partition: HalfEntry(
            half=Half(half.id, half.ledger_id, half.database, half.created_s, tuple(envelopes)),
            part=part,
            parts=len(groups),
        )
        for part, (partition, envelopes) in enumerate(sorted(groups.items()))
    }


def entry_size(entry: HalfEntry) -> int:
    """About how much memory, and how many bytes of a step, an entry takes."""
    texts = sum(e.size + len(e.topic) + 64 + 8 * len(e.headers) for e in entry.half.envelopes)
    return _HEAD_OVERHEAD_BYTES + len(entry.half.id.tx_id) + texts


def encode_entry(entry: Entry) -> EncodedEntry:
    """One entry's bytes. Fails for nothing that its types allow."""
    blobs: list[bytes] = []
    head = json.dumps(_dump(entry, blobs), separators=(",", ":")).encode("ascii")
    return EncodedEntry(head, tuple(blobs))


def join(encoded: Iterable[EncodedEntry]) -> bytes:
    """The bytes of one record with these entries."""
    parts = list(encoded)
    head = b"[" + b",".join(part.head for part in parts) + b"]"
    body = b"".join((len(head).to_bytes(4, "big"), head, *(blob for part in parts for blob in part.blobs)))
    return b"".join((_MAGIC, zlib.crc32(body).to_bytes(4, "big"), body))


def encode(entries: Iterable[Entry]) -> bytes:
    """The bytes of one record."""
    return join(encode_entry(entry) for entry in entries)


def decode(data: bytes) -> tuple[Entry, ...]:
    """The entries of one record; DecodeError if these are no bytes of ours, or damaged ones."""
    if data[:4] != _MAGIC:
        if data[:3] == _MAGIC[:3]:
            raise NewerRecord(f"half log record of format {data[:4]!r}; this txbus reads {_MAGIC!r}: upgrade it")
        raise DecodeError(f"not a half log record: begins with {data[:4]!r}, not {_MAGIC!r}")
    if data[4:8] != zlib.crc32(data[8:]).to_bytes(4, "big"):
        raise DecodeError(f"damaged half log record of {len(data)} bytes: its checksum differs")
    try:
        head_end = _HEAD_AT + int.from_bytes(data[8:_HEAD_AT], "big")
        rows = json.loads(data[_HEAD_AT:head_end])
        return tuple(_Loader(data, head_end).entries(rows))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as exc:
        raise DecodeError(f"malformed half log record of {len(data)} bytes: {exc}") from exc


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
            return ["D", entry.id.tx_id, entry.id.attempt, entry.outcome.value, entry.operator]
        case ReleaseEntry():
            return ["R", entry.id.tx_id, entry.id.attempt]
        case StepEntry():
            rows = [[s.id.tx_id, s.id.attempt, s.outcome.value, s.database, s.part, s.parts] for s in entry.settled]
            return ["S", entry.step, rows]


class _Loader:
    """Reads entries back, taking payloads from behind the head in their order.

    Every value's type is checked: what decodes is what some txbus could have encoded.
    """

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._offset = offset

    def entries(self, rows: Any) -> Iterator[Entry]:
        for row in _rows(rows):
            match row:
                case ["H", *rest]:
                    yield self._half(rest)
                case ["D", tx_id, attempt, outcome, bool(operator)]:
                    yield DecisionEntry(_id(tx_id, attempt), _outcome(outcome), operator)
                case ["R", tx_id, attempt]:
                    yield ReleaseEntry(_id(tx_id, attempt))
                case ["S", step, settled]:
                    yield StepEntry(_count(step), tuple(_settled(_rows(s)) for s in _rows(settled)))
                case [str(kind), *_] if kind not in {"D", "R", "S"}:
                    raise NewerRecord(f"half log entry of unknown kind {kind!r}, of a newer txbus: upgrade this one")
                case _:
                    raise ValueError(f"unusable entry {row!r:.100}")
        if self._offset != len(self._data):
            raise ValueError(f"{len(self._data) - self._offset} bytes too many")

    def _half(self, row: Sequence[Any]) -> HalfEntry:
        tx_id, attempt, ledger_id, database, created_s, part, parts, rows, known = row
        envelopes = tuple(self._envelope(_rows(e)) for e in _rows(rows))
        half = Half(_id(tx_id, attempt), _text(ledger_id), _text(database), _number(created_s), envelopes)
        if known is None:
            return HalfEntry(half, _count(part), _count(parts))
        offset, index, outcome, checks, parked, released = _rows(known)
        return HalfEntry(
            half,
            _count(part),
            _count(parts),
            (_count(offset), _count(index)),
            None if outcome is None else _outcome(outcome),
            _count(checks),
            None if parked is None else _text(parked),
            bool(released),
        )

    def _envelope(self, row: Sequence[Any]) -> Envelope:
        topic, key, headers, tag, deliver_at_s, length = row
        payload = self._data[self._offset : self._offset + _count(length)]
        if len(payload) != length:
            raise ValueError(f"payload cut off at {len(payload)} of {length} bytes")
        self._offset += length
        if not isinstance(headers, dict):
            raise TypeError(f"headers are {headers!r:.100}")
        return Envelope(
            _text(topic),
            payload,
            None if key is None else _text(key),
            {name: _text(value) for name, value in headers.items()},
            None if tag is None else _text(tag),
            None if deliver_at_s is None else _number(deliver_at_s),
        )


def _rows(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.100} is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.100} is no text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r:.100} is no count")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.100} is no number")
    return float(value)


def _id(tx_id: Any, attempt: Any) -> HalfId:
    return HalfId(_text(tx_id), _count(attempt))


def _outcome(value: Any) -> Outcome:
    outcome = Outcome(value)
    if outcome is Outcome.UNKNOWN:
        raise ValueError("UNKNOWN is never written")
    return outcome


def _settled(row: Sequence[Any]) -> Settled:
    tx_id, attempt, outcome, database, part, parts = row
    return Settled(_id(tx_id, attempt), _outcome(outcome), _text(database), _count(part), _count(parts))
