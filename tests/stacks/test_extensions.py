"""The kit in an app with other extensions of Flask, each the real one."""

import gzip
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import flask_babel
import flask_caching
import flask_compress
import flask_cors
import flask_limiter
import flask_login
import flask_session
import flask_sqlalchemy
import flask_talisman
import flask_wtf
import pytest
from cachelib import FileSystemCache
from flask import Flask, Response, redirect, request, session, url_for
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_flask_exporter import PrometheusMetrics
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.middleware.proxy_fix import ProxyFix

from prefetch_kit import Prefetch, Pull, fast_path
from prefetch_kit.metrics import count_pulls
from prefetch_kit.pushes import PlatformPushes

if TYPE_CHECKING:
    from tests.stacks.conftest import Reply

Ask = Callable[..., "Reply"]
Serve = Callable[[Flask], str]
Added = Callable[[str], str]
DATA = b'{"products":["tea"]}'


def index(_: Pull) -> object:
    return {"products": ["tea"]}


def login_wall(app: Flask, line: str) -> None:
    """Flask-Login, with a wall for the whole app in which `line` comes first."""
    manager = flask_login.LoginManager(app)
    manager.login_view = "login"
    manager.user_loader(lambda _: None)
    app.add_url_rule("/login", "login", lambda: "log in")
    names: dict[str, Any] = {"request": request, "flask_login": flask_login, "manager": manager}
    body = "if flask_login.current_user.is_anonymous and request.endpoint != 'login':\n"
    wall = f"def wall():\n{indent(line, '    ')}\n    {body}        return manager.unauthorized()\n"
    exec(wall, names)  # noqa: S102 (the line is the page's)
    app.before_request(names["wall"])


def test_a_login_wall_with_the_line(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, added: Added
) -> None:
    """Pulls pass, and the rest of the app stays closed."""
    login_wall(app, added("Flask-Login"))
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert ask(origin).body == DATA
    assert ask(origin, "/elsewhere").status == 302


