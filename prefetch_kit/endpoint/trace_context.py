"""The trace that a run of a cached handler belongs to, and nothing else of the pull it began with.

The variables of Sentry and OpenTelemetry hold more than the trace: who the user is, tags, baggage
that came in a header. An answer that is for many must not depend on those.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any


def trace_keepers() -> Iterator[Callable[[], object]]:
    """Functions that set the present trace in the context in which they are called."""
    sentry: Any = sys.modules.get("sentry_sdk")
    if hasattr(sentry, "get_isolation_scope") and sentry.is_initialized():
        header = {"sentry-trace": sentry.get_traceparent()}
        yield partial(_keep_sentry, sentry, header, sentry.get_current_span())
    if (api := sys.modules.get("opentelemetry.trace")) is not None:
        present = api.get_current_span().get_span_context()
        if present.is_valid:
            yield partial(_keep_opentelemetry, api, present)


def _keep_sentry(sentry: Any, header: dict[str, str], span: object) -> None:
    isolation, current = sentry.Scope(), sentry.Scope()
    for scope in (isolation, current):
        scope.generate_propagation_context(header)
    current.span = span
    sentry.Scope.set_isolation_scope(isolation)
    sentry.Scope.set_current_scope(current)


def _keep_opentelemetry(api: Any, present: Any) -> None:
    # Only its ids: the span itself has the attributes of the request.
    ids = api.SpanContext(
        present.trace_id, present.span_id, is_remote=False, trace_flags=present.trace_flags
    )
    context = sys.modules["opentelemetry.context"]
    context.attach(api.set_span_in_context(api.NonRecordingSpan(ids), context.Context()))
