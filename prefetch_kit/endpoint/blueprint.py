"""Prefetch: the Flask blueprint that answers WeChat's pulls."""

from collections.abc import Callable
from typing import Any, Final, Never, NoReturn, TypeVar

from blinker import Namespace
from flask import Blueprint, Flask, Request, Response, current_app, request, session
from flask.blueprints import BlueprintSetupState
from flask.sansio.scaffold import setupmethod
from marshmallow import Schema
from werkzeug.exceptions import HTTPException

from prefetch_kit.cache.policy import CachePolicy, demand_seconds
from prefetch_kit.endpoint.app_state import (
    Endpoint,
    exchange_code,
    init_app,
    issue_token,
    process_of,
    send,
    send_got_request_exception,
    state_of,
    tokens_of,
)
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.dispatch import Answer
from prefetch_kit.endpoint.foreign_answers import describe, exempt
from prefetch_kit.endpoint.handlers import (
    Handler,
    HandlerFunction,
    Pages,
    Route,
    refuse_unfit,
)
from prefetch_kit.endpoint.hidden_query import query_of
from prefetch_kit.endpoint.login_codes import Login
from prefetch_kit.endpoint.parameters import MAX_CODE_CHARS
from prefetch_kit.endpoint.run_context import rule_host
from prefetch_kit.endpoint.users import CodeUser, TokenVerifier
from prefetch_kit.errors import ConfigError
from prefetch_kit.fetch_setting import KINDS, Kind
from prefetch_kit.logs import SafeLogger
from prefetch_kit.quoting import harmless
from prefetch_kit.refusals import REFUSALS, REFUSED_HEADER
from prefetch_kit.secret import Secret

_signals = Namespace()
# Both carry kind, appid, page, seconds, unknown_parameters and cache ("hit", "stale", "miss" or
# None); pull_served adds bytes, pull_refused status, reason and incident. The sender is the app.
pull_served = _signals.signal("pull-served")
pull_refused = _signals.signal("pull-refused")

_METHODS = ("GET", "HEAD")
_ASKED: Final = "prefetch_kit.asked"  # in the environ: the pull came to the view

_HEADERS: Final = (
    ("Content-Type", "application/json; charset=utf-8"),
    ("Cache-Control", "private, no-store"),
    ("X-Content-Type-Options", "nosniff"),
)

# A decorated function keeps its own type.
_H = TypeVar("_H", bound=HandlerFunction)
_V = TypeVar("_V", bound=TokenVerifier)
_C = TypeVar("_C", bound=CodeUser)


