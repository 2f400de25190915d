"""A cached handler's answer is for many pulls, so it sees nothing that belongs to one of them."""

from collections.abc import Callable
from contextvars import ContextVar

import pytest
from flask import (
    Flask,
    current_app,
    g,
    has_app_context,
    has_request_context,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response

from prefetch_kit import CachePolicy, Prefetch, Pull
from prefetch_kit.sandbox import Sandbox

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]

tenant: ContextVar[str] = ContextVar("tenant", default="none")
trace: ContextVar[str] = ContextVar("trace", default="none")
ALWAYS_STALE = CachePolicy(fresh=1e-6)


def surroundings() -> dict[str, object]:
    return {
        "tenant": tenant.get(),
        "trace": trace.get(),
        "g": sorted(g),
        "request": has_request_context() or bool(request) or bool(session),
        "app": current_app.name,
    }


NOTHING = {"tenant": "none", "trace": "none", "g": [], "request": False, "app": "shop"}


@pytest.fixture
def app(make_app: App) -> Callable[..., Flask]:
    """`app(prefetch, **config)`: an app whose hook takes a tenant from the request."""

    def app(prefetch: Prefetch, **config: object) -> Flask:
        app = make_app(prefetch, **config)

        @app.before_request
        def remember() -> None:
            name = request.args.get("tenant", "nobody")
            tenant.set(name)
            trace.set(f"trace of {name}")
            g.tenant = session["tenant"] = name

        return app

    return app


@pytest.fixture
def seen(prefetch: Prefetch) -> list[dict[str, object]]:
    """What each run of a cached handler saw; its answers are stale at once."""
    seen: list[dict[str, object]] = []

    @prefetch.pre_fetch(cache=ALWAYS_STALE, deadline=60)
    def handler(pull: Pull) -> object:
        seen.append(surroundings())
        return pull.query.get("id", "none")

    return seen


def test_cached_handler_sees_nothing_of_the_request(
    app: App, prefetch: Prefetch, ask: Ask, until: Until, seen: list[dict[str, object]]
) -> None:
    """Neither in the foreground nor in a refresh."""
    shop = app(prefetch)
    assert ask(shop, tenant="acme").data == b"none"
    ask(shop, tenant="globex")
    until(lambda: len(seen) > 1)
    print(f"runs that saw something of a request: {len(seen) - seen.count(NOTHING)}")
    assert seen[:2] == [NOTHING] * 2


def test_named_variables_are_kept(
    app: App, prefetch: Prefetch, ask: Ask, until: Until, seen: list[dict[str, object]]
) -> None:
    """A trace is that of the pull that set off the run, in the background too."""
    shop = app(prefetch, PREFETCH_CONTEXT_VARS=["trace"])
    ask(shop, tenant="acme")
    ask(shop, tenant="globex")
    until(lambda: len(seen) > 1)
    assert seen[:2] == [NOTHING | {"trace": f"trace of {name}"} for name in ("acme", "globex")]


@pytest.mark.parametrize("names", [["flask.request_ctx", "flask.app_ctx"], "flask.request_ctx"])
def test_flasks_own_contexts_cannot_be_kept(
    app: App, prefetch: Prefetch, ask: Ask, seen: list[dict[str, object]], names: object
) -> None:
    """Naming them changes nothing."""
    ask(app(prefetch, PREFETCH_CONTEXT_VARS=names), tenant="acme")
    assert seen == [NOTHING]


def test_uncached_handler_keeps_the_callers_variables(
    app: App, prefetch: Prefetch, ask: Ask
) -> None:
    """Its answer is for this pull alone; the request stays out of reach nevertheless."""
    prefetch.pre_fetch()(lambda _: surroundings())
    answer = ask(app(prefetch), tenant="acme").json
    assert answer == NOTHING | {"tenant": "acme", "trace": "trace of acme"}


