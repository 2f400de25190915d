"""fetchdatasetting: what may be set, what is refused, what `get` shows."""

import json
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client

APPID = "wx01"
URL = "https://shop.example/prefetch/pre_fetch"
PRE_FETCH = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": URL}
PERIOD_CLOUD = {
    "is_period_fetch_open": False,
    "period_fetch_type": 1,
    "period_env": "test-pfyol",
    "period_function_name": "login",
}
OK = {"errcode": 0, "errmsg": "ok"}


def test_never_configured_halves_are_absent(client: "Client") -> None:
    """A fresh app shows no fields at all, not false ones."""
    assert client.fetchdatasetting(action="get") == OK


def test_what_is_set_can_be_got(wx: Sandbox, client: "Client") -> None:
    """Each half is stored as sent and leaves the other alone."""
    assert client.set_pre_fetch() == OK
    assert client.fetchdatasetting(action="get") == OK | PRE_FETCH
    assert client.fetchdatasetting(action="set_period_fetch", **PERIOD_CLOUD) == OK
    assert client.fetchdatasetting(action="get") == OK | PRE_FETCH | PERIOD_CLOUD
    assert wx.settings(APPID) == PRE_FETCH | PERIOD_CLOUD


def test_changing_the_source_forgets_the_old_ones_fields(client: "Client") -> None:
    """After a change to a cloud function no url is shown."""
    client.set_pre_fetch()
    client.set_pre_fetch(pre_fetch_type=1, pre_env="e", pre_function_name="f")
    shown = client.fetchdatasetting(action="get")
    assert shown["pre_function_name"] == "f"
    assert "pre_fetch_url" not in shown


def test_get_leaves_out_fields_of_the_inactive_source(wx: Sandbox, client: "Client") -> None:
    """Even where both sources were filled in by hand, one is shown."""
    wx.put_settings(APPID, PRE_FETCH | {"pre_env": "e", "pre_function_name": "f"})
    assert client.fetchdatasetting(action="get") == OK | PRE_FETCH


@pytest.mark.parametrize("action", [None, "", "set", " set_pre_fetch", "“ set_pre_fetch”", 1])
def test_bad_action(client: "Client", action: object) -> None:
    """Anything but the three clean words is no action."""
    assert client.fetchdatasetting(action=action)["errcode"] == 9410013


@pytest.mark.parametrize("source", [None, 2, -1, "0", True, False, 0.0])
def test_bad_fetch_type(client: "Client", source: object) -> None:
    """The source is the number 0 or 1, and nothing that merely resembles it."""
    assert client.set_pre_fetch(pre_fetch_type=source)["errcode"] == 9410014


@pytest.mark.parametrize("is_open", [None, "true", 1])
def test_open_must_be_a_boolean(client: "Client", is_open: object) -> None:
    """Whether a half is open is said with true or false, never left out."""
    assert client.set_pre_fetch(is_pre_fetch_open=is_open)["errcode"] == 47001


def test_refused_set_changes_nothing(wx: Sandbox, client: "Client") -> None:
    """A refusal changes nothing."""
    client.set_pre_fetch()
    client.set_pre_fetch(pre_fetch_url="https://other.example/")
    assert wx.settings(APPID) == PRE_FETCH


def test_switching_off_demands_a_url_too(client: "Client") -> None:
    """The platform has no short form for closing a half."""
    refused = client.set_pre_fetch(is_pre_fetch_open=False, pre_fetch_url=None)
    assert refused["errcode"] == 9410016
    assert client.set_pre_fetch(is_pre_fetch_open=False) == OK


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "missing"),
        (7, "missing"),
        ("", "missing"),
        ("https://shop.example/a b", "odd characters"),
        ("https://shop.example/\n", "odd characters"),
        ("https://shop.example/" + "a" * 1024, "too long"),
        ("https://[shop.example/", "cannot be read"),
        ("https://shop.example:x/", "cannot be read"),
        ("http://shop.example/", "https://"),
        ("https://user@shop.example/", "user name"),
        ("https://shop.example:443/", "port"),
        ("https://shop.example/#a", "fragment"),
        ("https:///x", "no host"),
        ("https://127.0.0.1/", "IP address"),
        ("https://www.shop.example/", "business domain"),
    ],
)
def test_bad_url(client: "Client", url: object, reason: str) -> None:
    """A URL the platform does not take is answered with the reason."""
    refused = client.set_pre_fetch(pre_fetch_url=url)
    assert refused["errcode"] == 9410016
    assert reason in refused["errmsg"]


