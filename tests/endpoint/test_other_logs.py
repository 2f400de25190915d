"""A pull's token and code stay out of the logs and trackers of others, which are real here."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TRACKERS = Path(__file__).with_name("trackers.py")
DOCS = Path(__file__).parents[2] / "docs/logs.md"
OUTER = """
from flask import Flask
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from prefetch_kit import Prefetch

trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
app = Flask(__name__)
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx01"])
app.register_blueprint(Prefetch("prefetch", __name__, url_prefix="/prefetch"))
"""
PULLED = """
pull = "/prefetch/pre_fetch?appid=wx01&timestamp=1700000000&token=CANARY"
app.test_client().get(pull, buffered=True)
"""
STREAMED = """
import functools
import sentry_sdk
from flask import Flask
from sentry_sdk.transport import Transport
from prefetch_kit import Prefetch

class Printed(Transport):
    def capture_envelope(self, envelope):
        print(*(item.payload.get_bytes().decode() for item in envelope.items))

sentry_sdk.init = functools.partial(sentry_sdk.init, transport=Printed, traces_sample_rate=1.0)
"""
SHOP_AND_PULL = """
prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")

@prefetch.pre_fetch(cache=60)
def handler(pull):
    with sentry_sdk.traces.start_span(name="a page of the pull"):
        return {}

app = Flask(__name__)
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx01"])
app.register_blueprint(prefetch)
pull = "/prefetch/pre_fetch?appid=wx01&timestamp=1700000000&path=x&token=CANARY"
assert app.test_client().get(pull, buffered=True).json == {}
sentry_sdk.flush()
"""
STATUSES = [200, 200, 200, 200, 200, 500, 500, 503, 404, 401, 400, 400, 405, 404]


def told(*has: str, **environment: str) -> dict[str, Any]:
    """What an app with these trackers told them of its pulls; also what it wrote to its log."""
    ended = subprocess.run(
        [sys.executable, TRACKERS, *has],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "CANARY" not in ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert found["statuses"] == STATUSES
    return found


@pytest.mark.parametrize("way", [[], ["fast"]])
def test_loggers_of_the_app_see_no_credentials(way: list[str]) -> None:
    """Neither before nor after the view; the rest of the query is there."""
    lines = told("logger", *way)["log"]
    assert "appid=wx01" in lines[0][0]
    assert any("timestamp" in str(line) for line in lines)


@pytest.mark.parametrize("way", [[], ["fast"]])
def test_spans_have_no_credentials(way: list[str]) -> None:
    """A span for each pull that came to Flask, with the rest of its query."""
    # In the attributes of the first conventions and of the stable ones.
    spans = told("otel", *way, OTEL_SEMCONV_STABILITY_OPT_IN="http/dup")["spans"]
    assert "url.query" in str(spans)
    assert len(spans) == len(STATUSES) - len(way)  # the hit did not
    assert "path=pages/plain" in str(spans)


@pytest.mark.parametrize("way", [[], ["fast"]])
def test_sentry_is_told_of_failures_once_and_of_no_credentials(way: list[str]) -> None:
    """As errors of the handler that nobody handled, with its page; transactions are clean too."""
    items = told("sentry", *way)["sentry"]
    assert "appid=wx01" in str(items)
    errors = [item["exception"]["values"][-1] for item in items if item.get("exception")]
    assert [each["type"] for each in errors] == ["RuntimeError", "LookupError"]
    assert [each["mechanism"]["handled"] for each in errors] == [False, False]
    innermost = [each["stacktrace"]["frames"][-1]["function"] for each in errors]
    assert innermost == ["boom", "cached_boom"]
    assert len([item for item in items if item.get("type") == "transaction"]) == len(STATUSES)


def test_all_of_them_together() -> None:
    """They wrap each other."""
    assert told("sentry", "otel", "logger", "fast")["spans"]


def test_the_lines_of_the_docs_hide_the_query_from_middleware(tmp_path: Path) -> None:
    """What a tracer around the app has seen before Flask began."""
    lines, _ = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "traced_shop.py").write_text(OUTER + lines + PULLED)
    command = [sys.executable, str(tmp_path / "traced_shop.py")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "/prefetch/pre_fetch" in ended.stdout
    assert "CANARY" not in ended.stdout + ended.stderr


def test_the_lines_of_the_docs_hide_the_query_from_streamed_spans(tmp_path: Path) -> None:
    """Sentry has copied it before Flask began."""
    _, lines = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "streamed_shop.py").write_text(STREAMED + lines + SHOP_AND_PULL)
    command = [sys.executable, str(tmp_path / "streamed_shop.py")]
    environment = os.environ | {"SENTRY_DSN": "https://key@sentry.example/1"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert "url.path" in ended.stdout
    assert "a page of the pull" in ended.stdout
    assert "CANARY" not in ended.stdout + ended.stderr


def test_a_cached_handler_keeps_the_trace_and_nothing_of_a_user() -> None:
    """Without naming a variable; variables of the app that are called alike are not kept."""
    command = [sys.executable, str(TRACKERS.with_name("traced.py"))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CANARY" not in ended.stdout + ended.stderr
    told = json.loads(ended.stdout)
    assert told["status"] == 200
    (inside,) = told["inside"]
    assert (inside["baggage"], inside["attributes"]) == ({}, "None")
    assert inside["namesakes"] == ["none", "none"]
    own, request = told["spans"]
    assert own["parent_id"] == request["context"]["span_id"]
    message = next(each for each in told["sentry"] if each.get("message"))
    transaction = next(each for each in told["sentry"] if each.get("type") == "transaction")
    assert message["contexts"]["trace"]["trace_id"] == transaction["contexts"]["trace"]["trace_id"]
    assert "a query of the handler" in str(transaction["spans"])
    assert "alice" in str(transaction)
    assert "alice" not in str(message)


SHOP = """
from flask import Flask
from prefetch_kit import Prefetch, fast_path

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")

