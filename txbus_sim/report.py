"""The report of a failing run as text: what failed, the shortest way there, and how to keep it.

A failure is told in this order: the user's own assertion with its source, or the verdict in one sentence; the shortest
schedule; for each deviation the run that passes without it; the timeline; the logs; details; rows of
a dialect's table that nobody verified; the file to commit; the command that replays it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from txbus_sim import history as h
from txbus_sim._lanes import lanes
from txbus_sim._lines import Line, Span, Style, clean, line, to_text, wrap
from txbus_sim._source import Place, place_at_end, shown_path, statement
from txbus_sim._summary import summary_lines
from txbus_sim._timeline import focus, process_name, seconds, timeline
from txbus_sim._words import about, heading, outcome
from txbus_sim.exploration import ExplorationResult
from txbus_sim.history import History
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Schedule
from txbus_sim.shrink import Necessity

__all__ = [
    "LOGS_MAX",
    "ROWS_MAX",
    "WIDTH",
    "Told",
    "logs",
    "look",
    "render_exploration",
    "render_failure",
    "render_summary",
    "replay_command",
    "with_proof",
]

WIDTH = 160
ROWS_MAX = 80
"""Rows of the timeline in a text report; the HTML report has them all."""
LOGS_MAX = 15
"""Lines of each process's log in a text report."""
_DETAILS_MAX = 60


@dataclass(frozen=True, slots=True)
class Told:
    """What a report tells besides the run itself.

    ``file``: where the schedule is to be kept; ``kept`` whether it is there already. ``command``
    replays it; where it is empty, `txbus sim replay` with the file is shown.
    """

    needs: Sequence[Necessity] = ()
    file: Path | None = None
    kept: bool = False
    command: str = ""


def render_failure(
    result: RunResult,
    told: Told | None = None,
    *,
    width: int = WIDTH,
    colour: bool = False,
    rows_max: int = ROWS_MAX,
    logs_max: int = LOGS_MAX,
) -> str:
    """The whole report of a failing run. AssertionError for a run that passed.

    Equal arguments give an equal text. ``width`` is a wish: source code and schedules, which are
    copied, are not broken.
    """
    assert result.verdict is not None, f"this run passed: {result.schedule}"
    told = told or Told()
    parts = (
        _verdict(result.verdict, width),
        _schedule(result.schedule),
        _needs(told.needs, width),
        _timeline(result, width, rows_max),
        _logs(result.history, width, logs_max),
        _details(result.verdict, width),
        _assumed(result.verdict, width),
        _keeping(result.schedule, told),
    )
    return to_text(_joined(parts), width=width, colour=colour)


def look(out: TextIO) -> tuple[int, bool]:
    """The width and whether to colour, for what is printed to ``out``: a terminal's own width; 160
    columns and no colours elsewhere, or with the environment variable NO_COLOR."""
    if not out.isatty():
        return WIDTH, False
    return shutil.get_terminal_size((WIDTH, 24)).columns, not os.environ.get("NO_COLOR")


def render_exploration(
    result: ExplorationResult,
    told: Told | None = None,
    *,
    width: int = WIDTH,
    colour: bool = False,
    rows_max: int = ROWS_MAX,
    logs_max: int = LOGS_MAX,
) -> str:
    """The first failure's report, with the proof from shrinking, and the summary below it; the summary
    alone where nothing failed. ``told.needs`` are the result's own if they are not given."""
    told = with_proof(result, told)
    summary = render_summary(result, width=width, colour=colour)
    if result.run is not None:
        how = {"width": width, "rows_max": rows_max, "logs_max": logs_max}
        return f"{render_failure(result.run, told, colour=colour, **how)}\n{summary}"
    if result.verdict is not None:
        return f"{to_text(_verdict(result.verdict, width), width=width, colour=colour)}\n{summary}"
    return summary


