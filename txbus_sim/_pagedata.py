"""The timelines of a page as one JSON text that is safe inside of an HTML document."""

from __future__ import annotations

import json
from typing import Any

from txbus_sim._lanes import left_out
from txbus_sim._lines import clean
from txbus_sim._timeline import Kind, Timeline, focus, timeline
from txbus_sim._words import about, in_short
from txbus_sim.result import RunResult
from txbus_sim.schedule import Schedule

__all__ = ["PageData", "schedule_name"]

_ROWS_OF_A_TRY_MAX = 150
_ROWS_OF_THE_RUN_MAX = 3_000
_KINDS = tuple(Kind)


def schedule_name(schedule: Schedule) -> str:
    """The deviations on one line, the last first: it is the one that the run was made for."""
    return ", after ".join(map(str, reversed(schedule.deviations)))


class PageData:
    """Collects runs; of each only what is drawn is kept. Texts are kept once."""

    def __init__(self, result: RunResult) -> None:
        self._strings: dict[str, int] = {}
        self._tries: list[dict[str, Any]] = []
        self._run = self._drawn(result, "", _ROWS_OF_THE_RUN_MAX)

    def tried(self, result: RunResult) -> int:
        """Take a run of the crash matrix; its number, which is its address in the page."""
        self._tries.append(self._drawn(result, schedule_name(result.schedule), _ROWS_OF_A_TRY_MAX))
        return len(self._tries) - 1

    def json(self) -> str:
        """The data; no character in it can end the element that it stands in."""
        whole = {
            "kinds": [kind.value for kind in _KINDS],
            "run": self._run,
            "tries": self._tries,
            "strings": list(self._strings),
        }
        text = json.dumps(whole, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

    def _drawn(self, result: RunResult, name: str, rows_max: int) -> dict[str, Any]:
        verdict = result.verdict
        names = about(verdict, result.history) if verdict is not None else ()
        shown = focus(timeline(result.history), names, rows_max)
        return {
            "name": self._string(name),
            "about": self._string(in_short(verdict)),
            "failed": verdict is not None,
            "columns": [self._string(column) for column in shown.columns],
            "rows": self._rows(shown),
        }

    def _rows(self, shown: Timeline) -> list[list[int]]:
        places = {column: number for number, column in enumerate(shown.columns)}
        rows: list[list[int]] = []
        for row in shown.rows:
            if not row.tells:
                continue
            if row.cell is None:
                rows.append([row.at_ns, -1, self._string(left_out(row))])
                continue
            up = sum(1 << number for number, alive in enumerate(row.up) if alive)
            kind = _KINDS.index(row.cell.kind)
            rows.append([row.at_ns, places[row.cell.column], kind, self._string(row.cell.text), up])
        return rows

    def _string(self, text: str) -> int:
        return self._strings.setdefault(clean(text), len(self._strings))
