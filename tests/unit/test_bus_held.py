"""An application that holds its ledger row open beyond its timeout."""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import text

from tests.unit.shopfloor import Order, floor, orders
from txbus._halves import Half, HalfId
from txbus._outcome import Outcome
from txbus._wire import SendOptions
from txbus.events import Alarm
from txbus.stores.contract import LedgerRow


def test_a_ledger_row_held_beyond_the_timeout_is_reported_and_not_guessed(tmp_path: Path) -> None:
    """The check waits for the open row, answers nothing, and raises one alarm that names the half;
    once the local transaction has committed, its message is published."""
    with floor(tmp_path, local_timeout_s=0.3, half_timeout_s=0.2, lock_wait_s=0.1) as shop, shop.working() as test:
        opened = shop.bus.opened
        database = opened.databases["shop"]
        half_id = HalfId("slow", 1)
        envelope = opened.make_envelope(orders, Order(sku="a"), SendOptions())
        half = Half(half_id, database.identity(), "shop", time.time(), (envelope,))
        local = database.begin(60.0)
        local.insert_ledger(LedgerRow(half_id, Outcome.COMMITTED, "shop", 1, time.time()))
        assert opened.channel is not None
        opened.channel.store(half, 5.0)
        deadline = time.monotonic() + 20
        while not (held := [a for a in shop.of(Alarm) if a.what == "ledger row held"]):
            assert time.monotonic() < deadline, shop.events
            time.sleep(0.02)
        assert "slow#1" in held[0].detail
        assert test.sent(orders) == []
        local.commit()
        test.run_until_idle()
        assert [order.sku for order in test.sent(orders)] == ["a"]
        assert len([a for a in shop.of(Alarm) if a.what == "ledger row held"]) == 1
        with shop.engine.connect() as connection:
            assert connection.scalar(text("SELECT outcome FROM txbus_ledger WHERE tx_id = 'slow'")) == "committed"
