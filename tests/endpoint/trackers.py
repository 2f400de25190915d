"""An app under Sentry, OpenTelemetry and a logger of its own; prints all that these were told.

A process of its own, since the trackers change Flask for good. The words are the names of what the
app has: sentry, otel, logger, fast.
"""

import json
import sys
import time
from typing import Any

from flask import Flask, Response, request
from werkzeug.test import Client

from prefetch_kit import Prefetch, Pull, fast_path

HAS = set(sys.argv[1:])
TOLD: dict[str, list[Any]] = {"sentry": [], "spans": [], "log": [], "statuses": []}
QUERY = "appid=wx01&timestamp=1700000000&"
PULLS = [
    "path=pages/list&token=CANARY-token",
    "path=pages/list&token=CANARY-token",  # kept by now
    "token=CANARY-token&path=pages/plain",
    "path=pages/plain&code=CANARY-code",
    "path=pages/plain&tok%65n=CANARY-token",
    "path=pages/boom&token=CANARY-token",
    "path=pages/cached-boom&token=CANARY-token",
    "path=pages/late&token=CANARY-token",
    "path=pages/none&code=CANARY-code",
    "path=pages/user&token=CANARY-token",
    "scene=x&token=CANARY-token",
    "token=CANARY-token&code=CANARY-code",
]

if "sentry" in HAS:
    import sentry_sdk
    from sentry_sdk.envelope import Envelope
    from sentry_sdk.transport import Transport

    class Kept(Transport):  # type: ignore[misc]  # Any where it is not installed
        def capture_envelope(self, envelope: Envelope) -> None:
            TOLD["sentry"] += [item.payload.json for item in envelope.items if item.payload.json]

    sentry_sdk.init(
        "https://key@sentry.example/1",
        transport=Kept,
        traces_sample_rate=1.0,
        send_default_pii=True,
    )

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")


@prefetch.pre_fetch("pages/list", cache=60)
def kept(pull: Pull) -> object:
    return {"page": pull.path}


@prefetch.pre_fetch("pages/plain")
def plain(pull: Pull) -> object:
    return {"user": pull.user_id}


@prefetch.pre_fetch("pages/boom")
def boom(pull: Pull) -> object:
    raise RuntimeError(f"boom {pull.path}")


@prefetch.pre_fetch("pages/cached-boom", cache=60)
def cached_boom(pull: Pull) -> object:
    raise LookupError(f"boom {pull.path}")


@prefetch.pre_fetch("pages/late", deadline=0.1)
def late(pull: Pull) -> object:
    time.sleep(0.5)
    return {}


@prefetch.pre_fetch("pages/user", login_required=True)
def user(pull: Pull) -> object:
    return {}


app = Flask(__name__)
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx01"])

if "otel" in HAS:
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)

if "logger" in HAS:

    @app.before_request
    def note_request() -> None:
        TOLD["log"].append([request.url, dict(request.args), str(dict(request.environ))])

    @app.after_request
    def note_response(response: Response) -> Response:
        TOLD["log"].append([request.full_path, str(request.values), response.status])
        return response


app.register_blueprint(prefetch)
if "fast" in HAS:
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]

client = Client(app)
for pull in PULLS:
    TOLD["statuses"].append(client.get(f"/prefetch/pre_fetch?{QUERY}{pull}").status_code)
TOLD["statuses"].append(client.post(f"/prefetch/pre_fetch?{QUERY}{PULLS[0]}").status_code)
# As where the registered URL has a slash too many.
TOLD["statuses"].append(client.get(f"/prefetch/pre_fetch/?{QUERY}{PULLS[0]}").status_code)

if "otel" in HAS:
    TOLD["spans"] = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
print(json.dumps(TOLD))
