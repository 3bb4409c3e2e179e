"""The tables of the three services, each in an SQLite file of its own.

Reservations and charges have no unique order: a database that refuses the second effect would hide
the very thing that the books look for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, insert

from txbus.examples.shop.opening import Opening
from txbus.examples.shop.orderfile import OrderRow

__all__ = [
    "ACCOUNTS",
    "CHARGES",
    "CREDITS",
    "ORDERS",
    "REFUSALS",
    "RESERVATIONS",
    "SHELVES",
    "SHELVES_SEEN",
    "SHOP_ACCOUNT",
    "Databases",
    "create_tables",
    "engine_for",
]

SHOP_ACCOUNT = "the shop"
_BUSY_S = 10.0

_ORDERS_DB = MetaData()
# ``seq`` counts the usable rows of the file from 1; the highest one is where a restart goes on.
ORDERS = Table(
    "orders",
    _ORDERS_DB,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("order_id", String(60), nullable=False, unique=True),
    Column("customer", String(60), nullable=False),
    Column("sku", String(60), nullable=False),
    Column("quantity", Integer, nullable=False),
    Column("cents", Integer, nullable=False),
    Column("currency", String(3), nullable=False),
)
REFUSALS = Table(
    "refusals",
    _ORDERS_DB,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("order_id", String(60), nullable=False),
    Column("reason", String(20), nullable=False),
)
# The order service's own view of what is left, by which it refuses.
SHELVES_SEEN = Table(
    "shelves_seen",
    _ORDERS_DB,
    Column("sku", String(60), primary_key=True),
    Column("available", Integer, nullable=False),
)
CREDITS = Table(
    "credits",
    _ORDERS_DB,
    Column("customer", String(60), primary_key=True),
    Column("currency", String(3), primary_key=True),
    Column("available_cents", Integer, nullable=False),
)

_STOCK_DB = MetaData()
SHELVES = Table(
    "shelves",
    _STOCK_DB,
    Column("sku", String(60), primary_key=True),
    Column("on_hand", Integer, nullable=False),
)
RESERVATIONS = Table(
    "reservations",
    _STOCK_DB,
    Column("id", Integer, primary_key=True),
    Column("order_id", String(60), nullable=False),
    Column("sku", String(60), nullable=False),
    Column("quantity", Integer, nullable=False),
)

_PAYMENT_DB = MetaData()
ACCOUNTS = Table(
    "accounts",
    _PAYMENT_DB,
    Column("owner", String(60), primary_key=True),
    Column("currency", String(3), primary_key=True),
    Column("balance_cents", Integer, nullable=False),
)
CHARGES = Table(
    "charges",
    _PAYMENT_DB,
    Column("id", Integer, primary_key=True),
    Column("order_id", String(60), nullable=False),
    Column("customer", String(60), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("cents", Integer, nullable=False),
)


def engine_for(path: Path) -> Engine:
    """An Engine on an SQLite file: WAL, synchronous=NORMAL.

    NORMAL keeps every commit across the death of a process, which is what the demo inflicts; a power
    cut may take the last ones, and a service that must survive that uses synchronous=FULL.
    """
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": _BUSY_S})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine


@dataclass(frozen=True, slots=True)
class Databases:
    """The engines of the three databases."""

    orders: Engine
    stock: Engine
    payment: Engine

    def close(self) -> None:
        """Let go of every connection."""
        for engine in (self.orders, self.stock, self.payment):
            engine.dispose()


def create_tables(databases: Databases, rows: Sequence[OrderRow], opening: Opening) -> None:
    """Make the three databases as they are before the first order."""
    currencies = sorted({row.currency for row in rows})
    shelves = opening.shelves.items()
    accounts = opening.accounts.items()
    with databases.orders.begin() as connection:
        _ORDERS_DB.create_all(connection)
        connection.execute(insert(SHELVES_SEEN), [{"sku": sku, "available": count} for sku, count in shelves])
        connection.execute(
            insert(CREDITS),
            [{"customer": owner, "currency": c, "available_cents": cents} for (owner, c), cents in accounts],
        )
    with databases.stock.begin() as connection:
        _STOCK_DB.create_all(connection)
        connection.execute(insert(SHELVES), [{"sku": sku, "on_hand": count} for sku, count in shelves])
    with databases.payment.begin() as connection:
        _PAYMENT_DB.create_all(connection)
        connection.execute(
            insert(ACCOUNTS),
            [{"owner": owner, "currency": c, "balance_cents": cents} for (owner, c), cents in accounts]
            + [{"owner": SHOP_ACCOUNT, "currency": c, "balance_cents": 0} for c in currencies],
        )
