"""The report of an exploration as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from string import Template
from typing import NamedTuple

from txbus_sim._lanes import lanes
from txbus_sim._lines import clean, to_text
from txbus_sim._pagedata import PageData, schedule_name
from txbus_sim._source import Place, place_at_end, shown_path, statement
from txbus_sim._summary import summary_lines
from txbus_sim._timeline import focus, process_name, seconds, timeline
from txbus_sim._words import about, heading, in_short, outcome
from txbus_sim.exploration import ExplorationResult
from txbus_sim.faults import Fault
from txbus_sim.report import ROWS_MAX, Told, logs, replay_command, with_proof
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Schedule

__all__ = ["Tried", "render_exploration", "render_html"]

_LOG_LINES_MAX = 2_000
_FALLBACK_WIDTH = 120


class Tried(NamedTuple):
    """One run of the crash matrix: the source line of the operation (``file:line``, "" if it is no
    line of the application's), and what the run came to. Its schedule's last deviation is at that
    operation; those before it, if any, caused the recovery that the operation is a part of."""

    site: str
    result: RunResult


def render_html(
    result: RunResult,
    told: Told | None = None,
    matrix: Iterable[Tried] = (),
    summary: ExplorationResult | None = None,
) -> str:
    """The whole page for a run, failed or not, and for the runs of a crash matrix beside it.

    Equal arguments give an equal page. ``summary`` is the exploration that the run is from.
    ``matrix`` is read once, in order, and no history is kept, so it may be a generator that runs
    each schedule when it is asked for. Whatever the histories hold is shown as text: nothing of it
    can become markup or script.
    """
    told = told or Told()
    data = PageData(result)
    rows = _matrix_rows(matrix, data)
    verdict = result.verdict
    style, script = _asset("report.css"), _asset("report.js")
    return Template(_asset("report.html")).substitute(
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'",
        title=_text(in_short(verdict)),
        mood="failed" if verdict is not None else "passed",
        style=style,
        script=script,
        head="\n".join(_head(result)),
        schedule="\n".join(_schedule(result, told)),
        matrix="\n".join(_matrix(rows)),
        lanes=_text_lines(_fallback(result)),
        logs="\n".join(_logs(result)),
        details="\n".join(_details(verdict)),
        keeping="\n".join(_keeping(result, told)),
        summary="\n".join(_summary(summary)),
        data=data.json(),
    )


def render_exploration(
    result: ExplorationResult, replay: Callable[[Schedule], RunResult], told: Told | None = None
) -> str:
    """The page of an exploration: its first failure, or the run without faults if nothing failed.

    ``replay`` makes each run of the crash matrix once more, for its timeline; runs are cheap and
    deterministic, and no exploration could keep all their histories.
    """
    run = result.run
    if run is None:
        run = replay(Schedule())
        if result.verdict is not None:
            run = replace(run, verdict=result.verdict)
    matrix = (Tried(cell.site, replay(Schedule((cell.deviation,)))) for cell in result.matrix)
    return render_html(run, with_proof(result, told), matrix, result)


def _asset(name: str) -> str:
    return files("txbus_sim").joinpath("_page", name).read_text("utf-8")


def _hash(content: str) -> str:
    """The page's own style and script by their digest: a script that was smuggled in does not run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}"


def _text(text: str) -> str:
    return escape(clean(text))


def _text_lines(text: str) -> str:
    return "\n".join(_text(one) for one in text.splitlines())


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


# the head


def _head(result: RunResult) -> Iterator[str]:
    verdict = result.verdict
    if verdict is None:
        yield '<span class="badge">PASSED</span>'
        yield f"<h1>The run under {len(result.schedule)} deviations passed</h1>"
        return
    said, *more = verdict.sentence.splitlines() or [""]
    yield f'<span class="badge">{_text(heading(verdict))}</span>'
    yield f"<h1>{_text(said)}</h1>"
    place = Place.parse(verdict.site)
    if place is not None:
        yield f'<p class="faint mono">{_text(str(place))}</p>'
        yield from _source(place)
    if more:
        yield f"<pre>{_text_lines(chr(10).join(more))}</pre>"
    if verdict.kind in (VerdictKind.STUCK, VerdictKind.LIVELOCK) and verdict.details:
        yield "<h2>Who waits for what</h2>"
        yield '<ul class="plain">'
        yield from (f"<li>{_waiting(detail)}</li>" for detail in verdict.details)
        yield "</ul>"
    if verdict.assumed:
        yield '<div class="assumed" role="note">'
        yield "<p>This verdict rests on behaviour of the broker that nobody verified on a real one:</p>"
        yield '<ul class="plain">'
        yield from (f"<li>{_text(row)}</li>" for row in verdict.assumed)
        yield "</ul></div>"


def _source(place: Place) -> Iterator[str]:
    shown = statement(place)
    if not shown:
        return
    parts = []
    for number, text in shown:
        here = ' class="here"' if number == place.line else ""
        parts.append(f'<span class="number">{number}</span><span{here}>{_text(text)}</span>')
    yield f'<pre class="code">{"".join(parts)}</pre>'


def _waiting(detail: str) -> str:
    place = place_at_end(detail)
    if place is None:
        return _text(detail)
    code = f": {place.text}" if place.text else ""
    return f"{_text(detail[: detail.rindex(' at ')])}<br>{_code(f'{place}{code}')}"


# the schedule, and why each deviation is in it


def _schedule(result: RunResult, told: Told) -> Iterator[str]:
    yield '<section class="columns" aria-label="Schedule">'
    yield "<div><h2>The shortest schedule</h2>" if result.verdict is not None else "<div><h2>The schedule</h2>"
    if len(result.schedule):
        yield '<ol class="schedule">'
        yield from (f"<li>{_code(str(deviation))}</li>" for deviation in result.schedule)
        yield "</ol>"
    else:
        yield "<p>No fault: the schedule is empty.</p>"
    yield "</div>"
    if told.needs:
        yield '<div><h2>Each deviation is needed</h2><ul class="needs">'
        for need in told.needs:
            kind = "passed" if need.outcome is None else "failed"
            others = len(need.without)
            beside = f" (with {others} other{'' if others == 1 else 's'})" if others else ""
            yield (
                f"<li>Without {_code(str(need.deviation))}{beside} it "
                f'<span class="outcome-{kind}">{_text(outcome(need.outcome))}</span>.</li>'
            )
        yield "</ul></div>"
    yield "</section>"


# the crash matrix


@dataclass(frozen=True, slots=True)
class _Cell:
    number: int
    fault: Fault
    name: str
    verdict: Verdict | None


@dataclass(slots=True)
class _Operation:
    """The runs of one process's operation at one source line."""

    words: str
    cells: list[_Cell]

    @property
    def bad(self) -> bool:
        return any(cell.verdict is not None for cell in self.cells)


_Matrix = dict[str, dict[str, _Operation]]
"""Operations by source line, in the order in which they were tried."""


def _matrix_rows(matrix: Iterable[Tried], data: PageData) -> _Matrix:
    rows: _Matrix = {}
    for site, tried in matrix:
        deviation = tried.schedule.deviations[-1]
        address = deviation.address
        process = process_name(address.process)
        words = f"{process}: {address.label}"
        operation = rows.setdefault(site, {}).setdefault(words, _Operation(words, []))
        number = data.tried(tried)
        operation.cells.append(_Cell(number, deviation.fault, schedule_name(tried.schedule), tried.verdict))
    return rows


def _matrix(rows: _Matrix) -> Iterator[str]:
    cells = [cell for site in rows.values() for operation in site.values() for cell in operation.cells]
    if not cells:
        return
    bad = sum(cell.verdict is not None for cell in cells)
    tried = {cell.fault for cell in cells}
    faults = [fault for fault in Fault if fault in tried]
    yield '<section class="matrix" aria-labelledby="matrix-title">'
    yield '<h2 id="matrix-title">Crash matrix</h2>'
    yield f"<p>{len(cells)} runs with a fault at one operation each: {len(cells) - bad} passed, {bad} failed."
    yield ' <span class="faint">Choose a run to see its timeline; arrow keys move between them.</span></p>'
    yield '<div class="controls"><label><input type="checkbox" id="only-bad"> Only failures</label></div>'
    heads = "".join(f'<th scope="col">{fault.value}</th>' for fault in faults)
    yield f'<table><thead><tr><th scope="col">Operation</th>{heads}</tr></thead>'
    for site, operations in rows.items():
        fine = "" if any(operation.bad for operation in operations.values()) else ' class="fine"'
        yield f"<tbody{fine}>"
        yield f'<tr><th class="source" scope="rowgroup" colspan="{len(faults) + 1}">{_site(site)}</th></tr>'
        for operation in operations.values():
            yield from _operation(operation, faults)
        yield "</tbody>"
    yield "</table></section>"


def _site(site: str) -> str:
    place = Place.parse(site)
    if place is None:
        return '<span class="place">no line of the application</span>'
    return f'{_code(place.text)} <span class="place">{_text(str(place))}</span>'


def _operation(operation: _Operation, faults: Sequence[Fault]) -> Iterator[str]:
    yield "<tr>" if operation.bad else '<tr class="fine">'
    yield f'<th class="label mono" scope="row">{_text(operation.words)}</th>'
    for fault in faults:
        shown = "".join(_try(cell) for cell in operation.cells if cell.fault is fault)
        yield f'<td class="tried" data-fault="{fault.value}"><div class="tries">{shown}</div></td>'
    yield "</tr>"


def _try(cell: _Cell) -> str:
    words = _text(f"{cell.name}: {in_short(cell.verdict)}")
    mark, kind = ("✓", "good") if cell.verdict is None else ("✗", "bad")
    return f'<a href="#run-{cell.number}" class="{kind}" aria-label="{words}" title="{words}">{mark}</a>'


# what stands below the timeline


def _fallback(result: RunResult) -> str:
    """The timeline as text, for a reader without scripts."""
    names = about(result.verdict, result.history) if result.verdict is not None else ()
    shown = focus(timeline(result.history), names, ROWS_MAX)
    return to_text(lanes(shown, _FALLBACK_WIDTH), width=_FALLBACK_WIDTH, colour=False)


def _logs(result: RunResult) -> Iterator[str]:
    found = logs(result.history)
    if not found:
        return
    yield '<section aria-labelledby="logs-title"><h2 id="logs-title">Logs of the run of this report</h2>'
    for number, (process, records) in enumerate(found.items()):
        is_open = " open" if number == 0 else ""
        yield f"<details{is_open}><summary>{_text(process)} ({len(records)})</summary>"
        yield f'<div class="log" tabindex="0" role="region" aria-label="Log of {_text(process)}"><table>'
        if len(records) > _LOG_LINES_MAX:
            yield f'<tr><td class="time">⋮</td><td>{len(records) - _LOG_LINES_MAX} earlier lines</td></tr>'
        for record in records[-_LOG_LINES_MAX:]:
            level = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}.get(record.level, "")
            again = f"{record.process} " if "+" in record.process else ""
            words = _text_lines(f"{again}{record.level} {record.logger}: {record.text}")
            yield f'<tr class="{level}"><td class="time">{seconds(record.at_ns)}</td><td>{words}</td></tr>'
        yield "</table></div></details>"
    yield "</section>"


