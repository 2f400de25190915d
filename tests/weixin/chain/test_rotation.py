"""A refresh token that WeChat rotated is kept, whatever else stands in the answer."""

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused, TokenSourceError, TokenStoreFailed
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorizations import AUTHORIZATION_CODEC, Authorization
from prefetch_kit.weixin.third_party import ThirdParty, record_name
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import Store
from tests.weixin.chain.conftest import APPID, COMPONENT

ROOT = "/cgi-bin/component"
RENEWAL, INFO = "api_authorizer_token", "api_get_authorizer_info"
ROTATED = Secret("rotated")

Kept = Callable[[], Authorization]


@pytest.fixture
def store(stores: FileStores) -> Store[Authorization]:
    return stores.open(APPID, record_name(COMPONENT), AUTHORIZATION_CODEC)


@pytest.fixture
def kept(store: Store[Authorization]) -> Kept:
    """What is kept of the merchant."""

    def load() -> Authorization:
        found = store.load()
        assert found is not None
        return found

    return load


@pytest.fixture
def renew(
    wx: Sandbox, provider: ThirdParty, authorize: Callable[..., str]
) -> Callable[..., Secret]:
    """`renew(body)`: a renewal that is answered with this body."""
    authorize()

    def renewed(body: str | bytes, *, action: str = RENEWAL, **answer: Any) -> Secret:
        wx.inject(Fault(kind="raw", path=f"{ROOT}/{action}", body=body, **answer))
        source = provider.authorizers.token(APPID)
        return source.renew(source.get())

    return renewed


def answer(**members: object) -> str:
    return json.dumps(
        {"authorizer_access_token": "abc", "authorizer_refresh_token": "rotated", **members}
    )


LIFETIMES = [0, -1, -5, "7200", "soon", "", 7200.0, 0.5, 10**12, 30, None, True, [], {}]


@pytest.mark.parametrize("expires_in", LIFETIMES)
def test_an_odd_lifetime_loses_nothing(
    renew: Callable[..., Secret], kept: Kept, expires_in: object
) -> None:
    """The access token is used too: where it was not good any more, it is renewed then."""
    assert renew(answer(expires_in=expires_in)) == Secret("abc")
    assert kept().refresh_tokens[0] == ROTATED


@pytest.mark.parametrize(
    ("expires_in", "lasts_s"),
    [("7200", 7200), (7200.0, 7200), (10**12, 7200), (30, 30), (None, 300), (0, 300), (True, 300)],
)
def test_a_lifetime_that_cannot_be_read_is_assumed_to_be_short(
    wx: Sandbox, renew: Callable[..., Secret], kept: Kept, expires_in: object, lasts_s: float
) -> None:
    """Five minutes, the least that WeChat's pages speak of; a number as text is read."""
    renew(answer(expires_in=expires_in))
    access = kept().access
    assert access is not None
    assert access.expires_at - wx.now() == pytest.approx(lasts_s, abs=20)


def test_a_lifetime_that_is_missing(renew: Callable[..., Secret], kept: Kept) -> None:
    """As one that cannot be read."""
    assert renew(answer()) == Secret("abc")
    assert kept().refresh_tokens[0] == ROTATED


