"""A request of a simulated process to a model of a server, with everything that can become of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from txbus_sim._world import World
from txbus_sim.faults import REQUEST, Fault, Faults

__all__ = ["LATENCY_NS", "request"]

T = TypeVar("T")
LATENCY_NS = 500_000
"""One way, from a process to a server."""


def request(
    world: World,
    label: str,
    perform: Callable[[], T],
    *,
    patience_ns: int,
    unanswered: Callable[[str], BaseException],
    refused: Callable[[str], BaseException],
    faults: Faults = REQUEST,
    suffer: Callable[[Fault], None] | None = None,
    latency_ns: int = LATENCY_NS,
) -> T:
    """Carry out ``perform`` at the server, once the request has travelled; its result or its error.

    ``unanswered`` makes the error of a caller whose ``patience_ns`` is over, whether the request
    or the answer was lost; ``refused`` the one of `Fault.FAIL`. ``suffer`` carries out the faults
    of the server's own (a failover, a rebalance) right before the request arrives.
    """
    fault = world.enter(label, faults)
    match fault:
        case Fault.FAIL:
            raise refused(f"{label}: the server refused this request")
        case Fault.REQUEST_LOST:
            world.sleep_ns(patience_ns)
            raise unanswered(f"{label}: no answer")
        case None | Fault.ANSWER_LOST | Fault.DUPLICATE | Fault.CRASH_AFTER | Fault.KILL_AFTER | Fault.PAUSE_AFTER:
            pass
        case _:
            assert suffer is not None, f"{label}: offers {fault} and cannot suffer it"
            suffer(fault)
    world.sleep_ns(latency_ns)
    result = perform()
    if fault is Fault.DUPLICATE:
        result = perform()
    if fault is Fault.ANSWER_LOST:
        world.sleep_ns(patience_ns)
        raise unanswered(f"{label}: no answer")
    world.leave(fault)
    world.sleep_ns(latency_ns)
    return result
