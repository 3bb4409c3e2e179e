"""The demo's orders: the sample, the generator that made it, and files of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txbus.errors import ConfigurationError
from txbus.examples.shop.generate import SAMPLE_ROWS, sample
from txbus.examples.shop.opening import decide, open_shop
from txbus.examples.shop.orderfile import COLUMNS, read_orders, sample_path

HEADER = ",".join(COLUMNS)
GOOD = "A-1,C-1,MUG,2,9.50,EUR,DE,2025-03-03T09:30:00Z"


def written(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "orders.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_the_generator_gives_the_same_bytes_for_the_same_seed_and_others_for_another() -> None:
    """Two interpreters with different hash seeds write the same file; another seed differs."""
    texts = [
        subprocess.run(
            [sys.executable, "-m", "txbus.examples.shop.generate", "--rows", "400", "--seed", seed],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed, hash_seed in (("3", "1"), ("3", "2"), ("4", "1"))
    ]
    assert texts[0] == texts[1] == sample(400, 3).encode()
    assert texts[0] != texts[2]


def test_the_shipped_sample_is_what_the_generator_makes() -> None:
    """The file in the package has 5,000 usable rows and is the generator's, byte for byte."""
    assert sample_path().read_bytes() == sample().encode()
    assert sample_path().stat().st_size < 600_000
    file = read_orders(sample_path())
    assert len(file.rows) == SAMPLE_ROWS == 5_000
    assert 3 <= len(file.bad) <= 10


def test_the_sample_is_skewed_as_real_orders_are() -> None:
    """A tenth of the customers place more than a third of the orders, and no SKU is everybody's."""
    rows = read_orders(sample_path()).rows
    customers = Counter(row.customer for row in rows)
    best = sum(count for _, count in customers.most_common(len(customers) // 10))
    assert best > len(rows) / 3
    assert 0.02 < Counter(row.sku for row in rows).most_common(1)[0][1] / len(rows) < 0.2
    assert [row.placed_at for row in rows] == sorted(row.placed_at for row in rows)


def test_about_one_order_in_twenty_is_refused_for_both_reasons() -> None:
    """The opening books refuse 3 to 7 % of the sample, for want of stock and of balance."""
    rows = read_orders(sample_path()).rows
    expected = decide(rows, open_shop(rows))
    assert len(expected.committed) + len(expected.refused) == len(rows)
    assert 0.03 < len(expected.refused) / len(rows) < 0.07
    assert set(expected.refused.values()) == {"stock", "balance"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("A-2,C-1,MUG,2,9.50,EUR,DE", "7 columns, 8 are needed"),
        (GOOD, "was in line 2 already"),
        ("A-2,C-1,MUG,two,9.50,EUR,DE,2025-03-03T09:30:00Z", "not a whole number"),
        ("A-2,C-1,MUG,0,9.50,EUR,DE,2025-03-03T09:30:00Z", "quantity 0 is not"),
        ("A-2,C-1,MUG,2,9.505,EUR,DE,2025-03-03T09:30:00Z", "at most two decimals"),
        ("A-2,C-1,MUG,2,-1,EUR,DE,2025-03-03T09:30:00Z", "more than 0"),
        ("A-2,C-1,MUG,2,NaN,EUR,DE,2025-03-03T09:30:00Z", "not a number"),
        ("A-2,C-1,MUG,2,Infinity,EUR,DE,2025-03-03T09:30:00Z", "not a number"),
        ("A-2,C-1,MUG,2,9.50,euro,DE,2025-03-03T09:30:00Z", "three capital letters"),
        ("A-2,,MUG,2,9.50,EUR,DE,2025-03-03T09:30:00Z", "customer is empty"),
        ("A-2,C-1,MUG,2,9.50,EUR,DE,yesterday", "not a time"),
        (f"A-2,{'C' * 61},MUG,2,9.50,EUR,DE,2025-03-03T09:30:00Z", "1 to 60"),
    ],
)
def test_a_bad_row_is_skipped_and_told_by_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    """The rows around it are used; line numbers count the header."""
    file = read_orders(written(tmp_path, HEADER, GOOD, line, GOOD.replace("A-1", "A-3")))
    assert [row.order_id for row in file.rows] == ["A-1", "A-3"]
    (bad,) = file.bad
    assert bad.line == 3
    assert reason in bad.reason


def test_columns_may_come_in_any_order_with_others_between_and_a_mark_before(tmp_path: Path) -> None:
    """A file from a spreadsheet, with a byte order mark, is read by its column names."""
    names = [*reversed(COLUMNS), "remark"]
    cells = [*reversed(GOOD.split(",")), '"two lines,\nquoted"']
    (row,) = read_orders(written(tmp_path, ",".join(names), ",".join(cells), encoding="utf-8-sig")).rows
    assert (row.order_id, row.quantity, row.unit_cents, row.total_cents) == ("A-1", 2, 950, 1_900)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"order_id,customer\nA-1,C-1\n", "no column sku, quantity"),
        (HEADER.replace(",", ";").encode() + b"\n", "separate the columns by commas"),
        (HEADER.encode() + b"\n", "no usable row"),
        (HEADER.encode() + b"\nA-1,C-1\n", "no usable row; the first wrong one is line 2"),
        (HEADER.encode() + b"\n" + GOOD.replace("MUG", "K\u00c4NN").encode("latin-1") + b"\n", "not UTF-8: line 2 "),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "zero bytes"),
        ((HEADER + "\n" + GOOD + "\n").encode("utf-16"), "zero bytes"),
        (HEADER.encode() + b'\n"A-1"x,C-1\n', "not CSV: line 2"),
    ],
)
def test_a_file_that_is_no_orders_file_is_refused_with_its_name_and_reason(
    tmp_path: Path, data: bytes, message: str
) -> None:
    """Empty, cut off, of another encoding or another kind: ConfigurationError, nothing half-read."""
    path = tmp_path / "given.csv"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match=message) as refused:
        read_orders(path)
    assert str(path) in str(refused.value)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a file without permission are told apart."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_orders(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="is a folder"):
        read_orders(tmp_path)
    locked = written(tmp_path, HEADER, GOOD)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read_orders(locked)


@given(data=st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever follows the header: rows, bad rows, or ConfigurationError."""
    path = tmp_path_factory.mktemp("any") / "orders.csv"
    path.write_bytes(HEADER.encode() + b"\n" + data)
    try:
        file = read_orders(path)
    except ConfigurationError:
        return
    assert file.rows