BROKEN = {
    "no access token": '{"authorizer_refresh_token": "rotated", "expires_in": 7200}',
    "a number as access token": answer(authorizer_access_token=7, expires_in=7200),
    "an empty access token": answer(authorizer_access_token="", expires_in=7200),
    "a blank in the access token": answer(authorizer_access_token="a b", expires_in=7200),
    "another merchant's": answer(authorizer_appid="wx02", expires_in=7200),
    "no number": '{"authorizer_refresh_token": "rotated", "expires_in": NaN}',
    "an infinite number": '{"authorizer_refresh_token": "rotated", "expires_in": 1e999}',
    "a long number": '{"authorizer_refresh_token": "rotated", "expires_in": 1%s}' % ("0" * 9_999),
    "a doubled key": '{"a": 1, "a": 2, "authorizer_refresh_token": "rotated"}',
    "deep": '{"authorizer_refresh_token": "rotated", "a": %s}' % ("[" * 9_000 + "]" * 9_000),
    "half a character": b'{"authorizer_refresh_token": "rotated", "a": "\xe5"}',
    "half a surrogate": '{"authorizer_refresh_token": "rotated", "a": "\\ud800"}',
    "cut": '{"authorizer_refresh_token" : "rotated", "a',
    "longer than is read": answer(a="x" * 70_000),
    "an errcode that is none": answer(errcode=None),
    "an errcode": answer(errcode=45009, errmsg="quota"),
    "busy": answer(errcode=-1, errmsg="system error"),
    "escaped": '{"authorizer_refresh_token": "\\u0072otated"}',
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_keeps_its_refresh_token(
    provider: ThirdParty, renew: Callable[..., Secret], kept: Kept, body: str | bytes
) -> None:
    """No access token comes of it, and the call fails; what was rotated is in the store by then."""
    (before,) = kept().refresh_tokens
    with pytest.raises(OutcomeUnknown, match="the rest of it is kept"):
        renew(body)
    assert kept().refresh_tokens == (ROTATED, before)
    # The sandbox knows of no rotation: it takes the one before.
    assert provider.authorizers.token(APPID).get() is not None


def test_an_answer_with_another_status_keeps_its_refresh_token(
    renew: Callable[..., Secret], kept: Kept
) -> None:
    """A proxy may have put its own status before what WeChat answered."""
    with pytest.raises(OutcomeUnknown):
        renew(answer(expires_in=7200), status=502)
    assert kept().refresh_tokens[0] == ROTATED


def test_where_nothing_can_be_stored_nothing_is_used_up(
    provider: ThirdParty, authorize: Callable[..., str], calls: Callable[[str], int]
) -> None:
    """WeChat is not asked for what could not be kept; the cause is said."""
    authorize()
    source = provider.authorizers.token(APPID)
    token, before = source.get(), calls(RENEWAL)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # no file can grow beyond that
    try:
        with pytest.raises(TokenStoreFailed, match="quota or file size limit"):
            source.renew(token)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert calls(RENEWAL) == before
    assert source.renew(token) != token


def test_two_refresh_tokens_are_both_kept(renew: Callable[..., Secret], kept: Kept) -> None:
    """Which of them counts cannot be told."""
    (before,) = kept().refresh_tokens
    with pytest.raises(OutcomeUnknown):
        renew('{"authorizer_refresh_token": "a", "authorizer_refresh_token": "b"}')
    assert kept().refresh_tokens == (Secret("b"), Secret("a"), before)


@pytest.mark.parametrize("given", [7, "a b", "", None, [], "x" * 1025])
def test_a_refresh_token_that_is_none_leaves_the_one_that_was_used(
    renew: Callable[..., Secret], kept: Kept, given: object
) -> None:
    """And the access token beside it is good."""
    before = kept().refresh_tokens
    assert renew(answer(authorizer_refresh_token=given, expires_in=7200)) == Secret("abc")
    assert kept().refresh_tokens == before


def test_an_answer_that_holds_nothing_changes_nothing(
    renew: Callable[..., Secret], kept: Kept
) -> None:
    """The outcome is unknown, and the access token of before stays."""
    before = kept()
    with pytest.raises(OutcomeUnknown, match="no authorizer_access_token"):
        renew("{}")
    assert kept() == before


CODES = {
    "lifetime": {"expires_in": None},
    "no access token": {"authorizer_access_token": None},
    "appid": {"authorizer_appid": "../x"},
    "no appid": {"authorizer_appid": None},
}


@pytest.mark.parametrize("members", CODES.values(), ids=CODES)
def test_a_code_that_is_answered_oddly_is_not_lost(
    wx: Sandbox, provider: ThirdParty, kept: Kept, members: dict[str, object]
) -> None:
    """It works once: what it gave is kept for the merchant of whom the push spoke."""
    info = json.loads(answer(authorizer_appid=APPID, expires_in=7200)) | members
    body = json.dumps({"authorization_info": info})
    wx.inject(Fault(kind="raw", path=f"{ROOT}/api_query_auth", body=body))
    assert provider.authorizers.accept(Secret("code"), since=1.0, merchant=APPID) == APPID
    assert kept().refresh_tokens == (ROTATED,)


def shows(wx: Sandbox, refresh_token: str) -> None:
    """Let api_get_authorizer_info show this refresh token."""
    info = {"authorizer_appid": APPID, "authorizer_refresh_token": refresh_token, "func_info": []}
    body = json.dumps({"authorizer_info": {"nick_name": "x"}, "authorization_info": info})
    wx.inject(Fault(kind="raw", path=f"{ROOT}/{INFO}", body=body))


def test_a_lost_refresh_token_is_asked_for_alone(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Callable[..., str],
    kept: Kept,
    calls: Callable[[str], int],
) -> None:
    """One call about this merchant, not one for each 200 of the platform."""
    authorize()
    source = provider.authorizers.token(APPID)
    token = source.get()
    wx.replace_refresh_token(COMPONENT, APPID)
    shows(wx, wx.refresh_token(COMPONENT, APPID))
    assert source.renew(token) != token
    assert kept().refresh_tokens[0] == Secret(wx.refresh_token(COMPONENT, APPID))
    assert calls("api_get_authorizer_list") == 0


def test_what_is_shown_and_refused_is_looked_for_in_the_list(
    wx: Sandbox, provider: ThirdParty, authorize: Callable[..., str], kept: Kept
) -> None:
    """The one answer may be older than the other."""
    authorize()
    source = provider.authorizers.token(APPID)
    token = source.get()
    wx.replace_refresh_token(COMPONENT, APPID)
    shows(wx, "old")
    assert source.renew(token) != token
    assert Secret("old") not in kept().refresh_tokens


def test_a_merchant_who_took_it_back_is_not_looked_for(
    wx: Sandbox,
    provider: ThirdParty,
    authorize: Callable[..., str],
    store: Store[Authorization],
    kept: Kept,
    calls: Callable[[str], int],
) -> None:
    """WeChat says so itself, and the list need not be read."""
    authorize()
    with store.lock():
        store.save(replace(kept(), refresh_tokens=(), access=None))
    wx.inject(Fault(kind="errcode", path=f"{ROOT}/{INFO}", errcode=61003))
    with pytest.raises(TokenSourceError, match="or took that back") as caught:
        provider.authorizers.token(APPID).get()
    assert caught.value.remedy.startswith("Let the merchant authorize the platform")
    assert calls("api_get_authorizer_list") == 0


def test_a_busy_wechat_is_asked_again_rather_than_for_the_list(
    wx: Sandbox, provider: ThirdParty, calls: Callable[[str], int]
) -> None:
    """-1 passes, and the list takes a hundred calls."""
    wx.inject(Fault(kind="errcode", path=f"{ROOT}/{INFO}", errcode=-1))
    with pytest.raises(Refused, match="api_get_authorizer_info: -1"):
        provider.authorizers.token(APPID).get()
    assert calls("api_get_authorizer_list") == 0


def test_a_refused_component_token_is_what_the_error_is_about(
    wx: Sandbox, provider: ThirdParty, calls: Callable[[str], int]
) -> None:
    """It would be refused for the list too."""
    wx.inject(Fault(kind="errcode", path=f"{ROOT}/api_component_token", errcode=40125))
    with pytest.raises(Refused, match="the app secret is wrong"):
        provider.authorizers.token(APPID).get()
    assert calls("api_get_authorizer_list") == 0
