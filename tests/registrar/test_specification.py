"""Every field and code of the getFetchdataSetting page, by its name on the wire."""

from collections.abc import Callable
from typing import Any

import pytest
import requests

from prefetch_kit.errors import DomainRefused, QuotaReached, Refused, SystemBusy, TokenRejected
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import StaticToken
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
PATH = "/wxa/fetchdatasetting"
PRE_SERVER = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/pre",
}
PRE_CLOUD = {
    "is_pre_fetch_open": False,
    "pre_fetch_type": 1,
    "pre_env": "test-pfyol",
    "pre_function_name": "test_func",
}
PERIOD_SERVER = {
    "is_period_fetch_open": False,
    "period_fetch_type": 0,
    "period_fetch_url": "https://shop.example/period",
}
PERIOD_CLOUD = {
    "is_period_fetch_open": True,
    "period_fetch_type": 1,
    "period_env": "test-pfyol",
    "period_function_name": "login",
}
HALVES: list[tuple[Kind, dict[str, object], FetchSetting]] = [
    (
        "pre_fetch",
        PRE_SERVER,
        FetchSetting(open=True, source="server", url="https://shop.example/pre"),
    ),
    (
        "pre_fetch",
        PRE_CLOUD,
        FetchSetting(
            open=False, source="cloud_function", env="test-pfyol", function_name="test_func"
        ),
    ),
    (
        "period_fetch",
        PERIOD_SERVER,
        FetchSetting(open=False, source="server", url="https://shop.example/period"),
    ),
    (
        "period_fetch",
        PERIOD_CLOUD,
        FetchSetting(open=True, source="cloud_function", env="test-pfyol", function_name="login"),
    ),
]
CODES: dict[int, tuple[type[Refused], str, int]] = {
    # errcode: our error, its kind, how often the call is made
    -1: (SystemBusy, "transient", 3),
    9410013: (Refused, "permanent", 1),
    9410014: (Refused, "permanent", 1),
    9410016: (DomainRefused, "permanent", 1),
    9410017: (Refused, "permanent", 1),
    40166: (Refused, "permanent", 1),
    40001: (TokenRejected, "renew", 1),
    40014: (TokenRejected, "renew", 1),
    42001: (TokenRejected, "renew", 1),
    41001: (Refused, "permanent", 1),
    43002: (Refused, "permanent", 1),
    44002: (Refused, "permanent", 1),
    47001: (Refused, "permanent", 1),
    40164: (Refused, "permanent", 1),
    61004: (Refused, "permanent", 1),
    45009: (QuotaReached, "quota_day", 1),
    45011: (QuotaReached, "quota_minute", 2),
    48001: (Refused, "permanent", 1),
    61007: (Refused, "permanent", 1),
    61003: (Refused, "permanent", 1),
    61014: (Refused, "permanent", 1),
    61015: (Refused, "permanent", 1),
    61023: (Refused, "permanent", 1),
}
Raw = Callable[..., dict[str, Any]]


@pytest.fixture
def raw(wx: Sandbox) -> Raw:
    """Post a body to fetchdatasetting the way any HTTP client would."""

    def post(body: object, access_token: str | None = None) -> dict[str, Any]:
        token = wx.access_token(APPID) if access_token is None else access_token
        reply = requests.post(
            wx.base_url + PATH, params={"access_token": token}, json=body, timeout=10
        )
        assert reply.status_code == 200
        answer: dict[str, Any] = reply.json()
        return answer

    return post


@pytest.mark.parametrize(("kind", "wire", "setting"), HALVES)
def test_what_we_set_is_on_the_wire(
    wx: Sandbox, api: SettingsApi, raw: Raw, kind: Kind, wire: dict[str, Any], setting: FetchSetting
) -> None:
    """Each source of each half is sent under the page's names, and nothing beside them."""
    api.put(kind, setting)
    assert wx.requests()[-1].body == {"action": f"set_{kind}", **wire}
    assert raw({"action": "get"}) == {"errcode": 0, "errmsg": "ok", **wire}


@pytest.mark.parametrize(("kind", "wire", "setting"), HALVES)
def test_what_others_set_is_read(
    api: SettingsApi, raw: Raw, kind: Kind, wire: dict[str, Any], setting: FetchSetting
) -> None:
    """What any client set is read into our names; the other half stays unknown, not off."""
    assert raw({"action": f"set_{kind}", **wire}) == {"errcode": 0, "errmsg": "ok"}
    settings = api.get()
    assert settings.for_kind(kind) == setting
    other: Kind = "period_fetch" if kind == "pre_fetch" else "pre_fetch"
    assert settings.for_kind(other) == FetchSetting()


def test_the_example_of_the_page(api: SettingsApi, raw: Raw) -> None:
    """The page's own answer: a cloud function for one half, a server for the other."""
    raw({"action": "set_pre_fetch", **PRE_CLOUD, "is_pre_fetch_open": True})
    raw({"action": "set_period_fetch", **PERIOD_SERVER, "is_period_fetch_open": True})
    settings = api.get()
    assert (settings.pre_fetch.open, settings.pre_fetch.source) == (True, "cloud_function")
    assert settings.pre_fetch.function_name == "test_func"
    assert (settings.period_fetch.open, settings.period_fetch.source) == (True, "server")


