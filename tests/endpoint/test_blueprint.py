"""The routes of a Prefetch: methods, headers, addresses."""

from collections.abc import Callable

import pytest
from flask import Blueprint, Flask, g, url_for
from flask.cli import routes_command
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch

QUERY = "appid=wx1&timestamp=1700000000"
App = Callable[..., Flask]
Ask = Callable[..., Response]
Send = Callable[..., Response]


@pytest.fixture
def app(make_app: App, prefetch: Prefetch) -> Flask:
    prefetch.pre_fetch("pages/index/index")(lambda _: {"名": "茶"})
    prefetch.period_fetch()(lambda _: {"n": 1})
    return make_app(prefetch)


def test_answer_is_private_json(app: Flask, ask: Ask) -> None:
    """The headers keep proxies from storing and browsers from guessing."""
    reply = ask(app)
    assert (reply.status_code, reply.data.decode()) == (200, '{"名":"茶"}')
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert reply.headers["Content-Length"] == str(len(reply.data))
    assert reply.headers["Cache-Control"] == "private, no-store"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert not {"X-Prefetch-Refused", "Set-Cookie", "Allow"} & set(reply.headers.keys())


@pytest.mark.parametrize(
    ("parameters", "status"), [({"appid": ""}, 400), ({"appid": "x"}, 403), ({"path": "x"}, 404)]
)
def test_refusal_has_the_same_headers(
    app: Flask, ask: Ask, parameters: dict[str, str], status: int
) -> None:
    """An empty body is the one thing a phone is known to drop."""
    reply = ask(app, **parameters)
    assert (reply.status_code, reply.data) == (status, b"")
    assert reply.headers["Content-Length"] == "0"
    assert reply.headers["Cache-Control"] == "private, no-store"
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("kind", ["pre_fetch", "period_fetch"])
@pytest.mark.parametrize(
    "method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO", "PROPFIND"]
)
def test_other_methods_are_an_empty_405(app: Flask, send: Send, kind: str, method: str) -> None:
    """Never the app's page for it, and no automatic OPTIONS answer either."""
    reply = send(app, f"/prefetch/{kind}?{QUERY}&path=pages/index/index", method=method)
    assert (reply.status_code, reply.data) == (405, b"")
    assert (reply.headers["Allow"], reply.headers["X-Prefetch-Refused"]) == ("GET, HEAD", "method")


@pytest.mark.parametrize("path", ["pages/index/index", "pages/none"])
def test_head_is_get_without_its_body(app: Flask, send: Send, path: str) -> None:
    """A probe learns status, size and reason."""
    target = f"/prefetch/pre_fetch?{QUERY}&path={path}"
    got, head = send(app, target), send(app, target, method="HEAD")
    assert head.data == b""
    ignored = {"Date", "Server"}
    assert head.status_code == got.status_code
    assert {k: v for k, v in head.headers if k not in ignored} == {
        k: v for k, v in got.headers if k not in ignored
    }


def test_url_for_names_the_endpoints(app: Flask) -> None:
    """`prefetch.pre_fetch` and `prefetch.period_fetch`, like any blueprint's."""
    with app.test_request_context():
        assert url_for("prefetch.pre_fetch") == "/prefetch/pre_fetch"
        assert url_for("prefetch.period_fetch", _external=True).endswith("/prefetch/period_fetch")


def test_one_instance_twice_and_two_instances(make_app: App, send: Send) -> None:
    """Every registration answers under its own prefix, with its own handlers."""
    shop, news = Prefetch("shop", __name__), Prefetch("news", __name__)
    shop.pre_fetch()(lambda _: "shop")
    news.pre_fetch()(lambda _: "news")
    app = make_app()
    app.register_blueprint(shop, url_prefix="/a")
    app.register_blueprint(shop, url_prefix="/b", name="again")
    app.register_blueprint(news, url_prefix="/c")
    bodies = {prefix: send(app, f"/{prefix}/pre_fetch?{QUERY}").data for prefix in "abc"}
    assert bodies == {"a": b"shop", "b": b"shop", "c": b"news"}
    with app.test_request_context():
        assert url_for("again.pre_fetch") == "/b/pre_fetch"


def test_nested_blueprints(make_app: App, prefetch: Prefetch, send: Send) -> None:
    """Inside other blueprints the prefixes and names add up, and the 405 stays ours."""
    prefetch.pre_fetch()(lambda _: "x")
    inner, outer = Blueprint("inner", __name__), Blueprint("outer", __name__, url_prefix="/o")
    inner.register_blueprint(prefetch)
    outer.register_blueprint(inner, url_prefix="/i")
    app = make_app()
    app.register_blueprint(outer)
    assert send(app, f"/o/i/prefetch/pre_fetch?{QUERY}").data == b"x"
    assert send(app, f"/o/i/prefetch/pre_fetch?{QUERY}", method="OPTIONS").status_code == 405
    with app.test_request_context():
        assert url_for("outer.inner.prefetch.pre_fetch") == "/o/i/prefetch/pre_fetch"


