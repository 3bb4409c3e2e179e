"""Half messages: invisible until their outcome, asked about when it does not come.

The cases use `HalfMessages` of the SPI only, so they also hold for half messages that the core
derives: a harness hands those out through `Harness.half_messages` and names HALF_MESSAGE in
``derived``.
"""

from __future__ import annotations

from txbus.conformance._harness import NotPromised
from txbus.conformance._stage import Member, Stage, envelope, require
from txbus.conformance._suite import case
from txbus.errors import DestinationRefused, MessageRefused
from txbus.spi import Backend, Capability, Check, Envelope, HalfMessages, Outcome, TopicKind

HALF = Capability.HALF_MESSAGE
KIND = TopicKind.TRANSACTIONAL


def _halves(stage: Stage, group: str, topic: str, client: Backend | None = None) -> HalfMessages:
    return stage.harness.half_messages(client or stage.client(), group, [topic])


def _prepare(stage: Stage, halves: HalfMessages, topic: str, text: str) -> object:
    return halves.prepare(envelope(topic, text, "key"), stage.harness.answer_s)


def _checks(stage: Stage, halves: HalfMessages, count: int = 1) -> list[Check]:
    """Wait for questions about this many different messages; one check_after_s must be over."""
    found: dict[str | None, Check] = {}

    def asked() -> bool:
        for check in halves.checks(stage.harness.poll_s):
            found[check.envelope.id] = check
        return len(found) >= count

    stage.until(asked, what=f"the broker asks about {count} half messages")
    return list(found.values())


def _asked(stage: Stage, *contents: str) -> tuple[str, HalfMessages, list[Check]]:
    """Half messages left unfinished by a client that was killed, and the questions about them."""
    topic, group, victim = stage.topic(kind=KIND), stage.group(), stage.client()
    dead = _halves(stage, group, topic, victim)
    for text in contents:
        _prepare(stage, dead, topic, text)
    stage.kill(victim)
    halves = _halves(stage, group, topic)
    stage.harness.advance(1.5 * stage.harness.check_after_s)
    return topic, halves, _checks(stage, halves, len(contents))


def _reader(stage: Stage, topic: str) -> Member:
    return stage.member(stage.group(), topic)


@case(HALF, property="a prepared half message is invisible", kind=KIND)
def prepared_is_invisible(stage: Stage) -> None:
    topic = stage.topic(kind=KIND)
    _prepare(stage, _halves(stage, stage.group(), topic), topic, "half")
    stage.never(_reader(stage, topic))


@case(HALF, property="finished as COMMITTED it becomes visible once, unchanged", kind=KIND)
def committed_becomes_visible(stage: Stage) -> None:
    topic = stage.topic(kind=KIND)
    halves = _halves(stage, stage.group(), topic)
    sent = envelope(topic, "half", "ключ", headers={"naïve": "値"})
    halves.finish(halves.prepare(sent, stage.harness.answer_s), Outcome.COMMITTED)
    member = _reader(stage, topic)
    stage.never(member, "half")
    got = member.seen[0].envelope
    wanted = (sent.topic, sent.key, {**sent.headers}, sent.payload)
    require((got.topic, got.key, {**got.headers}, got.payload) == wanted, f"sent {sent}, received {got}")


@case(HALF, property="finished as ROLLED_BACK it is never visible", kind=KIND)
def rolled_back_stays_invisible(stage: Stage) -> None:
    topic = stage.topic(kind=KIND)
    halves = _halves(stage, stage.group(), topic)
    halves.finish(_prepare(stage, halves, topic, "gone"), Outcome.ROLLED_BACK)
    halves.finish(_prepare(stage, halves, topic, "kept"), Outcome.COMMITTED)
    stage.never(_reader(stage, topic), "kept")


@case(HALF, property="each half message has its own outcome, told in any order", kind=KIND)
def halves_are_independent(stage: Stage) -> None:
    topic = stage.topic(kind=KIND)
    halves = _halves(stage, stage.group(), topic)
    handles = [_prepare(stage, halves, topic, text) for text in "abcd"]
    for at in (3, 1, 0, 2):
        halves.finish(handles[at], Outcome.COMMITTED if at % 2 else Outcome.ROLLED_BACK)
    member = _reader(stage, topic)
    stage.until_seen(2, member)
    stage.quiet(member)
    require(sorted(member.texts()) == ["b", "d"], f"committed b and d, received {member.texts()}")


