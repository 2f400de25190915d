"""Handlers run inside the app and away from the request; users are proved when asked for."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    current_app,
    g,
    has_app_context,
    has_request_context,
    request,
    session,
    url_for,
)
from flask.ctx import RequestContext
from werkzeug.wrappers import Response

from prefetch_kit import ConfigError, ForeignAppid, Prefetch, Pull

App = Callable[..., Flask]
Ask = Callable[..., Response]
tenant: ContextVar[str] = ContextVar("tenant", default="none")


class OwnRequestContext(RequestContext):
    """As an app may have, by overriding `Flask.request_context`."""


class OwnApp(Flask):
    def request_context(self, environ: Any) -> RequestContext:
        return OwnRequestContext(self, environ)


def reach(pull: Pull) -> dict[str, object]:
    return {
        "request": bool(request),
        "session": bool(session),
        "has_request_context": has_request_context(),
        "has_app_context": has_app_context(),
        "app": current_app.name,
        "g": sorted(g),
        "tenant": tenant.get(),
    }


@pytest.mark.parametrize("make", [Flask, OwnApp])
def test_handler_cannot_reach_the_request(prefetch: Prefetch, ask: Ask, make: type[Flask]) -> None:
    """No request, no session, its own `g`; the app and the caller's own variables stay."""
    prefetch.pre_fetch()(reach)
    app = make("shop")
    app.config.update(SECRET_KEY="k", PREFETCH_APPIDS=["wx1"])
    app.register_blueprint(prefetch)

    @app.before_request
    def remember() -> None:
        g.cart, session["user"] = "canary", "canary"
        tenant.set("acme")

    assert ask(app).json == {
        "request": False,
        "session": False,
        "has_request_context": False,
        "has_app_context": True,
        "app": "shop",
        "g": [],
        "tenant": "acme",
    }


@pytest.mark.parametrize("use", [lambda: request.args, lambda: session.get("user")])
def test_using_the_request_is_a_failure(
    make_app: App, prefetch: Prefetch, ask: Ask, use: Callable[[], object]
) -> None:
    """A handler that tries is told by Flask's own sentence in the log, not silently wrong."""
    prefetch.pre_fetch()(lambda _: use())
    assert ask(make_app(prefetch)).status_code == 500


