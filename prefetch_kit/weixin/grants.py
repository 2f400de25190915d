"""What a merchant's authorization gives: refresh tokens, and an access token.

developers.weixin.qq.com: the getAuthorizerRefreshToken and getAuthorizerAccessToken pages.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_store import Codec, StoredToken, decode_secret, decode_token
from prefetch_kit.weixin.tokens import read_token

# It becomes part of a file's name.
APPID_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Grant:
    """One merchant's authorization, kept as one record, so that it is written in one step.

    `refresh_tokens` are the newest, those that came late, and the one before it, three at most;
    none where the merchant took the authorization back. `since` is when the authorization last
    changed, in WeChat's seconds. `code` is what that change gave, until it is exchanged for
    tokens.
    """

    refresh_tokens: tuple[Secret, ...]
    access: StoredToken | None
    since: float
    code: Secret | None = None


def _encode(grant: Grant) -> str:
    plain: dict[str, object] = {
        "refresh_tokens": [each.reveal() for each in grant.refresh_tokens],
        "since": grant.since,
    }
    if grant.access is not None:
        plain["access_token"] = grant.access.value.reveal()
        plain["expires_at"] = grant.access.expires_at
    if grant.code is not None:
        plain["code"] = grant.code.reveal()
    return json.dumps(plain)


def _decode(plain: Mapping[str, object]) -> Grant | None:
    listed, since = plain.get("refresh_tokens"), plain.get("since")
    if not isinstance(listed, list) or not isinstance(since, float | int):
        return None
    refresh_tokens = tuple(filter(None, map(decode_secret, listed)))
    if len(refresh_tokens) != len(listed):
        return None
    return Grant(refresh_tokens, decode_token(plain), since, decode_secret(plain.get("code")))


GRANT_CODEC = Codec(_encode, _decode)


@dataclass(frozen=True, slots=True)
class Given:
    """What a code or a refresh token was exchanged for; no refresh token is: it stays the same."""

    appid: str | None
    access: StoredToken
    refresh_token: Secret | None


@dataclass(frozen=True, slots=True)
class Listed:
    """One merchant in the platform's list.

    `refresh_token` is None where WeChat shows none, as it does until api_query_auth was called
    once. `since` is when the merchant authorized, in WeChat's seconds.
    """

    appid: str
    refresh_token: Secret | None
    since: float


def read_given(answer: object, asked_at: float) -> Given | None:
    """What api_authorizer_token answers, and what is inside api_query_auth's; None if unreadable.

    A refresh token that cannot be one makes it unreadable: without it, the merchant is lost.
    """
    if not isinstance(answer, dict):
        return None
    access = read_token(answer, asked_at, name="authorizer_access_token")
    appid, refresh_token = answer.get("authorizer_appid"), answer.get("authorizer_refresh_token")
    if access is None or not (appid is None or APPID_SHAPE.match(str(appid))):
        return None
    if refresh_token in (None, ""):
        return Given(appid, access, None)
    secret = decode_secret(refresh_token)
    return None if secret is None else Given(appid, access, secret)


def read_list(answer: Mapping[str, object]) -> tuple[int, list[Listed]] | None:
    """How many merchants there are, and those on this page; None if unreadable."""
    try:
        page = _PageSchema().load(answer)
    except ValidationError:
        return None
    return page["total_count"], [
        Listed(
            each["authorizer_appid"], decode_secret(each.get("refresh_token")), each["auth_time"]
        )
        for each in page["list"]
    ]


class _MerchantSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    authorizer_appid = fields.String(required=True, validate=validate.Regexp(APPID_SHAPE))
    refresh_token = fields.String(allow_none=True)
    auth_time = fields.Integer(strict=True, load_default=0)


class _PageSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    total_count = fields.Integer(required=True, strict=True)
    list = fields.List(fields.Nested(_MerchantSchema), required=True)