@pytest.mark.parametrize("errcode", CODES)
def test_each_code_has_its_error(wx: Sandbox, api: SettingsApi, errcode: int) -> None:
    """Errcode and errmsg arrive as attributes, beside a kind and a remedy."""
    error, kind, calls = CODES[errcode]
    wx.inject(Fault(kind="errcode", errcode=errcode, errmsg="why it is so", times=None))
    with pytest.raises(error) as caught:
        api.get()
    assert type(caught.value) is error
    assert (caught.value.errcode, caught.value.errmsg) == (errcode, "why it is so")
    assert caught.value.kind == kind
    assert caught.value.rid is not None
    assert str(errcode) in str(caught.value)
    assert caught.value.remedy in str(caught.value)
    assert wx.count(path=PATH) == calls


@pytest.mark.parametrize(
    ("body", "errcode"),
    [
        ({"action": "set_prefetch"}, 9410013),
        ({}, 9410013),
        ({"action": "set_pre_fetch", **PRE_SERVER, "pre_fetch_type": 2}, 9410014),
        ({"action": "set_period_fetch", "is_period_fetch_open": True}, 9410014),
        ({"action": "set_pre_fetch", **PRE_SERVER, "pre_fetch_url": "https://x.example"}, 9410016),
        ({"action": "set_period_fetch", **PERIOD_SERVER, "period_fetch_url": "http://a"}, 9410016),
        ({"action": "set_pre_fetch", **PRE_CLOUD, "pre_env": ""}, 9410017),
        ({"action": "set_pre_fetch", **PRE_CLOUD, "pre_function_name": None}, 9410017),
        ({"action": "set_period_fetch", **PERIOD_CLOUD, "period_env": "*"}, 9410017),
        ({"action": "set_period_fetch", **PERIOD_CLOUD, "period_function_name": ""}, 9410017),
        ({"action": "set_pre_fetch", **PRE_SERVER, "is_pre_fetch_open": "yes"}, 47001),
        ({"action": "set_period_fetch", **PERIOD_SERVER, "is_period_fetch_open": 1}, 47001),
        ([], 47001),
    ],
)
def test_a_wrong_body_is_refused(raw: Raw, body: object, errcode: int) -> None:
    """Each field is checked under its own name, and the refusal carries an errmsg."""
    answer = raw(body)
    assert answer["errcode"] == errcode
    assert answer["errmsg"]


@pytest.mark.parametrize(
    ("url", "reasons"),
    [
        ("https://x.example/p", ["third-party platform", "mini program"]),
        ("http://x.example:81/p", ["https://", "port", "third-party platform", "mini program"]),
    ],
)
def test_all_reasons_of_a_bad_domain_are_told(
    api: SettingsApi, url: str, reasons: list[str]
) -> None:
    """There can be several reasons, and the person sees all of them."""
    with pytest.raises(DomainRefused) as caught:
        api.put("pre_fetch", FetchSetting(open=True, source="server", url=url))
    assert all(reason in caught.value.errmsg for reason in reasons)


def test_caller_that_is_no_mini_program(wx: Sandbox, transport: Transport) -> None:
    """40166 comes with its own remedy."""
    wx.add_app("official", secret="s", kind="official_account")
    api = SettingsApi(
        transport, StaticToken(Secret(wx.access_token("official"))), sleep=lambda _: None
    )
    with pytest.raises(Refused, match="mini program") as caught:
        api.get()
    assert caught.value.errcode == 40166


@pytest.mark.parametrize("errcode", [40164, 48001, 61003, 61004, 61007])
def test_account_and_address_refusals(wx: Sandbox, api: SettingsApi, errcode: int) -> None:
    """Shut out by account or address, the call is made once."""
    wx.deny(APPID, errcode)
    with pytest.raises(Refused) as caught:
        api.get()
    assert (caught.value.errcode, wx.count(action="get")) == (errcode, 1)


def test_quotas(wx: Sandbox, api: SettingsApi) -> None:
    """The daily quota ends it, the minute's is waited for once."""
    wx.switches.fetchdatasetting_per_day = 0
    with pytest.raises(QuotaReached) as caught:
        api.get()
    assert (caught.value.errcode, wx.count(action="get")) == (45009, 1)
    wx.switches.fetchdatasetting_per_day = None
    wx.switches.fetchdatasetting_per_minute = 0
    with pytest.raises(QuotaReached) as caught:
        api.get()
    assert (caught.value.errcode, wx.count(action="get")) == (45011, 3)


@pytest.mark.parametrize(("token", "errcode"), [("", 41001), ("short", 40014), ("x" * 64, 40001)])
def test_access_tokens_that_are_refused(raw: Raw, token: str, errcode: int) -> None:
    """The access_token in the URL is judged before anything else."""
    assert raw({"action": "get"}, access_token=token)["errcode"] == errcode


def test_an_expired_access_token(wx: Sandbox, api: SettingsApi) -> None:
    """A fixed token that has expired is not repeated."""
    wx.expire_tokens(APPID)
    with pytest.raises(TokenRejected) as caught:
        api.get()
    assert (caught.value.errcode, wx.count(action="get")) == (42001, 1)


@pytest.mark.parametrize(
    ("method", "data", "errcode"),
    [("GET", b"{}", 43002), ("POST", b"", 44002), ("POST", b"{", 47001)],
)
def test_calls_of_the_wrong_form(wx: Sandbox, method: str, data: bytes, errcode: int) -> None:
    """Anything but a POST with a JSON object is refused."""
    query = {"access_token": wx.access_token(APPID)}
    reply = requests.request(method, wx.base_url + PATH, params=query, data=data, timeout=10)
    assert reply.json()["errcode"] == errcode
