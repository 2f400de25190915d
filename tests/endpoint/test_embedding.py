"""An app with unusual parts keeps all its behaviour, and the kit works inside it."""

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from flask import Blueprint, Flask, Response, abort, g, redirect, request, session, url_for
from werkzeug import Response as WerkzeugResponse
from werkzeug.exceptions import HTTPException

from prefetch_kit import ConfigError, Prefetch, Pull, fast_path

QUERY = "appid=wx1&timestamp=1700000000"
Send = Callable[..., WerkzeugResponse]
Ended = list[tuple[str, str]]


class Envelope(Response):
    default_mimetype = "application/vnd.shop+json"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headers["X-Envelope"] = "1"


def build(*, catch_all: bool) -> tuple[Flask, Ended]:
    """A shop that minds everything; and how its requests and contexts ended."""
    app, ended = Flask("shop", subdomain_matching=True), Ended()
    app.response_class = Envelope
    app.config.update(SECRET_KEY="k", SERVER_NAME="shop.example", MAX_CONTENT_LENGTH=8)
    app.config.update(PREFETCH_APPIDS=["wx1", "wx2"], TRAP_BAD_REQUEST_ERRORS=False)
    _add_hooks(app, ended)
    _add_views(app)
    _add_error_pages(app, catch_all=catch_all)
    return app, ended


