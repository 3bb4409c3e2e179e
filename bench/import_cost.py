"""Claim: ``import txbus`` costs at most 1.5 times ``import pydantic, pluggy``.

Each run is a fresh interpreter that times one import statement. The two sides take turns, so that
what else the machine does falls on both; the figure is the median of the ratios of neighbours.
Exits with 1 if the claim does not hold. ``--json`` prints one object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass

RATIO_MAX = 1.5
SCRIPT = "import time; a = time.perf_counter(); {statement}; print(time.perf_counter() - a)"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two statements, and the ratio that is claimed for them; None: shown without a claim."""

    ours: str
    theirs: str
    ratio_max: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """Medians over the runs; ``ratio`` is the median of the ratios of neighbouring runs."""

    ours: str
    theirs: str
    ours_ms: float
    theirs_ms: float
    ratio: float
    ratio_max: float | None

    @property
    def holds(self) -> bool:
        return self.ratio_max is None or self.ratio <= self.ratio_max


COMPARISONS = (
    Comparison("import txbus", "import pydantic, pluggy", RATIO_MAX),
    # pydantic loads most of itself on first use, and so does every application that declares a model.
    Comparison("from txbus import Bus, Topic", "from pydantic import BaseModel; import pluggy", None),
)


def seconds(statement: str) -> float:
    """How long a statement takes in a fresh interpreter, its start not counted."""
    command = [sys.executable, "-c", SCRIPT.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def measure(comparison: Comparison, runs: int) -> Result:
    """Compare two statements over that many pairs of fresh interpreters."""
    for statement in (comparison.ours, comparison.theirs):
        seconds(statement)  # writes bytecode that is missing
    pairs = []
    for number in range(runs):
        if number % 2:
            theirs = seconds(comparison.theirs)
            pairs.append((seconds(comparison.ours), theirs))
        else:
            ours = seconds(comparison.ours)
            pairs.append((ours, seconds(comparison.theirs)))
    return Result(
        comparison.ours,
        comparison.theirs,
        1_000 * statistics.median(ours for ours, _ in pairs),
        1_000 * statistics.median(theirs for _, theirs in pairs),
        statistics.median(ours / theirs for ours, theirs in pairs),
        comparison.ratio_max,
    )


def main() -> int:
    """Measure, print, and say by the exit code whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=41, help="pairs of fresh interpreters (default 41)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    results = [measure(comparison, arguments.runs) for comparison in COMPARISONS]
    if arguments.json:
        print(json.dumps({"runs": arguments.runs, "results": [asdict(result) for result in results]}))
    else:
        print(f"{'statement':<48}{'median':>10}{'ratio':>8}  claim")
        for result in results:
            claim = "" if result.ratio_max is None else f"at most {result.ratio_max}"
            print(f"{result.theirs:<48}{result.theirs_ms:>7.1f} ms{1:>8.2f}")
            print(f"{result.ours:<48}{result.ours_ms:>7.1f} ms{result.ratio:>8.2f}  {claim}")
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
