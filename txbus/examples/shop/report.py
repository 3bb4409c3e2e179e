"""What the demo shows: a bar while it runs, a table of both shops at the end."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from txbus.examples.shop.books import Books, Finding
from txbus.examples.shop.run import Progress, RunResult, ShowProgress
from txbus.examples.shop.windows import Window

__all__ = ["Verdict", "as_json", "judge", "progress", "show_result"]

_LINE_EVERY_S = 5.0
_FINDINGS_SHOWN = 10
_TEXT_COLUMNS = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the demo failed, a sentence each; empty if it did not."""

    reasons: tuple[str, ...]

    @property
    def good(self) -> bool:
        return not self.reasons


def judge(result: RunResult, hits_min: int, kills_min: int = 0) -> Verdict:
    """The shop with txbus: books in order, every window hit, and each mechanism seen at work."""
    books, reasons = result.books, []
    for name in ("lost", "phantom", "doubled", "wrong"):
        findings: tuple[Finding, ...] = getattr(books, name)
        if findings:
            first = findings[0]
            reasons.append(f"{name}: {len(findings)}, first {first.about}, {first.where}: {first.detail}")
    if not books.balanced:
        reasons.append("the sum of balances changed")
    if books.messages_of_refused:
        reasons.append(f"{books.messages_of_refused} messages of refused orders are visible")
    for window in Window:
        hits = result.tally.windows[window]
        if window in result.windows and hits < hits_min:
            reasons.append(
                f"window {window.value!r} was hit {hits} times, not {hits_min}; "
                "more orders or fewer kills leave room for all"
            )
    if result.tally.kills < kills_min:
        reasons.append(f"{result.tally.kills} processes were killed, not {kills_min}; more orders leave room for all")
    if not result.check_backs:
        reasons.append("no check-back was asked, so none was shown to work")
    if not result.suppressed:
        reasons.append("no duplicate was suppressed, so nothing shows that they would be")
    if result.tally.failures:
        reasons.append(f"{result.tally.failures} times a service ended without being killed")
    return Verdict(tuple(reasons))


