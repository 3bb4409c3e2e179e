"""Whether SQLAlchemy holds a lock of its own around a call of the driver.

The events of a new connection (the dialect's initialisation and the application's own "connect"
listeners) run under a mutex the first time. A strand that is left there to wait, or dies there, would
keep everybody else out; so there is no point inside of them, the first time and every other.
"""

from __future__ import annotations

import sys

from sqlalchemy.event import attr

__all__ = ["in_connect_event"]

_RUN_ONCE = tuple(
    method.__code__
    for name in ("_exec_once_impl", "_exec_w_sync_on_first_run")
    if (method := getattr(attr._CompoundListener, name, None)) is not None
)
assert _RUN_ONCE, "SQLAlchemy runs its connect events in another way now"


def in_connect_event() -> bool:
    """Whether the caller was called by such an event."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _RUN_ONCE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
