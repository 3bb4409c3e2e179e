"""What an exploration came to, as text: counts, failures, what was put to the test and what never was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from txbus_sim._lines import Line, Span, Style, cells, clean, line, wrap
from txbus_sim._words import in_short
from txbus_sim.exploration import End, ExplorationResult, Failure, Stage
from txbus_sim.faults import Fault

__all__ = ["summary_lines"]

_LABEL_WIDTH_MAX = 48
_FAULTS_WIDTH_MIN = 40
_DEVIATIONS_SHOWN = 3
_ENDS = {
    End.ENOUGH: "ENDED at the failures it was asked for",
    End.CUT: "ENDED at the runs it was allowed",
    End.INTERRUPTED: "INTERRUPTED",
}


def summary_lines(result: ExplorationResult, width: int) -> Iterator[Line]:
    """Lines of at most ``width`` columns; equal results give equal lines but for the time they took."""
    for text in wrap(_counts(result), width):
        yield line(text, Style.HEADING)
    yield from _end(result, width)
    yield from _stages(result.stages, width)
    yield from _failures(result.failures, width)
    yield from _coverage(result.coverage.counts, width)
    vacuous = {verdict.name for verdict in result.vacuous}
    yield from _named("Properties, and how often each was put to the test", result.premises, vacuous, width)
    yield from _named("Sometimes, and how often it was so", result.sometimes, vacuous, width)


def _counts(result: ExplorationResult) -> str:
    rate = f"{result.executed / result.seconds:,.0f} a second, " if result.seconds else ""
    return (
        f"{result.kind}: {result.executed:,} run{_s(result.executed)} in {result.seconds:,.1f} s "
        f"({rate}{result.jobs} job{_s(result.jobs)}): {result.passed:,} passed, {result.failed:,} failed; "
        f"{result.enumerated:,} enumerated, {result.pruned:,} pruned"
    )


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _end(result: ExplorationResult, width: int) -> Iterator[Line]:
    why = _ENDS.get(result.end)
    if why is None:
        return
    left = result.enumerated - result.pruned - result.executed
    words = f"{why}; {left:,} not run, and what follows from them not enumerated" if left else why
    yield from (line(f"  {text}", Style.NOTE) for text in wrap(words, width - 2))


def _stages(stages: Sequence[Stage], width: int) -> Iterator[Line]:
    if len(stages) < 2:
        return
    column = min(max(cells(stage.name) for stage in stages), max(16, width - 32)) + 2
    yield ()
    yield line(f"{'Stages':{column}}{'run':>10}{'failed':>10}{'pruned':>10}", Style.HEADING)
    for stage in stages:
        failed = Span(f"{stage.failed:>10,}", Style.BAD if stage.failed else Style.PLAIN)
        yield (Span(f"  {stage.name:{column - 2}}{stage.executed:>10,}"), failed, Span(f"{stage.pruned:>10,}"))


def _failures(failures: Sequence[Failure], width: int) -> Iterator[Line]:
    if not failures:
        return
    yield ()
    yield line("Failures, the first of each kind", Style.HEADING)
    for failure in failures:
        more = f", {failure.times:,} such runs" if failure.times > 1 else ""
        words = f"run {failure.number} ({failure.stage}{more}): {in_short(failure.verdict)}"
        yield from (line(f"  {text}", Style.BAD) for text in wrap(clean(words), width - 2))
        for deviation in failure.schedule.deviations[:_DEVIATIONS_SHOWN]:
            yield line(f"    {clean(str(deviation))}", Style.FAULT)
        others = len(failure.schedule) - _DEVIATIONS_SHOWN
        if others > 0:
            yield line(f"    and {others} more", Style.FAULT)


def _coverage(coverage: Mapping[tuple[str, Fault], int], width: int) -> Iterator[Line]:
    """A line for each label: which faults took place there and how often, and which never did."""
    if not coverage:
        return
    labels = sorted({label for label, _ in coverage})
    never = sum(1 for count in coverage.values() if not count)
    yield ()
    yield (
        Span("Faults by operation", Style.HEADING),
        Span(f" ({len(coverage) - never} of {len(coverage)} took place)", Style.FAINT),
    )
    column = min(_LABEL_WIDTH_MAX, max(cells(clean(label)) for label in labels)) + 4
    if width - column < _FAULTS_WIDTH_MIN:
        # Below the label rather than beside it.
        column = 6
    for label in labels:
        reached = [(fault, coverage.get((label, fault))) for fault in Fault]
        took = ", ".join(f"{fault.value} {count:,}" for fault, count in reached if count)
        missing = ", ".join(fault.value for fault, count in reached if count == 0)
        begin = f"  {clean(label)}"
        begin += " " * max(2, column - cells(begin))
        yield from _beside(begin, took, Style.PLAIN, column, width)
        yield from _beside(
            " " * column if took else begin, f"never: {missing}" if missing else "", Style.NOTE, column, width
        )


def _beside(begin: str, text: str, style: Style, column: int, width: int) -> Iterator[Line]:
    """``text`` in a column of its own beside ``begin``, which may be too long for its column."""
    if not text:
        return
    if cells(begin) > column:
        yield line(begin)
        begin = " " * column
    for part in wrap(text, width - column, ""):
        yield (Span(begin), Span(part, style))
        begin = " " * column


def _named(title: str, counts: Mapping[str, int], vacuous: set[str], width: int) -> Iterator[Line]:
    if not counts:
        return
    yield ()
    yield line(title, Style.HEADING)
    for name, count in counts.items():
        style, words = Style.PLAIN, clean(name)
        if name in vacuous:
            style, words = Style.BAD, f"{words}: VACUOUS, it never occurred"
        elif not count:
            style, words = Style.NOTE, f"{words}: never in these runs"
        first, *rest = wrap(words, width - 12, "")
        yield (Span(f"{count:>9,}  ", style), Span(first, style))
        yield from (line(f"{'':11}{text}", style) for text in rest)
