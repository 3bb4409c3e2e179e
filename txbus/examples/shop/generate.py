"""Makes the sample of orders: ``python -m txbus.examples.shop.generate > orders.csv``.

A week of a web shop: few customers buy often, few products sell well, mornings and evenings are
busy, and a handful of rows are as wrong as exports are. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random

from txbus.examples.shop.orderfile import COLUMNS

__all__ = ["SAMPLE_ROWS", "SAMPLE_SEED", "main", "sample"]

SAMPLE_ROWS = 5_000
SAMPLE_SEED = 20_250_303
_CUSTOMERS_PER_ORDER = 1 / 6
_BEGIN = datetime(2025, 3, 3, tzinfo=UTC)
_REGIONS = (
    ("DE", "EUR", 34),
    ("FR", "EUR", 18),
    ("PL", "PLN", 14),
    ("GB", "GBP", 14),
    ("SE", "SEK", 11),
    ("IT", "EUR", 9),
)
_PER_EUR = {"EUR": 1.0, "PLN": 4.3, "GBP": 0.85, "SEK": 11.4}
_HOURS = (2, 1, 1, 1, 1, 2, 4, 7, 9, 9, 8, 8, 9, 8, 7, 7, 7, 8, 10, 12, 13, 12, 8, 4)
_KINDS = (
    ("MUG", 9.5, ("WHITE", "BLUE", "GREEN", "COPPER")),
    ("TEA", 6.9, ("ASSAM", "SENCHA", "OOLONG", "ROOIBOS", "MINT")),
    ("COFFEE", 12.4, ("HOUSE", "DARK", "DECAF", "KENYA")),
    ("KETTLE", 59.0, ("STEEL", "BLACK")),
    ("GRINDER", 84.0, ("HAND", "BURR")),
    ("FILTER", 4.2, ("S", "M", "L")),
    ("TOWEL", 11.0, ("STRIPE", "PLAIN", "GRID")),
    ("SPOON", 3.6, ("OAK", "STEEL", "HORN")),
    ("BOARD", 32.0, ("OAK", "WALNUT")),
    ("KNIFE", 78.0, ("PARING", "CHEF", "BREAD")),
    ("JAR", 7.8, ("05L", "10L", "15L")),
    ("APRON", 24.0, ("LINEN", "DENIM")),
)
_QUANTITIES, _QUANTITY_WEIGHTS = (1, 2, 3, 4, 6, 12), (62, 19, 8, 5, 4, 2)


def sample(rows: int = SAMPLE_ROWS, seed: int = SAMPLE_SEED) -> str:
    """A file's text with ``rows`` good rows, and about one bad row in 800 between them."""
    chance = Random(seed)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    bad = iter(_BAD)
    bad_after = {chance.randrange(rows) for _ in range(min(len(_BAD), -(-rows // 800)))} if rows > 20 else set()
    for number, row in enumerate(_good_rows(rows, chance)):
        writer.writerow(row)
        if number in bad_after:
            writer.writerow(next(bad)(row))
    return out.getvalue()


def _good_rows(rows: int, chance: Random) -> Iterator[list[str]]:
    homes = _customers(max(3, round(rows * _CUSTOMERS_PER_ORDER)), chance)
    customer_weights = _skewed(len(homes), 0.85)
    products = _products(chance)
    product_weights = _skewed(len(products), 0.7)
    for number, placed_at in enumerate(_times(rows, chance)):
        (customer, region, currency) = chance.choices(homes, customer_weights)[0]
        sku, eur = chance.choices(products, product_weights)[0]
        quantity = chance.choices(_QUANTITIES, _QUANTITY_WEIGHTS)[0]
        price = round(eur * _PER_EUR[currency], 1) - 0.01
        yield [
            f"SO-{100_001 + number}",
            customer,
            sku,
            str(quantity),
            f"{price:.2f}",
            currency,
            region,
            placed_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        ]


def _customers(count: int, chance: Random) -> list[tuple[str, str, str]]:
    """Customer, region and currency; one customer lives in one region."""
    found = []
    for number in chance.sample(range(10_000, 100_000), count):
        region, currency, _ = chance.choices(_REGIONS, [weight for _, _, weight in _REGIONS])[0]
        found.append((f"C-{number}", region, currency))
    return found


def _products(chance: Random) -> list[tuple[str, float]]:
    """SKU and price in EUR, best sellers first."""
    found = [
        (f"{kind}-{variant}", eur * chance.uniform(0.85, 1.2)) for kind, eur, variants in _KINDS for variant in variants
    ]
    chance.shuffle(found)
    return found


def _skewed(count: int, steepness: float) -> list[float]:
    return [1 / (rank + 2) ** steepness for rank in range(count)]


def _times(rows: int, chance: Random) -> list[datetime]:
    hours = [(day, hour) for day in range(7) for hour in range(24)]
    weights = [_HOURS[hour] * (1.25 if day >= 5 else 1.0) for day, hour in hours]
    return sorted(
        _BEGIN + timedelta(days=day, hours=hour, seconds=chance.randrange(3_600))
        for day, hour in chance.choices(hours, weights, k=rows)
    )


def _with(row: Sequence[str], column: str, value: str) -> list[str]:
    changed = list(row)
    changed[COLUMNS.index(column)] = value
    if column != "order_id":
        changed[0] += "-X"
    return changed


_BAD = (
    lambda row: _with(row, "quantity", ""),
    lambda row: _with(row, "quantity", "0"),
    lambda row: list(row),  # exported twice: the same order_id again
    lambda row: _with(row, "unit_price", "12,50"),
    lambda row: _with(row, "placed_at", "03/05/2025 9:12 AM"),
    lambda row: [f"{row[0]}-X", *row[1:4]],
    lambda row: _with(row, "currency", "€"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=SAMPLE_ROWS, help="good rows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SAMPLE_SEED, help="the same seed gives the same file")
    chosen = parser.parse_args(arguments)
    if chosen.rows < 1:
        parser.error(f"--rows {chosen.rows} must be 1 or more")
    sys.stdout.buffer.write(sample(chosen.rows, chosen.seed).encode("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
