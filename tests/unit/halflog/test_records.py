"""The bytes of the half log."""

from __future__ import annotations

import zlib
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.halflog.builders import half
from txbus._halflog.records import (
    DecisionEntry,
    Entry,
    HalfEntry,
    NewerRecord,
    ReleaseEntry,
    Settled,
    StepEntry,
    decode,
    encode,
    encode_entry,
    half_partition,
    join,
    split,
)
from txbus._halves import Half, HalfId
from txbus._message import Envelope
from txbus._outcome import Outcome
from txbus.errors import DecodeError

# Text as txbus has it: bytes of foreign clients that are not UTF-8 are low surrogates.
texts = st.text(st.characters(min_codepoint=0, max_codepoint=0xD7FF) | st.sampled_from("\udc80\udcff😀"), max_size=12)
counts = st.integers(0, 2**53)
known_outcomes = st.sampled_from([Outcome.COMMITTED, Outcome.ROLLED_BACK])
ids = st.builds(HalfId, texts, counts)
seconds = st.floats(allow_nan=False, allow_infinity=False)
envelopes = st.builds(
    Envelope,
    texts,
    st.binary(max_size=40),
    st.none() | texts,
    st.dictionaries(texts, texts, max_size=3),
    st.none() | texts,
    st.none() | seconds,
)
halves = st.builds(Half, ids, texts, texts, seconds, st.lists(envelopes, max_size=4).map(tuple))
plain = st.builds(HalfEntry, halves, counts, counts)
again = st.builds(
    HalfEntry,
    halves,
    counts,
    counts,
    st.tuples(counts, counts),
    st.none() | known_outcomes,
    counts,
    st.none() | texts,
    st.booleans(),
)
settled = st.builds(Settled, ids, known_outcomes, texts, counts, counts)
entries: st.SearchStrategy[Entry] = st.one_of(
    plain,
    again,
    st.builds(DecisionEntry, ids, known_outcomes, st.booleans()),
    st.builds(ReleaseEntry, ids),
    st.builds(StepEntry, counts, st.lists(settled, max_size=5).map(tuple)),
)


@given(st.lists(entries, max_size=5))
def test_what_was_encoded_is_decoded(written: list[Entry]) -> None:
    """Every entry comes back as it was, surrogates, empty texts and payloads included."""
    assert list(decode(encode(written))) == written


@given(st.lists(entries, max_size=4), st.data())
def test_damage_is_never_decoded(written: list[Entry], data: st.DataObject) -> None:
    """A changed byte, a cut or an addition is a DecodeError, wherever it is."""
    good = encode(written)
    at = data.draw(st.integers(0, len(good) - 1))
    damaged = data.draw(
        st.sampled_from([good[:at], good + bytes([at % 256]), good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :]])
    )
    with pytest.raises(DecodeError):
        decode(damaged)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=12))
def test_a_head_of_the_wrong_shape_is_a_decode_error(value: object) -> None:
    """With a right checksum, too, nothing but entries is decoded: an index is never fed nonsense."""
    import json

    head = json.dumps(value).encode()
    body = len(head).to_bytes(4, "big") + head
    assume(value != [])
    with pytest.raises(DecodeError):
        decode(b"TXH1" + zlib.crc32(body).to_bytes(4, "big") + body)


def test_rule_24_records_of_a_newer_txbus_are_told_from_damaged_ones() -> None:
    """They must not be skipped: their halves would be lost."""
    with pytest.raises(NewerRecord):
        decode(b"TXH2" + encode([])[4:])
    head = b'[["Q",1]]'
    body = len(head).to_bytes(4, "big") + head
    with pytest.raises(NewerRecord):
        decode(b"TXH1" + zlib.crc32(body).to_bytes(4, "big") + body)


@given(st.lists(entries, min_size=1, max_size=5))
def test_rule_07_the_size_of_an_entry_is_what_it_takes_in_a_record(written: list[Entry]) -> None:
    """Byte limits are kept by these sizes: a record is its entries and less than 16 bytes."""
    encoded = [encode_entry(entry) for entry in written]
    assert 0 < len(join(encoded)) - sum(e.size for e in encoded) < 16


@given(halves, st.integers(1, 50))
def test_rule_07_what_is_appended_again_needs_little_more(stored: Half, attempts: int) -> None:
    """H′ with a reason of 500 characters fits into the reserve of 100 kB above entry_bytes_max."""
    first = HalfEntry(stored)
    later = replace(first, first=(2**53, 2**53), outcome=Outcome.ROLLED_BACK, checks=attempts, parked="\udcff" * 500)
    assert encode_entry(later).size - encode_entry(first).size < 4_000


def test_rule_02_the_half_partition_is_a_stable_function_of_the_key() -> None:
    """Changing it would let two relays publish one key: these values never change."""
    keys = ["", "customer-1", "customer-2", "ä", "\udcff", "\ud800"]
    assert [half_partition(key, 16) for key in keys] == [4, 13, 3, 9, 2, 8]
    assert {half_partition(str(n), 16) for n in range(300)} == set(range(16))


@given(halves, st.integers(1, 16))
def test_rule_03_each_message_is_in_the_half_partition_of_its_key(stored: Half, partitions: int) -> None:
    """Nothing is lost or doubled by splitting; parts are numbered; keyless messages open no partition."""
    parts = split(stored, partitions)
    put = [e for entry in parts.values() for e in entry.half.envelopes]
    assert sorted(map(repr, put)) == sorted(map(repr, stored.envelopes))
    assert [entry.part for _, entry in sorted(parts.items())] == list(range(len(parts)))
    assert {entry.parts for entry in parts.values()} == {len(parts)}
    for partition, entry in parts.items():
        assert entry.half.id == stored.id
        assert all(half_partition(e.key, partitions) == partition for e in entry.half.envelopes if e.key is not None)
    keyed = {half_partition(e.key, partitions) for e in stored.envelopes if e.key is not None}
    assert set(parts) == keyed or (not keyed and len(parts) == 1)


def test_rule_03_a_half_without_keys_has_one_partition() -> None:
    """It has no order; its id says where it goes."""
    assert list(split(half("tx", None, None), 8)) == [half_partition("tx", 8)]
