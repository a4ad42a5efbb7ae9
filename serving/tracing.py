# SPDX-License-Identifier: Apache-2.0
"""W3C trace context: taken from a request, continued, and told in logs and answers.

Only OpenTelemetry's API is used. Where its SDK is installed and set up (for example by starting the
server with `opentelemetry-instrument`), the server's spans are recorded and exported; where it is
not, they cost next to nothing and the caller's context is passed on unchanged.
"""

import uuid
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
TRACER = trace.get_tracer("kfloop.serving")
_propagator = TraceContextTextMapPropagator()


def context_of(headers: Mapping[str, str]) -> Context | None:
    """Returns the trace context that a request carries, or None when it has no valid one."""
    if TRACEPARENT not in headers:
        return None
    context = _propagator.extract(headers)
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def current() -> Context:
    """Returns the context of the span that is open here."""
    return get_current()


def trace_id(context: Context | None) -> str:
    """Returns the trace id of a context, 32 hexadecimal digits, or nothing."""
    if context is None:
        return ""
    return f"{trace.get_current_span(context).get_span_context().trace_id:032x}"


def traceparent(context: Context | None) -> str:
    """Returns a context as the header that passes it on, or nothing."""
    carrier: dict[str, str] = {}
    if context is not None:
        _propagator.inject(carrier, context)
    return carrier.get(TRACEPARENT, "")


def request_id(headers: Mapping[str, str]) -> str:
    """Returns a request's own id, or a new one.

    A new one starts with the trace id where there is one, so that the inference log, which keeps
    the request id, can be joined with the traces.
    """
    given = headers.get("x-request-id", "")
    if given:
        return given
    new = uuid.uuid4().hex
    trace_part = trace_id(context_of(headers))
    return f"{trace_part}-{new[:16]}" if trace_part else new