def with_proof(result: ExplorationResult, told: Told | None) -> Told:
    """What to tell of an exploration's first failure: the proof that shrinking made, if there is none."""
    told = told or Told()
    if told.needs or result.shrunk is None:
        return told
    return replace(told, needs=result.shrunk.necessities)


def render_summary(result: ExplorationResult, *, width: int = WIDTH, colour: bool = False) -> str:
    """What an exploration came to: counts, the first failure of each kind, faults by operation with
    those that never took place, properties and `sometimes` with those that never occurred."""
    return to_text(summary_lines(result, width), width=width, colour=colour)


def _joined(parts: Sequence[Iterator[Line]]) -> Iterator[Line]:
    """The parts that say anything, an empty line between two."""
    first = True
    for part in parts:
        lines = list(part)
        if not lines:
            continue
        if not first:
            yield ()
        first = False
        yield from lines


# the verdict


def _verdict(verdict: Verdict, width: int) -> Iterator[Line]:
    word = clean(heading(verdict))
    said, *more = verdict.sentence.splitlines() or [""]
    first, *rest = wrap(clean(f"{heading(verdict)}: {said}"), width)
    yield (Span(first[: len(word)], Style.BAD), Span(first[len(word) :], Style.HEADING))
    yield from (line(text, Style.HEADING) for text in rest)
    for one in more:
        # As pytest explains an assertion, over several lines.
        yield from (line(f"  {text}") for text in wrap(clean(one), width - 2))
    place = Place.parse(verdict.site)
    if place is not None:
        yield ()
        yield from _code(place)
    if verdict.kind in (VerdictKind.STUCK, VerdictKind.LIVELOCK) and verdict.details:
        yield ()
        yield line("Who waits for what", Style.HEADING)
        for detail in verdict.details:
            yield from _waiting(detail, width)


def _code(place: Place) -> Iterator[Line]:
    """The place, and the statement there with a mark at its line."""
    yield line(f"  {clean(str(place))}", Style.FAINT)
    for number, text in statement(place):
        mark = ">" if number == place.line else " "
        yield (Span(f"  {mark} {number:>4} | ", Style.FAINT), Span(clean(text)))


def _waiting(detail: str, width: int) -> Iterator[Line]:
    place = place_at_end(detail)
    if place is None:
        yield from (line(f"  {text}") for text in wrap(clean(detail), width - 2))
        return
    what = detail[: detail.rindex(" at ")]
    yield from (line(f"  {text}") for text in wrap(clean(what), width - 2))
    code = f": {place.text}" if place.text else ""
    yield line(f"      at {clean(str(place) + code)}", Style.FAINT)


# the schedule


def _schedule(schedule: Schedule) -> Iterator[Line]:
    count = len(schedule)
    if not count:
        yield line("It fails without any fault: the schedule is empty.", Style.HEADING)
        return
    yield line(f"The shortest schedule that fails so ({count} deviation{'' if count == 1 else 's'})", Style.HEADING)
    for number, deviation in enumerate(schedule, 1):
        yield (Span(f"  {number}  ", Style.FAINT), Span(clean(str(deviation)), Style.FAULT))


def _needs(needs: Sequence[Necessity], width: int) -> Iterator[Line]:
    if not needs:
        return
    yield line("Each deviation is needed; executed without it", Style.HEADING)
    for need in needs:
        style = Style.GOOD if need.outcome is None else Style.NOTE
        words = f"{without(need)}: {outcome(need.outcome)}"
        for number, text in enumerate(wrap(clean(words), width - 2)):
            yield line(f"  {text}", Style.PLAIN if number else style)


def without(need: Necessity) -> str:
    """Which run was executed to prove a deviation needed."""
    others = "no fault" if not need.without else f"{len(need.without)} other{'' if len(need.without) == 1 else 's'}"
    return f"without {need.deviation} ({others})"


# the timeline and the logs


