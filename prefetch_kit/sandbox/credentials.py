"""Access tokens and login codes: issued, checked, ended."""

import re
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from prefetch_kit.sandbox.errors import ApiError

TOKEN_LIFETIME_S: Final = 7200
OVERLAP_S: Final = 300
FORCE_INTERVAL_S: Final = 30
CODE_LIFETIME_S: Final = 300

# A new token ends the earlier one of the same issuer: each of the two token calls, a third-party
# platform for itself, and a platform for a merchant.
Issuer = Literal["plain", "stable", "component", "authorizer"]

_TOKEN_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{32,512}\Z")


@dataclass(slots=True)
class AccessToken:
    """One token of an account; `component` is the third-party platform it was issued to."""

    appid: str
    value: str
    expires_at: float
    issuer: Issuer
    component: str | None = None
    replaced: bool = False


class AccessTokens:
    """Every issued access token; not thread-safe by itself.

    `/cgi-bin/token` and `/cgi-bin/stable_token` do not end each other's tokens:
    developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken.html.
    """

    def __init__(self) -> None:
        self._issued: dict[str, AccessToken] = {}
        self._latest: dict[tuple[str, Issuer, str | None], AccessToken] = {}
        self._forced_at: dict[str, float] = {}

    def replace(
        self,
        appid: str,
        *,
        issuer: Issuer,
        now: float,
        overlap_s: float,
        component: str | None = None,
    ) -> AccessToken:
        """Issue a new token; the earlier one stays valid for `overlap_s` at most."""
        earlier = self._latest.get((appid, issuer, component))
        if earlier is not None and now + overlap_s < earlier.expires_at:
            earlier.replaced = True
            earlier.expires_at = now + overlap_s
        value = f"92_{secrets.token_urlsafe(96)}"
        token = AccessToken(appid, value, now + TOKEN_LIFETIME_S, issuer, component)
        self._issued[token.value] = token
        self._latest[appid, issuer, component] = token
        return token

    def stable(self, appid: str, *, now: float) -> AccessToken:
        """The stable token: the same one until five minutes before its end."""
        latest = self._latest.get((appid, "stable", None))
        if latest is not None and now < latest.expires_at - OVERLAP_S:
            return latest
        return self.replace(appid, issuer="stable", now=now, overlap_s=OVERLAP_S)

    def force(self, appid: str, *, now: float) -> AccessToken:
        """Issue a stable token and end the earlier one; within 30 s, the earlier one stays."""
        forced_at = self._forced_at.get(appid)
        if forced_at is not None and now - forced_at < FORCE_INTERVAL_S:
            return self.stable(appid, now=now)
        self._forced_at[appid] = now
        return self.replace(appid, issuer="stable", now=now, overlap_s=0)

    def expire(self, appid: str, *, now: float) -> None:
        """Expire every token of this app."""
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
        """Use the code; raises 40163 the second time and 40029 when it is too old."""
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
