"""What a third-party platform asks about a merchant, and the page on which it authorizes."""

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import pytest

from prefetch_kit.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client, Provider, Receiver, Reply

APPID, COMPONENT, SECRET = "wx01", "wxplatform", "canary-component-secret"
BACK = "https://provider.example/back"


def test_a_merchants_info_brings_its_refresh_token(wx: Sandbox, provider: "Provider") -> None:
    """With the permission sets and what tells a mini program from an official account."""
    info = provider.authorized(permissions=[18, 1])
    told = provider.call("api_get_authorizer_info", authorizer_appid=APPID)
    assert told["authorization_info"] == {
        "authorizer_appid": APPID,
        "authorizer_refresh_token": info["authorizer_refresh_token"],
        "func_info": [{"funcscope_category": {"id": 18}}, {"funcscope_category": {"id": 1}}],
    }
    network = told["authorizer_info"]["MiniProgramInfo"]["network"]
    assert network["BizDomain"] == ["https://shop.example"]
    wx.switches.info_shows_refresh_token = False
    told = provider.call("api_get_authorizer_info", authorizer_appid=APPID)
    assert "authorizer_refresh_token" not in told["authorization_info"]


def test_an_official_account_is_no_mini_program(wx: Sandbox, provider: "Provider") -> None:
    """Its info lacks MiniProgramInfo, and its service type differs."""
    wx.add_app("gh01", secret="s", kind="official_account")
    wx.authorize(COMPONENT, "gh01")
    told = provider.call("api_get_authorizer_info", authorizer_appid="gh01")["authorizer_info"]
    assert "MiniProgramInfo" not in told
    assert told["service_type_info"] == {"id": 2}
    refused = provider.call("api_get_authorizer_info", authorizer_appid=APPID)
    assert refused["errcode"] == 61003


def test_options(provider: "Provider") -> None:
    """What was set is read again; unknown names and values are refused."""
    provider.authorized()
    given = {"authorizer_appid": APPID, "option_name": "location_report"}
    assert provider.call("api_get_authorizer_option", **given)["option_value"] == "0"
    assert provider.call("api_set_authorizer_option", **given, option_value="2")["errcode"] == 0
    assert provider.call("api_get_authorizer_option", **given)["option_value"] == "2"
    assert provider.call("api_set_authorizer_option", **given, option_value="9")["errcode"] == 61013
    given["option_name"] = "unknown"
    assert provider.call("api_get_authorizer_option", **given)["errcode"] == 61012


def test_the_component_token_by_either_name(provider: "Provider", client: "Client") -> None:
    """Newer pages name it access_token."""
    token = provider.component_token()["component_access_token"]
    path = "/cgi-bin/component/api_create_preauthcode"
    for name in ("access_token", "component_access_token"):
        answer = client.post(path, {"component_appid": COMPONENT}, **{name: token})
        assert answer["pre_auth_code"].startswith("preauthcode@@@")
        assert answer["expires_in"] == 1800


def page(client: "Client", pre_auth_code: str, *, form: str = "", **changed: str) -> "Reply":
    query = {"component_appid": COMPONENT, "pre_auth_code": pre_auth_code, "redirect_uri": BACK}
    path = f"/cgi-bin/componentloginpage?{urlencode(query | changed)}"
    if not form:
        return client.send("GET", path)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return client.send("POST", path, form.encode(), headers=headers)


def test_the_page_redirects_with_an_authorization_code(
    wx: Sandbox, provider: "Provider", client: "Client", receiver: "Receiver"
) -> None:
    """The link, the choice of an account, the push, the redirect, the exchange of its code."""
    code = provider.call("api_create_preauthcode")["pre_auth_code"]
    assert f'value="{APPID}"'.encode() in page(client, code).body
    reply = page(client, code, form=f"appid={APPID}", redirect_uri=f"{BACK}?state=1")
    assert reply.status == 302
    address, _, query = reply.headers["Location"].partition("?")
    brought = dict(parse_qsl(query))
    assert (address, brought["state"], brought["expires_in"]) == (BACK, "1", "3600")
    pushed = receiver.event()
    assert (pushed["InfoType"], pushed["PreAuthCode"]) == ("authorized", code)
    assert pushed["AuthorizationCode"] == brought["auth_code"]
    info = provider.call("api_query_auth", authorization_code=brought["auth_code"])
    assert info["authorization_info"]["authorizer_appid"] == APPID


def test_the_redirect_may_have_a_code_of_its_own(
    wx: Sandbox, provider: "Provider", client: "Client", receiver: "Receiver"
) -> None:
    """Then each of the two can be exchanged."""
    wx.switches.own_redirect_code = True
    code = provider.call("api_create_preauthcode")["pre_auth_code"]
    reply = page(client, code, form=f"appid={APPID}&permissions=18&permissions=1")
    brought = dict(parse_qsl(reply.headers["Location"].partition("?")[2]))["auth_code"]
    for each in (receiver.event()["AuthorizationCode"], brought):
        answer = provider.call("api_query_auth", authorization_code=each)
        assert len(answer["authorization_info"]["func_info"]) == 2


