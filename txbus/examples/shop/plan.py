"""Who is killed, where and when: all of it follows from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from txbus.examples.shop.windows import KillOrder, Role, Window

__all__ = ["KillPlan", "Pause", "RandomKill", "naive_plan", "plan_kills"]

_BEGIN, _END = 0.02, 0.9
_ROLES: Mapping[Window, tuple[Role, ...]] = {
    Window.HALF_STORED: (Role.ORDERS, Role.STOCK, Role.PAYMENT),
    Window.COMMITTED: (Role.ORDERS, Role.PAYMENT, Role.STOCK),
    Window.TOLD: (Role.ORDERS, Role.STOCK, Role.PAYMENT),
    Window.STEP_OPEN: (Role.RELAY, Role.STOCK, Role.PAYMENT),
    Window.EFFECT: (Role.STOCK, Role.PAYMENT),
}


@dataclass(frozen=True, slots=True)
class RandomKill:
    """A kill from outside, wherever the process is: at this share of the whole work."""

    share: float
    role: Role


@dataclass(frozen=True, slots=True)
class Pause:
    """SIGSTOP from outside until the lease is long over, then SIGCONT: a zombie that wakes up."""

    share: float
    role: Role


@dataclass(frozen=True, slots=True)
class KillPlan:
    """The windows of each process in the order in which it dies in them, and what comes from outside."""

    orders: Mapping[Role, tuple[KillOrder, ...]]
    random: tuple[RandomKill, ...]
    pauses: tuple[Pause, ...] = ()

    @property
    def windows(self) -> frozenset[Window]:
        return frozenset(order.window for orders in self.orders.values() for order in orders)


def plan_kills(
    seed: int,
    per_window: int,
    random_kills: int,
    totals: Mapping[Role, int],
    windows: Sequence[Window] = tuple(Window),
    pauses: int = 0,
) -> KillPlan:
    """Spread ``per_window`` kills of each window over the work and the processes that have it.

    ``totals`` says how many orders come through each process.
    """
    chance = Random(seed)
    orders: dict[Role, list[KillOrder]] = {role: [] for role in totals}
    for window in windows:
        roles = [role for role in _ROLES[window] if role in totals]
        for number in range(per_window):
            role = roles[number % len(roles)]
            share = _BEGIN + (_END - _BEGIN) * (number + chance.random()) / per_window
            orders[role].append(KillOrder(window, max(1, int(share * totals[role]))))
    sorted_orders = {role: tuple(sorted(found, key=lambda o: o.progress)) for role, found in orders.items()}
    roles = list(totals)
    random = tuple(RandomKill(*each) for each in _from_outside(random_kills, roles, chance))
    return KillPlan(sorted_orders, random, tuple(Pause(*each) for each in _from_outside(pauses, roles, chance)))


def _from_outside(count: int, roles: Sequence[Role], chance: Random) -> list[tuple[float, Role]]:
    return [
        (_BEGIN + (_END - _BEGIN) * (number + chance.random()) / count, chance.choice(roles)) for number in range(count)
    ]


def naive_plan(plan: KillPlan, totals: Mapping[Role, int]) -> KillPlan:
    """The same kills for a shop without relays: what dies in a relay's step dies, in the order service,
    between the two messages of an order."""
    orders: dict[Role, list[KillOrder]] = {role: [] for role in totals if role is not Role.RELAY}
    for role, found in plan.orders.items():
        for order in found:
            if order.window is Window.STEP_OPEN or role is Role.RELAY:
                progress = int(order.progress / totals[role] * totals[Role.ORDERS])
                orders[Role.ORDERS].append(KillOrder(order.window, max(1, progress)))
            else:
                orders[role].append(order)
    random = tuple(
        RandomKill(kill.share, Role.ORDERS if kill.role is Role.RELAY else kill.role) for kill in plan.random
    )
    return KillPlan({role: tuple(sorted(found, key=lambda o: o.progress)) for role, found in orders.items()}, random)
