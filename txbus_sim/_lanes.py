"""A timeline as text: a lane for each column, drawn while it is alive."""

from __future__ import annotations

from collections.abc import Iterator

from txbus_sim._lines import Line, Span, Style, cells, clean, cut, wrap
from txbus_sim._timeline import Cell, Kind, Row, Timeline, seconds

__all__ = ["lanes", "left_out"]

_TIME_WIDTH = 12
_BEGIN = _TIME_WIDTH + 2
_LAST_WIDTH = 44
"""What the last column has at least; a text in another may run over the lanes to its right."""
_STEP_MIN, _STEP_MAX = 9, 30
_LANE = "│"
_STYLES = {
    Kind.STEP: Style.PLAIN,
    Kind.DURABLE: Style.GOOD,
    Kind.SEEN: Style.SEEN,
    Kind.FAULT: Style.BAD,
    Kind.LOST: Style.LOST,
    Kind.LIFE: Style.HEADING,
}


def lanes(shown: Timeline, width: int) -> Iterator[Line]:
    """Lines of at most ``width`` columns; nothing is cut but the names of columns."""
    step = _step(len(shown.columns), width)
    if step is None:
        yield from _listed(shown, width)
        return
    names = [cut(clean(name), step - 1) for name in shown.columns[:-1]]
    names += [cut(clean(name), width - _BEGIN - step * len(names)) for name in shown.columns[-1:]]
    yield (Span(" " * _BEGIN + "".join(_padded(name, step) for name in names), Style.HEADING),)
    for row in shown.rows:
        if row.cell is None:
            yield from _gap(row)
            continue
        yield from _drawn(row, row.cell, shown.columns, step, width)


def _gap(row: Row) -> Iterator[Line]:
    if row.tells:
        yield (Span(f"{'⋮':>{_TIME_WIDTH}}  {left_out(row)}", Style.FAINT),)


def left_out(row: Row) -> str:
    """What a row that shows nothing stands for."""
    told = []
    if row.operations:
        told.append(f"{row.operations} operation{'' if row.operations == 1 else 's'}")
    if row.others:
        told.append(f"{row.others} other record{'' if row.others == 1 else 's'}")
    return " and ".join(told)


def _step(columns: int, width: int) -> int | None:
    """How far the lanes stand apart; None where there is no room for lanes."""
    if columns < 2:
        return _STEP_MAX if width >= _BEGIN + _LAST_WIDTH else None
    step = (width - _BEGIN - _LAST_WIDTH) // (columns - 1)
    return min(step, _STEP_MAX) if step >= _STEP_MIN else None


def _drawn(row: Row, cell: Cell, columns: tuple[str, ...], step: int, width: int) -> Iterator[Line]:
    place = columns.index(cell.column)
    room = width - _BEGIN - place * step
    time = f"{seconds(row.at_ns):>{_TIME_WIDTH}}  "
    for text in wrap(clean(cell.text), room):
        left = "".join(_padded(_LANE if up else "", step) for up in row.up[:place])
        covered = -(-(cells(text) + 1) // step)
        right = [_padded(_LANE if up else "", step) for up in row.up[place + covered :]]
        gap = " " * (covered * step - cells(text)) if right else ""
        yield (
            Span(time, Style.FAINT),
            Span(left, Style.FAINT),
            Span(text, _STYLES[cell.kind]),
            Span(gap + "".join(right), Style.FAINT),
        )
        time = " " * _BEGIN


def _listed(shown: Timeline, width: int) -> Iterator[Line]:
    """Without lanes: each row names its column."""
    for row in shown.rows:
        if row.cell is None:
            yield from _gap(row)
            continue
        time = f"{seconds(row.at_ns):>{_TIME_WIDTH}}  "
        for number, text in enumerate(wrap(clean(f"{row.cell.column}: {row.cell.text}"), width - _BEGIN)):
            yield (Span(time if number == 0 else " " * _BEGIN, Style.FAINT), Span(text, _STYLES[row.cell.kind]))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))
