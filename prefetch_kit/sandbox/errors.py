"""Refusals: the platform's error codes, and errors for wrong use of the sandbox."""

from typing import Final

MESSAGES: Final = {
    -1: "system error",
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40014: "invalid access_token",
    40029: "invalid code",
    40066: "invalid url",
    40090: "invalid ip 127.0.0.1, not in whitelist",
    40125: "invalid appsecret",
    40163: "code been used",
    40164: "invalid ip 127.0.0.1, not in whitelist",
    40166: "invalid weapp appid",
    40226: "code blocked",
    40243: "appsecret has been frozen",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    41008: "missing code",
    42001: "access_token expired",
    43001: "require GET method",
    43002: "require POST method",
    44002: "empty post data",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
    48001: "api unauthorized",
    48006: "forbid to clear quota because of reaching the limit",
    61003: "component is not authorized by this account",
    61004: "access clientip is not registered",
    61005: "component ticket is expired",
    61006: "component ticket is invalid",
    61007: "api is unauthorized to component",
    61009: "code is invalid",
    61010: "code is expired",
    61011: "invalid component",
    61012: "invalid option name",
    61013: "invalid option value",
    61014: "must use component token for component api",
    61015: "must use biz token for not component api",
    61023: "refresh_token is invalid",
    85017: "no domain to be modified",
    86103: "check confirmfile fail!",
    89019: "webview domain not change",
    89020: "open's webview domain is null",
    89021: "request domain is not open's webview domain!",
    89029: "webview domain exceeds limit",
    89231: "not support single",
    506015: "domain is bound to too many apps",
    9410013: "Invalid action",
    9410014: "Invalid fetch type",
    9410016: "Invalid domain name",
    9410017: "Invalid env or function name",
}


class ApiError(Exception):
    """The platform answers with `errcode`; `reason` is appended to its usual sentence."""

    def __init__(self, errcode: int, reason: str = "") -> None:
        self.errcode = errcode
        message = MESSAGES.get(errcode, "refused")
        self.errmsg = f"{message}: {reason}" if reason else message
        super().__init__(errcode, self.errmsg)


class SandboxError(ValueError):
    """The sandbox cannot do this; the sentence says what to change."""


class NotFoundError(SandboxError):
    """No app, user or third-party platform of that name was added."""