def test_several_reasons_are_named_at_once(client: "Client") -> None:
    """The message holds every reason: scheme and both levels of the domain."""
    refused = client.set_pre_fetch(pre_fetch_url="http://other.example/x")
    for reason in ("https://", "third-party platform", "mini program"):
        assert reason in refused["errmsg"]


@pytest.mark.parametrize(
    ("level", "missing"), [("platform", "mini program"), ("miniprogram", "third-party platform")]
)
def test_domain_is_needed_on_both_levels(
    wx: Sandbox, client: "Client", level: Any, missing: str
) -> None:
    """Accepted on one level, the other is named as missing."""
    wx.add_domain(APPID, "two.example", level=level)
    refused = client.set_pre_fetch(pre_fetch_url="https://two.example/")
    assert refused["errmsg"].count("business domain") == 1
    assert missing in refused["errmsg"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pre_env": None},
        {"pre_env": ""},
        {"pre_env": "a b"},
        {"pre_env": "e\n"},
        {"pre_function_name": None},
        {"pre_function_name": " test_func"},
        {"pre_function_name": "f\n"},
        {"pre_function_name": 1},
    ],
)
def test_bad_env_or_function_name(client: "Client", wrong: dict[str, object]) -> None:
    """A cloud function needs an environment and a name in their own spelling."""
    fields = {"pre_fetch_type": 1, "pre_env": "e", "pre_function_name": "f"} | wrong
    assert client.set_pre_fetch(**fields)["errcode"] == 9410017


def test_account_that_is_no_mini_program(wx: Sandbox, client: "Client") -> None:
    """An official account has no such settings."""
    wx.add_app("gh01", secret="s", kind="official_account")
    token = wx.access_token("gh01")
    answer = client.post("/wxa/fetchdatasetting", {"action": "get"}, access_token=token)
    assert answer["errcode"] == 40166


@pytest.mark.parametrize("errcode", [40164, 48001, 61003, 61004, 61007])
def test_denied_app(wx: Sandbox, client: "Client", errcode: int) -> None:
    """A missing permission or a refused address, until the denial is lifted."""
    wx.deny(APPID, errcode)
    assert client.fetchdatasetting(action="get")["errcode"] == errcode
    wx.deny(APPID, None)
    assert client.fetchdatasetting(action="get") == OK


def test_own_token_can_be_refused(wx: Sandbox, client: "Client") -> None:
    """Whether a mini program's own token will do is a switch."""
    wx.switches.own_token_accepted = False
    assert client.fetchdatasetting(action="get")["errcode"] == 48001


@pytest.mark.parametrize(
    ("raw", "errcode"),
    [
        (b"", 44002),
        (b" ", 47001),
        (b"{", 47001),
        (b"[]", 47001),
        (b"\xff{}", 47001),
        (b"\xef\xbb\xbf{}", 47001),
        (b'{"a": NaN}', 47001),
        (b"[" * 100_000, 47001),
        (b'{"a": ' + b"1" * 5000 + b"}", 47001),
        (json.dumps({"a": "x" * 2**20}).encode(), 47001),
    ],
)
def test_body_that_is_no_json_object(
    wx: Sandbox, client: "Client", raw: bytes, errcode: int
) -> None:
    """An empty body has its code, every other malformed one shares another."""
    answer = client.post("/wxa/fetchdatasetting", raw, access_token=wx.access_token(APPID))
    assert answer["errcode"] == errcode


def test_settings_are_changed_by_post_only(wx: Sandbox, client: "Client") -> None:
    """A GET is refused, valid token or not."""
    answer = client.get("/wxa/fetchdatasetting", access_token=wx.access_token(APPID))
    assert answer["errcode"] == 43002


def test_put_settings_takes_wire_fields_only(wx: Sandbox) -> None:
    """A name that is not on the wire is a mistake in the test that uses it."""
    with pytest.raises(SandboxError, match="pre_fetch_open"):
        wx.put_settings(APPID, {"pre_fetch_open": True})


def test_settings_are_handed_out_as_a_copy(wx: Sandbox) -> None:
    """Changing what was handed out changes nothing stored."""
    wx.put_settings(APPID, PRE_FETCH)
    wx.settings(APPID).clear()
    assert wx.settings(APPID) == PRE_FETCH
