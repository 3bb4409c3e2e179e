"""The shop under many kills: ``python -m txbus.examples.shop.soak --kills 200 --seed 1``.

More kills are planned than are asked for: with several replicas a process may have nothing left to do
when its turn to die has come. A run in which fewer than were asked for took place fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from txbus.errors import ConfigurationError, TxbusError
from txbus.examples.shop.demo import run_demo
from txbus.examples.shop.windows import Window

__all__ = ["main", "shares"]

_RANDOM_SHARE = 0.1
_PLANNED = 1.4
"""Kills planned for each that is asked for."""


def shares(kills: int) -> tuple[int, int]:
    """Kills in each window, and kills at random moments: about a tenth, and what the rest leaves over."""
    per_window = max(1, int(kills * (1 - _RANDOM_SHARE)) // len(Window))
    return per_window, max(0, kills - per_window * len(Window))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m txbus.examples.shop.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at least (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="places the kills (default: %(default)s)")
    parser.add_argument("--pauses", type=int, help="SIGSTOPs past the lease (default: a twentieth of the kills)")
    parser.add_argument("--replicas", type=int, default=2, help="of each process but orders (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="runs, each with the next seed (default: %(default)s)")
    parser.add_argument("--orders", type=Path, help="a CSV file of orders (default: the shipped sample)")
    parser.add_argument("--broker", help="a bus URL (default: an embedded bus)")
    chosen = parser.parse_args(arguments)
    per_window, at_random = shares(int(chosen.kills * _PLANNED))
    pauses = chosen.pauses if chosen.pauses is not None else chosen.kills // 20
    try:
        for seed in range(chosen.seed, chosen.seed + chosen.rounds):
            status = run_demo(
                chosen.orders,
                broker=chosen.broker,
                seed=seed,
                kills_per_window=per_window,
                random_kills=at_random,
                pauses=pauses,
                replicas=chosen.replicas,
                naive=False,
                kills_min=chosen.kills,
            )
            if status:
                return status
    except TxbusError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ConfigurationError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
