"""A cached handler under Sentry and OpenTelemetry; prints what it sees of them, and what it tells.

A process of its own, since Sentry changes Flask for good.
"""

import json
from contextvars import ContextVar
from typing import Any

import sentry_sdk
from flask import Flask
from opentelemetry import baggage, context, trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from prefetch_kit import Prefetch, Pull

TOLD: dict[str, Any] = {"sentry": [], "inside": []}
# Of the app, with the names that the trackers have given theirs.
namesakes = [ContextVar(name, default="none") for name in ("current_context", "isolation_scope")]


class Kept(Transport):  # type: ignore[misc]  # Any where it is not installed
    def capture_envelope(self, envelope: Envelope) -> None:
        TOLD["sentry"] += [item.payload.json for item in envelope.items if item.payload.json]


sentry_sdk.init("https://key@sentry.example/1", transport=Kept, traces_sample_rate=1.0)
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")


@prefetch.pre_fetch(cache=60)
def handler(pull: Pull) -> object:
    with provider.get_tracer("app").start_as_current_span("in the handler"):
        sentry_sdk.capture_message("from the handler")
    with sentry_sdk.start_span(op="db", name="a query of the handler"):
        pass
    TOLD["inside"].append(
        {
            "baggage": dict(baggage.get_all()),
            "attributes": str(getattr(trace.get_current_span(), "attributes", None)),
            "namesakes": [variable.get() for variable in namesakes],
        }
    )
    return {"page": pull.path}


app = Flask(__name__)
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx01"])
FlaskInstrumentor().instrument_app(app, tracer_provider=provider)


@app.before_request
def log_in() -> None:
    sentry_sdk.set_user({"id": "alice"})
    sentry_sdk.set_tag("tenant", "of alice")
    context.attach(baggage.set_baggage("tenant", "of alice"))
    for variable in namesakes:
        variable.set("of alice")


app.register_blueprint(prefetch)
reply = app.test_client().get(
    "/prefetch/pre_fetch?appid=wx01&timestamp=1700000000&path=pages/x&token=CANARY"
)
TOLD["status"] = reply.status_code
TOLD["spans"] = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
print(json.dumps(TOLD))
