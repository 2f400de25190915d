"""Every error code of the platform: its row in the table, its real cause, its handling."""

from collections.abc import Callable, Mapping

import pytest

from prefetch_kit.errors import DomainRefused, QuotaReached, Refused, SystemBusy, TokenRejected
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.errcodes import ERRCODES, refusal
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import TokenSource
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
SECRET = "canary-app-secret"
SETTINGS = "/wxa/fetchdatasetting"
GET = {"action": "get"}
PRE = {"action": "set_pre_fetch", "is_pre_fetch_open": True}

# As WeChat's pages list them: getFetchdataSetting, getStableAccessToken, code2Session.
SETTINGS_CODES = {-1, 9410013, 9410014, 9410016, 9410017, 40166, 40001, 40014, 42001, 41001}
SETTINGS_CODES |= {43002, 44002, 47001, 40164, 61004, 45009, 45011, 48001, 61007, 61003}
SETTINGS_CODES |= {61014, 61015, 61023}
TOKEN_CODES = {40013, 40125, 40164, 40243, 89503, 89501, 89506, 89507}
LOGIN_CODES = {40029, 40163, 45011, 40226, 40090, -1}

CLASSES = {
    **dict.fromkeys((40001, 40014, 42001), (TokenRejected, "renew")),
    45009: (QuotaReached, "quota_day"),
    45011: (QuotaReached, "quota_minute"),
    -1: (SystemBusy, "transient"),
    9410016: (DomainRefused, "permanent"),
}
CALLS = {-1: 3, 45011: 2, 40001: 2, 40014: 2, 42001: 2}

Cause = Callable[[Sandbox, Transport], object]


def ask(
    wx: Sandbox,
    transport: Transport,
    body: Mapping[str, object] = GET,
    *,
    token: str | None = None,
) -> object:
    query = {"access_token": token or wx.access_token(APPID)}
    return transport.call("settings", "POST", SETTINGS, query=query, body=body)


def ask_for_token(transport: Transport, **changed: str) -> object:
    body = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET, **changed}
    return transport.call("stable_token", "POST", "/cgi-bin/stable_token", query={}, body=body)


def log_in(transport: Transport, code: str) -> object:
    query = {"grant_type": "authorization_code", "appid": APPID, "secret": SECRET}
    login = {**query, "js_code": code}
    return transport.call("jscode2session", "GET", "/sns/jscode2session", query=login)


def with_expired_token(wx: Sandbox, transport: Transport) -> object:
    token = wx.access_token(APPID)
    wx.expire_tokens(APPID)
    return ask(wx, transport, token=token)


def as_another_account(wx: Sandbox, transport: Transport) -> object:
    wx.add_app("gh01", secret="s", kind="officialaccount")
    return ask(wx, transport, token=wx.access_token("gh01"))


def as_blocked_user(wx: Sandbox, transport: Transport) -> object:
    wx.add_user(APPID, "o2", blocked=True)
    return log_in(transport, wx.login_code(APPID, "o2"))


def with_used_code(wx: Sandbox, transport: Transport) -> object:
    code = wx.login_code(APPID, "o1")
    log_in(transport, code)
    return log_in(transport, code)


def with_quotas_of_none(wx: Sandbox, transport: Transport, *, quota: str) -> object:
    setattr(wx.switches, f"fetchdatasetting_per_{quota}", 0)
    return ask(wx, transport)


def denied(errcode: int) -> Cause:
    def provoke(wx: Sandbox, transport: Transport) -> object:
        wx.deny(APPID, errcode)
        return ask_for_token(transport) if errcode == 40243 else ask(wx, transport)

    return provoke


def scripted(errcode: int) -> Cause:
    def provoke(wx: Sandbox, transport: Transport) -> object:
        wx.inject(Fault(kind="errcode", errcode=errcode))
        return ask(wx, transport)

    return provoke


CAUSES: dict[int, Cause] = {
    40001: lambda wx, transport: ask(wx, transport, token="x" * 40),
    40002: lambda _, transport: ask_for_token(transport, grant_type="other"),
    40013: lambda _, transport: ask_for_token(transport, appid="wx99"),
    40014: lambda wx, transport: ask(wx, transport, token="short"),
    40029: lambda _, transport: log_in(transport, "never-issued"),
    40125: lambda _, transport: ask_for_token(transport, secret="wrong"),
    40163: with_used_code,
    40166: as_another_account,
    40226: as_blocked_user,
    41001: lambda _, transport: transport.call("get", "POST", SETTINGS, query={}, body={}),
    41002: lambda _, transport: ask_for_token(transport, appid=""),
    41004: lambda _, transport: ask_for_token(transport, secret=""),
    42001: with_expired_token,
    43002: lambda _, transport: transport.call("get", "GET", "/cgi-bin/stable_token", query={}),
    44002: lambda _, transport: transport.call("get", "POST", "/cgi-bin/stable_token", query={}),
    45009: lambda wx, transport: with_quotas_of_none(wx, transport, quota="day"),
    45011: lambda wx, transport: with_quotas_of_none(wx, transport, quota="minute"),
    47001: lambda wx, transport: ask(wx, transport, {**PRE, "is_pre_fetch_open": "yes"}),
    9410013: lambda wx, transport: ask(wx, transport, {"action": "nonsense"}),
    9410014: lambda wx, transport: ask(wx, transport, {**PRE, "pre_fetch_type": 2}),
    9410016: lambda wx, transport: ask(
        wx, transport, {**PRE, "pre_fetch_type": 0, "pre_fetch_url": "https://other.example/"}
    ),
    9410017: lambda wx, transport: ask(
        wx, transport, {**PRE, "pre_fetch_type": 1, "pre_env": "a b"}
    ),
    **{errcode: denied(errcode) for errcode in (40164, 40243, 48001, 61003, 61004, 61007)},
}