def test_handler_leaves_nothing_behind(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """What a handler puts into `g` or a context variable is gone for the app's own hooks."""

    def handler(_pull: Pull) -> str:
        g.cart = "canary"
        tenant.set("canary")
        return "x"

    prefetch.pre_fetch()(handler)
    app, seen = make_app(prefetch), list[object]()

    @app.after_request
    def look(response: Any) -> Any:
        seen.extend(["cart" in g, tenant.get(), has_request_context()])
        return response

    assert ask(app).status_code == 200
    assert seen == [False, "none", True]


@pytest.mark.parametrize("base", ["https://shop.example", "https://shop.example/mount/point"])
def test_url_for_builds_public_addresses(
    make_app: App, prefetch: Prefetch, ask: Ask, base: str
) -> None:
    """Links in the data lead to PREFETCH_BASE_URL, its mount path included."""
    pages = Blueprint("pages", __name__, url_prefix="/pages", static_folder="static")
    pages.add_url_rule("/<int:n>", "one")
    prefetch.pre_fetch()(
        lambda _: [
            url_for("pages.one", n=7, a="b c"),
            url_for("static", filename="logo.png"),
            url_for("pages.static", filename="x.css"),
            url_for("prefetch.pre_fetch"),
            url_for("pages.one", n=7, _external=False),
        ]
    )
    app = make_app(prefetch, PREFETCH_BASE_URL=base)
    app.register_blueprint(pages)
    assert ask(app).json == [
        f"{base}/pages/7?a=b+c",
        f"{base}/static/logo.png",
        f"{base}/pages/static/x.css",
        f"{base}/prefetch/pre_fetch",
        f"{base.removeprefix('https://shop.example')}/pages/7",
    ]


def test_url_for_knows_subdomains(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Subdomains are put before the domain of the base URL."""
    prefetch.pre_fetch()(lambda _: url_for("api"))
    app = make_app(prefetch, PREFETCH_BASE_URL="https://shop.example")
    app.add_url_rule("/v1", "api", lambda: "", subdomain="api")
    assert ask(app).data == b"https://api.shop.example/v1"


def test_url_for_without_base_url_is_flasks_own_error(
    make_app: App, prefetch: Prefetch, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    """No address is made up from a Host header that a stranger chose."""
    prefetch.pre_fetch()(lambda _: url_for("prefetch.pre_fetch"))
    assert ask(make_app(prefetch)).status_code == 500
    assert "Unable to build URLs outside an active request" in caplog.text


@pytest.mark.parametrize("fails", [True, False])
def test_teardown_learns_how_the_handler_ended(
    make_app: App, prefetch: Prefetch, ask: Ask, fails: bool
) -> None:
    """Database sessions roll back or commit by the exception they are given."""
    prefetch.pre_fetch()(lambda _: 1 / 0 if fails else "x")
    app, ended = make_app(prefetch), list[str]()
    app.teardown_appcontext(lambda error: ended.append(type(error).__name__))
    ask(app)
    of_handler, of_request = ("ZeroDivisionError", "NoneType") if fails else ("NoneType",) * 2
    assert ended == [of_handler, of_request]


def test_failing_teardown_is_a_failure(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """Data whose transaction could not be committed does not go out."""
    prefetch.pre_fetch()(lambda _: "canary")
    app = make_app(prefetch)

    ends = iter([OSError("disk full")])

    @app.teardown_appcontext
    def commit(_error: BaseException | None) -> None:
        for error in ends:
            raise error

    assert ask(app).data == b""


def test_pull_stays_readable_afterwards(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A Pull kept by a handler can be read when the request is long over, in any thread."""
    kept: list[Pull] = []
    prefetch.pre_fetch()(kept.append)
    prefetch.token_verifier(lambda appid, token: f"{current_app.name}:{appid}:{token}")
    ask(make_app(prefetch), token="t", query="id=7", scene="1001")

    def read() -> tuple[object, ...]:
        return kept[0].user_id, kept[0].path, kept[0].query["id"], kept[0].scene

    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(read).result()
    assert read() == elsewhere == ("shop:wx1:t", "pages/index/index", "7", 1001)


def noting(asked: list[str]) -> Callable[[str, str], str]:
    """A token verifier that takes the token for the user, and notes that it was asked."""

    def verify(_appid: str, token: str) -> str:
        asked.append(token)
        time.sleep(0.02)  # long enough for another thread to ask too, if it were let
        return token

    return verify


def test_handlers_threads_ask_once(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A handler that reads the user in several threads has them proved once."""
    asked: list[str] = []
    together = threading.Barrier(8)

    def read(pull: Pull) -> str | None:
        together.wait(10)
        return pull.user_id

    def handler(pull: Pull) -> list[str | None]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(read, [pull] * 8))

    prefetch.pre_fetch()(handler)
    prefetch.token_verifier(noting(asked))
    assert ask(make_app(prefetch), token="alice").json == ["alice"] * 8
    assert asked == ["alice"]


def test_verifier_is_asked_on_every_pull(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """The app's own check replaces the kit's, and a ban works from the next pull on."""
    asked: list[tuple[str, str]] = []
    prefetch.pre_fetch("pages/index/index")(
        lambda pull: {"user": pull.user_id, "again": pull.user_id}
    )

    @prefetch.token_verifier
    def verify(appid: str, token: str) -> str | None:
        asked.append((appid, token))
        return None if len(asked) > 2 else token

    app = make_app(prefetch)
    with app.app_context():
        token = prefetch.issue_token("alice", appid="wx1")
    users = [ask(app, token=token).json["user"] for _ in range(4)]  # type: ignore[index]
    assert users == [token, token, None, None]
    assert asked == [("wx1", token)] * 4


def test_user_is_proved_only_if_asked_for(make_app: App, prefetch: Prefetch, ask: Ask) -> None:
    """A page that reads no user costs no check."""
    asked: list[str] = []
    prefetch.pre_fetch("pages/free")(lambda _: "x")
    prefetch.pre_fetch("pages/reads")(lambda pull: pull.user_id)
    prefetch.pre_fetch("pages/demands", login_required=True)(lambda _: "x")
    prefetch.token_verifier(noting(asked))
    app = make_app(prefetch)
    for page in ("free", "reads", "demands"):
        assert ask(app, path=f"pages/{page}", token=page).status_code == 200
    assert asked == ["reads", "demands"]


@pytest.mark.parametrize("returned", ["", 7, 0, False, True, b"alice", ["alice"], object()])
@pytest.mark.parametrize("login_required", [True, False])
def test_verifier_must_return_an_id_or_none(
    make_app: App, prefetch: Prefetch, ask: Ask, returned: Any, login_required: bool
) -> None:
    """Anything else is a failure of the app and never a user."""
    prefetch.pre_fetch(login_required=login_required)(lambda pull: f"canary {pull.user_id}")
    prefetch.token_verifier(lambda _appid, _token: returned)
    reply = ask(make_app(prefetch), token="t")
    assert (reply.status_code, reply.data) == (500, b"")


@pytest.mark.parametrize("register", ["token_verifier", "code_user"])
def test_check_is_set_once(prefetch: Prefetch, register: str) -> None:
    """A second check would silently replace the first."""
    getattr(prefetch, register)(lambda *_: None)
    with pytest.raises(ValueError, match=f"{register} is set already"):
        getattr(prefetch, register)(lambda *_: None)


def test_token_needs_a_known_appid_and_a_key(make_app: App, prefetch: Prefetch) -> None:
    """What could never prove a user is not minted."""
    with make_app(prefetch).app_context(), pytest.raises(ForeignAppid, match="wx2 is not in"):
        prefetch.issue_token("alice", appid="wx2")
    with (
        make_app(prefetch, SECRET_KEY=None).app_context(),
        pytest.raises(ConfigError, match="SECRET_KEY"),
    ):
        prefetch.issue_token("alice", appid="wx1")
    with Flask("bare").app_context(), pytest.raises(ConfigError, match="is not registered"):
        prefetch.issue_token("alice", appid="wx1")


def test_minted_token_proves_its_user_to_its_app_only(
    make_app: App, prefetch: Prefetch, ask: Ask
) -> None:
    """Through the whole way: the right app, another app, no app key, a cut token."""
    prefetch.pre_fetch()(lambda pull: f"user {pull.user_id}")
    app = make_app(prefetch, PREFETCH_APPIDS=["wx1", "wx2"])
    with app.app_context():
        token = prefetch.issue_token("李", appid="wx1")
    assert ask(app, token=token).data.decode() == "user 李"
    assert ask(app, token=token, appid="wx2").data == b"user None"
    assert ask(app, token=token[:-1]).data == b"user None"
    assert ask(make_app(prefetch, SECRET_KEY=None), token=token).data == b"user None"
