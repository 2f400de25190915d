"""A third-party platform in the sandbox: pushes, tokens, authorizations, refusals."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client, Provider, Receiver

APPID, COMPONENT = "wx01", "wxplatform"
SECRET, TOKEN, AES_KEY = "canary-component-secret", "canary-message-token", "k" * 43


def test_the_chain_from_ticket_to_settings(wx: Sandbox, provider: "Provider") -> None:
    """Ticket, component token, merchant's token, and a call with it where an own one is refused."""
    wx.switches.own_token_accepted = False
    info = provider.authorized()
    assert (info["authorizer_appid"], info["expires_in"]) == (APPID, 7200)
    assert info["func_info"] == [{"funcscope_category": {"id": 18}}]
    assert provider.settings(info["authorizer_access_token"]) == 0
    assert provider.settings(wx.access_token(APPID)) == 48001


def test_a_refresh_token_rotates_and_the_old_one_ends(wx: Sandbox, provider: "Provider") -> None:
    """The new one is good, the old one answers 61023, after the grace there is."""
    first = provider.authorized()["authorizer_refresh_token"]
    wx.switches.refresh_token_grace_s = 60
    second = provider.refresh(first)["authorizer_refresh_token"]
    third = provider.refresh(first)["authorizer_refresh_token"]
    assert len({first, second, third}) == 3
    wx.advance(61)
    assert provider.refresh(first)["errcode"] == 61023
    wx.switches.refresh_token_rotates = False
    assert provider.refresh(third)["authorizer_refresh_token"] == third


@pytest.mark.slow
def test_the_list_is_paged(wx: Sandbox, provider: "Provider") -> None:
    """At most 500 at a time; refresh tokens of those whose code was exchanged."""
    info = provider.authorized()
    for n in range(501):
        wx.add_app(f"wx1{n:03}", secret="s")
        wx.authorize(COMPONENT, f"wx1{n:03}")
    page = provider.call("api_get_authorizer_list", offset=0, count=500)
    assert (page["total_count"], len(page["list"])) == (502, 500)
    assert page["list"][0]["refresh_token"] == info["authorizer_refresh_token"]
    assert "refresh_token" not in page["list"][1]
    rest = provider.call("api_get_authorizer_list", offset=500, count=500)["list"]
    assert [each["authorizer_appid"] for each in rest] == ["wx1499", "wx1500"]
    assert provider.call("api_get_authorizer_list", offset=0, count=501)["errcode"] == 47001


def test_a_merchant_changes_its_mind(wx: Sandbox, provider: "Provider") -> None:
    """Authorized, changed, withdrawn: a push each; then the earlier tokens are invalid."""
    info = provider.authorized()
    assert provider.receiver.event()["InfoType"] == "component_verify_ticket"  # by its own calls
    wx.authorize(COMPONENT, APPID, permissions=[18, 1])
    assert provider.receiver.event()["InfoType"] == "updateauthorized"
    wx.revoke(COMPONENT, APPID)
    event = provider.receiver.event()
    assert (event["InfoType"], event["AuthorizerAppid"]) == ("unauthorized", APPID)
    assert provider.settings(info["authorizer_access_token"]) == 61003
    with pytest.raises(SandboxError, match="has not authorized"):
        wx.revoke(COMPONENT, APPID)


def test_an_update_that_changes_nothing(wx: Sandbox, provider: "Provider") -> None:
    """Nothing is pushed, and the refresh token stays; both are switches."""
    first = provider.authorized()["authorizer_refresh_token"]
    count = len(provider.receiver.received)
    unchanged = wx.authorize(COMPONENT, APPID)
    assert (unchanged.accepted, unchanged.attempts) == (False, 0)
    assert len(provider.receiver.received) == count
    assert wx.refresh_token(COMPONENT, APPID) == first
    wx.switches.unchanged_update_is_pushed = True
    wx.switches.update_keeps_refresh_token = False
    assert wx.authorize(COMPONENT, APPID).accepted
    assert wx.refresh_token(COMPONENT, APPID) != first
    assert provider.refresh(first)["errcode"] == 61023