def _add_hooks(app: Flask, ended: Ended) -> None:
    @app.url_value_preprocessor
    def take_lang(_endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.lang = (values or {}).pop("lang", "en")

    @app.url_defaults
    def give_lang(endpoint: str, values: dict[str, Any]) -> None:
        if app.url_map.is_endpoint_expecting(endpoint, "lang"):
            values.setdefault("lang", "zh")

    @app.before_request
    def guard() -> Any:
        session["seen"] = True
        return ("closed", 503) if "closed" in request.args else None

    @app.after_request
    def stamp(response: Response) -> Response:
        response.headers["X-Shop"] = g.lang
        return response

    app.teardown_request(lambda error: ended.append(("request", type(error).__name__)))
    app.teardown_appcontext(lambda error: ended.append(("context", type(error).__name__)))


def _add_views(app: Flask) -> None:
    def fail() -> NoReturn:
        raise ZeroDivisionError

    app.add_url_rule("/", "home", lambda: f"home {url_for('hello')}")
    app.add_url_rule("/<lang>/hello", "hello", lambda: f"hello {g.lang}")
    app.add_url_rule("/dir/", "dir", lambda: "dir")
    app.add_url_rule("/fail", "fail", fail)
    app.add_url_rule("/abort", "abort", lambda: abort(409))
    app.add_url_rule("/away", "away", lambda: redirect("/"))
    app.add_url_rule("/echo", "echo", lambda: request.get_data(), methods=["POST"])
    app.add_url_rule("/v1", "api", lambda: {"api": 1}, subdomain="api")
    inner = Blueprint("inner", __name__, url_prefix="/inner")
    inner.add_url_rule("/fail", "fail", fail)
    inner.add_url_rule("/abort", "abort", lambda: abort(404))
    inner.register_error_handler(404, lambda _: ("inner 404", 404))
    app.register_blueprint(inner)


def _add_error_pages(app: Flask, *, catch_all: bool) -> None:
    for code in (404, 405, 413, 500):
        app.register_error_handler(code, lambda error: (f"<h1>{error.code}</h1>", error.code))
    app.register_error_handler(HTTPException, lambda error: (f"http {error.code}", error.code))
    if catch_all:
        app.register_error_handler(Exception, lambda error: (f"any {error!r}", 599))


def embed(app: Flask) -> Flask:
    """Two instances of the blueprint, registered in every way there is."""

    def fail(_pull: Pull) -> NoReturn:
        raise ZeroDivisionError("canary")

    one, two = Prefetch("one", __name__), Prefetch("two", __name__, url_prefix="/two")
    for prefetch in (one, two):
        prefetch.pre_fetch("pages/fail")(fail)
        prefetch.pre_fetch("pages/index")(lambda pull: f"data {pull.appid} {'lang' in g}")
    app.register_blueprint(one, url_prefix="/prefetch")
    app.register_blueprint(one, url_prefix="/again", name="again")
    app.register_blueprint(one, url_prefix="/<lang>/p/<appid>", name="of_app")
    app.register_blueprint(one, subdomain="data", name="sub")
    middle, outer = Blueprint("middle", __name__), Blueprint("outer", __name__)
    outer.register_error_handler(Exception, lambda _: ("outer", 598))
    middle.register_blueprint(two)
    outer.register_blueprint(middle, url_prefix="/middle")
    app.register_blueprint(outer, url_prefix="/outer")
    return app


OWN = [
    ("GET", "/", "shop.example"),
    ("HEAD", "/", "shop.example"),
    ("POST", "/", "shop.example"),
    ("OPTIONS", "/", "shop.example"),
    ("FOO", "/", "shop.example"),
    ("GET", "/?closed", "shop.example"),
    ("GET", "/fr/hello", "shop.example"),
    ("GET", "/dir", "shop.example"),
    ("GET", "/dir/", "shop.example"),
    ("GET", "/fail", "shop.example"),
    ("GET", "/abort", "shop.example"),
    ("GET", "/away", "shop.example"),
    ("GET", "/inner/fail", "shop.example"),
    ("GET", "/inner/abort", "shop.example"),
    ("GET", "/inner/none", "shop.example"),
    ("GET", "/static/none.css", "shop.example"),
    ("GET", "/none", "shop.example"),
    ("DELETE", "/none", "shop.example"),
    ("GET", "/v1", "api.shop.example"),
    ("GET", "/v2", "api.shop.example"),
    ("GET", "/v1", "shop.example"),
    ("GET", f"/prefetch?{QUERY}", "shop.example"),
    ("GET", f"/prefetch/?{QUERY}", "shop.example"),
    ("GET", f"/prefetch/pre_fetch/?{QUERY}", "shop.example"),
    ("GET", f"/prefetch/pre_fetch/x?{QUERY}", "shop.example"),
    ("GET", f"/prefetch/other?{QUERY}", "shop.example"),
    ("OPTIONS", "/prefetch/", "shop.example"),
    ("GET", f"/outer/pre_fetch?{QUERY}", "shop.example"),
    ("GET", f"/Prefetch/pre_fetch?{QUERY}", "shop.example"),
    ("GET", f"/prefetch//pre_fetchx?{QUERY}", "shop.example"),
]


def seen(reply: WerkzeugResponse) -> tuple[int, list[tuple[str, str]], bytes]:
    headers = sorted(pair for pair in reply.headers if pair[0] not in ("Date", "Set-Cookie"))
    return reply.status_code, [*headers, ("cookie", str("Set-Cookie" in reply.headers))], reply.data


@pytest.mark.parametrize("catch_all", [True, False])
@pytest.mark.parametrize(("method", "target", "host"), OWN)
def test_app_behaves_as_without_the_kit(
    send: Send, method: str, target: str, host: str, catch_all: bool
) -> None:
    """Same status, headers, body, hooks and teardown for every request that is the app's own."""
    plain, plain_ended = build(catch_all=catch_all)
    kit, kit_ended = build(catch_all=catch_all)
    replies = [send(app, target, method=method, host=host) for app in (plain, embed(kit))]
    assert seen(replies[0]) == seen(replies[1])
    assert plain_ended == kit_ended != []


@pytest.mark.parametrize("body", [b"small", b"larger than eight bytes"])
def test_limits_of_the_app_stay(send: Send, body: bytes) -> None:
    """MAX_CONTENT_LENGTH counts for the app's views as before."""
    plain, kit = build(catch_all=False)[0], embed(build(catch_all=False)[0])
    replies = [
        send(app, "/echo", method="POST", host="shop.example", body=body) for app in (plain, kit)
    ]
    assert seen(replies[0]) == seen(replies[1])
    assert replies[0].status_code == (200 if body == b"small" else 413)


PREFIXES = [
    ("/prefetch/pre_fetch", "shop.example", "en"),
    ("/again/pre_fetch", "shop.example", "en"),
    ("/zh/p/wx1/pre_fetch", "shop.example", "zh"),
    ("/pre_fetch", "data.shop.example", "en"),
    ("/outer/middle/two/pre_fetch", "shop.example", "en"),
]


@pytest.mark.slow
@pytest.mark.parametrize("catch_all", [True, False])
@pytest.mark.parametrize(("prefix", "host", "lang"), PREFIXES)
@pytest.mark.parametrize(
    ("method", "query", "status", "body"),
    [
        ("GET", f"{QUERY}&path=pages/index", 200, b"data wx1 False"),
        ("HEAD", f"{QUERY}&path=pages/index", 200, b""),
        ("GET", f"{QUERY}&path=pages/none", 404, b""),
        ("GET", f"{QUERY}&path=pages/fail", 500, b""),
        ("GET", f"{QUERY}&path=%FF", 400, b""),
        ("GET", "appid=wx3&timestamp=1700000000&path=pages/index", 403, b""),
        ("POST", f"{QUERY}&path=pages/index", 405, b""),
        ("OPTIONS", f"{QUERY}&path=pages/index", 405, b""),
        ("FOO", f"{QUERY}&path=pages/index", 405, b""),
    ],
)
def test_kit_behaves_the_same_at_every_prefix(
    send: Send,
    prefix: str,
    host: str,
    lang: str,
    catch_all: bool,
    method: str,
    query: str,
    status: int,
    body: bytes,
) -> None:
    """No error page of the app gets in between, while its hooks and response class still work."""
    app, ended = build(catch_all=catch_all)
    reply = send(embed(app), f"{prefix}?{query}", method=method, host=host)
    assert (reply.status_code, reply.data) == (status, body)
    assert (status == 200) != ("X-Prefetch-Refused" in reply.headers)
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert (reply.headers["X-Shop"], reply.headers["X-Envelope"]) == (lang, "1")
    assert ended[-2:] == [("request", "NoneType"), ("context", "NoneType")]
    assert (("context", "ZeroDivisionError") in ended) == (status == 500)


def test_appid_in_the_prefix_is_checked_beside_other_values(send: Send) -> None:
    """`/zh/p/wx1` answers no pull of wx2, though wx2 is the app's too."""
    app = embed(build(catch_all=True)[0])
    target = "/zh/p/wx1/pre_fetch?appid=wx2&timestamp=1700000000&path=pages/index"
    reply = send(app, target, host="shop.example")
    assert (reply.status_code, reply.headers["X-Prefetch-Refused"]) == (403, "foreign-appid")


def test_hook_of_the_app_may_answer_first(send: Send) -> None:
    """A maintenance mode of the app closes the kit's routes like all others, without its page."""
    app = embed(build(catch_all=False)[0])
    reply = send(app, f"/prefetch/pre_fetch?closed&{QUERY}", host="shop.example")
    assert (reply.status_code, reply.data) == (503, b"")
    assert reply.headers["X-Prefetch-Refused"] == "app"


def by_host(**config: object) -> Flask:
    """A shop that finds its views by the host, with the kit in it."""
    app = Flask("shop", host_matching=True, static_host="shop.example")
    app.config.update({"PREFETCH_APPIDS": ["wx1"], **config})
    prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
    prefetch.pre_fetch("pages/index")(lambda _: url_for("prefetch.pre_fetch", _external=True))
    app.register_blueprint(prefetch)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    return app


@pytest.mark.parametrize(("host", "status"), [("shop.example", 200), ("other.example", 404)])
def test_an_app_that_matches_hosts(send: Send, host: str, status: int) -> None:
    """The kit is at the host of PREFETCH_BASE_URL, and builds its URLs there."""
    app = by_host(PREFETCH_BASE_URL="https://shop.example")
    reply = send(app, f"/prefetch/pre_fetch?{QUERY}&path=pages/index", host=host)
    assert reply.status_code == status
    if status == 200:
        assert reply.data == b"https://shop.example/prefetch/pre_fetch"


def test_an_app_that_matches_hosts_has_to_say_which() -> None:
    """Without a host in its rules no pull would ever find the kit."""
    with pytest.raises(ConfigError, match=r"PREFETCH_BASE_URL is missing.*host_matching"):
        by_host()
