"""What an exploration came to, as text: counts, failures, what was put to the test and what never was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from txbus_sim._lines import Line, Span, Style, cells, clean, line, wrap
from txbus_sim._words import in_short
from txbus_sim.faults import Fault
from txbus_sim.result import Verdict

__all__ = ["Summary", "summary_lines"]

_LABEL_WIDTH_MAX = 48
_FAULTS_WIDTH_MIN = 40


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one exploration.

    ``coverage`` counts for each label and fault how often the fault took place there; 0 where the
    operation could have suffered it and never did. ``premises`` and ``sometimes`` count by name,
    zeros included. ``took_s`` is real time, None to leave it and the rate out. ``left``: schedules
    that were not run because somebody interrupted.
    """

    runs: int
    passed: int
    failures: Sequence[tuple[Verdict, int]] = ()
    enumerated: int | None = None
    pruned: int = 0
    left: int = 0
    took_s: float | None = None
    coverage: Mapping[tuple[str, Fault], int] = field(default_factory=dict)
    premises: Mapping[str, int] = field(default_factory=dict)
    sometimes: Mapping[str, int] = field(default_factory=dict)


def summary_lines(summary: Summary, width: int) -> Iterator[Line]:
    """Lines of at most ``width`` columns; equal figures give equal lines."""
    for text in wrap(_counts(summary), width):
        yield line(text, Style.HEADING)
    yield (Span(f"{summary.passed:>9,}", Style.GOOD), Span(" passed"))
    for verdict, times in summary.failures:
        first, *rest = wrap(clean(in_short(verdict)), width - 10, "")
        yield (Span(f"{times:>9,}", Style.BAD), Span(f" {first}"))
        yield from (line(f"{'':10}{text}") for text in rest)
    yield from _coverage(summary.coverage, width)
    yield from _named("Properties, and how often each was put to the test", summary.premises, width)
    yield from _named("Sometimes, and how often it was so", summary.sometimes, width)


def _counts(summary: Summary) -> str:
    told = [f"{summary.runs:,} schedule{'' if summary.runs == 1 else 's'} run"]
    if summary.enumerated is not None:
        told.append(f"{summary.enumerated:,} enumerated, {summary.pruned:,} of them pruned as alike")
    if summary.took_s is not None:
        rate = f", {summary.runs / summary.took_s:,.0f} a second" if summary.took_s > 0 else ""
        told.append(f"in {summary.took_s:,.1f} s{rate}")
    if summary.left:
        told.append(f"INTERRUPTED with {summary.left:,} left")
    return "; ".join(told)


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


def _named(title: str, counts: Mapping[str, int], width: int) -> Iterator[Line]:
    if not counts:
        return
    yield ()
    yield line(title, Style.HEADING)
    for name, count in counts.items():
        style = Style.PLAIN if count else Style.BAD
        words = clean(name) if count else f"{clean(name)}: VACUOUS, its situation never occurred"
        first, *rest = wrap(words, width - 12, "")
        yield (Span(f"{count:>9,}  ", style), Span(first, style))
        yield from (line(f"{'':11}{text}", style) for text in rest)
