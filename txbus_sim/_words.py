"""The words in which every report speaks of a verdict."""

from __future__ import annotations

import re
from typing import Final

from txbus_sim.history import History
from txbus_sim.result import Verdict, VerdictKind

__all__ = ["about", "heading", "in_short", "outcome"]

_WORD = re.compile(r"[^\s'\"(),;\[\]{}]+")
_WORDS: Final = {
    VerdictKind.ASSERTION: "ASSERTION",
    VerdictKind.PROPERTY: "BROKEN",
    VerdictKind.STUCK: "STUCK",
    VerdictKind.LIVELOCK: "LIVELOCK",
    VerdictKind.RAISED: "RAISED",
    VerdictKind.SHARED_MEMORY: "SHARED MEMORY",
    VerdictKind.NOT_MODELLED: "NOT MODELLED",
    VerdictKind.MALFORMED: "MALFORMED HISTORY",
    VerdictKind.UNREACHED: "UNREACHED",
    VerdictKind.VACUOUS: "VACUOUS",
}


def heading(verdict: Verdict) -> str:
    """The kind of a failure in capitals, with the property's name where it has one of its own."""
    word = _WORDS[verdict.kind]
    return f"{word} {verdict.name}" if verdict.kind is VerdictKind.PROPERTY else word


def in_short(verdict: Verdict | None) -> str:
    """A run's outcome on one line."""
    if verdict is None:
        return "passed"
    said = verdict.sentence.splitlines() or [""]
    return f"{heading(verdict)}: {said[0]}"


def outcome(verdict: Verdict | None) -> str:
    """What a run came to, in a few words."""
    return "passes" if verdict is None else f"fails in another way, {in_short(verdict)}"


def about(verdict: Verdict, history: History) -> tuple[str, ...]:
    """The message ids of a history that the verdict names."""
    words = set(_WORD.findall(" ".join((verdict.sentence, *verdict.details))))
    words |= {word.rstrip(".:") for word in words}
    known = dict.fromkeys(getattr(record, "message_id", "") for record in history)
    return tuple(one for one in known if one and one in words)