@contextmanager
def progress(title: str, out: TextIO) -> Iterator[ShowProgress]:
    """A bar with rate and time left on a terminal, a line now and then elsewhere."""
    if not _is_terminal(out):
        yield _Lines(title, out).show
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    # All of it fits into 80 columns, so that nothing is cut off.
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=18),
        TextColumn("{task.completed:,.0f}/{task.fields[all]} {task.fields[rate]} kills {task.fields[kills]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    began_s = time.monotonic()
    with Bar(*columns, console=Console(file=out), refresh_per_second=5) as bar:
        task = bar.add_task(title, total=None, all="", rate="", kills=0)

        def show(now: Progress) -> None:
            rate = f"{now.done / max(0.1, time.monotonic() - began_s):,.0f}/s"
            bar.update(task, completed=now.done, total=now.total, all=f"{now.total:,}", rate=rate, kills=now.kills)

        yield show


def _is_terminal(out: TextIO) -> bool:
    """A terminal, and rich to draw on it."""
    return out.isatty() and importlib.util.find_spec("rich") is not None


class _Lines:
    """Progress for what is no terminal."""

    def __init__(self, title: str, out: TextIO) -> None:
        self._title = title
        self._out = out
        self._began_s = time.monotonic()
        self._next_s = self._began_s
        self._stage = ""

    def show(self, now: Progress) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s and now.stage == self._stage:
            return
        self._next_s, self._stage = now_s + _LINE_EVERY_S, now.stage
        took_s = now_s - self._began_s
        rate = now.done / took_s if took_s > 0.5 else 0.0
        left = f", about {(now.total - now.done) / rate:,.0f} s left" if rate and now.done < now.total else ""
        print(
            f"{self._title}: {now.done:,} of {now.total:,} ({now.done / now.total:.0%}), {rate:,.0f}/s, "
            f"{took_s:,.0f} s{left}, {now.kills} kills; {now.stage}",
            file=self._out,
            flush=True,
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """``heading`` begins a group. ``bad``: which of the two columns to show in red."""

    label: str
    shop: str = ""
    naive: str = ""
    heading: bool = False
    shop_bad: bool = False
    naive_bad: bool = False


def _table(result: RunResult, naive: RunResult | None, bad_rows: int) -> list[_Row]:
    def row(label: str, of: Any, bad: Any = None) -> _Row:
        return _Row(
            label,
            of(result),
            of(naive) if naive is not None else "",
            shop_bad=bool(bad and bad(result)),
            naive_bad=bool(bad and naive is not None and bad(naive)),
        )

    def count(label: str, of: Any, bad: bool = False) -> _Row:
        return row(label, lambda r: f"{of(r):,}", of if bad else None)

    def found(name: str) -> Any:
        return lambda r: Books.about(getattr(r.books, name))

    rows = [
        count("orders committed", lambda r: r.books.committed),
        count("orders refused, rolled back", lambda r: r.books.refused),
        count("   messages of refused orders", lambda r: r.books.messages_of_refused, bad=True),
        _Row("bad rows of the file skipped", f"{bad_rows:,}", f"{bad_rows:,}" if naive is not None else ""),
    ]
    rows += [
        count(f"messages published to {topic!r}", lambda r, t=topic: r.books.published[t])
        for topic in result.books.published
    ]
    rows += [
        count("effects in stock", lambda r: r.books.stock_effects),
        count("effects in payment", lambda r: r.books.payment_effects),
        row(
            "sum of balances", lambda r: "unchanged" if r.books.balanced else "CHANGED", lambda r: not r.books.balanced
        ),
        count("orders with something LOST", found("lost"), bad=True),
        count("orders with something PHANTOM", found("phantom"), bad=True),
        count("orders with something DOUBLED", found("doubled"), bad=True),
        count("   customers charged again for one order", _charged_again, bad=True),
        count("contradictions to the file or one another", lambda r: len(r.books.wrong), bad=True),
        _Row("how it came about", heading=True),
        row("check-backs answered", lambda r: f"{r.check_backs:,}" if r.check_backs else "–"),
        row("duplicates suppressed", lambda r: f"{r.suppressed:,}" if r.suppressed else "–"),
    ]
    for window in Window:
        if window in result.windows:
            rows.append(count(f"kill -9: {window.value}", lambda r, w=window: r.tally.windows[w]))
    rows.append(count("kill -9 at random moments", lambda r: r.tally.random))
    if result.tally.pauses:
        rows.append(count("SIGSTOP until the lease is over, SIGCONT", lambda r: r.tally.pauses))
    rows += [
        count("processes started", lambda r: r.tally.starts),
        row("seconds", lambda r: f"{r.seconds:,.1f}"),
    ]
    return rows


def _balance(result: RunResult) -> str:
    return "unchanged" if result.books.balanced else "CHANGED"


def _charged_again(result: RunResult) -> int:
    return sum(finding.where == "effect in payment" for finding in result.books.doubled)


_EXPLANATIONS = (
    "LOST, naively: killed after COMMIT and before the publish. The order stands, and nobody knows that a "
    "message was due. With txbus the half message was there before COMMIT; check-back found the row.",
    "DOUBLED, naively: killed after the effect and before the ack. The broker delivers again, and the handler "
    "does it again. With txbus the message's id was written in the same local transaction.",
    "PHANTOM: an effect or message of no order. Those of refused orders would be that: they were handed to "
    "tx.send before the refusal, and the rollback takes them along. (The naive shop refuses before it sends.)",
    "The naive shop has no half message and no relay; it is killed at the moments that correspond: "
    + "; ".join(f"{window.value} → {window.naively}" for window in Window)
    + ".",
)


def show_result(
    result: RunResult, naive: RunResult | None, bad_rows: int, verdict: Verdict, out: TextIO = sys.stdout
) -> None:
    """Print the table, the explanations and the verdict."""
    rows = _table(result, naive, bad_rows)
    if _is_terminal(out):
        _rich_table(rows, naive is not None, out)
    else:
        _plain_table(rows, naive is not None, out)
    for text in _EXPLANATIONS if naive is not None else ():
        print(textwrap.fill(text, _TEXT_COLUMNS, initial_indent="* ", subsequent_indent="  "), file=out)
    for name in ("lost", "phantom", "doubled", "wrong"):
        _show_findings(name, getattr(result.books, name), out)
    if verdict.good:
        print("\nThe books balance: lost 0, phantom 0, doubled 0.", file=out)
    else:
        print("\nFAILED:", file=out)
        for reason in verdict.reasons:
            print(f"  {reason}", file=out)


def _show_findings(name: str, findings: Sequence[Finding], out: TextIO) -> None:
    for finding in findings[:_FINDINGS_SHOWN]:
        print(f"  {name}: {finding.about}: {finding.where}: {finding.detail}", file=out)
    if len(findings) > _FINDINGS_SHOWN:
        print(f"  {name}: and {len(findings) - _FINDINGS_SHOWN} more", file=out)


def _rich_table(rows: Sequence[_Row], two: bool, out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="The books")
    table.add_column("")
    table.add_column("with txbus", justify="right")
    if two:
        table.add_column("naive", justify="right")
    for row in rows:
        if row.heading:
            table.add_section()
            table.add_row(Text(row.label, style="bold"))
            continue
        cells = [Text(row.label), Text(row.shop, style="bold red" if row.shop_bad else "")]
        table.add_row(*cells, *([Text(row.naive, style="bold red" if row.naive_bad else "")] if two else []))
    Console(file=out).print(table)


def _plain_table(rows: Sequence[_Row], two: bool, out: TextIO) -> None:
    width = max(len(row.label) for row in rows) + 2
    print(f"\n{'':{width}}{'with txbus':>12}" + (f"{'naive':>12}" if two else ""), file=out)
    for row in rows:
        if row.heading:
            print(f"\n{row.label}", file=out)
        else:
            print(f"{row.label:{width}}{row.shop:>12}" + (f"{row.naive:>12}" if two else ""), file=out)
    print(file=out)


def as_json(result: RunResult, naive: RunResult | None, bad_rows: int, verdict: Verdict) -> dict[str, Any]:
    """The same as one object of plain values."""
    return {
        "good": verdict.good,
        "reasons": list(verdict.reasons),
        "bad_rows": bad_rows,
        "txbus": _run_json(result),
        "naive": _run_json(naive) if naive is not None else None,
    }


def _run_json(result: RunResult) -> dict[str, Any]:
    books = asdict(result.books)
    for name in ("lost", "phantom", "doubled"):
        books[f"orders_{name}"] = Books.about(getattr(result.books, name))
    return {
        "books": books,
        "events": dict(result.events),
        "kills": {window.name.lower(): result.tally.windows[window] for window in Window}
        | {"random": result.tally.random},
        "pauses": result.tally.pauses,
        "starts": result.tally.starts,
        "failures": result.tally.failures,
        "seconds": round(result.seconds, 1),
    }
