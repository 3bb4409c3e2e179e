"""An application that calls bus.run() in its main thread, and what signals do to it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PATIENCE_S = 60.0

_APPLICATION = """
    import pathlib, sys, time
    from sqlalchemy import create_engine, text
    import pydantic
    from txbus import Bus, Topic

    class Order(pydantic.BaseModel):
        sku: str

    orders = Topic("orders", Order)
    engine = create_engine("sqlite:///shop.db")
    bus = Bus("embedded://" + sys.argv[1] + "/bus.db", service="shop", databases={"shop": engine}, create_schema=True,
              workers=1, topic_partitions=1)

    @bus.on(orders, scope="reserve", database="shop")
    def reserve(order: Order, connection) -> None:
        print("begun", order.sku, flush=True)
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        connection.execute(text("INSERT INTO sold VALUES (:sku)"), {"sku": order.sku})

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS sold (sku TEXT)"))
    with bus:
        bus.send(orders, Order(sku="a"))
        bus.send(orders, Order(sku="b"))
        handled = bus.run()
    with engine.connect() as connection:
        sold = [sku for sku, in connection.execute(text("SELECT sku FROM sold"))]
    print("handled", handled, "sold", *sold, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_delivery_in_hand_and_run_returns(tmp_path: Path, number: signal.Signals) -> None:
    """A script that calls bus.run() goes on after it, and ends with 0 (`txbus run` makes SIGINT 130)."""
    script = tmp_path / "shop.py"
    script.write_text(textwrap.dedent(_APPLICATION))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun a\n"
        process.send_signal(number)
        # It is still at work: nothing ends before the delivery in hand does.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        (tmp_path / "go").touch()
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert (process.returncode, out) == (0, "handled 1 sold a\n"), err
    assert "Traceback" not in err