def test_the_table_holds_every_code_the_pages_list() -> None:
    """No documented code ends as an unknown one."""
    assert ERRCODES.keys() >= SETTINGS_CODES | TOKEN_CODES | LOGIN_CODES


@pytest.mark.parametrize("errcode", ERRCODES)
def test_each_code_becomes_its_error(wx: Sandbox, transport: Transport, errcode: int) -> None:
    """A code that really came over the wire has its class, kind and remedy, and its rid apart."""
    expected, kind = CLASSES.get(errcode, (Refused, "permanent"))
    with pytest.raises(Refused) as caught:
        CAUSES.get(errcode, scripted(errcode))(wx, transport)
    refused = caught.value
    assert (type(refused), refused.errcode, refused.kind) == (expected, errcode, kind)
    assert wx.requests()[-1].errcode == errcode
    assert len(refused.meaning) > 10 < len(refused.remedy)
    assert refused.rid is not None
    assert refused.errmsg
    assert "rid" not in refused.errmsg
    assert str(refused).count(refused.rid) == 1


@pytest.mark.parametrize("errcode", [*ERRCODES, 40066, 2**31 - 1])
def test_each_code_is_repeated_as_its_kind_allows(
    wx: Sandbox,
    numbered: TokenSource,
    settings_of: Callable[[TokenSource], SettingsApi],
    calls: Callable[[], int],
    errcode: int,
) -> None:
    """Busy: twice more; wrong token and full minute: once more; everything else: never."""
    wx.inject(Fault(kind="errcode", errcode=errcode, times=None))
    with pytest.raises(Refused, match=str(errcode)):
        settings_of(numbered).get()
    assert calls() == CALLS.get(errcode, 1)


def test_a_code_nobody_listed_is_permanent_and_says_so(wx: Sandbox, transport: Transport) -> None:
    """An unknown code stops the work, is shown, and leads to WeChat's own pages."""
    with pytest.raises(Refused) as caught:
        scripted(123456)(wx, transport)
    assert (type(caught.value), caught.value.kind) == (Refused, "permanent")
    assert "123456, a code that is not in the table" in str(caught.value)
    assert "developers.weixin.qq.com" in caught.value.remedy


@pytest.mark.parametrize("action", ["stable_token", "jscode2session"])
def test_40001_of_a_call_with_the_secret_is_about_the_secret(action: str) -> None:
    """There it is permanent: no token was sent that could be renewed."""
    refused = refusal(action, 40001, "invalid credential")
    assert (type(refused), refused.kind, refused.errcode) == (Refused, "permanent", 40001)
    assert "secret" in refused.meaning
    assert "secret" in refused.remedy


@pytest.mark.parametrize(
    ("errmsg", "shown", "rid"),
    [
        ("system error rid: 5f7d-1a-2b", "system error", "5f7d-1a-2b"),
        ("invalid code, rid: 5f7d", "invalid code", "5f7d"),
        ("rid: 5f7d", "", "5f7d"),
        ("hybrid: 5f7d", "hybrid: 5f7d", None),
        ("a rid: 1 in the middle", "a rid: 1 in the middle", None),
        ("two\nlines\x1b[31m", "two lines [31m", None),
        ("", "", None),
    ],
)
def test_the_rid_is_cut_out_of_the_message(errmsg: str, shown: str, rid: str | None) -> None:
    """Only a rid at the end is one; control characters never reach a terminal."""
    refused = refusal("get", -1, errmsg)
    assert (refused.errmsg, refused.rid) == (shown, rid)


def test_a_long_message_is_cut_but_keeps_its_rid() -> None:
    """300 characters of foreign text are enough; the rid behind them is not lost."""
    refused = refusal("get", -1, "no " * 300 + "rid: 5f7d")
    assert (len(refused.errmsg), refused.rid) == (300, "5f7d")


@pytest.mark.parametrize("echo", ["{}", "bad {} rid: 1-2", "rid: {}", "cut {:.12}"])
def test_a_secret_that_weixin_echoes_is_masked(echo: str) -> None:
    """Not even a part of what was sent is repeated, as message or as rid."""
    secret = "canary-0123456789abcdef"
    refused = refusal("get", 40001, echo.format(secret), secrets=[Secret(secret)])
    assert secret[:12] not in f"{refused}{refused.errmsg}{refused.rid}"
