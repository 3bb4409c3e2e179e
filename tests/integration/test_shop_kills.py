"""The demo's kills: placed by a seed, in every window, and in no other moment."""

from __future__ import annotations

import os
import threading

import pytest

from txbus.errors import ConfigurationError
from txbus.examples.shop.plan import naive_plan, plan_kills
from txbus.examples.shop.soak import shares
from txbus.examples.shop.windows import Deathbed, KillOrder, Role, Window

TOTALS = {Role.ORDERS: 5_000, Role.RELAY: 5_000, Role.STOCK: 4_700, Role.PAYMENT: 4_700}


def test_a_seed_places_the_same_kills_and_another_seed_others() -> None:
    """The plan follows from its arguments alone."""
    assert plan_kills(1, 6, 4, TOTALS) == plan_kills(1, 6, 4, TOTALS)
    assert plan_kills(1, 6, 4, TOTALS) != plan_kills(2, 6, 4, TOTALS)


def test_each_window_is_hit_as_often_as_was_asked_for_where_it_exists() -> None:
    """The relay dies in its broker transactions only, effects belong to consumers, all in order."""
    plan = plan_kills(7, 6, 4, TOTALS)
    ordered = [order for orders in plan.orders.values() for order in orders]
    assert {window: sum(o.window is window for o in ordered) for window in Window} == dict.fromkeys(Window, 6)
    assert {order.window for order in plan.orders[Role.RELAY]} == {Window.STEP_OPEN}
    assert all(order.window is not Window.EFFECT for order in plan.orders[Role.ORDERS])
    for role, orders in plan.orders.items():
        assert [o.progress for o in orders] == sorted(o.progress for o in orders)
        assert all(0 < o.progress < TOTALS[role] for o in orders)
    assert len(plan.random) == 4 and plan.pauses == ()
    assert len(plan_kills(7, 6, 4, TOTALS, pauses=3).pauses) == 3


def test_the_naive_shop_dies_as_often_in_each_window() -> None:
    """It has no relay: what a relay suffers is suffered between the two messages of an order."""
    plan = plan_kills(7, 6, 4, TOTALS)
    naive = naive_plan(plan, TOTALS)

    def hits(orders: dict[Role, tuple[KillOrder, ...]]) -> dict[Window, int]:
        return {w: sum(o.window is w for found in orders.values() for o in found) for w in Window}

    assert hits(dict(naive.orders)) == hits(dict(plan.orders))
    assert Role.RELAY not in naive.orders
    assert all(kill.role is not Role.RELAY for kill in naive.random)


@pytest.mark.parametrize("kills", [6, 25, 200, 201])
def test_a_soak_has_as_many_kills_as_it_says(kills: int) -> None:
    """Those of the windows and those at random moments add up."""
    per_window, at_random = shares(kills)
    assert per_window * len(Window) + at_random == kills


@pytest.mark.parametrize("text", ["", "TOLD", "TOLD:", "TOLD:x", "NEVER:1", "told:1", "TOLD:-1"])
def test_an_order_to_die_that_makes_no_sense_is_refused(text: str) -> None:
    """A misspelt window would never be hit."""
    with pytest.raises(ConfigurationError, match="WINDOW:PROGRESS"):
        KillOrder.parse(text)
    assert KillOrder.parse("TOLD:12") == KillOrder(Window.TOLD, 12)


def test_a_process_reports_its_window_once_it_is_far_enough_and_stays_there() -> None:
    """Other windows and earlier moments pass; the one that was ordered is never left."""
    reading, writing = os.pipe()
    progress = 0
    deathbed = Deathbed(KillOrder(Window.TOLD, 3), lambda: progress, writing)
    for window in Window:
        deathbed.reached(window)
    progress = 3
    deathbed.reached(Window.EFFECT)
    dying = threading.Thread(target=deathbed.reached, args=(Window.TOLD,), daemon=True)
    dying.start()
    assert os.read(reading, 100) == b"at TOLD\n"
    another = threading.Thread(target=deathbed.reached, args=(Window.TOLD,), daemon=True)
    another.start()
    another.join(0.1)
    assert dying.is_alive() and another.is_alive()
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 100)