@prefetch.pre_fetch(cache=60)
def boom(pull):
    raise RuntimeError("boom")

app = Flask("shop")
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx1"])
app.config["PROPAGATE_EXCEPTIONS"] = True
app.register_blueprint(prefetch)
app.route("/other")(lambda: "other")
app.wsgi_app = fast_path(app)
"""
PULL = "/prefetch/pre_fetch?appid=wx1&timestamp=1700000000&path=x&token=CANARY"
# A target that is malformed, a handler that fails, a line that is too long, and no pull at all.
TARGETS = [f"{PULL}&query=茶", PULL, f"{PULL}&query={'x' * 9000}", "/other?name=kept"]


def answer_of(port: int, target: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )
        return connection.recv(100)


def logged_by(directory: Path, *command: str) -> str:
    """All that a server says while it is asked for these targets."""
    (directory / "shop.py").write_text(SHOP)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        words = [word.format(fd=bound.fileno()) for word in command]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=directory,
                pass_fds=[bound.fileno()],
                stdout=log,
                stderr=log,
            )
        with server:
            for target in TARGETS:
                answer_of(port, target)
            server.terminate()
    return (directory / "log").read_text()


@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent"])
def test_gunicorn_logs_no_query_of_a_pull(tmp_path: Path, worker: str) -> None:
    """With its default settings and every log on; of other URLs the query stays."""
    options = ["--worker-class", worker, "--access-logfile", "-", "--log-level", "debug"]
    options += ["--access-logformat", "%(r)s %(U)s %(q)s"]
    log = logged_by(tmp_path, "gunicorn", "--bind", "fd://{fd}", *options, "shop:app")
    assert "/prefetch/pre_fetch?***" in log
    assert "/other?name=kept" in log
    assert "CANARY" not in log


def test_the_server_of_flask_logs_none(tmp_path: Path) -> None:
    """The one of `flask run`."""
    (tmp_path / "run_shop.py").write_text(
        "import os\nos.environ['WERKZEUG_SERVER_FD'] = __import__('sys').argv[1]\n"
        "os.environ['WERKZEUG_RUN_MAIN'] = 'true'\nimport shop\nshop.app.run(port=0)\n"
    )
    log = logged_by(tmp_path, "run_shop", "{fd}")
    assert "/other?name=kept" in log
    assert "CANARY" not in log


def test_sentry_that_does_not_follow_requests_keeps_what_it_had() -> None:
    """Each scope gets the kit's function once, since a scope drops all of them at twenty."""
    code = """
import sentry_sdk
from flask import Flask
from prefetch_kit import Prefetch

app = Flask("shop")
app.config.update(SECRET_KEY="a key of the shop", PREFETCH_APPIDS=["wx1"])
app.register_blueprint(Prefetch("prefetch", "shop"))
sentry_sdk.get_isolation_scope().add_event_processor(lambda event, hint: event)
for _ in range(50):
    app.test_client().get("/pre_fetch?appid=wx1&timestamp=1700000000")
print(len(sentry_sdk.get_isolation_scope()._event_processors))
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout == "2\n"
