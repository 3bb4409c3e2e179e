"""dead-letter-iff-exhausted: a dead letter is kept when the attempts are used up, and instead of an effect."""

from __future__ import annotations

from txbus_sim.checkers._evidence import Evidence
from txbus_sim.checkers._facts import DeadLetter, seconds
from txbus_sim.checkers._vocabulary import Attempts, Finding, Given

__all__ = ["dead_letter_iff_exhausted"]


def dead_letter_iff_exhausted(evidence: Evidence, given: Given) -> Finding:
    """Premise: a dead letter was kept, or runs were counted for a scope whose attempts are declared.

    It is of a message that its group was handed, and not of one that had its effect. Where `Attempts`
    are declared: it comes after so many runs (one more where a crash left one uncounted), or at once
    for an error that ends it; and no message runs more often. That attempts are used up without a
    dead letter is a lost effect: see effect-exactly-once.
    """
    found = Finding("dead-letter-iff-exhausted")
    handed = {
        (place.group.rpartition(".")[2], one.record.message_id): one.record
        for place, seen in evidence.places.items()
        for one in reversed(seen.deliveries)
    }
    scopes = {scope for scope, _ in handed}
    for letter in evidence.dead:
        found.spoke()
        first = handed.get((letter.scope, letter.message_id))
        if letter.scope in scopes and letter.message_id and first is None:
            found.accuse(
                f"a dead letter of nothing: scope {letter.scope} kept one of message {letter.message_id}, which it was "
                "never handed",
                letter.line,
            )
        _had_its_effect(evidence, given, letter, found)
    for declared in given.attempts:
        found.applies = True
        _counted(evidence, declared, found)
    return found


def _counted(evidence: Evidence, declared: Attempts, found: Finding) -> None:
    """A crash may leave one run uncounted (txbus: at most ``max_attempts`` + 1 runs)."""
    for letter in evidence.dead:
        at_once = any(_is(letter.error, name) for name in ("GiveUp", "DecodeError", *declared.at_once))
        if letter.scope != declared.scope or not letter.attempts or at_once:
            continue
        if not declared.max_attempts <= letter.attempts <= declared.max_attempts + 1:
            found.accuse(
                f"a dead letter at the wrong time: scope {letter.scope} gave up on message {letter.message_id} after "
                f"{letter.attempts} runs, not {declared.max_attempts}, with {letter.error.partition(chr(10))[0]}",
                letter.line,
            )
    for (scope, message_id), (runs, event) in evidence.runs.items():
        if scope != declared.scope:
            continue
        found.spoke()
        if runs > declared.max_attempts + 1:
            found.accuse(
                f"no dead letter: scope {scope} ran message {message_id} {runs} times, and was to give up after "
                f"{declared.max_attempts}",
                event.line(),
            )


def _is(error: str, name: str) -> bool:
    """Whether the first line of an error's text is of this class."""
    return error.partition(":")[0].rpartition(".")[2] == name.rpartition(".")[2]


def _had_its_effect(evidence: Evidence, given: Given, letter: DeadLetter, found: Finding) -> None:
    for message in evidence.by_id.get(letter.message_id, ()) if letter.message_id else ():
        for effect in given.effects:
            if effect.topic != message.record.topic or not _of_scope(effect.group, letter.scope):
                continue
            value = message.fields().get(effect.field)
            event = evidence.book(effect.table, effect.column).first.get(value) if value is not None else None
            if event is None or len(evidence.by_field(effect.topic, effect.field).get(value or "", ())) > 1:
                continue
            found.accuse(
                f"a dead letter and an effect: scope {letter.scope} gave up on {message}, which has its row in "
                f"{effect.table} ({effect.column}={value}) since {seconds(event.commit.at_ns)}",
                event.line(),
                letter.line,
            )


def _of_scope(group: str, scope: str) -> bool:
    return group.rpartition(".")[2] == scope
