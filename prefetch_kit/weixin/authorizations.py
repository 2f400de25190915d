"""What a merchant's authorization gives: refresh tokens, and an access token.

developers.weixin.qq.com: the getAuthorizerRefreshToken and getAuthorizerAccessToken pages.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.records import (
    Codec,
    StoredToken,
    decode_secret,
    decode_token,
)
from prefetch_kit.weixin.tokens import read_token

# An appid becomes part of a file's name.
APPID_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MOST_REFRESH_TOKENS: Final = 3


@dataclass(frozen=True, slots=True)
class Authorization:
    """One merchant's authorization, stored as one record, so that it is written in one step.

    `refresh_tokens` are the newest, those that came late, and the one before it, three at most;
    empty where the merchant took the authorization back. `since` is when the authorization last
    changed, in WeChat's seconds. `code` is the authorization code of that change, until it is
    exchanged for tokens.
    """

    refresh_tokens: tuple[Secret, ...]
    access: StoredToken | None
    since: float
    code: Secret | None = None

    def with_fallback(self, refresh_token: Secret) -> "Authorization":
        """The same, with a refresh token to try where the newest is refused."""
        newest, *older = self.refresh_tokens
        known = tuple(dict.fromkeys((newest, refresh_token, *older)))
        return replace(self, refresh_tokens=known[:_MOST_REFRESH_TOKENS])


def _encode(authorization: Authorization) -> str:
    plain: dict[str, object] = {
        "refresh_tokens": [each.reveal() for each in authorization.refresh_tokens],
        "since": authorization.since,
    }
    if authorization.access is not None:
        plain["access_token"] = authorization.access.value.reveal()
        plain["expires_at"] = authorization.access.expires_at
    if authorization.code is not None:
        plain["code"] = authorization.code.reveal()
    return json.dumps(plain)


def _decode(plain: Mapping[str, object]) -> Authorization | None:
    listed, since = plain.get("refresh_tokens"), plain.get("since")
    if not isinstance(listed, list) or not isinstance(since, float | int):
        return None
    refresh_tokens = tuple(filter(None, map(decode_secret, listed)))
    if len(refresh_tokens) != len(listed):
        return None
    return Authorization(
        refresh_tokens, decode_token(plain), since, decode_secret(plain.get("code"))
    )


def _merge(one: Authorization, other: Authorization) -> Authorization:
    """The one that changed or was renewed last, with the other's refresh token as a fallback."""
    if _age(one) >= _age(other):
        return one
    if one.since < other.since or not (one.refresh_tokens and other.refresh_tokens):
        return other
    return other.with_fallback(one.refresh_tokens[0])


def _age(authorization: Authorization) -> tuple[float, float]:
    access = authorization.access
    return authorization.since, 0.0 if access is None else access.expires_at


AUTHORIZATION_CODEC: Final = Codec(_encode, _decode, _merge)


@dataclass(frozen=True, slots=True)
class Issued:
    """What WeChat gives for a code or a refresh token.

    `refresh_token` is None where the one that was used stays valid.
    """

    appid: str | None
    access: StoredToken
    refresh_token: Secret | None


def read_issued(answer: object, asked_at: float) -> Issued | None:
    """What api_authorizer_token answers, and what is inside api_query_auth's; None if unreadable.

    A refresh token that cannot be one makes it unreadable: without it, the merchant is lost.
    """
    if not isinstance(answer, dict):
        return None
    access = read_token(answer, asked_at, name="authorizer_access_token")
    appid, refresh_token = answer.get("authorizer_appid"), answer.get("authorizer_refresh_token")
    if appid is not None and not (isinstance(appid, str) and APPID_SHAPE.match(appid)):
        return None
    secret = decode_secret(refresh_token)
    if access is None or (secret is None and refresh_token not in (None, "")):
        return None
    return Issued(appid, access, secret)
