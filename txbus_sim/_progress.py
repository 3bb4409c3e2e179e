"""How far an exploration is: a bar where there is a terminal and rich is installed, else lines."""

from __future__ import annotations

import importlib.util
import time
from typing import Any, Protocol, TextIO

__all__ = ["Lines", "Progress", "Silent", "progress_on"]

_EVERY_S = 5.0
_REFRESH_S = 0.1


class Progress(Protocol):
    """Told of each run; shows what it likes. Never raises because of its stream."""

    def stage(self, name: str, total: int | None) -> None:
        """What is run next, and how many runs that is."""
        ...

    def ran(self, failed: bool) -> None: ...

    def close(self) -> None:
        """Leave the terminal as it was. Idempotent."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, total: int | None) -> None: ...

    def ran(self, failed: bool) -> None: ...

    def close(self) -> None: ...


class _Counting:
    """Counts runs, of the stage and in all, and knows the rate."""

    def __init__(self) -> None:
        self.name = ""
        self.total: int | None = None
        self.done = 0
        self.failed = 0
        self.runs = 0
        self._began_s = time.monotonic()
        self._stage_began_s = self._began_s

    def stage(self, name: str, total: int | None) -> None:
        self.name, self.total, self.done = name, total, 0
        self._stage_began_s = time.monotonic()

    def ran(self, failed: bool) -> None:
        self.done += 1
        self.runs += 1
        self.failed += failed

    def described(self) -> str:
        now_s = time.monotonic()
        rate = self.runs / max(now_s - self._began_s, 1e-9)
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{self.name}: {count}", f"{rate:,.0f} runs/s"]
        if self.total is not None and self.done:
            stage_rate = self.done / max(now_s - self._stage_began_s, 1e-9)
            parts.append(f"{_duration(max(0, self.total - self.done) / stage_rate)} left")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)


class Lines(_Counting):
    """A line every few seconds of real time."""

    def __init__(self, stream: TextIO, every_s: float = _EVERY_S) -> None:
        super().__init__()
        self._stream = stream
        self._every_s = every_s
        self._next_s = time.monotonic() + every_s

    def ran(self, failed: bool) -> None:
        super().ran(failed)
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            try:
                print(self.described(), file=self._stream, flush=True)
            except (OSError, ValueError):
                # The stream is gone; the exploration is not.
                self._next_s = float("inf")

    def close(self) -> None: ...


class _Bar(_Counting):
    """rich's bar, refreshed from here: a thread of its own would not survive a fork."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=Console(file=stream),
            auto_refresh=False,
            transient=True,
        )
        self._task: Any = self._bar.add_task("", total=None)
        self._next_s = 0.0
        self._bar.start()

    def stage(self, name: str, total: int | None) -> None:
        super().stage(name, total)
        self._show()

    def ran(self, failed: bool) -> None:
        super().ran(failed)
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _REFRESH_S
            self._show()

    def close(self) -> None:
        self._bar.stop()

    def _show(self) -> None:
        self._bar.update(self._task, description=self.described(), completed=self.done, total=self.total)
        self._bar.refresh()


def progress_on(stream: TextIO | None) -> Progress:
    """What suits the stream; None: nothing is shown."""
    if stream is None:
        return Silent()
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        return _Bar(stream)
    return Lines(stream)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02} min"
