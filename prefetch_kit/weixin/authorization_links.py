"""The links with which a merchant authorizes a third-party platform.

developers.weixin.qq.com: the getPreAuthCode page, and
/doc/oplatform/Third-party_Platforms/2.0/api/Before_Develop/
Authorization_Process_Technical_Description.html.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from marshmallow import fields, validate

from prefetch_kit.weixin.answers import answer_schema, promised, read
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.transport import Transport

_ACTION: Final = "api_create_preauthcode"
_PRE_AUTH_CODE: Final = answer_schema(
    pre_auth_code=fields.String(required=True, validate=validate.Regexp(r"[!-~]{1,512}\Z")),
    # Whatever it is, the code can be used.
    expires_in=fields.Raw(load_default=None, allow_none=True),
)
_MINI_PROGRAMS: Final = "2"  # auth_type: no official accounts are shown


@dataclass(frozen=True, slots=True)
class AuthorizationLinks:
    """Two links for one authorization: `web` for a browser, where the merchant scans a code, and
    `phone` for the merchant's own WeChat.

    They end after `expires_in_s`, if that is known. WeChat then sends the merchant to the
    redirect_uri with an `auth_code` in its query. `web` opens only from a page on the platform's
    own domain for that (登录授权的发起页域名).
    """

    web: str
    phone: str
    expires_in_s: int | None


def create_links(
    calls: ComponentCalls, transport: Transport, *, component_appid: str, redirect_uri: str
) -> AuthorizationLinks:
    """Ask for a pre-auth code and make the links with it.

    Raises Refused and OutcomeUnknown, and what the platform's token raises.
    """
    given = promised(_ACTION, read(_PRE_AUTH_CODE, calls.post(_ACTION, {})), what="pre_auth_code")
    query = urlencode(
        {
            "component_appid": component_appid,
            "pre_auth_code": given["pre_auth_code"],
            "redirect_uri": redirect_uri,
            "auth_type": _MINI_PROGRAMS,
        }
    )
    # A sandbox has both pages where its API is.
    web, phone = "https://mp.weixin.qq.com", "https://open.weixin.qq.com"
    if transport.loopback:
        web = phone = transport.base_url
    lasts = given["expires_in"]
    return AuthorizationLinks(
        web=f"{web}/cgi-bin/componentloginpage?{query}",
        phone=f"{phone}/wxaopen/safe/bindcomponent?action=bindcomponent&no_scan=1&{query}"
        "#wechat_redirect",
        expires_in_s=lasts if type(lasts) is int else None,
    )
