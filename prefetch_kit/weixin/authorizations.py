"""What a merchant's authorization gives: refresh tokens, and an access token.

developers.weixin.qq.com: the getAuthorizerRefreshToken and getAuthorizerAccessToken pages.
"""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.records import (
    Codec,
    StoredToken,
    decode_secret,
    decode_token,
)

# An appid becomes part of a file's name.
APPID_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
# One that a person wrote: an AppSecret in its column would be shown and kept as an appid is.
WRITTEN_APPID: Final = re.compile(r"wx[A-Za-z0-9_-]{1,62}\Z")
_MOST_REFRESH_TOKENS: Final = 3
_MEMBER: Final = rb'"%s"\s*:\s*("(?:[^"\\]|\\.)*")'
_APPIDS: Final = re.compile(_MEMBER % b"authorizer_appid")
_REFRESH_TOKENS: Final = re.compile(_MEMBER % b"authorizer_refresh_token")


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
        return replace(self, refresh_tokens=_newest((newest, refresh_token, *older)))

    def with_newest(self, *refresh_tokens: Secret) -> "Authorization":
        """The same, with refresh tokens to try before those it had."""
        return replace(self, refresh_tokens=_newest((*refresh_tokens, *self.refresh_tokens)))


def _newest(refresh_tokens: Iterable[Secret]) -> tuple[Secret, ...]:
    return tuple(dict.fromkeys(refresh_tokens))[:_MOST_REFRESH_TOKENS]


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


class Rescued:
    """The refresh tokens in the bytes of an answer, and the merchant they are for.

    They are looked for in the bytes: WeChat may have taken the earlier one out of use with this
    very answer, so nothing else in it, not even that it is JSON, may matter for their sake.
    """

    def __init__(self) -> None:
        self.appid: str | None = None
        self.refresh_tokens: tuple[Secret, ...] = ()

    def take(self, body: bytes) -> None:
        """Keep what is in the body of an answer, the last of several first."""
        found = filter(None, map(decode_secret, _texts(_REFRESH_TOKENS, body)))
        self.refresh_tokens = (*reversed(list(found)), *self.refresh_tokens)
        named = filter(APPID_SHAPE.match, _texts(_APPIDS, body))
        self.appid = next(named, self.appid)


def _texts(member: re.Pattern[bytes], body: bytes) -> list[str]:
    texts = []
    for literal in member.findall(body):
        with suppress(ValueError):
            texts.append(str(json.loads(literal)))
    return texts
