"""Whether SQLAlchemy holds a lock of its own around a call of the driver.

The events of a new connection (the dialect's initialisation and the application's own "connect"
listeners) run under a mutex the first time. A strand that is left there to wait, or dies there, would
keep everybody else out; so there is no point inside of them, the first time and every other.
"""

from __future__ import annotations

import sys
from functools import cache
from types import CodeType

__all__ = ["in_connect_event"]

_RUNS_ONCE = ("_exec_once_impl", "_exec_w_sync_on_first_run")


@cache
def _is_guarded(code: CodeType) -> bool:
    return code.co_name in _RUNS_ONCE and code.co_filename.replace("\\", "/").endswith("sqlalchemy/event/attr.py")


def in_connect_event() -> bool:
    """Whether the caller was called by such an event."""
    frame = sys._getframe(1)
    while frame is not None:
        if _is_guarded(frame.f_code):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
