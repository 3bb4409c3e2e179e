"""The demo: the shop under kills, its books, and the same shop written naively."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO
from urllib.parse import quote

from txbus.errors import ConfigurationError, TxbusError
from txbus.examples.shop.broker import traits_of
from txbus.examples.shop.orderfile import BadRow, OrderRow, read_orders, sample_path
from txbus.examples.shop.place import PACE, Place
from txbus.examples.shop.plan import KillPlan, naive_plan, plan_kills
from txbus.examples.shop.report import as_json as result_json
from txbus.examples.shop.report import judge, progress, show_result
from txbus.examples.shop.run import RunResult, run_shop, totals_of
from txbus.examples.shop.windows import Role, Window
from txbus.settings import mask, parse_url

__all__ = ["run_demo"]

KILLS_PER_WINDOW = 6
RANDOM_KILLS = 4
HITS_MIN = 5
QUICK_ROWS, QUICK_KILLS, QUICK_RANDOM_KILLS = 500, 2, 1
_BAD_ROWS_SHOWN = 10
_INTERRUPTED = 130


def run_demo(
    orders: Path | None = None,
    *,
    broker: str | None = None,
    seed: int = 1,
    kills_per_window: int | None = None,
    random_kills: int | None = None,
    pauses: int | None = None,
    replicas: int | None = None,
    workdir: Path | None = None,
    keep: bool = False,
    quick: bool = False,
    naive: bool = True,
    as_json: bool = False,
    kills_min: int = 0,
) -> int:
    """Run the demo and print what came of it; returns the exit code.

    ``orders``: a CSV file, else the shipped sample. ``broker``: a bus URL, else an embedded bus in the
    folder. ``kills_per_window``: kill -9 in each window (default 6, quick 2), and ``random_kills`` from
    outside (default 4, quick 1). ``pauses``: SIGSTOP past the lease, then SIGCONT (default 0).
    ``replicas``: processes of each kind but the order service (default 1), the last of which is hit
    from outside. ``seed`` places all of it. ``workdir``: a new or empty folder that is kept; else a
    temporary one, removed at the end unless ``keep`` is set or something is wrong. ``quick``: the
    first 500 orders only. ``naive``: run the naive shop too, without pauses and replicas.
    ``as_json``: the result as JSON on stdout, the rest on stderr. ``kills_min``: fewer kills that took
    place, wherever they were placed, are a failure.

    0: the books balance, every window was hit, check-backs and suppressed duplicates were seen. 1: not
    so. 130: interrupted; no process is left, and the folder is named. Raises ConfigurationError for
    files and options that are wrong, and other TxbusErrors when the bus or a service cannot run.
    """
    kills = _chosen("kills_per_window", kills_per_window, QUICK_KILLS if quick else KILLS_PER_WINDOW, least=1)
    at_random = _chosen("random_kills", random_kills, QUICK_RANDOM_KILLS if quick else RANDOM_KILLS, least=0)
    several = _chosen("replicas", replicas, 1, least=1)
    if broker is not None and parse_url(broker)[0].scheme == "memory":
        raise ConfigurationError(f"broker {mask(broker)} lives in one process; the demo's services are several")
    file = read_orders(orders if orders is not None else sample_path())
    rows_max = QUICK_ROWS if quick else None
    rows = file.rows[:rows_max]
    out = sys.stderr if as_json else sys.stdout
    with _folder(workdir) as folder, _interruptible():
        stage = _Stage(folder, file.path.resolve(), rows_max, broker)
        native = traits_of(stage.place(naive=False)).half_messages_native
        totals = totals_of(rows, relay=not native)
        windows = [w for w in Window if not (native and w is Window.STEP_OPEN)]
        plan = plan_kills(seed, kills, at_random, totals, windows, _chosen("pauses", pauses, 0, least=0))
        print(_introduction(file.path, rows, file.bad, stage, plan, seed), file=out, flush=True)
        try:
            result = _run(stage.place(naive=False), rows, plan, naive=False, out=out, replicas=several)
            other = None
            if naive:
                plan = naive_plan(plan, totals)
                other = _run(stage.place(naive=True), rows, plan, naive=True, out=out, replicas=1)
        except KeyboardInterrupt:
            folder.keep()
            print(f"\ninterrupted: no process is left; databases, bus and logs are in {folder.path}", file=sys.stderr)
            return _INTERRUPTED
        except TxbusError:
            folder.keep()
            print(f"databases, bus and logs are in {folder.path}", file=sys.stderr)
            raise
        verdict = judge(result, min(kills, HITS_MIN), kills_min)
        if as_json:
            print(json.dumps(result_json(result, other, len(file.bad), verdict), indent=2, ensure_ascii=False))
        else:
            show_result(result, other, len(file.bad), verdict, out)
        if keep or not verdict.good:
            folder.keep()
        if folder.kept:
            print(f"Databases, bus and logs are in {folder.path}", file=out)
        return 0 if verdict.good else 1


def _chosen(name: str, value: int | None, default: int, *, least: int) -> int:
    if value is not None and not least <= value <= 10_000:
        raise ConfigurationError(f"{name}={value} must be {least} to 10,000")
    return default if value is None else value


def _run(
    place: Place, rows: tuple[OrderRow, ...], plan: KillPlan, *, naive: bool, out: TextIO, replicas: int
) -> RunResult:
    title = "the naive shop" if naive else "the shop with txbus"
    with progress(title, out) as show:
        return run_shop(place, rows, plan, naive=naive, show=show, replicas=replicas)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where both shops of a demo live."""

    folder: _Folder
    orders_file: Path
    rows_max: int | None
    broker: str | None

    def place(self, *, naive: bool) -> Place:
        name = "naive" if naive else "txbus"
        folder = self.folder.path / name
        if self.broker is None:
            # Kills of processes leave the operating system alone: `normal` keeps every commit.
            url = f"embedded://{quote(str(folder / 'bus.db'))}?sync=normal"
            return Place(folder, url, self.orders_file, "", self.rows_max)
        return Place(folder, self.broker, self.orders_file, f"{self.folder.run}-{name}-", self.rows_max)


