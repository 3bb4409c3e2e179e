"""Progress: what is shown where, and that an exploration does not depend on its stream."""

from __future__ import annotations

import io

import pytest

from tests.unit.sim.explore_toys import RIGHT, ToyRunner
from txbus_sim._progress import Lines, Silent, progress_on
from txbus_sim.exploration import crash_everywhere


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_lines_tell_the_stage_the_rate_the_time_left_and_failures() -> None:
    """A line for each run here, because the interval is nothing."""
    stream = io.StringIO()
    lines = Lines(stream, every_s=0.0)
    lines.stage("crashes", 3)
    for failed in (False, True, False):
        lines.ran(failed)
    first, second, third = stream.getvalue().splitlines()
    assert first.startswith("crashes: 1/3, ") and first.endswith(" left")
    assert "runs/s" in first
    assert second.endswith(", 1 failed") and third.startswith("crashes: 3/3, ")


def test_a_stage_of_unknown_length_has_no_time_left() -> None:
    """Shrinking ends when it ends."""
    stream = io.StringIO()
    lines = Lines(stream, every_s=0.0)
    lines.stage("shrinking", None)
    lines.ran(False)
    assert stream.getvalue().startswith("shrinking: 1, ") and "left" not in stream.getvalue()


def test_a_terminal_gets_a_bar_that_is_gone_in_the_end() -> None:
    """Of rich, which CI has; it is redrawn in place and erased."""
    pytest.importorskip("rich")
    stream = Terminal()
    result = crash_everywhere(ToyRunner(RIGHT), progress=stream, jobs=2)
    shown = stream.getvalue()
    assert "crashes: " in shown and "runs/s" in shown and "\x1b[" in shown
    assert result == crash_everywhere(ToyRunner(RIGHT))
    assert shown.rstrip("\r\n").endswith("\x1b[2K") or "\x1b[?25h" in shown


def test_a_stream_that_is_gone_ends_no_exploration() -> None:
    """The result is what counts."""
    lines = Lines(Gone(), every_s=0.0)
    lines.stage("crashes", 2)
    lines.ran(False)
    lines.ran(False)
    assert lines.runs == 2


def test_without_a_stream_nothing_is_shown() -> None:
    """That is the default."""
    assert isinstance(progress_on(None), Silent)
    assert isinstance(progress_on(io.StringIO()), Lines)
