"""Claim: a handler with its inbox row runs at 0.8 or more of the rate of a hand-written SQLAlchemy
loop that inserts the message id and the effect in one commit, on the same SQLite database.

Both sides work one message after the other: ours receives from the embedded broker (one worker),
decodes, runs the handler and acknowledges; the hand-written side decodes the same bytes from a
list, so it is spared the broker altogether. Both store ids of the same kind and length. They take
turns. ``--json`` prints one object. Exits with 1 if the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pydantic
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, insert

from bench.transactional_send import engine_at
from txbus import Bus, Topic

RATIO_MIN = 0.8
metadata = MetaData()
effects = Table("effects", metadata, Column("id", Integer, primary_key=True), Column("body", Text))
seen = Table("seen", metadata, Column("source", Text, primary_key=True), Column("id", Text, primary_key=True))


class Note(pydantic.BaseModel):
    number: int
    body: str


notes = Topic("notes", Note, key=lambda note: str(note.number % 64))


def ours(folder: str, messages: list[Note]) -> float:
    """Seconds for all messages, from the first receive to the last acknowledgement."""
    engine = engine_at(Path(folder) / "ours.db")
    metadata.create_all(engine)
    bus = Bus(
        f"embedded://{folder}/bus.db",
        service="bench",
        databases={"shop": engine},
        topics=[notes],
        create_schema=True,
        relay="outside",
    )

    @bus.on(notes, scope="effect", database="shop")
    def effect(note: Note, connection: Connection) -> None:
        connection.execute(insert(effects), {"body": note.body})

    with bus:
        bus.send_many(notes, messages)
        began = time.perf_counter()
        handled = bus.run(max_messages=len(messages), workers=1)
        took = time.perf_counter() - began
    assert handled == len(messages)
    engine.dispose()
    return took


def by_hand(folder: str, messages: list[Note]) -> float:
    engine = engine_at(Path(folder) / "hand.db")
    metadata.create_all(engine)
    records = [(uuid.uuid4().hex, note.model_dump_json().encode()) for note in messages]
    began = time.perf_counter()
    for message_id, data in records:
        note = Note.model_validate_json(data)
        with engine.begin() as connection:
            connection.execute(insert(seen), {"source": "/txbus/bench", "id": message_id})
            connection.execute(insert(effects), {"body": note.body})
    took = time.perf_counter() - began
    engine.dispose()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print one object")
    arguments = parser.parse_args()
    messages = [Note(number=number, body="x" * 150) for number in range(arguments.messages)]
    pairs: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append((ours(folder, messages), by_hand(folder, messages)))
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    rates = [arguments.messages / statistics.median(side) for side in zip(*pairs, strict=True)]
    if arguments.json:
        print(json.dumps({"with_inbox_per_s": rates[0], "by_hand_per_s": rates[1], "ratio": ratio}))
    else:
        print(f"with inbox {rates[0]:,.0f}/s, by hand {rates[1]:,.0f}/s, ratio {ratio:.2f} (at least {RATIO_MIN})")
    return 0 if ratio >= RATIO_MIN else 1


if __name__ == "__main__":
    sys.exit(main())