def test_a_merchant_that_withdrew_gets_a_new_refresh_token(
    wx: Sandbox, provider: "Provider"
) -> None:
    """Only cancelling and authorizing anew replaces it."""
    first = provider.authorized()["authorizer_refresh_token"]
    wx.revoke(COMPONENT, APPID)
    assert provider.authorized()["authorizer_refresh_token"] != first


def test_replaced_tokens_stay_good_for_five_minutes(wx: Sandbox, provider: "Provider") -> None:
    """The platform's own, a merchant's, and the refresh token; then each has its own code."""
    component = provider.component_token()["component_access_token"]
    first = provider.authorized()
    given = {"authorizer_appid": APPID}
    given["authorizer_refresh_token"] = first["authorizer_refresh_token"]
    token = provider.component_token()["component_access_token"]
    second = provider.call("api_authorizer_token", token=token, **given)
    assert second["authorizer_refresh_token"] != first["authorizer_refresh_token"]
    wx.advance(299)
    assert "pre_auth_code" in provider.call("api_create_preauthcode", token=component)
    assert provider.settings(first["authorizer_access_token"]) == 0
    assert "expires_in" in provider.call("api_authorizer_token", token=token, **given)
    wx.advance(300)
    assert provider.call("api_create_preauthcode", token=component)["errcode"] == 40001
    assert provider.settings(first["authorizer_access_token"]) == 40001
    assert provider.call("api_authorizer_token", token=token, **given)["errcode"] == 61023


def old_ticket(wx: Sandbox, provider: "Provider") -> dict[str, Any]:
    wx.switches.ticket_every_s = None
    ticket = provider.ticket()
    wx.advance(12 * 3600)
    return provider.component_token(ticket)


def denied(wx: Sandbox, provider: "Provider") -> dict[str, Any]:
    wx.deny(COMPONENT, 61004)
    return provider.component_token()


def used_code(wx: Sandbox, provider: "Provider") -> dict[str, Any]:
    wx.authorize(COMPONENT, APPID)
    code = provider.receiver.event()["AuthorizationCode"]
    provider.call("api_query_auth", authorization_code=code)
    return provider.call("api_query_auth", authorization_code=code)


def not_granted(wx: Sandbox, provider: "Provider") -> dict[str, Any]:
    return {"errcode": provider.settings(provider.authorized(permissions=[1])[TOKEN_KEY])}


def component_token_for_settings(_: Sandbox, provider: "Provider") -> dict[str, Any]:
    return {"errcode": provider.settings(provider.component_token()["component_access_token"])}


