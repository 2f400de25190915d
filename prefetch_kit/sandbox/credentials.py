"""Access tokens and login codes: given out, judged, ended."""

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from prefetch_kit.sandbox.errors import ApiError

TOKEN_LIFETIME_S = 7200
OVERLAP_S = 300
FORCE_INTERVAL_S = 30
CODE_LIFETIME_S = 300

# Whose tokens follow each other: those of the two token calls, a third-party platform's own,
# and those it has for a merchant.
Line = Literal["plain", "stable", "component", "authorizer"]

_TOKEN_SHAPE = re.compile(r"[A-Za-z0-9_-]{32,512}\Z")


@dataclass(slots=True)
class AccessToken:
    """One token of an account; `component` is the third-party platform it was given to."""

    appid: str
    value: str
    expires_at: float
    line: Line
    component: str | None = None
    replaced: bool = False


class AccessTokens:
    """Every access token given out; not thread-safe by itself.

    `/cgi-bin/token` and `/cgi-bin/stable_token` keep a line each and do not end each other's
    tokens: developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken.html.
    """

    def __init__(self) -> None:
        self._issued: dict[str, AccessToken] = {}
        self._latest: dict[tuple[str, Line, str | None], AccessToken] = {}
        self._forced_at: dict[str, float] = {}

    def replace(
        self,
        appid: str,
        *,
        line: Line,
        now: float,
        overlap_s: float,
        component: str | None = None,
    ) -> AccessToken:
        """Give out a new token; the line's earlier one stays good for `overlap_s` at most."""
        earlier = self._latest.get((appid, line, component))
        if earlier is not None and now + overlap_s < earlier.expires_at:
            earlier.replaced = True
            earlier.expires_at = now + overlap_s
        value = f"92_{secrets.token_urlsafe(96)}"
        token = AccessToken(appid, value, now + TOKEN_LIFETIME_S, line, component)
        self._issued[token.value] = token
        self._latest[appid, line, component] = token
        return token

    def stable(self, appid: str, *, now: float) -> AccessToken:
        """The stable line's token: the same one until five minutes before its end."""
        latest = self._latest.get((appid, "stable", None))
        if latest is not None and now < latest.expires_at - OVERLAP_S:
            return latest
        return self.replace(appid, line="stable", now=now, overlap_s=OVERLAP_S)

    def force(self, appid: str, *, now: float) -> AccessToken:
        """A new stable token that ends the earlier one; within 30 s of the last: no new one."""
        forced_at = self._forced_at.get(appid)
        if forced_at is not None and now - forced_at < FORCE_INTERVAL_S:
            return self.stable(appid, now=now)
        self._forced_at[appid] = now
        return self.replace(appid, line="stable", now=now, overlap_s=0)

    def expire(self, appid: str, *, now: float) -> None:
        """End every token of this app as its age would have."""
        for token in self._issued.values():
            if token.appid == appid:
                token.replaced = False
                token.expires_at = min(token.expires_at, now)

    def find(self, value: str, *, now: float) -> AccessToken:
        """The record of a valid token; raises 41001, 40014, 40001 or 42001."""
        if not value:
            raise ApiError(41001)
        if not _TOKEN_SHAPE.match(value):
            raise ApiError(40014)
        token = self._issued.get(value)
        if token is None:
            raise ApiError(40001)
        if now >= token.expires_at:
            raise ApiError(40001 if token.replaced else 42001)
        return token


@dataclass(slots=True)
class LoginCode:
    appid: str
    openid: str
    expires_at: float
    used: bool = False

    def use(self, *, now: float) -> None:
        """Spend the code; raises 40163 the second time and 40029 when it is too old."""
        if self.used:
            raise ApiError(40163)
        if now >= self.expires_at:
            raise ApiError(40029)
        self.used = True


class LoginCodes:
    """What `wx.login()` handed out; not thread-safe by itself."""

    def __init__(self) -> None:
        self._codes: dict[str, LoginCode] = {}

    def issue(self, appid: str, openid: str, *, now: float) -> str:
        value = f"0{secrets.token_urlsafe(24)[:31]}"
        self._codes[value] = LoginCode(appid, openid, now + CODE_LIFETIME_S)
        return value

    def find(self, value: str, *, appid: str) -> LoginCode:
        """The code as made for this app; raises 40029 for any other."""
        code = self._codes.get(value)
        if code is None or code.appid != appid:
            raise ApiError(40029)
        return code