@case(HALF, property="the survivors of a group are asked about an unfinished one, with its envelope", kind=KIND)
def unfinished_is_asked_about(stage: Stage) -> None:
    _, _, checks = _asked(stage, "half")
    asked = checks[0].envelope
    require((asked.payload, asked.key, asked.id) == (b"half", "key", "half"), f"asked about {asked}")
    require(checks[0].attempt >= 1, f"the question is number {checks[0].attempt}")


@case(HALF, property="answered COMMITTED it becomes visible", kind=KIND)
def answer_committed(stage: Stage) -> None:
    topic, halves, checks = _asked(stage, "half")
    halves.answer(checks[0], Outcome.COMMITTED)
    stage.never(_reader(stage, topic), "half")


@case(HALF, property="answered ROLLED_BACK it is never visible", kind=KIND)
def answer_rolled_back(stage: Stage) -> None:
    topic, halves, checks = _asked(stage, "half")
    halves.answer(checks[0], Outcome.ROLLED_BACK)
    stage.never(_reader(stage, topic))


@case(HALF, property="answered UNKNOWN it stays invisible and is asked about again, attempt higher", kind=KIND)
def answer_unknown(stage: Stage) -> None:
    topic, halves, checks = _asked(stage, "half")
    halves.answer(checks[0], Outcome.UNKNOWN)
    member = _reader(stage, topic)
    stage.never(member)
    stage.harness.advance(1.5 * stage.harness.check_after_s)
    again = _checks(stage, halves)[0]
    require(again.attempt > checks[0].attempt, f"question {checks[0].attempt}, then {again.attempt}")
    halves.answer(again, Outcome.COMMITTED)
    stage.never(member, "half")


@case(HALF, property="several unfinished ones are each asked about and answered for themselves", kind=KIND)
def several_are_asked_about(stage: Stage) -> None:
    topic, halves, checks = _asked(stage, "a", "b", "c")
    for check in checks:
        halves.answer(check, Outcome.ROLLED_BACK if check.envelope.id == "b" else Outcome.COMMITTED)
    member = _reader(stage, topic)
    stage.until_seen(2, member)
    stage.quiet(member)
    require(sorted(member.texts()) == ["a", "c"], f"committed a and c, received {member.texts()}")


@case(HALF, property="an answer may be repeated, and doubles nothing", kind=KIND)
def answer_is_idempotent(stage: Stage) -> None:
    topic, halves, checks = _asked(stage, "half")
    halves.answer(checks[0], Outcome.COMMITTED)
    halves.answer(checks[0], Outcome.COMMITTED)
    stage.never(_reader(stage, topic), "half")


@case(HALF, property="nobody is asked about a half message that is younger than the check delay", kind=KIND)
def young_is_not_asked_about(stage: Stage) -> None:
    topic = stage.topic(kind=KIND)
    halves = _halves(stage, stage.group(), topic)
    _prepare(stage, halves, topic, "young")
    early = halves.checks(0.0)
    require(not early, f"asked at once about {[check.envelope.id for check in early]}")


@case(HALF, property="another group is not asked", kind=KIND)
def other_groups_are_not_asked(stage: Stage) -> None:
    topic, group = stage.topic(kind=KIND), stage.group()
    mine, other = _halves(stage, group, topic), _halves(stage, stage.group(), topic)
    _prepare(stage, mine, topic, "half")
    stage.harness.advance(1.5 * stage.harness.check_after_s)
    _checks(stage, mine)
    foreign = other.checks(stage.harness.quiet_s)
    require(not foreign, f"another group is asked about {[check.envelope.id for check in foreign]}")


def _refused(stage: Stage, topic: str, bad: Envelope, error: type[Exception]) -> None:
    halves = _halves(stage, stage.group(), topic)
    with stage.refused(error, what="prepare of a bad message"):
        halves.prepare(bad, stage.harness.answer_s)
    halves.finish(_prepare(stage, halves, topic, "good"), Outcome.COMMITTED)
    stage.never(_reader(stage, topic), "good")


@case(HALF, property="prepare refuses a missing topic at once, with DestinationRefused", kind=KIND)
def unknown_topic(stage: Stage) -> None:
    missing = envelope(stage.harness.unique("missing"), "lost")
    _refused(stage, stage.topic(kind=KIND), missing, DestinationRefused)


@case(HALF, property="prepare refuses an oversized message at once, with MessageRefused", kind=KIND)
def oversized_message(stage: Stage) -> None:
    limit, topic = stage.first.capabilities(KIND).limits.payload_bytes_max, stage.topic(kind=KIND)
    if limit is None:
        raise NotPromised("payloads have no limit")
    _refused(stage, topic, Envelope(topic, b"x" * (limit + 1), None, {"ce_id": "big"}), MessageRefused)