def test_a_login_wall_without_it(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """No redirect, no page and no cookie come back, and the line to add is told once."""
    login_wall(app, "pass")
    prefetch.pre_fetch()(index)
    prefetch.add_url_rule("/mine", view_func=lambda: "mine")  # no view of the kit
    app.register_blueprint(prefetch)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    origin = serve(app)
    for _ in range(2):
        reply = ask(origin)
        assert (reply.status, reply.body, reply.refused) == (503, b"", "app")
        assert not {"Set-Cookie", "Location"} & {name for name, _ in reply.headers}
    (told,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "(302 to /login)" in told
    assert "(wall) add: if request.blueprint == 'prefetch': return None" in told
    assert "timestamp" not in told
    assert ask(origin, "/prefetch/mine").status == 302


def raise_error() -> None:
    raise LookupError("no tenant")


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (raise_error, 500, "(500), so WeChat gets no data. A function around the view failed."),
        (lambda: ("slow down", 429), 429, "a limit by address means nothing for them. In the"),
        (lambda: ("", 302, {"Location": "//["}), 503, "(302 to ), so WeChat gets no data."),
    ],
)
def test_what_stands_in_the_way_is_told(
    app: Flask,
    prefetch: Prefetch,
    serve: Serve,
    ask: Ask,
    caplog: pytest.LogCaptureFixture,
    answer: Callable[[], Any],
    status: int,
    says: str,
) -> None:
    """A failure, a limit, a redirect to nowhere: with the function that it comes from."""

    @app.before_request
    def in_the_way() -> Any:
        return answer()

    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    reply = ask(serve(app))
    assert (reply.status, reply.body, reply.refused) == (status, b"", "app")
    (told,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert says in told
    assert "in_the_way) add: if request.blueprint == 'prefetch': return None" in told


def test_a_failure_after_the_view_is_no_answer(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is what an error handler of the app makes of it, which may have the status 200."""

    @app.after_request
    def audit(_: Response) -> Response:
        raise OSError("the log of the audit is full")

    app.register_error_handler(Exception, lambda _: {"code": 500})
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    reply = ask(serve(app))
    assert (reply.status, reply.body, reply.refused) == (503, b"", "app")
    assert "the app answered a pull of /prefetch/pre_fetch itself (200)" in caplog.text


@pytest.mark.parametrize("comes_first", [True, False])
def test_default_limits(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, comes_first: bool
) -> None:
    """Flask-Limiter, before or after the kit: pulls are not counted, other views are."""
    limiter = flask_limiter.Limiter(
        flask_limiter.util.get_remote_address,
        default_limits=["1 per hour"],
        application_limits=["2 per hour"],
        storage_uri="memory://",
    )
    prefetch.pre_fetch()(index)
    app.add_url_rule("/", "home", lambda: "home")
    for join in [limiter.init_app, lambda app: app.register_blueprint(prefetch)][
        :: 1 if comes_first else -1
    ]:
        join(app)
    origin = serve(app)
    assert [ask(origin).status for _ in range(5)] == [200] * 5
    assert [ask(origin, "/").status for _ in range(2)] == [200, 429]


def test_a_limit_of_the_blueprint(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask) -> None:
    """What the app wants limited is, with an empty body and its own status."""
    limiter = flask_limiter.Limiter(
        flask_limiter.util.get_remote_address, app=app, storage_uri="memory://"
    )
    limiter.limit("1 per hour")(prefetch)
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert ask(origin).body == DATA
    reply = ask(origin)
    assert (reply.status, reply.body, reply.refused) == (429, b"", "app")


def test_csrf_of_pushes(app: Flask, tmp_path: Path) -> None:
    """Flask-WTF: a push of WeChat's comes to the kit, which looks at its signature."""
    flask_wtf.CSRFProtect(app)
    app.config.update(
        PREFETCH_COMPONENT_APPID="wxf0a1b2c3d4e5f607",
        PREFETCH_COMPONENT_SECRET="s",
        PREFETCH_COMPONENT_MESSAGE_TOKEN="t",
        PREFETCH_COMPONENT_AES_KEY="k" * 43,
        PREFETCH_STATE_DIR=tmp_path,
    )
    app.add_url_rule("/order", "order", lambda: "done", methods=["POST"])
    app.register_blueprint(PlatformPushes("wechat", __name__, url_prefix="/wechat"))
    client = app.test_client()
    sealed = b"<xml><Encrypt>x</Encrypt></xml>"
    assert client.post("/wechat/events", data=sealed).status_code == 403
    assert client.post("/order").status_code == 400


def test_https_is_forced(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask-Talisman: with the header of what takes the TLS off; without it, it is told."""
    flask_talisman.Talisman(app)
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert ask(origin, X_Forwarded_Proto="https").body == DATA
    reply = ask(origin)
    assert (reply.status, reply.body, reply.refused) == (503, b"", "app")
    (told,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "X-Forwarded-Proto: https" in told


def test_locales(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, added: Added) -> None:
    """Flask-Babel: the default one, and the one that is forced."""
    flask_babel.Babel(app, default_locale="en")
    source = f"def month(pull):\n    {added('Flask-Babel')}\n        return name()\n"
    names: dict[str, Any] = {"force_locale": flask_babel.force_locale}
    names["name"] = lambda: flask_babel.get_locale().language_name
    exec(source.replace('"en"', '"zh"'), names)  # noqa: S102 (the page's)
    prefetch.pre_fetch()(names["month"])
    prefetch.period_fetch(cache=60)(lambda _: names["name"]())
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert ask(origin).body.decode() == "中文"
    assert ask(origin, "/prefetch/period_fetch").body == b"English"


def test_functions_that_are_memoized(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask
) -> None:
    """Flask-Caching: a handler calls one, and its cache has it the second time."""
    calls: list[int] = []
    cache = flask_caching.Cache(app, config={"CACHE_TYPE": "SimpleCache"})

    @cache.memoize(timeout=60)  # type: ignore[untyped-decorator]
    def products() -> list[str]:
        calls.append(1)
        return ["tea"]

    prefetch.pre_fetch()(lambda _: {"products": products()})
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert [ask(origin).body for _ in range(2)] == [DATA] * 2
    assert len(calls) == 1


def test_compression(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask) -> None:
    """Flask-Compress: for those who ask, which WeChat is not known to do."""
    flask_compress.Compress(app)
    prefetch.pre_fetch()(lambda _: "x" * 5000)
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert ask(origin).body == b"x" * 5000
    packed = ask(origin, Accept_Encoding="gzip")
    assert (packed.headers["Content-Encoding"], len(packed.body) < 500) == ("gzip", True)
    assert gzip.decompress(packed.body) == b"x" * 5000


def test_cross_origin(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask) -> None:
    """Flask-CORS: its headers, and no answer to OPTIONS that a phone could keep."""
    flask_cors.CORS(app)
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    reply = ask(serve(app), Origin="https://elsewhere.example")
    assert (reply.body, "Access-Control-Allow-Origin" in reply.headers) == (DATA, True)
    options = app.test_client().options("/prefetch/pre_fetch")
    assert (options.status_code, options.data) == (405, b"")


@pytest.mark.parametrize("deadline", [30.0, math.inf])
def test_sessions_of_a_database(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, tmp_path: Path, deadline: float
) -> None:
    """Flask-SQLAlchemy: a handler reads rows, and no connection stays with its thread."""
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/shop.db"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 1, "max_overflow": 0}

    class Base(DeclarativeBase):
        pass

    db = flask_sqlalchemy.SQLAlchemy(app, model_class=Base)

    class Product(db.Model):  # type: ignore[misc,name-defined]
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    with app.app_context():
        db.create_all()
        db.session.add(Product(name="tea"))
        db.session.commit()

    def products(_: Pull) -> object:
        return {"products": [row.name for row in db.session.scalars(db.select(Product))]}

    prefetch.pre_fetch(deadline=deadline)(products)
    prefetch.period_fetch(cache=60)(products)
    app.register_blueprint(prefetch)
    origin = serve(app)
    assert [ask(origin).body for _ in range(5)] == [DATA] * 5
    assert ask(origin, "/prefetch/period_fetch").body == DATA
    with app.app_context():
        assert db.engine.pool.checkedout() == 0
        db.engine.dispose()


def test_sessions_of_users(
    app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask, tmp_path: Path
) -> None:
    """Flask-Session: none is opened for a pull, and none is kept for a wall that closes it."""
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=FileSystemCache(str(tmp_path)))
    flask_session.Session(app)
    app.add_url_rule("/", "home", lambda: str(session.setdefault("seen", 1)))
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    is_closed = False

    @app.before_request
    def wall() -> Any:
        if is_closed:
            session["next"] = request.url
            return redirect("/login")
        return None

    origin = serve(app)
    assert "Set-Cookie" in ask(origin, "/").headers
    kept = sorted(tmp_path.iterdir())
    assert "Set-Cookie" not in ask(origin).headers
    is_closed = True
    assert "Set-Cookie" not in ask(origin).headers
    assert sorted(tmp_path.iterdir()) == kept


SENTRY = """
import sentry_sdk
from flask import Flask
from prefetch_kit import Prefetch
from sentry_sdk.integrations.flask import FlaskIntegration

def note(event, hint):
    error = event["exception"]["values"][-1]
    print(error["type"], error["mechanism"]["handled"])

sentry_sdk.init(
    "https://key@sentry.invalid/1",
    before_send=note,
    default_integrations=False,  # one of them reports what is logged, too
    integrations=[FlaskIntegration()],
)
prefetch = Prefetch("prefetch", __name__)
prefetch.pre_fetch()(lambda pull: {}["no such key"])
app = Flask("shop")
app.config["PREFETCH_APPIDS"] = ["wx1"]
app.register_blueprint(prefetch)
pull = "/pre_fetch?appid=wx1&timestamp=1700000000&path=a"
print(app.test_client().get(pull).headers["X-Prefetch-Refused"].partition(";")[0])
"""


@pytest.mark.slow
def test_failures_are_reported() -> None:
    """Sentry: a handler that fails is an unhandled error. It changes Flask: not in this process."""
    command = [sys.executable, "-c", SENTRY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "KeyError False\nfailed\n"


@pytest.mark.filterwarnings("default")
def test_traces(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask) -> None:
    """OpenTelemetry: a span for the pull, and the handler runs inside of it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    FlaskInstrumentor().instrument_app(app, tracer_provider=provider)
    prefetch.pre_fetch()(lambda _: f"{get_current_span().get_span_context().trace_id:x}")
    app.register_blueprint(prefetch)
    body = ask(serve(app)).body.decode()
    (span,) = exporter.get_finished_spans()
    assert span.name == "GET /prefetch/pre_fetch"
    assert span.context is not None
    assert f"{span.context.trace_id:x}" == body
    FlaskInstrumentor().uninstrument_app(app)


def test_metrics(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask) -> None:
    """prometheus-flask-exporter and `count_pulls` share a registry."""
    registry = CollectorRegistry()
    prefetch.pre_fetch()(index)
    app.register_blueprint(prefetch)
    PrometheusMetrics(app, registry=registry)
    count_pulls(app, registry)
    origin = serve(app)
    ask(origin)
    ask(origin, "/prefetch/period_fetch")
    said = generate_latest(registry).decode()
    assert 'flask_http_request_total{method="GET",status="200"} 1.0' in said
    assert 'flask_http_request_total{method="GET",status="404"} 1.0' in said
    assert 'prefetch_pulls_total{cache="none",kind="pre_fetch",outcome="served"' in said


def test_headers_of_proxies(app: Flask, prefetch: Prefetch, serve: Serve, ask: Ask) -> None:
    """ProxyFix: URLs are those of PREFETCH_BASE_URL, and the headers change no answer."""
    prefetch.pre_fetch()(lambda _: url_for("home", _external=True))
    app.add_url_rule("/", "home", lambda: Response(request.url))
    app.register_blueprint(prefetch)
    app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1, x_prefix=1)  # type: ignore[method-assign]
    headers = {"X_Forwarded_Host": "evil.example", "X_Forwarded_Prefix": "/evil"}
    assert ask(serve(app), **headers).body == b"https://shop.example/"