@pytest.mark.parametrize(
    "read", [lambda: g.tenant, lambda: session["tenant"], lambda: request.args]
)
def test_cached_handler_that_relies_on_the_request_fails(
    app: App,
    prefetch: Prefetch,
    ask: Ask,
    logged: Callable[[], list[str]],
    read: Callable[[], object],
) -> None:
    """And is told why, rather than given another's."""
    prefetch.pre_fetch(cache=30)(lambda _: f"{read()}")
    assert ask(app(prefetch), tenant="acme").status_code == 500
    assert "AttributeError" in logged()[-1] or "outside of request context" in logged()[-1]


def test_runs_leave_nothing_for_each_other(app: App, prefetch: Prefetch, ask: Ask) -> None:
    """One thread makes many answers; each starts from nothing."""
    seen: list[dict[str, object]] = []

    @prefetch.pre_fetch(cache=30)
    def handler(pull: Pull) -> object:
        seen.append(surroundings())
        g.canary = pull.query["id"]
        tenant.set("canary")
        return "x"

    shop = app(prefetch, PREFETCH_THREADS=1)
    for i in range(3):
        ask(shop, query=f"id={i}")
    assert seen == [NOTHING] * 3


def test_url_for_is_public_in_a_refresh_too(
    app: App, prefetch: Prefetch, ask: Ask, until: Until
) -> None:
    """Whatever the host was that the pull came to."""
    made: list[str] = []

    @prefetch.pre_fetch(cache=ALWAYS_STALE, deadline=60)
    def handler(_: Pull) -> str:
        made.append(url_for("prefetch.pre_fetch"))
        return made[-1]

    shop = app(prefetch, PREFETCH_BASE_URL="https://shop.example")
    assert ask(shop).data == ask(shop).data
    until(lambda: len(made) > 1)
    assert set(made) == {"https://shop.example/prefetch/pre_fetch"}


PAGES = ["pages/cached", "pages/plain", "pages/demands"]


@pytest.fixture
def asked(prefetch: Prefetch) -> list[object]:
    """What a check of the app's saw of the request, at pages that ask who the user is."""
    prefetch.pre_fetch("pages/cached", cache=30)(lambda pull: {"user": pull.user_id})
    prefetch.pre_fetch("pages/plain")(lambda pull: {"user": pull.user_id})
    prefetch.pre_fetch("pages/demands", login_required=True)(lambda _: {"user": "alice"})
    return []


def user_of(asked: list[object]) -> str:
    around = surroundings()
    asked.append([around["request"], around["g"], around["app"], has_app_context()])
    return "alice"


def test_token_verifier_does_not_see_the_request(
    app: App, prefetch: Prefetch, ask: Ask, asked: list[object]
) -> None:
    """It is asked by handlers, by the cache and before the handler, and always the same way."""
    prefetch.token_verifier(lambda _appid, _token: user_of(asked))
    shop = app(prefetch)
    for page in PAGES * 2:
        assert ask(shop, path=page, token="t", tenant="acme").json == {"user": "alice"}
    assert asked == [[False, [], "shop", True]] * 6


def test_code_user_does_not_see_the_request(
    app: App, prefetch: Prefetch, ask: Ask, asked: list[object]
) -> None:
    """The same for whom WeChat says a code is."""
    prefetch.code_user(lambda _appid, _openid, _unionid: user_of(asked))
    with Sandbox() as wx:
        wx.add_app("wx1", secret="a-secret")
        wx.add_user("wx1", "o-alice")
        shop = app(prefetch, PREFETCH_APP_SECRET="a-secret", PREFETCH_API_BASE_URL=wx.base_url)
        for page in PAGES * 2:
            code = wx.login_code("wx1", "o-alice")
            assert ask(shop, path=page, code=code, tenant="acme").json == {"user": "alice"}
    assert asked == [[False, [], "shop", True]] * 6


def test_token_verifier_always_sees_the_same(
    app: App, prefetch: Prefetch, ask: Ask, asked: list[object]
) -> None:
    """Otherwise one token would prove one user to a handler and another to the cache."""
    prefetch.token_verifier(lambda _appid, token: f"{token} of {tenant.get()}")
    shop = app(prefetch)
    answers = {ask(shop, path="pages/cached", token="t", tenant="acme").data for _ in range(3)}
    assert len(answers) == 1
