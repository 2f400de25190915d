"""A third-party platform built on wechatpy, unchanged but for its base URL, against the sandbox."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from flask import Flask, request
from wechatpy import WeChatClientException, WeChatComponent

from prefetch_kit.sandbox import Sandbox
from tests.sandbox.conftest import AES_KEY, APPID, COMPONENT, COMPONENT_SECRET, MESSAGE_TOKEN

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client

HOST, BACK = "provider.example", "https://provider.example/back"


class Platform:
    """A service provider: wechatpy, and an app that gives it what WeChat pushes."""

    def __init__(self, wx: Sandbox) -> None:
        self.base_url = wx.base_url
        self.component: Any = WeChatComponent(COMPONENT, COMPONENT_SECRET, MESSAGE_TOKEN, AES_KEY)
        self.component.API_BASE_URL = f"{wx.base_url}/cgi-bin"
        self.component.PRE_AUTH_URL = f"{wx.base_url}/cgi-bin/componentloginpage"
        self.messages: list[Any] = []
        self.files: dict[str, str] = {}
        self.app = Flask(__name__)
        self.app.add_url_rule("/events", view_func=self.receive, methods=["POST"])
        self.app.add_url_rule("/<name>", view_func=lambda name: self.files[name])

    def receive(self) -> str:
        names = ("msg_signature", "timestamp", "nonce")
        signed = (request.args[name] for name in names)
        self.messages.append(self.component.parse_message(request.get_data(), *signed))
        return "success"

    def client(self, appid: str) -> Any:
        """wechatpy's client of a merchant."""
        client = self.component.get_client_by_appid(appid)
        client.API_BASE_URL = f"{self.base_url}/cgi-bin/"
        client.wxa.API_BASE_URL = f"{self.base_url}/"
        return client

    def post(self, path: str, body: Mapping[str, object]) -> Any:
        """A call for the merchant that wechatpy has no method for."""
        return self.client(APPID).post(f"{self.base_url}{path}", data=body)


@pytest.fixture
def platform(wx: Sandbox, serve: Callable[[Flask], str]) -> Platform:
    """It has a ticket."""
    made = Platform(wx)
    wx.map_origin(HOST, serve(made.app))
    given = {"secret": COMPONENT_SECRET, "token": MESSAGE_TOKEN, "aes_key": AES_KEY}
    wx.add_platform(COMPONENT, **given, receive_url=f"https://{HOST}/events")
    assert wx.push_ticket(COMPONENT).accepted
    return made


@pytest.fixture
def authorized(wx: Sandbox, platform: Platform) -> Platform:
    """A merchant has authorized it; wechatpy exchanged the code that was pushed."""
    assert wx.authorize(COMPONENT, APPID).accepted
    return platform


def test_a_ticket_becomes_a_component_token(platform: Platform) -> None:
    """Decrypted, verified and parsed by wechatpy."""
    (message,) = platform.messages
    assert message.verify_ticket.startswith("ticket@@@")
    assert platform.component.access_token
    assert platform.component.create_preauthcode()["expires_in"] == 1800


def test_an_authorization_by_its_link(wx: Sandbox, platform: Platform, client: "Client") -> None:
    """The link that wechatpy makes, the page, the redirect, the exchange of its code."""
    wx.switches.own_redirect_code = True  # wechatpy exchanges the pushed one by itself
    link = urlsplit(platform.component.get_pre_auth_url(BACK))
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    form = urlencode({"appid": APPID}).encode()
    reply = client.send("POST", f"{link.path}?{link.query}", form, headers=headers)
    (code,) = parse_qs(urlsplit(reply.headers["Location"]).query)["auth_code"]
    info = platform.component.query_auth(code)["authorization_info"]
    assert info["authorizer_appid"] == APPID
    pushed = platform.messages[-1]
    assert (pushed.type, pushed.authorizer_appid) == ("authorized", APPID)
    assert pushed.pre_auth_code in link.query