TOKEN_KEY = "authorizer_access_token"
LIST: dict[str, Any] = {"offset": 0, "count": 1}
REFUSALS: dict[str, tuple[int, Callable[[Sandbox, "Provider"], dict[str, Any]]]] = {
    "old ticket": (61005, old_ticket),
    "wrong ticket": (61006, lambda _, provider: provider.component_token("nonsense")),
    "wrong secret": (
        40125,
        lambda _, provider: provider.component_token(component_appsecret="wrong"),
    ),
    "not a platform": (61011, lambda _, provider: provider.component_token(component_appid=APPID)),
    "another platform's token": (
        61011,
        lambda _, provider: provider.call("api_get_authorizer_list", component_appid="wx2", **LIST),
    ),
    "address": (61004, denied),
    "used code": (61010, used_code),
    "unknown code": (
        61009,
        lambda _, provider: provider.call("api_query_auth", authorization_code="nonsense"),
    ),
    "not authorized": (61003, lambda _, provider: provider.refresh("nonsense")),
    "permission": (61007, not_granted),
    "own token for the platform's call": (
        61014,
        lambda wx, provider: provider.call(
            "api_get_authorizer_list", token=wx.access_token(APPID), **LIST
        ),
    ),
    "platform's token for settings": (61015, component_token_for_settings),
    "no token": (
        41001,
        lambda _, provider: provider.client.post("/cgi-bin/component/api_query_auth", {"a": 1}),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(wx: Sandbox, provider: "Provider", name: str) -> None:
    """Each has its own cause, the way the platform's table of codes tells."""
    errcode, provoke = REFUSALS[name]
    assert provoke(wx, provider)["errcode"] == errcode


def test_login_through_the_platform(wx: Sandbox, provider: "Provider", client: "Client") -> None:
    """A code of an authorized mini program is exchanged without its secret."""
    query = {"appid": APPID, "grant_type": "authorization_code", "component_appid": COMPONENT}
    query["component_access_token"] = provider.component_token()["component_access_token"]
    path, code = "/sns/component/jscode2session", wx.login_code(APPID, "o1")
    assert client.get(path, js_code=code, **query)["errcode"] == 61003
    wx.authorize(COMPONENT, APPID)
    assert client.get(path, js_code=code, **query)["openid"] == "o1"
    assert client.get(path, js_code=code, **query)["errcode"] == 40163
    wx.switches.login_errcodes_are_strings = True
    assert client.get(path, js_code=code, **query)["errcode"] == "40163"


def test_a_push_that_is_not_answered_is_repeated_and_recorded(
    wx: Sandbox, receiver: "Receiver", platform: str
) -> None:
    """Anything but `success` is no answer; how often it is repeated is a switch."""
    wx.switches.push_retries = 2
    receiver.answer = b"<html>oops"
    pushed = wx.push_ticket(COMPONENT)
    assert (pushed.accepted, pushed.attempts, pushed.status) == (False, 3, 200)
    assert len(receiver.received) == 3
    assert wx.pushes() == [pushed]


@pytest.mark.parametrize(
    ("url", "reason"), [(None, "no receive_url"), ("https://nowhere.example/", "no origin")]
)
def test_a_push_that_has_no_way(wx: Sandbox, url: str | None, reason: str) -> None:
    """It says so, and nothing is sent anywhere."""
    wx.add_platform(COMPONENT, secret=SECRET, token=TOKEN, aes_key=AES_KEY, receive_url=url)
    assert (wx.push_ticket(COMPONENT).reason, wx.pushes()[0].attempts) == (reason, 0)


def test_tickets_come_by_themselves(
    wx: Sandbox, receiver: "Receiver", platform: str, until: Callable[[Callable[[], object]], None]
) -> None:
    """Ten minutes of the sandbox's time later, one is there."""
    wx.advance(601)
    until(lambda: receiver.received)
    assert receiver.event()["InfoType"] == "component_verify_ticket"


def test_over_http(wx: Sandbox, client: "Client", receiver: "Receiver") -> None:
    """The control API adds a platform, lets a merchant in and out, and tells of the pushes."""
    whole = {"appid": COMPONENT, "secret": SECRET, "token": TOKEN, "aes_key": AES_KEY}
    client.post("/_sandbox/platforms", whole)
    path = f"/_sandbox/platforms/{COMPONENT}"
    merchant = f"{path}/authorizers/{APPID}"
    assert client.post(f"{path}/ticket", {})["pushed"]["reason"] == "no receive_url"
    assert client.post(merchant, {"permissions": ["18"]})["error"].startswith("'permissions' has")
    assert client.post(merchant, {"permissions": [18]})["pushed"]["info_type"] == "authorized"
    assert client.send("DELETE", merchant).json()["pushed"]["info_type"] == "unauthorized"
    assert len(client.get("/_sandbox/pushes")["pushes"]) == 3


def test_nothing_secret_is_told(
    wx: Sandbox, provider: "Provider", receiver: "Receiver", told: list[str]
) -> None:
    """Neither the lines nor the log contain a secret of a platform or of WeChat."""
    info = provider.authorized()
    ticket = provider.ticket()
    said = f"{told} {wx.requests()} {wx.pushes()} {wx.state.components}"
    secrets = [SECRET, TOKEN, AES_KEY, ticket, info[TOKEN_KEY], info["authorizer_refresh_token"]]
    assert [secret for secret in secrets if secret in said] == []
    assert f"push authorized {APPID} to {COMPONENT}: success" in told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"appid": APPID}, "was added before"),
        ({"aes_key": "short"}, "aes_key"),
        ({"receive_url": "http://127.0.0.1:1/"}, "receive_url"),
    ],
)
def test_a_platform_that_cannot_be(wx: Sandbox, changed: dict[str, str], said: str) -> None:
    """What WeChat's own form would not take, with what to write instead."""
    given = {"appid": COMPONENT, "secret": SECRET, "token": TOKEN, "aes_key": AES_KEY}
    with pytest.raises(SandboxError, match=said):
        wx.add_platform(**(given | changed))
