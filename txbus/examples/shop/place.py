"""Where one run of the shop lives: its folder, its bus, the pace of its protocol."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txbus.errors import ConfigurationError
from txbus.examples.shop.messages import Topics
from txbus.examples.shop.orderfile import OrderFile, read_orders
from txbus.settings import SettingsArguments

__all__ = ["FOLDER_VARIABLE", "PACE", "Place"]

FOLDER_VARIABLE = "TXBUS_DEMO_FOLDER"
_FILE = "shop.json"

PACE: SettingsArguments = {
    "lease_s": 1.2,
    "poll_s": 0.25,
    "check_after_s": 0.5,
    "check_interval_s": 0.25,
    "half_partitions": 4,
    "topic_partitions": 4,
    "workers": 2,
    "max_in_flight": 128,
    "stop_timeout_s": 5.0,
    "create_schema": True,
}
"""Short leases and check delays: what a death costs is waited for in seconds, not in minutes."""


@dataclass(frozen=True, slots=True)
class Place:
    """One run. ``prefix`` stands before the names of services and topics on a shared broker;
    ``rows_max`` cuts the file of orders off."""

    folder: Path
    url: str
    orders_file: Path
    prefix: str = ""
    rows_max: int | None = None

    def orders(self) -> OrderFile:
        """The orders of this run, read from the file."""
        file = read_orders(self.orders_file)
        return OrderFile(file.path, file.rows[: self.rows_max], file.bad)

    @property
    def topics(self) -> Topics:
        return Topics.named(self.prefix)

    @property
    def orders_db(self) -> Path:
        return self.folder / "orders.db"

    @property
    def stock_db(self) -> Path:
        return self.folder / "stock.db"

    @property
    def payment_db(self) -> Path:
        return self.folder / "payment.db"

    def service(self, name: str) -> str:
        return f"{self.prefix}shop-{name}"

    def journal(self, role: str) -> Path:
        """Where a process appends what txbus tells it, a line an event."""
        return self.folder / f"{role}.events"

    def pid(self, role: str) -> Path:
        """Where a process writes its number."""
        return self.folder / f"{role}.pid"

    def log(self, role: str) -> Path:
        """What a process wrote to its standard error."""
        return self.folder / f"{role}.log"

    def save(self) -> None:
        kept = {
            "url": self.url,
            "orders_file": str(self.orders_file),
            "prefix": self.prefix,
            "rows_max": self.rows_max,
        }
        (self.folder / _FILE).write_text(json.dumps(kept), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | None = None) -> Place:
        """The run that lives in a folder, or in the one that TXBUS_DEMO_FOLDER names."""
        if folder is None:
            named = os.environ.get(FOLDER_VARIABLE)
            if not named:
                raise ConfigurationError(
                    f"which run of the demo? Set {FOLDER_VARIABLE} to the folder that `txbus demo --keep` names"
                )
            folder = Path(named)
        try:
            kept: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return cls(folder, kept["url"], Path(kept["orders_file"]), kept["prefix"], kept["rows_max"])
        except (OSError, ValueError, KeyError) as exc:
            raise ConfigurationError(f"{folder} holds no run of the demo: {exc}") from exc
