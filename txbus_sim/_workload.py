"""The workload of a scenario, drawn by Hypothesis: messages, sizes, keys; never seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["with_workload"]


class _Wanted(BaseException):
    """The scenario draws, so it has to be run within an example of Hypothesis."""


def with_workload(body: Callable[[Callable[[Any], Any]], None], examples: int) -> None:
    """Call ``body`` with what draws a value of a strategy.

    A scenario that never draws is run once. One that does is run for ``examples`` examples, always
    the same ones; Hypothesis makes a failing one smaller.
    """
    __tracebackhide__ = True
    try:
        body(_want)
        return
    except _Wanted:
        pass
    from hypothesis import HealthCheck, Phase, given, settings, strategies

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(strategies.data())
    def workload(data: Any) -> None:
        __tracebackhide__ = True
        body(data.draw)

    workload()


def _want(strategy: Any) -> Any:
    raise _Wanted
