"""What WeChat's error codes mean and what can be done about each."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from prefetch_kit.errors import DomainRefused, QuotaReached, Refused, SystemBusy, TokenRejected
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import scrub

ErrcodeKind = Literal["transient", "renew", "quota_day", "quota_minute", "permanent"]

_SHOWN_CHARS = 300
_RID = re.compile(r"[\s,;]*\brid:\s*([0-9A-Za-z-]{1,64})\s*\Z")


@dataclass(frozen=True, slots=True)
class Errcode:
    """One row of the table: `remedy` is a sentence without its full stop."""

    meaning: str
    remedy: str
    kind: ErrcodeKind = "permanent"


_REPORT = "This is a fault of prefetch_kit: please report it with the rid"
_RENEW = "Get a fresh access token; if this one is fresh, check that it belongs to this appid"
_ALLOW_IP = (
    "Add the public address that WeChat sees, of this machine or of PREFETCH_PROXY, to the IP "
    "allow-list (IP白名单) of the app or the third-party platform"
)
_ASK_ADMIN = "An administrator of the app must confirm this machine's address in WeChat"
_PERMISSION = "Let the merchant grant permission set 18, then authorize the platform again"
_APP_KEY = "Check the app secret: it can be seen only when it is reset, under 开发管理"
AUTHORIZE: Final = (
    "Let the merchant authorize the platform: `prefetch-kit platform authorize-url` makes the "
    "link, and `prefetch-kit platform authorize` takes the auth_code that the merchant comes "
    "back with"
)
_NEXT_TICKET = (
    "WeChat pushes a ticket each ten minutes: check that the push URL (授权事件接收URL) answers "
    "success, and run `prefetch-kit platform start-push`"
)
_NEW_AUTH_CODE = (
    "A code works once, for an hour. If it was used here before, nothing has to be done: WeChat "
    "shows the refresh token it gave. Else let the merchant authorize the platform again"
)
_NEW_CODE = "Call wx.login again: a code works once, for five minutes"
# Whether WeChat takes a mini program's own token for fetchdatasetting is not known.
SET_BY_HAND: Final = (
    "Without a platform, set the URLs by hand: `prefetch-kit urls`, or for many "
    "`prefetch-kit fleet urls`, prints what to paste into WeChat's console "
    "(mp.weixin.qq.com → 开发管理 → 开发设置)"
)
_OTHER_LIST = "the server domains (服务器域名) are another list"
_PLATFORM_DOMAIN = (
    "Add the host to the business domains (业务域名) of the third-party platform first, and write "
    f"it with https:// for the mini program; {_OTHER_LIST}"
)

# developers.weixin.qq.com: getFetchdataSetting, getStableAccessToken, code2Session,
# modifyJumpDomain, modifyJumpDomainDirectly, /miniprogram/dev/framework/ability/pre-fetch.html,
# /doc/oplatform/openApi/ticket-token/ and its table of common codes
ERRCODES: Final[Mapping[int, Errcode]] = {
    -1: Errcode("the system is busy", "Try again in a moment", "transient"),
    40001: Errcode("the access token is wrong", _RENEW, "renew"),
    40002: Errcode("the grant type is wrong", _REPORT),
    40013: Errcode("the appid is wrong", "Check the appid and that the secret belongs to it"),
    40014: Errcode("the access token is invalid", _RENEW, "renew"),
    40029: Errcode("the login code is wrong or expired", _NEW_CODE),
    40090: Errcode("this machine's IP address is not allowed", _ALLOW_IP),
    40125: Errcode("the app secret is wrong", _APP_KEY),
    40163: Errcode("the login code was used before", _NEW_CODE),
    40164: Errcode("this machine's IP address is not allowed", _ALLOW_IP),
    40166: Errcode(
        "the caller is not a mini program",
        "Use the appid and token of a mini program, not of another kind of account",
    ),
    40226: Errcode("the user is blocked as high risk", "Treat the user as not logged in"),
    40243: Errcode(
        "the app secret is frozen", "Unfreeze or reset the secret on the WeChat platform"
    ),
    41001: Errcode("the access token is missing", _REPORT),
    41002: Errcode("the appid is missing", _REPORT),
    41004: Errcode("the app secret is missing", _REPORT),
    42001: Errcode("the access token has expired", _RENEW, "renew"),
    43002: Errcode("the call must be a POST", _REPORT),
    44002: Errcode("the body is empty", _REPORT),
    45009: Errcode(
        "the daily quota is used up",
        "Wait until the quota is reset at midnight in China (UTC+8)",
        "quota_day",
    ),
    45011: Errcode("too many calls in this minute", "Wait for the next minute", "quota_minute"),
    47001: Errcode("the body is not JSON", _REPORT),
    48001: Errcode(
        "the account may not use this API",
        f"It may take calls from third-party platforms alone. {SET_BY_HAND}; through a "
        "platform, call with an authorizer_access_token",
    ),
    61003: Errcode("the platform is not authorized by this account", AUTHORIZE),
    61004: Errcode("this machine's IP address is not allowed", _ALLOW_IP),
    61005: Errcode("the component_verify_ticket is too old", _NEXT_TICKET),
    61006: Errcode("the component_verify_ticket is wrong", _NEXT_TICKET),
    61007: Errcode("the merchant did not grant this API", _PERMISSION),
    61009: Errcode("the authorization code is wrong", _NEW_AUTH_CODE),
    61010: Errcode("the authorization code is used or too old", _NEW_AUTH_CODE),
    61011: Errcode(
        "the appid is not that of the third-party platform",
        "Check the component appid: it is the platform's own, not a merchant's",
    ),
    61014: Errcode(
        "the call needs the third-party platform's own token",
        "Check the component appid and where the token comes from",
    ),
    61015: Errcode(
        "the call needs a merchant's token, not the third-party platform's",
        "Use the authorizer_access_token of the mini program",
    ),
    61023: Errcode(
        "the refresh token is wrong",
        "WeChat shows the one it takes in api_get_authorizer_info and api_get_authorizer_list",
    ),
    89501: Errcode("this IP address waits for confirmation", _ASK_ADMIN),
    89503: Errcode("this IP address needs an administrator", _ASK_ADMIN),
    89506: Errcode(
        "an administrator refused this IP address twice",
        "Wait 24 hours, then have an administrator confirm the address",
    ),
    89507: Errcode(
        "an administrator refused this IP address",
        "Wait an hour, then have an administrator confirm the address",
    ),
    86103: Errcode(
        "the confirm file (校验文件) of the domain is not there",
        "Serve it at the root of the domain, byte for byte: a byte order mark, a redirect or "
        "a login page in front of it are enough to spoil it",
    ),
    89019: Errcode("the business domains are so already", "Nothing has to be done"),
    89020: Errcode("the third-party platform has no business domains", _PLATFORM_DOMAIN),
    89021: Errcode(
        "the host is not a business domain of the third-party platform", _PLATFORM_DOMAIN
    ),
    89029: Errcode(
        "there are too many business domains",
        "Take out business domains (业务域名) that are not used any more: 300 is the most",
    ),
    89231: Errcode(
        "the mini program belongs to a person",
        "WeChat gives business domains (业务域名) to companies only: use another account",
    ),
    506015: Errcode(
        "the domain is bound to too many mini programs",
        "Add it through the third-party platform (setwebviewdomain), or use another host",
    ),
    9410013: Errcode("the action is wrong", _REPORT),
    9410014: Errcode("the type of the source is wrong", _REPORT),
    9410016: Errcode(
        "the URL's host is not a business domain",
        "Add the host to the business domains (业务域名), first of the third-party platform, "
        f"then of the mini program; {_OTHER_LIST}",
    ),
    9410017: Errcode(
        "the environment or the function name is wrong",
        "Check the cloud environment's id and the cloud function's name",
    ),
}

_NOT_LISTED: Final = Errcode(
    "a code that is not in the table",
    "Look the code up on developers.weixin.qq.com; the rid helps WeChat's support",
)

# What staff of WeChat say of a call in answer to questions about it; the kind stays, since the
# code itself rules nothing out.
_OF_CALLS: Final[Mapping[tuple[str, int], Errcode]] = {
    ("modify_wxa_jump_domain", -1): Errcode(
        "the system is busy, which for this call mostly means the confirm file (校验文件)",
        "Look at the confirm file at the root of the domain: it has to be the one of "
        "get_domain_confirmfile, byte for byte. If it is, try again in a moment",
        "transient",
    ),
}

# These calls carry the app secret and no token: there 40001 is about the secret.
_SECRET_CALLS = frozenset(
    {"stable_token", "token", "jscode2session", "api_component_token", "api_start_push_ticket"}
)

_CLASSES: Final[Mapping[ErrcodeKind, type[Refused]]] = {
    "transient": SystemBusy,
    "renew": TokenRejected,
    "quota_day": QuotaReached,
    "quota_minute": QuotaReached,
    "permanent": Refused,
}


def refusal(action: str, errcode: int, errmsg: str, *, secrets: Iterable[Secret] = ()) -> Refused:
    """The error for a refused call.

    `errmsg` is foreign text: the rid is cut out of it, and control characters, the `secrets`
    that were sent and all beyond 300 characters are taken away.
    """
    if errcode == 40001 and action in _SECRET_CALLS:
        row = ERRCODES[40125]
    else:
        row = _OF_CALLS.get((action, errcode)) or ERRCODES.get(errcode, _NOT_LISTED)
    shown = scrub(errmsg, secrets)
    found = _RID.search(shown)
    error = DomainRefused if errcode == 9410016 else _CLASSES[row.kind]
    return error(
        action,
        errcode=errcode,
        errmsg=_RID.sub("", shown)[:_SHOWN_CHARS],
        rid=found[1] if found else None,
        kind=row.kind,
        meaning=row.meaning,
        remedy=row.remedy,
        rules_out_effect=row.kind != "transient" and errcode in ERRCODES,
    )