def test_one_instance_serves_several_apps(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Apps of one factory share handlers and nothing else."""
    prefetch.pre_fetch()(lambda pull: f"{pull.appid} {pull.user_id}")
    one = make_app(prefetch, SECRET_KEY="one")
    two = make_app(prefetch, SECRET_KEY="two", PREFETCH_APPIDS=["wx1", "wx2"])
    with one.app_context():
        token = prefetch.issue_token("alice", appid="wx1")
    assert ask(one, token=token).data == b"wx1 alice"
    assert ask(two, token=token).data == b"wx1 None"
    assert [ask(app, appid="wx2").status_code for app in (one, two)] == [403, 200]


def test_appid_in_the_prefix_may_be_a_number(make_app: App, ask: Ask) -> None:
    """QQ's are digits, which `<int:…>` makes an int of."""
    prefetch = Prefetch("prefetch", __name__, url_prefix="/p/<int:appid>")
    prefetch.pre_fetch()(lambda pull: pull.appid)
    app = make_app(prefetch, PREFETCH_APPIDS=["1109876543", "1109876544"])
    assert ask(app, "/p/1109876543/pre_fetch", appid="1109876543").data == b"1109876543"
    assert ask(app, "/p/1109876543/pre_fetch", appid="1109876544").status_code == 403


@pytest.mark.parametrize("appid", ["wx1", "wx2"])
def test_appid_in_the_prefix_must_be_the_pulls(make_app: App, ask: Ask, appid: str) -> None:
    """A URL registered for one mini program answers no other's pulls."""
    prefetch = Prefetch("prefetch", __name__)
    prefetch.pre_fetch()(lambda pull: pull.appid)
    app = make_app(PREFETCH_APPIDS=["wx1", "wx2"])
    app.register_blueprint(prefetch, url_prefix="/p/<appid>/<lang>")
    for asked in ("wx1", "wx2"):
        reply = ask(app, f"/p/{appid}/zh/pre_fetch", appid=asked)
        if asked == appid:
            assert reply.data.decode() == appid
        else:
            assert reply.headers["X-Prefetch-Refused"] == "foreign-appid"
            assert (reply.status_code, reply.data) == (403, b"")


def test_values_in_the_prefix_reach_the_apps_preprocessors(make_app: App, ask: Ask) -> None:
    """A URL value that the app takes out itself is the app's own."""
    prefetch = Prefetch("prefetch", __name__)
    prefetch.pre_fetch()(lambda _: "x")
    app, seen = make_app(), list[object]()

    @app.url_value_preprocessor
    def take(_endpoint: str | None, values: dict[str, object] | None) -> None:
        g.lang = (values or {}).pop("lang", None)

    app.after_request(lambda response: seen.append(g.lang) or response)  # type: ignore[func-returns-value, redundant-expr]
    app.register_blueprint(prefetch, url_prefix="/<lang>")
    assert ask(app, "/zh/pre_fetch").data == b"x"
    assert seen == ["zh"]


def test_blueprint_hooks_work(app: Flask, make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """It is a flask.Blueprint: an app may put its own checks before the view."""
    guarded = Prefetch("guarded", __name__, url_prefix="/guarded")
    guarded.pre_fetch()(lambda _: "x")
    guarded.before_request(lambda: ("", 418))
    app.register_blueprint(guarded)
    assert ask(app, "/guarded/pre_fetch").status_code == 418
    assert ask(app).status_code == 200


def test_flask_routes_lists_the_endpoints(app: Flask) -> None:
    """The command prints rules that take every method."""
    done = app.test_cli_runner().invoke(routes_command, [])
    assert done.exit_code == 0, done.output
    assert "prefetch.period_fetch" in done.output
    assert "/prefetch/pre_fetch" in done.output


@pytest.mark.parametrize("method", ["pre_fetch", "period_fetch", "token_verifier", "code_user"])
@pytest.mark.usefixtures("app")
def test_handler_added_after_registration_is_an_error(prefetch: Prefetch, method: str) -> None:
    """As Flask itself has it: what is checked at registration stays checked."""
    with pytest.raises(AssertionError, match=f"'{method}' can no longer be called"):
        getattr(prefetch, method)(lambda *_: None)


def test_routes_can_be_listed(app: Flask) -> None:
    """As tools that describe an app's API do it."""
    rules = {rule.endpoint: rule for rule in app.url_map.iter_rules()}
    methods = rules["prefetch.pre_fetch"].methods
    assert methods is not None
    assert methods.difference({"HEAD", "OPTIONS"}) == {"GET"}
