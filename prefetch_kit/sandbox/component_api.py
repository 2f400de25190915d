"""The calls that a third-party platform makes for its tokens and those of its merchants.

Pages: developers.weixin.qq.com/doc/oplatform/openApi/ticket-token/,
/doc/oplatform/openApi/authorization-management/api_getauthorizerlist.html and
/doc/oplatform/openApi/openapi-management/clearComponentQuotaByAppSecret.html.
"""

from collections.abc import Callable, Mapping
from typing import Final

from prefetch_kit.sandbox.call import Call
from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.credentials import AccessToken
from prefetch_kit.sandbox.errors import ApiError
from prefetch_kit.sandbox.platform import DENIALS
from prefetch_kit.sandbox.third_party import (
    PRE_AUTH_CODE_LIFETIME_S,
    Authorization,
    Component,
)

_MAX_LISTED: Final = 500
_PREFIX: Final = "/cgi-bin/component/"


class ComponentApi:
    """Answers to calls whose lock is held and whose path is one of `calls`."""

    def __init__(self, platform: Components) -> None:
        self._platform = platform
        self.calls: dict[str, Callable[[Call], dict[str, object]]] = {
            f"{_PREFIX}api_start_push_ticket": self._start_push_ticket,
            f"{_PREFIX}api_component_token": self._component_token,
            f"{_PREFIX}api_create_preauthcode": self._create_preauthcode,
            f"{_PREFIX}api_query_auth": self._query_auth,
            f"{_PREFIX}api_authorizer_token": self._authorizer_token,
            f"{_PREFIX}api_get_authorizer_list": self._authorizer_list,
            f"{_PREFIX}clear_quota": self._clear_quota,
        }

    def authorized(
        self, query: Mapping[str, str], component_appid: object, *, api: str = "component"
    ) -> Component:
        """The platform whose component token is in the query, and whose appid was given."""
        component = self.bearer(query, api=api)
        if component_appid != component.appid:
            raise ApiError(61011)
        return component

    def bearer(self, query: Mapping[str, str], *, api: str = "component") -> Component:
        """The platform whose component token is in the query."""
        value = query.get("component_access_token") or query.get("access_token", "")
        token = self._platform.state.tokens.find(value, now=self._platform.now())
        if token.issuer != "component":
            raise ApiError(61014)
        return self._admitted(token.appid, api)

    def _admitted(self, appid: str, api: str = "component") -> Component:
        component = self._platform.component(appid)
        if component.denied is not None and api in DENIALS[component.denied]:
            raise ApiError(component.denied)
        return component

    def cleared(self, appid: str) -> dict[str, object]:
        """Clear the quotas of an account."""
        platform = self._platform
        platform.state.quotas.clear(
            appid, now=platform.now(), per_month=platform.switches.clear_quota_per_month
        )
        return {"errcode": 0, "errmsg": "ok"}

    def _account(self, call: Call, secret: str) -> Component:
        """The platform whose appid and secret were posted, the latter in the member `secret`."""
        body = call.posted()
        appid = body.get("component_appid")
        if not isinstance(appid, str) or appid not in self._platform.state.components:
            raise ApiError(61011)
        call.appid = appid
        component = self._admitted(appid)
        if body.get(secret) != component.secret:
            raise ApiError(40125)
        return component

    def _start_push_ticket(self, call: Call) -> dict[str, object]:
        self._account(call, "component_secret").start_tickets()
        return {"errcode": 0, "errmsg": "ok"}

    def _create_preauthcode(self, call: Call) -> dict[str, object]:
        component = self.authorized(call.args, call.posted().get("component_appid"))
        call.appid = component.appid
        code = component.issue_pre_auth_code(now=self._platform.now())
        return {"pre_auth_code": code, "expires_in": PRE_AUTH_CODE_LIFETIME_S}

    def _clear_quota(self, call: Call) -> dict[str, object]:
        component = self.authorized(call.args, call.posted().get("component_appid"))
        call.appid = component.appid
        return self.cleared(component.appid)

    def _component_token(self, call: Call) -> dict[str, object]:
        component, now = self._account(call, "component_appsecret"), self._platform.now()
        body, appid = call.posted(), component.appid
        component.check_ticket(str(body.get("component_verify_ticket")), now=now)
        token = self._issue(appid, component=None, now=now)
        return {"component_access_token": token.value, "expires_in": int(token.expires_at - now)}

    def _query_auth(self, call: Call) -> dict[str, object]:
        body = call.posted()
        component = self.authorized(call.args, body.get("component_appid"))
        code = component.find_code(str(body.get("authorization_code")))
        code.use(now=self._platform.now())
        call.appid = code.appid
        authorization = component.find_authorization(code.appid)
        authorization.was_queried = True
        info = {
            "authorizer_appid": code.appid,
            **self._given(component, code.appid, authorization.refresh_token),
            "func_info": func_info(authorization),
        }
        return {"authorization_info": info}

    def _authorizer_token(self, call: Call) -> dict[str, object]:
        body = call.posted()
        component = self.authorized(call.args, body.get("component_appid"))
        appid, switches = str(body.get("authorizer_appid")), self._platform.switches
        authorization = component.find_authorization(appid)
        call.appid = appid
        refresh_token = authorization.renew(
            str(body.get("authorizer_refresh_token")),
            now=self._platform.now(),
            rotates=switches.refresh_token_rotates,
            grace_s=switches.refresh_token_grace_s,
        )
        return self._given(component, appid, refresh_token)

    def _authorizer_list(self, call: Call) -> dict[str, object]:
        body = call.posted()
        component = self.authorized(call.args, body.get("component_appid"))
        call.appid = component.appid
        offset, count = body.get("offset"), body.get("count")
        if type(offset) is not int or type(count) is not int:
            raise ApiError(47001, "offset and count must be numbers")
        if offset < 0 or not 1 <= count <= _MAX_LISTED:
            raise ApiError(47001, f"count must be from 1 to {_MAX_LISTED}")
        authorized = list(component.authorizations.items())
        page = [self._listed(*each) for each in authorized[offset : offset + count]]
        return {"total_count": len(authorized), "list": page}

    def _listed(self, appid: str, authorization: Authorization) -> dict[str, object]:
        shows = self._platform.switches.listed_refresh_tokens
        given: dict[str, object] = {
            "authorizer_appid": appid,
            "auth_time": int(authorization.authorized_at),
        }
        if shows == "always" or (shows == "queried" and authorization.was_queried):
            given["refresh_token"] = authorization.refresh_token
        return given

    def _given(self, component: Component, appid: str, refresh_token: str) -> dict[str, object]:
        now = self._platform.now()
        token = self._issue(appid, component=component.appid, now=now)
        return {
            "authorizer_access_token": token.value,
            "expires_in": int(token.expires_at - now),
            "authorizer_refresh_token": refresh_token,
        }

    def _issue(self, appid: str, *, component: str | None, now: float) -> AccessToken:
        switches = self._platform.switches
        overlap_s = (
            switches.component_token_overlap_s
            if component is None
            else switches.authorizer_token_overlap_s
        )
        return self._platform.state.tokens.replace(
            appid,
            issuer="component" if component is None else "authorizer",
            now=now,
            overlap_s=overlap_s,
            component=component,
        )


def func_info(authorization: Authorization) -> list[dict[str, object]]:
    """The permission sets of an authorization, as WeChat writes them."""
    return [{"funcscope_category": {"id": number}} for number in authorization.permissions]