class _Folder:
    """The demo's folder, and whether it stays."""

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        self.run = f"demo-{secrets.token_hex(3)}"
        self.kept = keep

    def keep(self) -> None:
        self.kept = True


@contextmanager
def _folder(wanted: Path | None) -> Iterator[_Folder]:
    try:
        if wanted is None:
            folder = _Folder(Path(tempfile.mkdtemp(prefix="txbus-demo-")), keep=False)
        else:
            wanted.mkdir(parents=True, exist_ok=True)
            folder = _Folder(wanted.resolve(), keep=True)
            if any(folder.path.iterdir()):
                raise ConfigurationError(f"workdir {wanted} is not empty: name a new folder")
    except OSError as exc:
        raise ConfigurationError(f"workdir {wanted or tempfile.gettempdir()} cannot be used: {exc}") from exc
    try:
        yield folder
    finally:
        if not folder.kept:
            shutil.rmtree(folder.path, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: its services must not outlive it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _introduction(
    path: Path, rows: tuple[OrderRow, ...], bad: tuple[BadRow, ...], stage: _Stage, plan: KillPlan, seed: int
) -> str:
    lines = [f"{len(rows):,} orders from {path}; {len(bad)} bad rows are skipped{':' if bad else ''}"]
    lines += [f"  line {row.line}: {row.reason}" for row in bad[:_BAD_ROWS_SHOWN]]
    if len(bad) > _BAD_ROWS_SHOWN:
        lines.append(f"  and {len(bad) - _BAD_ROWS_SHOWN} more")
    roles = ", ".join(role.value for role in Role if role in plan.orders)
    ordered = sum(len(orders) for orders in plan.orders.values())
    broker = mask(stage.broker) if stage.broker is not None else "embedded, sync=normal"
    lines += [
        f"processes: {roles}; a database of its own for each service (SQLite, WAL, synchronous=NORMAL); bus: {broker}",
        "  what survives the death of a process survives here; for power cuts both would be set to full",
        "pace of the protocol, shorter than its defaults: "
        + ", ".join(f"{name}={PACE[name]:g}" for name in ("lease_s", "check_after_s", "check_interval_s", "poll_s")),
        f"kills: {ordered} with kill -9 in {len(plan.windows)} windows and {len(plan.random)} at random moments, "
        f"seed {seed}",
        "",
    ]
    return "\n".join(lines)