class Prefetch(Blueprint):
    """A blueprint with the two endpoints a WeChat Mini Program pulls its data from.

    Takes the arguments of `flask.Blueprint`. Registering it adds `{url_prefix}/pre_fetch` and
    `{url_prefix}/period_fetch`, reads the app's `PREFETCH_*` settings and raises `ConfigError`
    where one is unknown, missing or wrong. A prefix may hold `<appid>`; it must then equal the
    appid of the pull.
    """

    def __init__(self, name: str, import_name: str, **kwargs: Any) -> None:
        super().__init__(name, import_name, **kwargs)
        self._pages: Final[dict[Kind, Pages]] = {kind: Pages() for kind in KINDS}
        self._verifier: TokenVerifier | None = None
        self._code_user: CodeUser | None = None
        self.record(self._join)
        self.url_value_preprocessor(exempt)
        self.after_request(_refuse_foreign)

    @setupmethod
    def pre_fetch(
        self,
        page: str | None = None,
        *,
        login_required: bool = False,
        schema: Schema | None = None,
        cache: float | CachePolicy | None = None,
        deadline: float | None = None,
    ) -> Callable[[_H], _H]:
        """Register the handler of a page (数据预拉取), or with no page that of every other page.

        `page` is written as in app.json: `"pages/index/index"`. With `login_required` a pull
        that proves no user is refused (401); `schema` dumps what the handler returns. `cache`
        is how many seconds an answer is kept, for pulls that are alike in everything the
        handler read. `deadline` is in seconds and replaces `PREFETCH_DEADLINE`; `math.inf` means
        no deadline, and an uncached handler then runs in the thread that took the pull.
        """
        return self._adding(
            "pre_fetch",
            page,
            login_required=login_required,
            schema=schema,
            cache=_policy(cache),
            deadline_s=_deadline(deadline),
        )

    @setupmethod
    def period_fetch(
        self,
        *misplaced: Never,
        login_required: bool = False,
        schema: Schema | None = None,
        cache: float | CachePolicy | None = None,
        deadline: float | None = None,
    ) -> Callable[[_H], _H]:
        """Register the handler of the periodic pull (周期性更新), about every 12 hours."""
        if misplaced:
            raise TypeError("write @prefetch.period_fetch(), with parentheses and without a page")
        return self._adding(
            "period_fetch",
            None,
            login_required=login_required,
            schema=schema,
            cache=_policy(cache),
            deadline_s=_deadline(deadline),
        )

    @setupmethod
    def token_verifier(self, function: _V) -> _V:
        """Check tokens with the app's own `(appid, token) -> user id or None`, on every pull."""
        _take_once(self._verifier, function, "token_verifier", "appid", "token")
        self._verifier = function
        return function

    @setupmethod
    def code_user(self, function: _C) -> _C:
        """Map who logged in to the app's user: `(appid, openid, unionid) -> user id or None`.

        Only with this are login codes exchanged, which takes the app's secret.
        """
        _take_once(self._code_user, function, "code_user", "appid", "openid", "unionid")
        self._code_user = function
        return function

    def issue_token(self, user_id: str, *, appid: str) -> str:
        """Mint what the mini program gives to `wx.setBackgroundFetchToken` for this user.

        At most 200 characters, good for `PREFETCH_TOKEN_MAX_AGE` seconds, so mint one at every
        launch. Raises `UserIdError` for an impossible user id, `ForeignAppid` for an appid that
        is not ours, and `ConfigError` where there is no SECRET_KEY.
        """
        return issue_token(_this_app(), user_id, appid=appid)

    def exchange_code(self, code: str, *, appid: str) -> Login | None:
        """Ask WeChat whose login code this is (code2Session), for a login route of your own.

        Gives `openid` and `unionid`, or None for what is no code, or one that is wrong, used, or
        of a blocked user. Ends within 1 s. Raises `WeixinError` where WeChat cannot be asked,
        `ForeignAppid` for an appid that is not ours and `ConfigError` where its secret is
        missing. Unlike a pull's code, which may come again, this one is not remembered: a copied
        code must not log in a second time.
        """
        secret = _secret(code)
        del code  # a traceback that goes through here shows no code
        return exchange_code(_this_app(), secret, appid=appid)

    def forget(
        self, page: str | None = None, *, user_id: str | None = None, appid: str | None = None
    ) -> None:
        """Make cached answers unreachable at once: after a purchase, a logout, a ban.

        Those of one page, made for one user, of one mini program, or of any where it is left
        out; all three narrow. In this process; with PREFETCH_CACHE_URL also in the others, within a
        second. Raises `ValueError` for a page that has no handler of its own.
        """
        if page is not None and page not in self._pages["pre_fetch"]:
            raise ValueError("the page has no handler of its own; name a user with user_id=")
        app = _this_app()
        names = {r.blueprint for r in state_of(app).routes if r.pages in self._pages.values()}
        process_of(app).cache.invalidate([(name, page, user_id, appid) for name in names])

    def _adding(self, kind: Kind, page: str | None, **said: Any) -> Callable[[_H], _H]:
        if page is not None and not isinstance(page, str):
            raise TypeError(f"write @prefetch.{kind}(), with parentheses")

        def add(function: _H) -> _H:
            self._pages[kind].add(Handler(function, page, **said))
            return function

        return add

    def _join(self, setup: BlueprintSetupState) -> None:
        app: Flask = setup.app  # type: ignore[assignment]
        state = init_app(app)
        self._refuse_hopeless(app, state.config)
        self._warn_of_entry_page(app, state.config.entry_page)
        host = rule_host(app, state.config.base_url)
        for kind in KINDS:
            endpoint = f"{setup.name_prefix}.{setup.name}.{kind}".lstrip(".")
            route = Route(
                endpoint,
                kind,
                self._pages[kind],
                deadline_s=state.config.deadline_s,
                entry_page=state.config.entry_page,
            )
            view = _view(route)
            state.endpoints[endpoint] = Endpoint(route, view, self._verifier, self._code_user)
            setup.add_url_rule(
                f"/{kind}",
                kind,
                view,
                methods=_METHODS,
                provide_automatic_options=False,
                host=host,
            )
            for rule in app.url_map.iter_rules(endpoint):
                # Every method comes to the view, which answers it: the app's own error page
                # for 405 is HTML, and a phone could keep that as data.
                rule.methods = _EveryMethod(_METHODS)

    def _warn_of_entry_page(self, app: Flask, page: str | None) -> None:
        pages = self._pages["pre_fetch"]
        if page is not None and len(pages) and page not in pages and None not in pages:
            SafeLogger(app.logger).warning(
                "PREFETCH_ENTRY_PAGE is %r, for which %r has no handler", page, self.name
            )

    def _refuse_hopeless(self, app: Flask, config: Config) -> None:
        if app.secret_key:
            tokens_of(app, config)  # refuses keys that cannot be used
        handlers = [h for pages in self._pages.values() for h in pages]
        demanding = any(h.login_required for h in handlers)
        if demanding and not (app.secret_key or self._verifier or self._code_user):
            raise ConfigError(
                "SECRET_KEY",
                "is missing, so no pull could pass login_required",
                remedy="Set it, or register a token_verifier",
            )
        missing = sorted(set(config.wechat_appids) - set(config.app_secrets))
        if self._code_user and missing and config.component_appid is None:
            raise ConfigError(
                "PREFETCH_APP_SECRETS",
                f"lacks {', '.join(map(harmless, missing))}, whose login codes code_user wants "
                "exchanged",
                remedy="Add the AppSecret",
            )


