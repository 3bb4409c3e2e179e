"""Reads a CSV file of orders; what is wrong with it is said by line number."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path

from txbus.errors import ConfigurationError

__all__ = ["COLUMNS", "BadRow", "OrderFile", "OrderRow", "read_orders", "sample_path"]

COLUMNS = ("order_id", "customer", "sku", "quantity", "unit_price", "currency", "region", "placed_at")
_TEXT_CHARS_MAX = 60
_QUANTITY_MAX = 100_000
_CENTS_MAX = 100_000_000_00


@dataclass(frozen=True, slots=True)
class OrderRow:
    """One usable row. ``line`` counts from 1, the header being line 1; money in hundredths."""

    line: int
    order_id: str
    customer: str
    sku: str
    quantity: int
    unit_cents: int
    currency: str
    region: str
    placed_at: datetime

    @property
    def total_cents(self) -> int:
        return self.quantity * self.unit_cents


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is skipped, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class OrderFile:
    """A file's usable rows in their order, and the rows that are skipped."""

    path: Path
    rows: tuple[OrderRow, ...]
    bad: tuple[BadRow, ...]


def sample_path() -> Path:
    """The orders that are shipped with txbus; `generate` made them."""
    return Path(str(resources.files("txbus.examples.shop") / "orders.csv"))


def read_orders(path: Path) -> OrderFile:
    """Read a file of orders: CSV with a header, in UTF-8.

    Raises ConfigurationError for a file that cannot be used at all: unreadable, empty, not CSV, a
    missing column, or without a single usable row. A row that is wrong becomes a `BadRow`.
    """
    text = _text_of(path)
    if not text.strip():
        raise ConfigurationError(f"orders file {path} is empty: its first line must be {','.join(COLUMNS)}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[OrderRow] = []
    bad: list[BadRow] = []
    try:
        places = _columns(path, next(reader))
        seen: dict[str, int] = {}
        for cells in reader:
            if not cells:
                continue
            try:
                row = _row(reader.line_num, cells, places)
                if row.order_id in seen:
                    raise ValueError(f"order_id {row.order_id!r} was in line {seen[row.order_id]} already")
            except ValueError as exc:
                bad.append(BadRow(reader.line_num, str(exc)))
                continue
            seen[row.order_id] = row.line
            rows.append(row)
    except csv.Error as exc:
        raise ConfigurationError(f"orders file {path} is not CSV: line {reader.line_num}: {exc}") from exc
    if not rows:
        why = f"; the first wrong one is line {bad[0].line}: {bad[0].reason}" if bad else ""
        raise ConfigurationError(f"orders file {path} has no usable row{why}")
    return OrderFile(path, tuple(rows), tuple(bad))


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigurationError(f"orders file {path} does not exist") from exc
    except IsADirectoryError as exc:
        raise ConfigurationError(f"orders file {path} is a folder: name a CSV file") from exc
    except OSError as exc:
        raise ConfigurationError(f"orders file {path} cannot be read: {exc.strerror or exc}") from exc
    if b"\0" in data:
        raise ConfigurationError(f"orders file {path} is not CSV: it has zero bytes; is it UTF-16 or a spreadsheet?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data[: exc.start].count(b"\n") + 1
        raise ConfigurationError(
            f"orders file {path} is not UTF-8: line {line} has the byte 0x{data[exc.start]:02x}; save it as UTF-8"
        ) from exc


def _columns(path: Path, header: list[str]) -> Mapping[str, int]:
    names = [name.strip().lower() for name in header]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        hint = ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            hint = "; separate the columns by commas"
        raise ConfigurationError(
            f"orders file {path} has no column {', '.join(missing)} (it has: {', '.join(names)[:200]}){hint}; "
            f"its first line must name {','.join(COLUMNS)}"
        )
    return {name: names.index(name) for name in COLUMNS}


def _row(line: int, cells: list[str], places: Mapping[str, int]) -> OrderRow:
    """A row, or ValueError with the reason."""
    if len(cells) <= max(places.values()):
        raise ValueError(f"{len(cells)} columns, {max(places.values()) + 1} are needed")
    value = {name: cells[place].strip() for name, place in places.items()}
    _check_texts(value, ("order_id", "customer", "sku", "region"))
    currency = value["currency"]
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
        raise ValueError(f"currency {currency!r} is not three capital letters")
    return OrderRow(
        line=line,
        order_id=value["order_id"],
        customer=value["customer"],
        sku=value["sku"],
        quantity=_quantity(value["quantity"]),
        unit_cents=_cents(value["unit_price"]),
        currency=currency,
        region=value["region"],
        placed_at=_time(value["placed_at"]),
    )


def _check_texts(value: Mapping[str, str], names: Iterable[str]) -> None:
    for name in names:
        text = value[name]
        if not text:
            raise ValueError(f"{name} is empty")
        if len(text) > _TEXT_CHARS_MAX or not text.isprintable():
            raise ValueError(f"{name} {text[:80]!r} is not 1 to {_TEXT_CHARS_MAX} printable characters")


def _quantity(text: str) -> int:
    try:
        quantity = int(text)
    except ValueError:
        raise ValueError(f"quantity {text[:80]!r} is not a whole number") from None
    if not 1 <= quantity <= _QUANTITY_MAX:
        raise ValueError(f"quantity {quantity} is not 1 to {_QUANTITY_MAX:,}")
    return quantity


def _cents(text: str) -> int:
    try:
        cents = Decimal(text) * 100
        whole = int(cents)
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f"unit_price {text[:80]!r} is not a number") from None
    if cents != whole or not 0 < whole <= _CENTS_MAX:
        raise ValueError(f"unit_price {text!r} is not more than 0 with at most two decimals")
    return whole


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"placed_at {text[:80]!r} is not a time as in 2025-03-01T09:30:00Z") from None
