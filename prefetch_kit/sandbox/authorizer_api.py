"""What a third-party platform asks about one merchant.

Pages: developers.weixin.qq.com/doc/oplatform/openApi/authorization-management/
getAuthorizerInfo.html, getAuthorizerOptionInfo.html and setAuthorizerOptionInfo.html.
"""

from collections.abc import Callable, Mapping
from typing import Final

from prefetch_kit.sandbox.call import Call
from prefetch_kit.sandbox.component_api import ComponentApi, func_info
from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.domains import urls
from prefetch_kit.sandbox.errors import ApiError
from prefetch_kit.sandbox.platform import MINIPROGRAM
from prefetch_kit.sandbox.server_domains import SERVER_DOMAINS
from prefetch_kit.sandbox.state import App
from prefetch_kit.sandbox.third_party import Authorization

_PREFIX: Final = "/cgi-bin/component/"
# The options, and their values.
_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "location_report": frozenset("012"),
    "voice_recognize": frozenset("01"),
    "customer_service": frozenset("01"),
}


class AuthorizerApi:
    """Answers to calls whose lock is held and whose path is one of `calls`."""

    def __init__(self, platform: Components, component_api: ComponentApi) -> None:
        self._platform = platform
        self._component_api = component_api
        self.calls: dict[str, Callable[[Call], dict[str, object]]] = {
            f"{_PREFIX}api_get_authorizer_info": self._info,
            f"{_PREFIX}api_get_authorizer_option": self._option,
            f"{_PREFIX}api_set_authorizer_option": self._set_option,
        }

    def _merchant(self, call: Call) -> tuple[App, Authorization]:
        body = call.posted()
        component = self._component_api.authorized(call.args, body.get("component_appid"))
        appid = str(body.get("authorizer_appid"))
        authorization = component.find_authorization(appid)
        call.appid = appid
        return self._platform.app(appid), authorization

    def _info(self, call: Call) -> dict[str, object]:
        app, authorization = self._merchant(call)
        given: dict[str, object] = {"authorizer_appid": app.appid}
        if self._platform.switches.info_shows_refresh_token:
            given["authorizer_refresh_token"] = authorization.refresh_token
        given["func_info"] = func_info(authorization)
        return {"authorizer_info": self._described(app), "authorization_info": given}

    def _described(self, app: App) -> dict[str, object]:
        """An account; only a mini program has MiniProgramInfo."""
        about: dict[str, object] = {
            "nick_name": app.appid,
            "head_img": "",
            "service_type_info": {"id": 0 if app.kind == MINIPROGRAM else 2},
            "verify_type_info": {"id": 0},
            "user_name": f"gh_{app.appid}",
            "alias": "",
            "qrcode_url": "",
            "principal_name": "sandbox",
            "signature": "",
            "business_info": dict.fromkeys(
                ("open_pay", "open_shake", "open_scan", "open_card", "open_store"), 0
            ),
            "account_status": 1,
        }
        if app.kind == MINIPROGRAM:
            about["MiniProgramInfo"] = {
                "network": self._network(app),
                "categories": [],
                "visit_status": 0,
            }
        return about

    def _network(self, app: App) -> dict[str, object]:
        titles = ("Request", "WsRequest", "Upload", "Download", "UDP", "TCP")
        lists: dict[str, object] = {
            f"{title}Domain": app.server_domains.get(name, [])
            for title, name in zip(titles, SERVER_DOMAINS, strict=True)
        }
        lists["BizDomain"] = urls(sorted(self._platform.accepted(app).miniprogram))
        return lists

    def _option(self, call: Call) -> dict[str, object]:
        app, authorization = self._merchant(call)
        name = _option_name(call)
        value = authorization.options.get(name, "0")
        return {"authorizer_appid": app.appid, "option_name": name, "option_value": value}

    def _set_option(self, call: Call) -> dict[str, object]:
        _, authorization = self._merchant(call)
        name, value = _option_name(call), call.posted().get("option_value")
        if not isinstance(value, str) or value not in _OPTIONS[name]:
            raise ApiError(61013)
        authorization.options[name] = value
        return {"errcode": 0, "errmsg": "ok"}


def _option_name(call: Call) -> str:
    name = call.posted().get("option_name")
    if not isinstance(name, str) or name not in _OPTIONS:
        raise ApiError(61012)
    return name