@pytest.mark.parametrize(
    ("form", "changed", "said"),
    [
        ("appid=wx01", {"pre_auth_code": "old"}, b"pre_auth_code"),
        ("appid=wx01", {"redirect_uri": "javascript:alert(1)"}, b"redirect_uri"),
        ("appid=wx01", {"redirect_uri": "http://[/"}, b"redirect_uri"),
        ("appid=wx01", {"auth_type": "1"}, b"'wx01' cannot be chosen"),
        ("appid=wx01", {"biz_appid": "wx02"}, b"'wx01' cannot be chosen"),
        ("appid=nobody", {}, b"'nobody' cannot be chosen"),
        ("", {"component_appid": "nobody"}, b"'nobody' is not known"),
    ],
)
def test_links_that_lead_nowhere(
    provider: "Provider", client: "Client", form: str, changed: dict[str, str], said: bytes
) -> None:
    """A sentence instead of a redirect, and nobody has authorized."""
    code = provider.call("api_create_preauthcode")["pre_auth_code"]
    reply = page(client, **({"pre_auth_code": code, "form": form} | changed))
    assert reply.status == 400
    assert said in reply.body
    assert provider.call("api_get_authorizer_list", offset=0, count=1)["total_count"] == 0


def test_a_pre_auth_code_ends_after_half_an_hour(
    wx: Sandbox, provider: "Provider", client: "Client"
) -> None:
    """The link is then of no use."""
    code = provider.call("api_create_preauthcode")["pre_auth_code"]
    wx.advance(1800)
    assert page(client, code, form=f"appid={APPID}").status == 400
    with pytest.raises(SandboxError, match="pre_auth_code"):
        wx.confirm_authorization(COMPONENT, APPID, pre_auth_code=code)


def test_tickets_stop_and_start_again(
    wx: Sandbox, provider: "Provider", client: "Client", receiver: "Receiver", until: Any
) -> None:
    """After failures none comes by itself, until api_start_push_ticket is called."""
    wx.switches.ticket_failures = 2
    receiver.answer = b"oops"
    for _ in range(2):
        wx.push_ticket(COMPONENT)
    wx.advance(3600)
    wx.push_due_tickets()
    assert len(wx.pushes()) == 2
    receiver.answer = b"success"
    path = "/cgi-bin/component/api_start_push_ticket"
    given = {"component_appid": COMPONENT, "component_secret": SECRET}
    assert client.post(path, given | {"component_secret": "wrong"})["errcode"] == 40125
    assert client.post(path, given)["errcode"] == 0
    until(lambda: len(wx.pushes()) > 2)
    assert wx.pushes()[-1].accepted


def test_a_login_from_an_address_that_is_not_allowed(
    wx: Sandbox, provider: "Provider", client: "Client"
) -> None:
    """40090 concerns logins through the platform alone."""
    provider.authorized()
    token = provider.component_token()["component_access_token"]
    query = {"appid": APPID, "grant_type": "authorization_code", "component_appid": COMPONENT}
    query |= {"js_code": wx.login_code(APPID, "o1"), "access_token": token}
    wx.deny(COMPONENT, 40090)
    assert client.get("/sns/component/jscode2session", **query)["errcode"] == 40090
    assert "pre_auth_code" in provider.call("api_create_preauthcode", token=token)
    wx.deny(COMPONENT, None)
    assert client.get("/sns/component/jscode2session", **query)["openid"] == "o1"


def test_quotas_are_cleared_ten_times_a_month(wx: Sandbox, client: "Client") -> None:
    """A used-up quota of the day starts anew; the eleventh time is refused."""
    wx.switches.fetchdatasetting_per_day = 1
    token = wx.access_token(APPID)
    clear = {"appid": APPID}
    for _ in range(10):
        assert client.fetchdatasetting(action="get")["errcode"] == 0
        assert client.fetchdatasetting(action="get")["errcode"] == 45009
        assert client.post("/cgi-bin/clear_quota", clear, access_token=token)["errcode"] == 0
    given = {"appid": APPID, "appsecret": "canary-app-secret"}
    assert client.post("/cgi-bin/clear_quota/v2", given)["errcode"] == 48006
    wx.advance(32 * 86_400)
    assert client.post("/cgi-bin/clear_quota/v2", given)["errcode"] == 0
    assert client.post("/cgi-bin/clear_quota/v2", {"appid": APPID})["errcode"] == 40125
    token = wx.access_token(APPID)
    wrong = client.post("/cgi-bin/clear_quota", {"appid": "wx02"}, access_token=token)
    assert wrong["errcode"] == 40013


def test_a_platform_clears_its_own_quotas(provider: "Provider") -> None:
    """With its own token."""
    assert provider.call("clear_quota")["errcode"] == 0


def test_server_domains_are_another_list(provider: "Provider", client: "Client") -> None:
    """Added, read, overwritten; with scheme and perhaps port; unknown to fetchdatasetting."""
    token = provider.authorized()["authorizer_access_token"]

    def modify(action: str, **lists: list[str]) -> dict[str, Any]:
        return client.post("/wxa/modify_domain", {"action": action, **lists}, access_token=token)

    api, socket = ["https://api.example"], ["wss://api.example:8443"]
    assert modify("add", requestdomain=api, wsrequestdomain=socket)["errcode"] == 0
    shown = modify("get")
    assert (shown["requestdomain"], shown["wsrequestdomain"]) == (api, socket)
    assert shown["uploaddomain"] == []
    assert modify("add", requestdomain=api)["errcode"] == 85017
    assert modify("add", requestdomain=["http://b.example"])["errcode"] == 85017
    assert modify("add", requestdomain=["https://1.2.3.4"])["errcode"] == 85017
    assert modify("set", requestdomain=["https://b.example"])["wsrequestdomain"] == []
    half = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://b.example/p"}
    body = {"action": "set_pre_fetch", **half}
    answer = client.post("/wxa/fetchdatasetting", body, access_token=token)
    assert answer["errcode"] == 9410016