def _details(verdict: Verdict | None) -> Iterator[str]:
    if verdict is None or not verdict.details or verdict.kind in (VerdictKind.STUCK, VerdictKind.LIVELOCK):
        return
    yield '<section aria-labelledby="details-title"><h2 id="details-title">Details</h2>'
    yield f'<pre tabindex="0">{_text_lines(chr(10).join(verdict.details))}</pre></section>'


def _summary(summary: ExplorationResult | None) -> Iterator[str]:
    if summary is None:
        return
    text = to_text(summary_lines(summary, _FALLBACK_WIDTH), width=_FALLBACK_WIDTH, colour=False)
    yield '<section aria-labelledby="summary-title"><h2 id="summary-title">The exploration</h2>'
    yield f'<pre class="wide" tabindex="0">{_text_lines(text)}</pre></section>'


def _keeping(result: RunResult, told: Told) -> Iterator[str]:
    command = replay_command(result.schedule, told)
    if not command:
        return
    yield '<section class="columns" aria-label="How to keep it">'
    if told.file is not None and len(result.schedule):
        kept = "Kept in" if told.kept else "To pin it, commit"
        yield f"<div><h2>{kept} {_code(shown_path(str(told.file)))}</h2>"
        yield f'<pre tabindex="0">{_text_lines(str(result.schedule))}</pre></div>'
    yield f'<div><h2>To run it again</h2><pre tabindex="0">{_text(command)}</pre></div></section>'
