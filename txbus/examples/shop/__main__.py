"""``python -m txbus.examples.shop``: the demo without the command line's extra."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from txbus.errors import ConfigurationError, TxbusError
from txbus.examples.shop.demo import KILLS_PER_WINDOW, RANDOM_KILLS, run_demo

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m txbus.examples.shop", description="The shop under kill -9.")
    parser.add_argument("--orders", type=Path, help="a CSV file of orders (default: the shipped sample)")
    parser.add_argument("--broker", help="a bus URL (default: an embedded bus)")
    parser.add_argument("--seed", type=int, default=1, help="places the kills (default: %(default)s)")
    parser.add_argument("--kills-per-window", type=int, help=f"default: {KILLS_PER_WINDOW}, quick: fewer")
    parser.add_argument("--random-kills", type=int, help=f"default: {RANDOM_KILLS}, quick: fewer")
    parser.add_argument("--workdir", type=Path, help="a new folder, kept at the end")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    parser.add_argument("--quick", action="store_true", help="a tenth of the orders, fewer kills")
    parser.add_argument("--no-naive", dest="naive", action="store_false", help="leave the naive shop out")
    parser.add_argument("--json", dest="as_json", action="store_true", help="the result as JSON")
    try:
        return run_demo(**vars(parser.parse_args(arguments)))
    except TxbusError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 2 if isinstance(exc, ConfigurationError) else 1


if __name__ == "__main__":
    sys.exit(main())