def _view(route: Route) -> Callable[..., Response]:
    def view(**route_values: object) -> Response:
        app, asked = _this_app(), _this_request()
        asked.environ[_ASKED] = True
        dispatcher = process_of(app).dispatcher(route.endpoint)
        if asked.method in _METHODS:
            done = dispatcher.answer(query_of(asked), route_values=route_values)
        else:
            done = Answer(405, b"", route.kind, seconds=0.0, refused="method")
        send_signals(app, done)
        if done.error is not None:
            if propagates(app):
                dispatcher.log_failure(done)
                _raise_on(done.error)
            # First: error trackers report what they see twice only as they see it first, and a
            # log line would be an error that somebody handled.
            send_got_request_exception(app, done.error)
            dispatcher.log_failure(done)
        return respond(app, done)

    return view


def _refuse_foreign(response: Response) -> Response:
    """Make a refusal of what the app answered to a pull instead of the view, or after it failed.

    A login page or its redirect would be data to a phone, and its cookie that of nobody.
    """
    asked = _this_request()
    if asked.environ.pop(_ASKED, False):  # once: an error after it makes another response
        return response
    app = _this_app()
    state = state_of(app)
    served = state.endpoints.get(asked.endpoint or "")
    if served is None:
        return response
    if not state.foreign_told:
        state.foreign_told = True
        SafeLogger(app.logger).warning("%s", describe(app, response))
    response.close()
    status = response.status_code if response.status_code >= 400 else REFUSALS["app"].status
    done = Answer(status, b"", served.route.kind, seconds=0.0, refused="app")
    send_signals(app, done)
    refused = respond(app, done)
    if "Retry-After" in response.headers:
        refused.headers["Retry-After"] = response.headers["Retry-After"]
    if not app.session_interface.is_null_session(session):
        session.clear()
        session.modified = False  # so that no cookie is set
    # In place: where a later function of the app's fails, Flask sends what it had before.
    response.direct_passthrough = False
    response.response, response.headers = refused.response, refused.headers
    response.status_code = refused.status_code
    return response


class _EveryMethod(set[str]):
    """GET and HEAD in a listing of the app's routes; every method for the router."""

    def __contains__(self, _method: object) -> bool:
        return True


def _this_app() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def _this_request() -> Request:
    # The proxy takes longer for each attribute than for this.
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]
    return asked


def _policy(cache: float | CachePolicy | None) -> CachePolicy | None:
    if cache is None or isinstance(cache, CachePolicy):
        return cache
    demand_seconds("cache", cache, or_else=", or a CachePolicy")
    return CachePolicy(cache)


def _deadline(deadline_s: float | None) -> float | None:
    if deadline_s is not None:
        demand_seconds("deadline", deadline_s, or_else=" or math.inf")
        if not deadline_s > 0:
            raise ValueError("a deadline is more than 0 seconds")
    return deadline_s


def _secret(code: object) -> Secret | None:
    if isinstance(code, str) and 0 < len(code) <= MAX_CODE_CHARS:
        return Secret(code)
    return None


def _take_once(taken: object, function: Callable[..., object], name: str, *arguments: str) -> None:
    refuse_unfit(function, *arguments)
    if taken is not None:
        raise ValueError(f"{name} is set already: {taken!r}")


def send_signals(app: Flask, done: Answer) -> None:
    """Tell the receivers of the two signals how a pull was answered."""
    signal = pull_served if done.refused is None else pull_refused
    if not signal.has_receivers_for(app):
        return
    facts: dict[str, Any] = {
        "kind": done.kind,
        "appid": done.appid,
        "page": done.page,
        "seconds": done.seconds,
        "unknown_parameters": done.unknown_parameters,
        "cache": done.cache,
    }
    if done.refused is None:
        facts["bytes"] = len(done.body)
    else:
        facts |= {"status": done.status, "reason": done.refused, "incident": done.incident}
    send(app, signal, **facts)


def propagates(app: Flask) -> bool:
    """Whether the app wants a failure raised on; Flask then reports it like any view's."""
    propagate = app.config["PROPAGATE_EXCEPTIONS"]
    return bool(app.testing if propagate is None else propagate)


def _raise_on(error: BaseException) -> NoReturn:
    if isinstance(error, HTTPException):
        # As it is, Flask would answer it with a page for people.
        raise RuntimeError(  # noqa: TRY004 (nobody passed a wrong type)
            f"a handler raised {error!r}; a pull is answered with data"
        ) from error
    raise error


def respond(app: Flask, done: Answer) -> Response:
    """The HTTP answer to a pull."""
    headers = [*_HEADERS]
    if done.status == 405:
        headers.append(("Allow", ", ".join(_METHODS)))
    if done.refused is not None:
        incident = f"; incident={done.incident}" if done.incident else ""
        headers.append((REFUSED_HEADER, done.refused + incident))
    if done.retry_after_s is not None:
        headers.append(("Retry-After", str(done.retry_after_s)))
    if app.debug:
        source = done.cache or "uncached"
        timing = f'prefetch;dur={done.seconds * 1000:.1f};desc="{source}"'
        headers.append(("Server-Timing", timing))
    return app.response_class(done.body, status=done.status, headers=headers)
