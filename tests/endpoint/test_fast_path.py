"""The fast path answers what the slow way would, byte for byte, and leaves it everything else."""

import io
import random
import sys
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from flask import (
    Flask,
    Request,
    Response,
    current_app,
    got_request_exception,
    request,
    request_started,
)
from flask.sessions import SecureCookieSessionInterface
from werkzeug.routing import Map, MapAdapter, Rule

from prefetch_kit import NO_DATA, CachePolicy, Prefetch, Pull, fast_path, pull_served

Wsgi = Callable[..., Any]
Reply = tuple[str, list[tuple[str, str]], bytes]
AT = "/prefetch/pre_fetch"


class Requests(Map):
    """Counts the requests that reach Flask: it asks of each where it leads."""

    count = 0

    def bind_to_environ(self, *args: Any, **kwargs: Any) -> MapAdapter:
        self.count += 1
        return super().bind_to_environ(*args, **kwargs)


class Shop:
    """An app with a fast path, and a function of its own around each request unless `is_bare`."""

    def __init__(
        self,
        *,
        before: Callable[[Prefetch], None] | None = None,
        is_bare: bool = False,
        flask: type[Flask] = Flask,
        **config: Any,
    ) -> None:
        self.prefetch = prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
        self._add_pages(prefetch)
        if before is not None:
            before(prefetch)
        self.app = flask("shop")
        self.app.url_map = self.requests = Requests()
        self.app.config |= {
            "SECRET_KEY": "a key of the shop",
            "PREFETCH_APPIDS": ["wx1", "wx2"],
        } | config
        self.app.register_blueprint(prefetch)
        if not is_bare:
            self.app.before_request(lambda: None)
        self.slow = self.app.wsgi_app
        self.app.wsgi_app = self.fast = fast_path(self.app)  # type: ignore[method-assign]
        with self.app.app_context():
            self.tokens = [prefetch.issue_token(user, appid="wx1") for user in ("alice", "bob")]

    def _add_pages(self, prefetch: Prefetch) -> None:
        def told(pull: Pull, *read: object) -> object:
            return [pull.appid, *read]

        cached = prefetch.pre_fetch
        cached("shared", cache=60)(lambda pull: told(pull))
        cached("user", cache=60)(lambda pull: told(pull, pull.user_id))
        cached("query", cache=60)(lambda pull: told(pull, pull.query.get("id"), pull.scene))
        cached("demands", cache=60, login_required=True)(lambda pull: told(pull))
        cached("nothing", cache=60)(lambda _: NO_DATA)
        cached("stale", cache=CachePolicy(fresh=1e-9))(lambda pull: told(pull))
        cached("uncached")(lambda pull: told(pull))
        cached("needs")(lambda pull: told(pull, pull.query["id"]))
        cached("fails")(lambda _: 1 // 0)
        cached(cache=60)(lambda pull: told(pull, pull.path, pull.version))
        prefetch.period_fetch(cache=60)(lambda pull: told(pull, pull.user_id))

    def ask(self, wsgi: Wsgi, query: str, **environ: Any) -> Reply:
        given: dict[str, Any] = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": AT,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "shop.example",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
        started: list[Any] = []
        body = wsgi(given | environ, lambda *args: started.append(args))
        joined = b"".join(body)
        getattr(body, "close", lambda: None)()
        return started[0][0], started[0][1], joined

    def is_fast(self, query: str, **environ: Any) -> bool:
        """Whether the second of two such pulls is answered before Flask."""
        self.ask(self.fast, query, **environ)
        before = self.requests.count
        self.ask(self.fast, query, **environ)
        return self.requests.count == before


def pull(path: str | None = "shared", **parameters: str) -> str:
    given = {"appid": "wx1", "timestamp": "1700000000", "path": path} | parameters
    pairs = {name: value for name, value in given.items() if value is not None}
    return urlencode(pairs, quote_via=quote, safe="")


SHOP, BARE = Shop(), Shop(is_bare=True)
_pages = ["shared", "user", "query", "demands", "nothing", "stale", "uncached", "needs", "fails"]
_pages += ["pages/x", ""]
_tokens = [*SHOP.tokens, SHOP.tokens[0][:-1], "forged", "x" * 1025]
_odd = ["", "&", "&appid=wx1", "&scene=x", "&query=%00", "&new=1", "&token=%ff", "?appid=wx1"]


_values = {
    "token": _tokens,
    "code": ["c"],
    "query": ["id=1", "id=2", "id=%E6%9D%8E", "id=%ff", "a=b&id=1"],
    "scene": ["1001", "7", "x", ""],
    "customMiniprogramVersion": ["1.0", "", "v" * 65],
}


@pytest.mark.slow
@pytest.mark.parametrize("shop", [SHOP, BARE], ids=["before_request", "bare"])
@pytest.mark.parametrize("seed", range(2))
def test_both_ways_give_the_same_bytes(shop: Shop, seed: int) -> None:
    """Status, headers in their order, and body; with the same answers kept for both."""
    chance = random.Random(seed)
    for _ in range(1500):
        given = {"appid": chance.choice(["wx1", "wx1", "wx2", "wx3"])}
        given |= {name: chance.choice(_values[name]) for name in _values if chance.random() < 0.5}
        query = pull(chance.choice([*_pages, None]), **given) + chance.choice(_odd + [""] * 8)
        environ = {
            "PATH_INFO": chance.choice([AT, AT, "/prefetch/period_fetch", f"{AT}/", "/elsewhere"]),
            "REQUEST_METHOD": chance.choice(["GET", "GET", "GET", "HEAD", "POST"]),
        }
        slow, fast = (shop.ask(way, query, **environ) for way in (shop.slow, shop.fast))
        assert without_incident(fast) == without_incident(slow), (query, environ)


def without_incident(reply: Reply) -> Reply:
    status, headers, body = reply
    return status, [(name, value.partition("; incident=")[0]) for name, value in headers], body


@pytest.mark.parametrize(
    ("query", "is_fast"),
    [
        (pull(), True),
        (pull(timestamp="1700000000123"), True),
        (pull("pages/index/index", scene="1001", query="id=3"), True),
        (pull("user", token=SHOP.tokens[0]), True),
        (pull("user", token="forged"), True),
        (pull("demands", token=SHOP.tokens[0]), True),
        (pull("shared", code="c"), True),
        (pull("uncached"), False),
        (pull("nothing"), False),
        (pull("stale"), False),
        (pull(appid="wx3"), False),
        (pull() + "&new=1", False),
        (pull() + "&scene=", False),
        (pull(query="id=%ff"), False),
    ],
    ids=count(),  # not the tokens, which each process mints anew
)
def test_hits_that_are_written_the_usual_way_are_fast(query: str, is_fast: bool) -> None:
    """Everything else goes on to Flask, where the app has a function of its own there."""
    assert Shop().is_fast(query) == is_fast
    assert Shop(is_bare=True).is_fast(query)


@pytest.mark.parametrize("is_bare", [False, True])
@pytest.mark.parametrize("credential", [{}, {"token": "forged"}])
def test_what_is_kept_for_users_is_given_to_users_alone(
    is_bare: bool, credential: dict[str, str]
) -> None:
    """A page that demands a user keeps one answer for all users, and for nobody else."""
    shop = Shop(is_bare=is_bare)
    assert shop.is_fast(pull("demands", token=shop.tokens[0]))
    assert shop.ask(shop.fast, pull("demands", **credential))[0] == "401 UNAUTHORIZED"
    assert shop.ask(shop.fast, pull("demands", token=shop.tokens[1]))[2] == b'["wx1"]'


def _on_started(shop: Shop) -> None:
    request_started.connect(_nothing, shop.app)


def _nothing(*_: object, **__: object) -> None:
    """For hooks that have nothing to do."""


@pytest.mark.parametrize(
    "add",
    [
        lambda shop: shop.app.before_request(_nothing),
        lambda shop: shop.app.after_request(lambda response: response),
        lambda shop: shop.app.teardown_request(_nothing),
        lambda shop: shop.app.url_value_preprocessor(_nothing),
        lambda shop: shop.app.before_request_funcs["prefetch"].append(_nothing),
        _on_started,
    ],
)
def test_whatever_of_the_apps_would_run_does(add: Callable[[Shop], Any]) -> None:
    """With any such function a pull that is no hit goes through Flask."""
    bare, shop = Shop(is_bare=True), Shop(is_bare=True)
    add(shop)
    assert bare.is_fast(pull("uncached"))
    assert not shop.is_fast(pull("uncached"))
    assert shop.is_fast(pull())


def test_function_added_later_runs() -> None:
    """Flask would refuse it after the first request, but behind the fast path it has seen none."""
    shop = Shop(is_bare=True)
    assert shop.is_fast(pull("uncached"))
    shop.app.before_request(lambda: ("denied", 403))
    assert shop.ask(shop.fast, pull("uncached"))[0] == "403 FORBIDDEN"


class Dispatching(Flask):
    def dispatch_request(self) -> Any:
        return super().dispatch_request()


class Sessions(SecureCookieSessionInterface):
    pass


class Requested(Request):
    pass


def _set(name: str, value: object) -> Callable[[Shop], None]:
    return lambda shop: setattr(shop.app, name, value)


def _wrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(step)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    return wrapper


def _wrap_step(shop: Shop) -> None:
    step = "full_dispatch_request"
    setattr(shop.app, step, _wrapped(getattr(shop.app, step)))


class Proxied:
    """A wrapper that passes for what it wraps, as those of tracers do."""

    def __init__(self, method: Any) -> None:
        self.__func__, self._method = method.__func__, method

    def __call__(self, *args: Any) -> Any:
        return self._method(*args)


def _proxy_step(shop: Shop) -> None:
    step = "full_dispatch_request"
    setattr(shop.app, step, Proxied(getattr(shop.app, step)))


def _wrap_view(shop: Shop) -> None:
    views = shop.app.view_functions
    views["prefetch.pre_fetch"] = _wrapped(views["prefetch.pre_fetch"])


@pytest.mark.parametrize(
    ("flask", "change"),
    [
        (Dispatching, _nothing),
        (Flask, _wrap_step),
        (Flask, _proxy_step),
        (Flask, _set("session_interface", Sessions())),
        (Flask, _set("request_class", Requested)),
    ],
)
def test_with_a_part_of_flask_replaced_only_hits_are_fast(
    flask: type[Flask], change: Callable[[Shop], None]
) -> None:
    """The replacement is there to see requests."""
    shop = Shop(is_bare=True, flask=flask)
    change(shop)
    assert not shop.is_fast(pull("uncached"))
    assert shop.is_fast(pull())


class Marked(Response):
    def get_wsgi_headers(self, environ: Any) -> Any:
        headers = super().get_wsgi_headers(environ)
        headers["X-Mark"] = "1"
        return headers


@pytest.mark.parametrize("change", [_wrap_view, _set("response_class", Marked)])
def test_view_or_response_of_the_apps_own_sees_all(change: Callable[[Shop], None]) -> None:
    """A guard around the view, headers of the app's own: not even a hit goes past them."""
    shop = Shop(is_bare=True)
    change(shop)
    assert not shop.is_fast(pull())


def test_wrapped_flask_is_seen_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracers wrap the class's own function, under its name."""
    shop = Shop(is_bare=True)
    monkeypatch.setattr(Flask, "dispatch_request", _wrapped(Flask.dispatch_request))
    assert not shop.is_fast(pull("uncached"))


@pytest.mark.parametrize(
    "how",
    [
        {"methods": ["POST"]},
        {"redirect_to": "/elsewhere"},
        {"build_only": True},
        {"websocket": True},
        {"subdomain": "api"},
    ],
)
def test_other_rules_of_the_view_are_as_flask_has_them(how: dict[str, Any]) -> None:
    """A URL is answered only where a GET of it leads to the view."""
    shop = Shop(is_bare=True)
    shop.app.url_map.add(Rule("/alias", endpoint="prefetch.pre_fetch", **how))
    slow, fast = (shop.ask(way, pull(), PATH_INFO="/alias") for way in (shop.slow, shop.fast))
    assert fast == slow
    assert not fast[0].startswith("200")


def test_another_view_of_the_same_url_goes_first() -> None:
    """The app's own rule, registered before ours."""
    app = Flask("shop")
    app.config["PREFETCH_APPIDS"] = ["wx1"]
    app.add_url_rule(AT, view_func=lambda: "own", endpoint="own")
    prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
    prefetch.pre_fetch(cache=60)(lambda _: "ours")
    app.register_blueprint(prefetch)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    assert app.test_client().get(f"{AT}?{pull()}").data == b"own"


def test_callable_appids_and_receivers_find_the_apps_context() -> None:
    """They may ask a database."""
    told: list[object] = []
    shop = Shop(
        is_bare=True, PREFETCH_APPIDS=lambda appid: appid == "wx1" and current_app.name == "shop"
    )
    with pull_served.connected_to(lambda *_, **__: told.append(current_app.name), shop.app):
        assert shop.ask(shop.fast, pull("uncached"))[0] == "200 OK"
        assert shop.ask(shop.fast, pull())[0] == "200 OK"
    hits = Shop()
    with pull_served.connected_to(lambda *_, **__: told.append(current_app.name), hits.app):
        assert hits.is_fast(pull())
    assert told == ["shop"] * 4


@pytest.mark.parametrize("fallbacks", ["a text", 5])
def test_useless_key_is_told_by_the_view(fallbacks: object) -> None:
    """Set while the app runs: a failure with its incident, not one of the server."""
    shop = Shop(is_bare=True)
    query = pull("user", token=shop.tokens[0])
    assert shop.is_fast(query)
    shop.app.config["SECRET_KEY_FALLBACKS"] = fallbacks
    assert shop.ask(shop.fast, query)[0] == "500 INTERNAL SERVER ERROR"


class Middleware:
    """Writes down what goes through it."""

    def __init__(self, inside: Wsgi) -> None:
        self._inside = inside
        self.seen: list[str] = []

    def method(self, environ: Any, start_response: Any) -> Any:
        self.seen.append(environ["QUERY_STRING"])
        return self._inside(environ, start_response)

    __call__ = method


@pytest.mark.parametrize("middleware", [lambda wsgi: wsgi, lambda wsgi: wsgi.method])
def test_middleware_inside_sees_all_but_hits(middleware: Callable[[Middleware], Wsgi]) -> None:
    """It is between the fast path and Flask."""
    shop = Shop(is_bare=True)
    between = Middleware(shop.slow)
    shop.app.wsgi_app = middleware(between)  # type: ignore[method-assign]
    fast = fast_path(shop.app)
    for page in ("uncached", "shared", "uncached", "shared"):
        shop.ask(fast, pull(page))
    assert between.seen == [pull("uncached"), pull("shared"), pull("uncached")]


@pytest.mark.parametrize("config", [{"TESTING": True}, {"PROPAGATE_EXCEPTIONS": True}])
def test_a_failure_is_raised_where_the_app_asks_for_it(config: dict[str, Any]) -> None:
    """Also where nothing of the app's own would send the pull to Flask."""
    shop = Shop(is_bare=True, **config)
    with pytest.raises(ZeroDivisionError):
        shop.ask(shop.fast, pull("fails"))


def test_a_test_may_ask_for_failures_after_the_first_pull() -> None:
    """As with the view, the setting counts that holds when the handler fails."""
    shop = Shop(is_bare=True)
    assert shop.is_fast(pull("fails"))
    shop.app.testing = True
    with pytest.raises(ZeroDivisionError):
        shop.ask(shop.fast, pull("fails"))


def test_a_failure_is_answered_before_flask() -> None:
    """As the view answers it, with its incident."""
    shop = Shop(is_bare=True)
    status, headers, body = shop.ask(shop.fast, pull("fails"))
    assert (status, body) == ("500 INTERNAL SERVER ERROR", b"")
    assert dict(headers)["X-Prefetch-Refused"].startswith("failed; incident=")
    assert shop.requests.count == 0


def test_with_an_error_tracker_failures_go_through_flask() -> None:
    """A tracker looks at the request of what failed."""
    shop, told = Shop(is_bare=True), list[tuple[object, str]]()

    def tell(_: Flask, exception: BaseException) -> None:
        told.append((type(exception), request.path))

    with got_request_exception.connected_to(tell, shop.app):
        assert shop.ask(shop.fast, pull("fails"))[0] == "500 INTERNAL SERVER ERROR"
    assert told == [(ZeroDivisionError, AT)]
    assert shop.requests.count == 1


@pytest.mark.parametrize(
    "environ",
    [
        {"REQUEST_METHOD": "HEAD"},
        {"HTTP_COOKIE": "session=x"},
        {"HTTP_UPGRADE": "websocket"},
        {"PATH_INFO": f"/{AT}"},
        {"PATH_INFO": f"{AT}/"},
    ],
)
def test_other_requests_go_on(environ: dict[str, str]) -> None:
    """A method, a cookie or a path that Flask may treat in its own way."""
    assert not Shop().is_fast(pull(), **environ)


def test_mounted_app_is_fast() -> None:
    """A mount takes its prefix away into SCRIPT_NAME, and the rest is the app's own URL."""
    assert Shop().is_fast(pull(), SCRIPT_NAME="/mounted")


@pytest.mark.parametrize(
    "config",
    [
        {"DEBUG": True},
        {"TRUSTED_HOSTS": ["shop.example"]},
        {"PREFETCH_APPIDS": lambda appid: appid == "wx1"},
    ],
)
def test_apps_that_must_see_the_request_are_slow(config: dict[str, Any]) -> None:
    """Debugging, checks of the host, and an app's own check of the appid."""
    assert not Shop(**config).is_fast(pull())


@pytest.mark.parametrize(
    ("credential", "register"),
    [
        ("token", lambda prefetch: prefetch.token_verifier(lambda *_: "alice")),
        ("code", lambda prefetch: prefetch.code_user(lambda *_: "alice")),
    ],
)
def test_what_the_app_has_to_prove_is_slow(
    credential: str, register: Callable[[Prefetch], None]
) -> None:
    """Its own verifier is asked on every pull; a pull without a credential is fast all the same."""
    shop = Shop(before=register, PREFETCH_APP_SECRETS={"wx1": "s", "wx2": "s"})
    assert not shop.is_fast(pull(**{credential: "c"}))
    assert shop.is_fast(pull())


def test_app_that_matches_hosts_is_slow() -> None:
    """Which view a URL leads to depends on the host there."""
    prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch", subdomain="api")
    prefetch.pre_fetch(cache=60)(lambda _: "x")
    app = Flask("shop", subdomain_matching=True)
    app.config |= {"SERVER_NAME": "shop.example", "PREFETCH_APPIDS": ["wx1"]}
    app.register_blueprint(prefetch)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    client = app.test_client()
    for host, status in (("api.shop.example", 200), ("shop.example", 404)) * 2:
        assert client.get(f"{AT}?{pull()}", base_url=f"http://{host}").status_code == status


def test_app_without_the_kit_goes_on() -> None:
    """Wrapped before the blueprint is registered, or without one at all."""
    app = Flask("shop")
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    assert app.test_client().get("/").status_code == 404


def test_fast_hits_are_told_to_receivers() -> None:
    """A counter sees them as it sees the others."""
    shop, told = Shop(), list[dict[str, Any]]()
    shop.ask(shop.fast, pull())
    with pull_served.connected_to(lambda _, **facts: told.append(facts), shop.app):
        assert shop.is_fast(pull())
    assert told[-1].pop("seconds") > 0
    facts = {"kind": "pre_fetch", "appid": "wx1", "page": "shared", "unknown_parameters": 0}
    assert told[-1] == facts | {"bytes": 7, "cache": "hit"}


def test_changed_key_forgets_verified_tokens() -> None:
    """A token signed with a key that was taken out proves nobody, though it was known before."""
    shop = Shop()
    query = pull("user", token=shop.tokens[0])
    assert shop.ask(shop.fast, query)[2] == b'["wx1","alice"]'
    shop.app.config["SECRET_KEY"] = "another key"
    assert shop.ask(shop.fast, query)[2] == b'["wx1",null]'
    shop.app.config["SECRET_KEY_FALLBACKS"] = ["a key of the shop"]
    assert shop.ask(shop.fast, query)[2] == b'["wx1","alice"]'


@pytest.mark.parametrize("query", [pull("uncached", appid="wx3"), pull("fails")])
def test_a_filter_that_wants_a_request_costs_no_answer(
    query: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log's failure is told on standard error, and the pull is answered as on the slow way."""
    shop = Shop(is_bare=True)
    monkeypatch.setattr(shop.app.logger, "isEnabledFor", lambda _: True)
    monkeypatch.setattr(shop.app.logger, "filters", [lambda _: bool(request.path)])
    slow, fast = (shop.ask(way, query) for way in (shop.slow, shop.fast))
    assert (fast[0], fast[2]) == (slow[0], slow[2])
    assert "outside of request context" in capsys.readouterr().err