def _timeline(result: RunResult, width: int, rows_max: int) -> Iterator[Line]:
    assert result.verdict is not None
    whole = timeline(result.history)
    if not whole.rows:
        return
    shown = focus(whole, about(result.verdict, result.history), rows_max)
    yield (
        Span("Timeline", Style.HEADING),
        Span(f" (virtual time; the run ended at {seconds(result.virtual_ns)})", Style.FAINT),
    )
    yield from lanes(shown, width)


def logs(history: History) -> dict[str, list[h.Logged]]:
    """The log lines of each process, its incarnations together, in the order of first start."""
    found: dict[str, list[h.Logged]] = {}
    for record in history:
        if isinstance(record, h.ProcessStarted):
            found.setdefault(process_name(record.process), [])
        elif isinstance(record, h.Logged):
            found.setdefault(process_name(record.process), []).append(record)
    return {name: lines for name, lines in found.items() if lines}


def _logs(history: History, width: int, logs_max: int) -> Iterator[Line]:
    first = True
    for process, records in logs(history).items():
        if not first:
            yield ()
        first = False
        yield line(f"Log of {clean(process)}", Style.HEADING)
        if len(records) > logs_max:
            yield line(f"{'⋮':>12}  {len(records) - logs_max} earlier lines", Style.FAINT)
        for record in records[-logs_max:] if logs_max else ():
            yield from _logged(record, width)


def _logged(record: h.Logged, width: int) -> Iterator[Line]:
    again = f"{record.process} " if "+" in record.process else ""
    begin = f"{seconds(record.at_ns):>12}  "
    style = {"WARNING": Style.NOTE, "ERROR": Style.FAULT, "CRITICAL": Style.FAULT}.get(record.level, Style.PLAIN)
    first, *rest = record.text.splitlines() or [""]
    head = f"{again}{record.level} {record.logger}: {first}"
    for number, text in enumerate([head, *(f"  {one}" for one in rest)]):
        for part in wrap(clean(text), width - len(begin), "    "):
            yield (Span(begin, Style.FAINT), Span(part, style if number == 0 else Style.PLAIN))
            begin = " " * len(begin)


# details, and what to do with it


def _details(verdict: Verdict, width: int) -> Iterator[Line]:
    if not verdict.details or verdict.kind in (VerdictKind.STUCK, VerdictKind.LIVELOCK):
        return
    yield line("Details", Style.HEADING)
    shown = verdict.details
    if len(shown) > _DETAILS_MAX:
        # Of a long traceback the end says most.
        yield line(f"  ⋮ {len(shown) - _DETAILS_MAX} lines before", Style.FAINT)
        shown = shown[-_DETAILS_MAX:]
    for detail in shown:
        yield from (line(f"  {text}") for text in wrap(clean(detail), width - 2, "    "))


def _assumed(verdict: Verdict, width: int) -> Iterator[Line]:
    if not verdict.assumed:
        return
    words = "This verdict rests on behaviour of the broker that nobody verified on a real one"
    yield from (line(text, Style.NOTE) for text in wrap(words, width))
    for row in verdict.assumed:
        yield from (line(f"  {text}") for text in wrap(clean(row), width - 2))


def _keeping(schedule: Schedule, told: Told) -> Iterator[Line]:
    if told.file is not None and len(schedule):
        shown = shown_path(str(told.file))
        yield line(f"{'Kept in' if told.kept else 'To pin it, commit'} {clean(shown)}", Style.HEADING)
        yield from (line(f"  {clean(text)}", Style.FAULT) for text in str(schedule).splitlines())
        yield ()
    command = replay_command(schedule, told)
    if command:
        yield line("To run it again", Style.HEADING)
        yield line(f"  {clean(command)}")


def replay_command(schedule: Schedule, told: Told) -> str:
    """The shell's words that run the schedule again; "" if nobody said them and there is none to keep."""
    if told.command or told.file is None or not len(schedule):
        return told.command
    return f"txbus sim replay {shlex.quote(shown_path(str(told.file)))}"
