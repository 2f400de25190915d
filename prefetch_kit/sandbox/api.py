"""The calls of api.weixin.qq.com that are played, as a WSGI application."""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.wrappers import Response

from prefetch_kit.sandbox.authorizer_api import AuthorizerApi
from prefetch_kit.sandbox.call import Call
from prefetch_kit.sandbox.component_api import ComponentApi
from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.credentials import OVERLAP_S, AccessToken
from prefetch_kit.sandbox.domain_api import DomainApi
from prefetch_kit.sandbox.errors import ApiError
from prefetch_kit.sandbox.faults import Fault, hang_up, pause, spoil
from prefetch_kit.sandbox.platform import DENIALS, MINIPROGRAM
from prefetch_kit.sandbox.server_domains import SERVER_DOMAINS, changed_lists
from prefetch_kit.sandbox.settings import HALVES, parse_half, shown
from prefetch_kit.sandbox.state import App, Earlier, LateEffect, LoggedRequest
from prefetch_kit.sandbox.third_party import FETCH_PERMISSION, Component

_LOGINS: Final = frozenset({"/sns/jscode2session", "/sns/component/jscode2session"})


class Api:
    """Answers like the platform: 200 with JSON, for refusals and for unknown paths too."""

    def __init__(self, platform: Components) -> None:
        self._platform = platform
        self._component_api = ComponentApi(platform)
        self._calls: dict[str, Callable[[Call], dict[str, object]]] = {
            "/cgi-bin/token": self._token,
            "/cgi-bin/stable_token": self._stable_token,
            "/sns/jscode2session": self._jscode2session,
            "/sns/component/jscode2session": self._component_jscode2session,
            "/wxa/fetchdatasetting": self._fetchdatasetting,
            "/wxa/modify_domain": self._modify_domain,
            "/cgi-bin/clear_quota": self._clear_quota,
            "/cgi-bin/clear_quota/v2": self._clear_quota_with_secret,
            **self._component_api.calls,
            **AuthorizerApi(platform, self._component_api).calls,
        }
        self._unlocked = DomainApi(platform, self._platform_of, self._merchant_of).calls

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        call = Call(environ)
        self._platform.take_late_effects()
        with self._platform.lock:
            fault = self._platform.state.faults.take(path=call.path, action=call.action)
        response = self._answer(call) if fault is None else self._spoil(call, fault, environ)
        return response(environ, start_response)

    def _answer(self, call: Call) -> Response:
        try:
            body = self._run(call)
        except ApiError as refusal:
            return self._refuse(call, refusal)
        self._record(call, errcode=0)
        return _json(body)

    def _run(self, call: Call) -> dict[str, object]:
        """The members of a success; raises ApiError."""
        if (answer := self._calls.get(call.path)) is not None:
            with self._platform.lock:
                return answer(call)
        if (unlocked := self._unlocked.get(call.path)) is not None:
            return unlocked(call)
        raise ApiError(40066)

    def _take_effect(self, call: Call) -> None:
        """Run a call whose answer nobody gets."""
        with suppress(ApiError):
            self._run(call)

    def _refuse(self, call: Call, refusal: ApiError | Fault) -> Response:
        self._record(call, errcode=refusal.errcode)
        errcode: object = refusal.errcode
        if call.path in _LOGINS and self._platform.switches.login_errcodes_are_strings:
            errcode = str(errcode)
        return _json({"errcode": errcode, "errmsg": f"{refusal.errmsg} rid: {_rid()}"})

    def _spoil(self, call: Call, fault: Fault, environ: WSGIEnvironment) -> Response:
        platform = self._platform
        if fault.effect == "now":
            self._take_effect(call)
        elif fault.effect == "late":
            with platform.lock:
                late = LateEffect(platform.now() + fault.late_s, lambda: self._take_effect(call))
                platform.state.late.append(late)
        if fault.kind == "errcode":
            response = self._refuse(call, fault)
            response.headers.extend(dict(fault.headers))
            return response
        if fault.kind == "alter":
            return self._alter(call, fault)
        if fault.kind == "stale":
            call.reads_before_last_set = True
            return self._answer(call)
        connection = environ["werkzeug.socket"]
        if fault.kind == "delay":
            if pause(connection, fault.delay_s):
                hang_up(connection)
            return self._answer(call)
        if fault.kind == "lose":
            self._answer(call)
            hang_up(connection)
        self._record(call, errcode=None)
        if fault.kind not in ("raw", "redirect"):
            spoil(fault, connection)
        if fault.kind == "redirect":
            return Response(status=307, headers={"Location": fault.location})
        return Response(fault.body, fault.status, dict(fault.headers))

    def _alter(self, call: Call, fault: Fault) -> Response:
        response = self._answer(call)
        body = json.loads(response.get_data()) | dict(fault.members)
        return _json({name: value for name, value in body.items() if name not in fault.without})

    def _record(self, call: Call, *, errcode: int | None) -> None:
        # Any other path may be a mistyped URL with a token in it.
        is_known = call.path in self._calls or call.path in self._unlocked
        path = call.path if is_known else "(unknown path)"
        platform = self._platform
        logged = LoggedRequest(
            call.method, path, call.action, call.appid, errcode, call.shown(), platform.now()
        )
        with platform.lock:
            platform.state.requests.append(logged)
        asked = [call.method, path, repr(call.action) if call.action else None, call.appid]
        outcome = "no readable answer" if errcode is None else f"errcode {errcode}"
        platform.tell(f"{' '.join(filter(None, asked))}: {outcome}")

    def _token(self, call: Call) -> dict[str, object]:
        if call.method != "GET":
            raise ApiError(43001)
        app = self._account(call, call.args, grant_type="client_credential")
        self._spend("token", app.appid, per_day=self._platform.switches.token_per_day)
        now = self._platform.now()
        tokens = self._platform.state.tokens
        token = tokens.replace(app.appid, issuer="plain", now=now, overlap_s=OVERLAP_S)
        return _issued(token, now=now)

    def _stable_token(self, call: Call) -> dict[str, object]:
        body = call.posted()
        app = self._account(call, body, grant_type="client_credential")
        forced = body.get("force_refresh", False)
        if not isinstance(forced, bool):
            raise ApiError(47001, "force_refresh must be a boolean")
        switches = self._platform.switches
        self._spend(
            "stable_token",
            app.appid,
            per_minute=switches.stable_token_per_minute,
            per_day=switches.stable_token_per_day,
        )
        if forced:
            self._spend("force_refresh", app.appid, per_day=switches.force_refresh_per_day)
        now, tokens = self._platform.now(), self._platform.state.tokens
        give = tokens.force if forced else tokens.stable
        return _issued(give(app.appid, now=now), now=now)

    def _jscode2session(self, call: Call) -> dict[str, object]:
        if call.method != "GET":
            raise ApiError(43001)
        return self._session(call, self._account(call, call.args, grant_type="authorization_code"))

    def _component_jscode2session(self, call: Call) -> dict[str, object]:
        if call.method != "GET":
            raise ApiError(43001)
        if call.args.get("grant_type") != "authorization_code":
            raise ApiError(40002)
        given = call.args.get("component_appid")
        component = self._component_api.authorized(call.args, given, api="component_login")
        appid = call.args.get("appid", "")
        component.find_authorization(appid)
        call.appid = appid
        return self._session(call, self._platform.app(appid))

    def _session(self, call: Call, app: App) -> dict[str, object]:
        js_code = call.args.get("js_code", "")
        if not js_code:
            raise ApiError(41008)
        code = self._platform.state.codes.find(js_code, appid=app.appid)
        per_minute = self._platform.switches.login_per_minute
        self._spend("login", app.appid, code.openid, per_minute=per_minute)
        code.use(now=self._platform.now())
        user = app.users[code.openid]
        if user.blocked:
            raise ApiError(40226)
        session: dict[str, object] = {"openid": user.openid, "session_key": _session_key()}
        return session if user.unionid is None else {**session, "unionid": user.unionid}

    def _fetchdatasetting(self, call: Call) -> dict[str, object]:
        app = self._authorized(call)
        body = call.posted()
        if app.kind != MINIPROGRAM:
            raise ApiError(40166)
        ok: dict[str, object] = {"errcode": 0, "errmsg": "ok"}
        if call.action == "get":
            return {**ok, **shown(self._seen(call, app))}
        half = HALVES.get(call.action or "")
        if half is None:
            raise ApiError(9410013)
        stored = parse_half(half, body, domains=self._platform.accepted(app))
        kept = {name: value for name, value in app.settings.items() if name not in half}
        app.earlier.append(Earlier(self._platform.now(), app.settings))
        app.settings = {**kept, **stored}
        return ok

    def _seen(self, call: Call, app: App) -> dict[str, object]:
        if call.reads_before_last_set:
            return app.before_last_set()
        return app.as_seen_at(self._platform.now() - self._platform.switches.get_lag_s)

    def _modify_domain(self, call: Call) -> dict[str, object]:
        app = self._merchant_of(call)
        body = call.posted()
        if call.action != "get":
            app.server_domains = changed_lists(app.server_domains, call.action, body)
        lists = {name: app.server_domains.get(name, []) for name in SERVER_DOMAINS}
        return {"errcode": 0, "errmsg": "ok", **lists}

    def _clear_quota(self, call: Call) -> dict[str, object]:
        body = call.posted()
        app = self._bearer(call, "clear_quota", own_token_errcode=None)
        if body.get("appid") != app.appid:
            raise ApiError(40013)
        return self._component_api.cleared(app.appid)

    def _clear_quota_with_secret(self, call: Call) -> dict[str, object]:
        body = call.posted()
        app = self._platform.state.apps.get(str(body.get("appid")))
        if app is None:
            raise ApiError(40013)
        call.appid = app.appid
        if body.get("appsecret") != app.secret:
            raise ApiError(40125)
        return self._component_api.cleared(app.appid)

    def _account(self, call: Call, given: Mapping[str, object], *, grant_type: str) -> App:
        """The app whose appid and secret were given."""
        if given.get("grant_type") != grant_type:
            raise ApiError(40002)
        if not given.get("appid"):
            raise ApiError(41002)
        app = self._platform.state.apps.get(str(given["appid"]))
        if app is None:
            raise ApiError(40013)
        call.appid = app.appid
        if not given.get("secret"):
            raise ApiError(41004)
        if grant_type == "client_credential":
            _refuse_denied(app, "token")
        if given["secret"] != app.secret:
            raise ApiError(40125)
        return app

    def _authorized(self, call: Call) -> App:
        """The app whose access token was given, for its settings."""
        switches = self._platform.switches
        refused_with = None if switches.own_token_accepted else switches.own_token_errcode
        app = self._bearer(call, "fetchdatasetting", own_token_errcode=refused_with)
        self._spend(
            "fetchdatasetting",
            app.appid,
            per_minute=switches.fetchdatasetting_per_minute,
            per_day=switches.fetchdatasetting_per_day,
        )
        return app

    def _platform_of(self, call: Call) -> Component:
        component = self._component_api.bearer(call.args)
        call.appid = component.appid
        return component

    def _merchant_of(self, call: Call) -> App:
        # By their documentation, only a third-party platform may make these calls.
        return self._bearer(call, "webviewdomain", own_token_errcode=48001)

    def _bearer(self, call: Call, api: str, *, own_token_errcode: int | None) -> App:
        """The app whose token was given; an app's own one is refused with this errcode."""
        platform = self._platform
        token = call.args.get("access_token", "")
        found = platform.state.tokens.find(token, now=platform.now())
        call.appid = found.appid
        if found.issuer == "component":
            raise ApiError(61015)
        app = platform.app(call.appid)
        _refuse_denied(app, api)
        if found.component is not None:
            self._refuse_unpermitted(found.component, app.appid)
        elif own_token_errcode is not None:
            raise ApiError(own_token_errcode)
        return app

    def _refuse_unpermitted(self, component: str, appid: str) -> None:
        authorization = self._platform.component(component).find_authorization(appid)
        if FETCH_PERMISSION not in authorization.permissions:
            raise ApiError(61007)

    def _spend(self, *name: str, per_minute: int | None = None, per_day: int | None = None) -> None:
        platform = self._platform
        platform.state.quotas.spend(
            *name, now=platform.now(), per_minute=per_minute, per_day=per_day
        )


def _refuse_denied(app: App, call: str) -> None:
    if app.denied is not None and call in DENIALS[app.denied]:
        raise ApiError(app.denied)


def _issued(token: AccessToken, *, now: float) -> dict[str, object]:
    return {"access_token": token.value, "expires_in": int(token.expires_at - now)}


def _session_key() -> str:
    return secrets.token_urlsafe(16) + "=="


def _rid() -> str:
    return f"{int(time.time()):08x}-{secrets.token_hex(4)}-{secrets.token_hex(4)}"


def _json(body: Mapping[str, object]) -> Response:
    return Response(json.dumps(body), content_type="application/json; encoding=utf-8")
