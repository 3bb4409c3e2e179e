"""The current W3C traceparent, where the application uses OpenTelemetry."""

from __future__ import annotations

import sys

__all__ = ["current_traceparent"]


def current_traceparent() -> str | None:
    """The current span as a ``traceparent`` value; None without OpenTelemetry or without a span.

    Never imports it: an application that has no span has not imported it either.
    """
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return None
    context = module.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