def test_its_merchants(wx: Sandbox, authorized: Platform) -> None:
    """The list, an account's info, an option, a renewal, and a withdrawal."""
    component = authorized.component
    page = component.get_authorizer_list()
    assert (page["total_count"], page["list"][0]["authorizer_appid"]) == (1, APPID)
    info = component.get_authorizer_info(APPID)
    assert "MiniProgramInfo" in info["authorizer_info"]
    refresh_token = info["authorization_info"]["authorizer_refresh_token"]
    assert refresh_token == page["list"][0]["refresh_token"]
    component.set_authorizer_option(APPID, "voice_recognize", "1")
    assert component.get_authorizer_option(APPID, "voice_recognize")["option_value"] == "1"
    renewed = component.refresh_authorizer_token(APPID, refresh_token)
    assert renewed["authorizer_refresh_token"] == wx.refresh_token(COMPONENT, APPID)
    wx.revoke(COMPONENT, APPID)
    assert authorized.messages[-1].type == "unauthorized"
    with pytest.raises(WeChatClientException) as refused:
        component.get_authorizer_info(APPID)
    assert refused.value.errcode == 61003


def test_a_login(wx: Sandbox, authorized: Platform) -> None:
    """A code of the merchant's user, through the platform."""
    params = {
        "appid": APPID,
        "js_code": wx.login_code(APPID, "o1"),
        "grant_type": "authorization_code",
        "component_appid": COMPONENT,
    }
    path = f"{authorized.base_url}/sns/component/jscode2session"
    login = authorized.component.get(path, params=params, data=None)
    assert (login["openid"], login["unionid"]) == ("o1", "u1")


def test_domains_and_settings(wx: Sandbox, authorized: Platform) -> None:
    """Server domains, the platform's business domains, the merchant's, then the URL itself."""
    component, wxa = authorized.component, authorized.client(APPID).wxa
    wxa.modify_domain("add", request_domain=[f"https://{HOST}"])
    assert wxa.modify_domain("get")["requestdomain"] == [f"https://{HOST}"]
    file = component.post("/component/get_domain_confirmfile", data={})
    authorized.files[file["file_name"]] = file["file_content"]
    jump = {"action": "add", "wxa_jump_h5_domain": HOST, "is_modify_published_together": True}
    answer = component.post("/component/modify_wxa_jump_domain", data=jump)
    assert HOST in answer["published_wxa_jump_h5_domain"].split(";")
    body = {"action": "set_pre_fetch", "is_pre_fetch_open": True, "pre_fetch_type": 0}
    body["pre_fetch_url"] = f"https://{HOST}/pre_fetch"
    with pytest.raises(WeChatClientException) as refused:
        authorized.post("/wxa/fetchdatasetting", body)
    assert refused.value.errcode == 9410016
    domain = {"action": "add", "webviewdomain": [f"https://{HOST}"]}
    authorized.post("/wxa/setwebviewdomain", domain)
    assert authorized.post("/wxa/fetchdatasetting", body)["errcode"] == 0
    shown = authorized.post("/wxa/fetchdatasetting", {"action": "get"})
    assert shown["pre_fetch_url"] == f"https://{HOST}/pre_fetch"


def test_expired_tokens_are_renewed_by_wechatpy(wx: Sandbox, authorized: Platform) -> None:
    """The platform's own and the merchant's, each with the code that WeChat has for it."""
    wx.expire_tokens(COMPONENT)
    wx.expire_tokens(APPID)
    assert authorized.post("/wxa/fetchdatasetting", {"action": "get"})["errcode"] == 0
    errcodes = [each.errcode for each in wx.requests()]
    assert errcodes.count(42001) == 2
    assert wx.count(path="/cgi-bin/component/api_authorizer_token") == 2


def test_ticket_pushes_are_started(wx: Sandbox, platform: Platform, until: Any) -> None:
    """wechatpy has no method for it; its session posts what the page says."""
    body = {"component_appid": COMPONENT, "component_secret": COMPONENT_SECRET}
    platform.component.post("/component/api_start_push_ticket", data=body)
    until(lambda: len(platform.messages) == 2)
